"""Damage that a network is to mend: boxes of noise, and boxes of what another image shows.

Shapes: B images of this process, M boxes of an image, C channels, X Y Z space (X Y in 2D), D axes.
"""

from typing import Final

import torch
from torch import Tensor

from medssl_cli.data.augmentation import Draws

MAX_BOXES: Final = {2: 64, 3: 256}
"""Largest number of boxes of an image; with the default sides a share of 0.3 takes about 14 in 2D and 90 in 3D."""
LEAST_SIDE: Final = 2
LOW, HIGH = 0.005, 0.995
SAMPLED: Final = 2**20


def draw_boxes(size: tuple[int, ...], batch: int, draws: Draws, *, most: float, sides: tuple[float, float]) -> Tensor:
    """Voxels in boxes at random places, drawn one after the other until they count a random share of all voxels.

    Args:
        size: Voxels along each axis.
        batch: Images of this process.
        draws: Random draws of the step.
        most: The share is uniform between 0 and this.
        sides: Sides of boxes, as shares of `size`: smallest and largest.

    Returns:
        Bool [B, X, Y, Z].
    """
    dims = len(size)
    numbers = draws.uniform((batch, MAX_BOXES[dims], 2 * dims))
    share = draws.uniform((batch, 1)) * most
    extent = torch.tensor(size, dtype=torch.float32)
    low, high = ((part * extent).round().clamp(min=LEAST_SIDE) for part in sides)
    lengths = torch.minimum((low + numbers[..., :dims] * (high - low + 1)).floor(), torch.maximum(high, low))
    lengths = torch.minimum(lengths, extent)
    starts = (numbers[..., dims:] * (extent - lengths + 1)).floor()
    counted = (lengths / extent).prod(dim=2).cumsum(dim=1)
    before = torch.cat([torch.zeros(batch, 1), counted[:, :-1]], dim=1)
    is_used = before < share
    inside = []
    for axis, length in enumerate(size):
        places = torch.arange(length)
        first, last = starts[..., axis, None], starts[..., axis, None] + lengths[..., axis, None]
        inside.append(((places >= first) & (places < last)).float())
    inside[0] = inside[0] * is_used[..., None]
    letters = "xyz"[:dims]
    equation = ",".join(f"bm{letter}" for letter in letters) + f"->b{letters}"
    return torch.einsum(equation, *inside) > 0


def noise_like(images: Tensor, noise: Tensor) -> Tensor:
    """Normal noise brought between the 0.5 and 99.5 percentiles of each channel of each image.

    Args:
        images: [B, C, X, Y, Z].
        noise: Noise of the same shape, mean 0 and variance 1.
    """
    shape = [*images.shape[:2], *[1] * (images.ndim - 2)]
    flat = images.flatten(2)
    flat = flat[..., :: max(1, flat.shape[2] // SAMPLED)].float()
    ends = torch.quantile(flat, torch.tensor([LOW, HIGH], device=flat.device), dim=2).to(images.dtype)
    low, high = (end.view(shape) for end in ends)
    least, most = (end.view(shape).to(noise) for end in torch.aminmax(noise.flatten(2), dim=2))
    return low + (noise - least) / (most - least) * (high - low)


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Images turned by quarters within the plane of their first two axes, about the third.

    Args:
        images: [B, C, X, Y, Z], x and y of equal size where an image turns.
        turns: 0 to 3, from x towards y, [B].
    """
    found = images.clone()
    for turn in (1, 2, 3):
        rows = (turns == turn).nonzero()[:, 0].to(images.device)
        found[rows] = images[rows].rot90(turn, (2, 3))
    return found
