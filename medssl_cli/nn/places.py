"""What a wrong answer to "where does this voxel lie?" costs.

Shapes: N images, D coordinates, X Y Z space (X Y of slices); `...` is any of these.
"""

from typing import Final

import torch
from torch import Tensor

from medssl_cli.nn.distributed import sum_over_processes, world_size

BETA: Final = 0.1
"""Errors below this count by their square."""
WEIGHT: Final = 5.0
"""Weight of distances between places that run from -1 to 1, so that they count about as much as other losses."""


def smooth_l1(difference: Tensor, beta: float = BETA) -> Tensor:
    """Half the square over `beta` where a difference is smaller than `beta`, else its size less half of `beta`."""
    size = difference.abs()
    return torch.where(size < beta, difference.square() / (2 * beta), size - beta / 2)


def mean_distances(told: Tensor, true: Tensor, counts: Tensor) -> Tensor:
    """Smooth distance of each coordinate, [D]; its mean over processes is that over all voxels that count in all.

    Args:
        told: Predictions [N, D, ...].
        true: Targets of the same shape.
        counts: Which voxels count, of the same shape.
    """
    axes = [axis for axis in range(told.ndim) if axis != 1]
    wide = told.to(torch.promote_types(told.dtype, torch.float32))
    total = (smooth_l1(wide - true) * counts).sum(dim=axes)
    number = sum_over_processes(counts.sum(dim=axes)).clamp(min=1) / world_size()
    return total / number


def shares_explained(told: Tensor, true: Tensor, counts: Tensor) -> Tensor:
    """R squared of each coordinate over the voxels of this process that count, [D]; 0 where all truth is one number."""
    axes = [axis for axis in range(told.ndim) if axis != 1]
    number = counts.sum(dim=axes).clamp(min=1)
    means = ((true * counts).sum(dim=axes) / number).view(1, -1, *[1] * (told.ndim - 2))
    around = ((true - means).square() * counts).sum(dim=axes)
    missed = ((told.float() - true).square() * counts).sum(dim=axes)
    return torch.where(around > 0, 1 - missed / around.clamp(min=1e-12), 0.0)
