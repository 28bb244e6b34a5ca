"""Blocks of images that a method hides: which they are, how they are cut out, and how well they were guessed.

Shapes: B images of this process, N blocks of an image in C order, P voxels of a block, C channels, X Y Z space (X Y in
2D), X' Y' Z' blocks along each axis.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

import torch
from torch import Tensor

from medssl_cli.nn.axes import Axes, misfit
from medssl_cli.nn.backbones import spread_blocks
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.nn.side_by_side import side_by_side

VARIANCE_FLOOR: Final = 1e-6
SHOWN_IMAGES: Final = 4
LEAST_SPREAD: Final = 0.1
JUDGED_FROM: Final = 0.25
FAINT: Final = 1e-3  # weight of visible voxels around a hidden one below which their mean is that of the image


def block_grid(size: Sequence[int], block: Axes) -> Axes:
    """Blocks along each axis of images of a size.

    Args:
        size: Voxels along each axis; more axes than `block` has do not count.
        block: Voxels of a block along each axis.

    Raises:
        ValueError: Blocks do not make up the images, or have a single voxel.
    """
    if fault := misfit(size, block):
        raise ValueError(f"blocks of {list(block)} voxels do not make up images of {list(size)}: {fault}")
    if prod(block) < 2:
        raise ValueError(f"a block of {list(block)} voxels has no variance")
    return tuple(extent // side for extent, side in zip(size, block, strict=False))


def choose_hidden(numbers: Tensor, num_hidden: int) -> Tensor:
    """The blocks with the largest of random numbers: exactly so many of each image.

    He et al., https://arxiv.org/abs/2111.06377: the first of the ascending order stay visible.

    Args:
        numbers: Uniform, [B, X', Y', Z'].
        num_hidden: Number of hidden blocks of each image.

    Returns:
        Bool [B, X', Y', Z'].
    """
    order = numbers.flatten(1).argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1, stable=True)
    return (ranks >= ranks.shape[1] - num_hidden).view(numbers.shape)


def whole_blocks(is_shown: Tensor, grid: Axes) -> Tensor:
    """Which blocks lie wholly within what an image shows, bool [B, X', Y', Z'].

    Args:
        is_shown: Which voxels do, bool [B, X, Y, Z].
        grid: X', Y', Z'.
    """
    return cut_blocks(is_shown[:, None], grid).flatten(2).all(dim=2).view(len(is_shown), *grid)


def cut_blocks(images: Tensor, grid: Axes) -> Tensor:
    """Voxels of each block, the last axis of space fastest, then the channels: a token's vector is the last two flat.

    Args:
        images: [B, C, X, Y, Z].
        grid: X', Y', Z'.

    Returns:
        [B, N, P, C].
    """
    batch, channels, *size = images.shape
    dims = len(size)
    split = [part for extent, count in zip(size, grid, strict=True) for part in (count, extent // count)]
    counts, sides = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    blocks = images.reshape(batch, channels, *split).permute(0, *counts, *sides, 1)
    return blocks.reshape(batch, prod(grid), -1, channels)


def joined_blocks(blocks: Tensor, grid: Axes, size: Sequence[int]) -> Tensor:
    """Images [B, C, X, Y, Z] from their blocks [B, N, P, C]; undoes `cut_blocks`."""
    batch, channels, dims = blocks.shape[0], blocks.shape[-1], len(size)  # `len` would fix the batch of an export
    sides = [extent // count for extent, count in zip(size, grid, strict=True)]
    apart = blocks.reshape(batch, *grid, *sides, channels)
    order = [axis for pair in zip(range(1, 1 + dims), range(1 + dims, 1 + 2 * dims), strict=True) for axis in pair]
    return apart.permute(0, 1 + 2 * dims, *order).reshape(batch, channels, *size)


def standardised_blocks(blocks: Tensor, *, jointly: bool = False) -> Tensor:
    """Blocks [B, N, P, C] to mean 0 and variance 1 (of n - 1), each channel by itself or all of them jointly.

    A prediction of 0 is wrong by (n - 1) / n in the mean square, n the numbers that a variance is taken of.
    """
    axes = (2, 3) if jointly else (2,)
    centred = blocks - blocks.mean(axes, keepdim=True)
    return centred * torch.rsqrt(blocks.var(axes, keepdim=True) + VARIANCE_FLOOR)


def standardised_images(blocks: Tensor) -> Tensor:
    """Blocks [B, N, P, C] of images, each channel of an image brought to mean 0 and variance 1."""
    centred = blocks - blocks.mean((1, 2), keepdim=True)
    return centred * torch.rsqrt(blocks.var((1, 2), keepdim=True) + VARIANCE_FLOOR)


def telling_blocks(blocks: Tensor, *, flat_below: float) -> Tensor:
    """Which blocks show something: those that vary more than a share of what their image does.

    Air and padding do not; brought to variance 1, their noise would fill the loss.

    Args:
        blocks: [B, N, P, C].
        flat_below: Share of the image's standard deviation.

    Returns:
        Bool [B, N, C].
    """
    return blocks.std(2) > flat_below * blocks.flatten(1, 2).std(1)[:, None]


def mean_over(errors: Tensor, counts: Tensor) -> Tensor:
    """Mean of what counts, over the images of all processes.

    Args:
        errors: [B, N, C].
        counts: Which of them count, bool of the same shape.

    Returns:
        Scalar whose mean over processes is the mean; 0 if nothing counts.
    """
    total = sum_over_processes(counts.sum().to(errors.dtype)).clamp(min=1)
    return torch.where(counts, errors, 0).sum() / total * world_size()


def visible_means(blocks: Tensor, hidden: Tensor) -> Tensor:
    """Mean over the visible voxels of each channel of each image, [B, 1, 1, C].

    Args:
        blocks: [B, N, P, C].
        hidden: Bool [B, N].
    """
    weights = (~hidden)[:, :, None, None].to(blocks.dtype)
    return (blocks * weights).sum((1, 2), keepdim=True) / (weights.sum((1, 2), keepdim=True) * blocks.shape[2])


def smoothed(images: Tensor, hidden: Tensor) -> Tensor:
    """What lies around each voxel: means of the visible voxels with Gaussian weights as wide as half a block.

    Where nothing visible is near, it is the mean of the image's visible voxels.

    Args:
        images: [B, C, X, Y, Z].
        hidden: Bool [B, X', Y', Z'].

    Returns:
        [B, C, X, Y, Z].
    """
    size, grid = images.shape[2:], hidden.shape[1:]
    is_seen = ~spread_blocks(hidden, size)[:, None]
    weights = is_seen.to(images.dtype)
    seen = torch.where(is_seen, images, 0)
    space = tuple(range(2, images.ndim))
    mean = seen.sum(space, keepdim=True) / weights.sum(space, keepdim=True).clamp(min=1)
    for axis, (extent, count) in enumerate(zip(size, grid, strict=True), start=2):
        places = torch.arange(extent, device=images.device, dtype=images.dtype)
        distance = (places - places[:, None]) / (extent / count / 2)
        kernel = torch.exp(-distance.square() / 2)
        kernel = kernel / kernel.sum(dim=1, keepdim=True)
        seen, weights = (
            torch.tensordot(each, kernel, dims=([axis], [1])).movedim(-1, axis) for each in (seen, weights)
        )
    return torch.where(weights > FAINT, seen / weights.clamp(min=FAINT), mean)


def guess_spread(guessed: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    """Deviation of guesses over that of what is true, over the blocks that count: 0 of a constant. Without gradients.

    Args:
        guessed: [B, N, P, C].
        targets: [B, N, P, C].
        counts: Bool [B, N, C].
    """
    shown = counts[:, :, None].expand_as(targets)
    spread = guessed.detach().float()[shown].std() / targets.float()[shown].std().clamp(min=VARIANCE_FLOOR)
    return torch.nan_to_num(spread)


def constant_guesses(logged: Sequence[Mapping[str, float]], num_steps: int) -> list[str]:
    """What is wrong, in words, if after a quarter of the steps all guesses are nearly the same.

    Args:
        logged: Logged numbers of the steps so far, with the `output_spread` that `guess_spread` gives.
        num_steps: Number of steps of the whole training.
    """
    last = logged[-1] if logged else {}
    spread = last.get("output_spread")
    if spread is None or last["step"] < JUDGED_FROM * num_steps or spread >= LEAST_SPREAD:
        return []
    return [f"what is guessed varies by {spread:.3f} of what is true: it is nearly the same everywhere"]


def guess_pictures(images: Tensor, guessed: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Pictures of what some images show, of what of it is visible, and of what is guessed of the rest.

    Args:
        images: [B, C, X, Y, Z]; the first channel is shown.
        guessed: Guessed images of the same shape.
        hidden: Bool [B, X', Y', Z'].
    """
    is_hidden = spread_blocks(hidden, images.shape[2:])
    rows = []
    for image, guess, unseen in zip(images[:SHOWN_IMAGES, 0], guessed[:, 0], is_hidden, strict=False):
        grey = image[~unseen].mean()
        rows.append([image, torch.where(unseen, grey, image), torch.where(unseen, guess, image)])
    return {"view, visible, guessed": side_by_side(rows)}
