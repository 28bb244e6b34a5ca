"""Where a crop lies in a grid, and what a wrong answer costs: VoCo's mathematics, without networks.

Wu et al., CVPR 2024, https://arxiv.org/abs/2402.17300; Wu et al., https://arxiv.org/abs/2410.09890.

Shapes: R random crops, G base crops, P projection, leading dimensions are volumes.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from medssl_cli.imaging.geometry import Shape

EPSILON: Final = 1e-6
_OVER: Final = (-2, -1)


def overlap_fractions(
    offsets: Tensor, base_grid: Shape, crop_size: Shape, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Fraction of each random crop inside each base crop.

    Along one axis a crop that starts at o overlaps cell i by max(0, 1 - |o / size - i|); the fraction is the product
    over the axes, so at most eight cells are touched and the fractions of a crop inside the canvas sum to 1.

    Args:
        offsets: First voxels, integers [..., 3].
        base_grid: Cells along x, y, z.
        crop_size: Shape of a cell and of a crop in voxels.

    Returns:
        [..., G]; cell (i, j, k) has the index (i * gy + j) * gz + k.
    """
    x, y, z = (
        _overlaps_along_axis(offsets[..., axis], cells, size).to(dtype) / size
        for axis, (cells, size) in enumerate(zip(base_grid, crop_size, strict=True))
    )
    return torch.einsum("...i,...j,...k->...ijk", x, y, z).flatten(-3)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of rows [..., R, P] to rows [..., G, P]: [..., R, G]."""
    return F.normalize(a, dim=-1, eps=1e-8) @ F.normalize(b, dim=-1, eps=1e-8).mT


def similarity(queries: Tensor, bases: Tensor) -> Tensor:
    """Cosines of queries [..., R, P] to bases [..., G, P], clamped to 0...1: [..., R, G].

    A cosine below 0 gets no gradient, even where the target is positive (so in the released code).
    """
    return cosines(queries, bases).relu().clamp(max=1.0)


def leaky_similarity(queries: Tensor, bases: Tensor, targets: Tensor, *, negative_slope: float) -> Tensor:
    """The values of `similarity`, but cosines below 0 get a gradient where the target is positive.

    Args:
        queries: [..., R, P].
        bases: [..., G, P].
        targets: What the similarity should be, [..., R, G].
        negative_slope: Share of the gradient that passes; 0 makes it `similarity`.
    """
    raw = cosines(queries, bases)
    passing = raw.clamp(max=0.0) * (targets > 0) * negative_slope
    return raw.relu().clamp(max=1.0) + (passing - passing.detach())


def touched_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Overlap-weighted mean of -log(1 - |y - l| + eps) over touched base crops: sum y c / (sum y + eps).

    Args:
        logits: Logits in 0...1, [..., R, G].
        targets: Targets in 0...1, [..., R, G].

    Returns:
        Per volume, [...]; -1e-6 (by eps) where logits equal targets, at most 13.8.
    """
    costs = -torch.log(1.0 - (targets - logits).abs() + EPSILON)
    return (targets * costs).sum(_OVER) / (targets.sum(_OVER) + EPSILON)


def overlap_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Prediction loss of `v2`: `touched_loss` plus the mean of -log(1 - l + eps) over untouched base crops.

    Args:
        logits: Logits in 0...1, [..., R, G].
        targets: Targets in 0...1, [..., R, G].

    Returns:
        Per volume, [...]; -2e-6 (by eps) where logits equal targets, at most 27.6.
    """
    return touched_loss(logits, targets) + _untouched_mean(-torch.log(1.0 - logits + EPSILON), targets)


def squared_overlap_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Prediction loss of `v1`: `touched_loss` plus the mean of l^2 over untouched base crops.

    Args:
        logits: Logits in 0...1, [..., R, G].
        targets: Targets in 0...1, [..., R, G].

    Returns:
        Per volume, [...]; -1e-6 (by eps) where logits equal targets, at most 14.8.
    """
    return touched_loss(logits, targets) + _untouched_mean(logits.square(), targets)


def uniform_overlap_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Prediction loss of `paper`, equation 3: mean over all base crops of -log(1 - |y - l|).

    Args:
        logits: Logits in 0...1, [..., R, G].
        targets: Targets in 0...1, [..., R, G].

    Returns:
        Per volume, [...]; 0 where logits equal targets, at most -log(1e-6) = 13.8.
    """
    return -(1.0 - (targets - logits).abs()).clamp(min=EPSILON).log().mean(_OVER)


def one_sided_regulariser(bases: Tensor) -> Tensor:
    """Regulariser of the released code: mean over i < j of ReLU(cos(q_i, sg[q_j]))^2.

    Only the first of each pair gets a gradient, so the last base crop gets none.

    Args:
        bases: Projected base crops, [..., G, P].

    Returns:
        Per volume, [...]; 0 for orthogonal or opposite base crops, 1 for identical ones.
    """
    return _pairs(cosines(bases, bases.detach())).relu().square().mean(-1)


def squared_regulariser(bases: Tensor) -> Tensor:
    """The value of `one_sided_regulariser`, for bases [..., G, P], with gradients to both of each pair."""
    return _pairs(cosines(bases, bases)).relu().square().mean(-1)


def absolute_regulariser(bases: Tensor) -> Tensor:
    """Regulariser of `paper`, equation 5: mean over i < j of |cos(q_i, q_j)|, for bases [..., G, P]."""
    return _pairs(cosines(bases, bases)).abs().mean(-1)


def _untouched_mean(costs: Tensor, targets: Tensor) -> Tensor:
    """Mean of costs [..., R, G] over the base crops that a random crop does not touch."""
    is_untouched = (targets == 0).to(costs.dtype)
    return (costs * is_untouched).sum(_OVER) / (is_untouched.sum(_OVER) + EPSILON)


def _overlaps_along_axis(offsets: Tensor, cells: int, size: int) -> Tensor:
    """Voxels that segments of `size` share with each cell, integers [..., cells]."""
    starts = torch.arange(cells, device=offsets.device) * size
    return (size - (offsets[..., None] - starts).abs()).clamp(min=0)


def _pairs(square: Tensor) -> Tensor:
    """Entries i < j of matrices [..., G, G] as [..., G (G - 1) / 2]."""
    count = square.shape[-1]
    rows, columns = torch.triu_indices(count, count, offset=1, device=square.device)
    return square[..., rows, columns]
