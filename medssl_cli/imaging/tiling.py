"""Sliding window over a volume of any size, shared by training's validation and by deployment."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Shape

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Network input tiles `[B, C, *tile]` to logits `[B, K, *tile]`."""


def tile_starts(shape: Shape, tile: Shape, overlap: float) -> list[Shape]:
    """First voxels of tiles that cover a volume of at least the tile's size, evenly spread.

    Args:
        shape: Size of the (padded) volume.
        tile: Size of the tile, at most the volume's.
        overlap: Smallest fraction of a tile shared with its neighbour along each axis.
    """
    axes = []
    for size, length in zip(shape, tile, strict=True):
        step = max(1, int(length * (1 - overlap)))
        count = 1 if size <= length else int(np.ceil((size - length) / step)) + 1
        axes.append(np.round(np.linspace(0, max(size - length, 0), count)).astype(int).tolist())
    return [(x, y, z) for x, y, z in itertools.product(*axes)]


def gaussian_weights(tile: Shape) -> NDArray[np.float32]:
    """Blending weights `tile`: a Gaussian of sigma 1/8 of the size, at least 1e-3 of its peak everywhere."""
    axes = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in tile]
    weights = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return np.maximum(weights / weights.max(), 1e-3).astype(np.float32)


def sliding_window(
    predict: Predict,
    voxels: NDArray[np.float32],
    *,
    tile: Shape,
    overlap: float,
    mirror_axes: tuple[int, ...] = (),
    batch_size: int = 1,
) -> NDArray[np.float32]:
    """Blend a network's logits over overlapping tiles.

    Args:
        predict: Network on a batch of tiles.
        voxels: `[C, X, Y, Z]` network input. Smaller than a tile is padded by its edge values and cropped afterwards.
        tile: Tile size in voxels.
        overlap: Fraction shared by neighbouring tiles.
        mirror_axes: Also predict every flip along these axes and average.
        batch_size: Tiles per call.

    Returns:
        `[K, X, Y, Z]` logits.
    """
    padded, offset = padded_to(voxels, tile)
    _, x, y, z = padded.shape
    starts = tile_starts((x, y, z), tile, overlap)
    weights = gaussian_weights(tile) if len(starts) > 1 else np.ones(tile, dtype=np.float32)
    total: NDArray[np.float32] | None = None
    norm = np.zeros((x, y, z), dtype=np.float32)
    for batch in _batches(starts, batch_size):
        boxes = [tuple(slice(s, s + size) for s, size in zip(start, tile, strict=True)) for start in batch]
        logits = _mirrored(predict, np.stack([padded[(slice(None), *box)] for box in boxes]), mirror_axes)
        if total is None:
            total = np.zeros((logits.shape[1], x, y, z), dtype=np.float32)
        for box, values in zip(boxes, logits, strict=True):
            total[(slice(None), *box)] += values * weights
            norm[box] += weights
    if total is None:
        raise ValueError("an empty volume has no tiles")
    total /= norm
    inside = tuple(slice(low, low + size) for low, size in zip(offset, voxels.shape[1:], strict=True))
    return total[(slice(None), *inside)]


def padded_to(voxels: NDArray[np.float32], tile: Shape) -> tuple[NDArray[np.float32], Shape]:
    """Voxels `[C, X, Y, Z]` of at least a tile, by repeating their border, and where the first of them lies then."""
    missing = [max(0, length - size) for length, size in zip(tile, voxels.shape[1:], strict=True)]
    low = (missing[0] // 2, missing[1] // 2, missing[2] // 2)
    widths = [(0, 0), *((before, total - before) for before, total in zip(low, missing, strict=True))]
    return (np.pad(voxels, widths, mode="edge") if any(missing) else voxels), low


def _batches(starts: list[Shape], size: int) -> Iterator[list[Shape]]:
    for first in range(0, len(starts), size):
        yield starts[first : first + size]


def _mirrored(predict: Predict, tiles: NDArray[np.float32], mirror_axes: tuple[int, ...]) -> NDArray[np.float32]:
    if not mirror_axes:
        return predict(tiles)
    subsets = [flips for count in range(len(mirror_axes) + 1) for flips in itertools.combinations(mirror_axes, count)]
    total: NDArray[np.float32] | None = None
    for flips in subsets:
        axes = tuple(axis + 2 for axis in flips)
        logits = np.flip(predict(np.ascontiguousarray(np.flip(tiles, axes))), axes)
        total = logits.copy() if total is None else total + logits
    if total is None:
        raise ValueError("no flips")
    return total / np.float32(len(subsets))
