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


def rolling_window(
    predict: Predict,
    voxels: NDArray[np.float32],
    *,
    tile: Shape,
    overlap: float,
    mirror_axes: tuple[int, ...] = (),
    along: int = 0,
    batch_size: int = 1,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Blend a network's logits over overlapping tiles, and give them away as soon as no tile adds to them.

    Tiles are computed layer by layer along one axis, so that no more planes exist than a tile is long.

    Args:
        predict: Network on a batch of tiles; its answer is used before it is called again.
        voxels: `[C, X, Y, Z]` network input. Smaller than a tile is padded by its edge values and cropped afterwards.
        tile: Tile size in voxels.
        overlap: Fraction shared by neighbouring tiles.
        mirror_axes: Also predict every flip along these axes and average.
        along: Axis of the layers. Voxels of several tiles are added in the order of the tiles, so with another axis
            the last digit of a logit may be another.
        batch_size: Tiles per call.

    Yields:
        Number of the first plane, and logits `[K, N, P, Q]` of the planes from there on: N along the axis of the
        layers, P and Q along the others in their order. The first plane is the last one of before, so that whoever
        interpolates has both neighbours. They hold until the next are asked for.
    """
    padded, offset = padded_to(voxels, tile)
    _, x, y, z = padded.shape
    starts = tile_starts((x, y, z), tile, overlap)
    order = (along, *(axis for axis in range(3) if axis != along))
    weights = gaussian_weights(tile) if len(starts) > 1 else np.ones(tile, dtype=np.float32)
    blend = _Blend(order, (x, y, z), np.ascontiguousarray(weights.transpose(order)))
    inside = [slice(offset[axis], offset[axis] + voxels.shape[axis + 1]) for axis in order]
    layers = sorted({start[along] for start in starts})
    for low, high in itertools.pairwise([*layers, (x, y, z)[along]]):
        for batch in _batches([start for start in starts if start[along] == low], batch_size):
            boxes = [tuple(slice(s, s + size) for s, size in zip(start, tile, strict=True)) for start in batch]
            logits = _mirrored(predict, np.stack([padded[(slice(None), *box)] for box in boxes]), mirror_axes)
            for start, values in zip(batch, logits, strict=True):
                blend.add(start, values)
        first, planes = blend.finished(high)
        begin, end = max(first, inside[0].start), min(high, inside[0].stop)
        yield begin - inside[0].start, planes[:, begin - first : end - first, inside[1], inside[2]]
        blend.move_on(high)


class _Blend:
    """Sums of logits and weights of the planes that tiles add to, behind one plane that is finished."""

    def __init__(self, order: tuple[int, ...], shape: Shape, weights: NDArray[np.float32]) -> None:
        self._order, self._weights = order, weights
        self._size = (1 + len(weights), shape[order[1]], shape[order[2]])
        self._first = 0
        self._norm = np.zeros(self._size, dtype=np.float32)
        self._total: NDArray[np.float32] | None = None

    def add(self, start: Shape, logits: NDArray[np.float32]) -> None:
        """Add a tile `[K, *tile]`."""
        if self._total is None:
            self._total = np.zeros((len(logits), *self._size), dtype=np.float32)
        place, p, q = (start[axis] for axis in self._order)
        n, height, width = self._weights.shape
        place += 1 - self._first
        box = slice(place, place + n), slice(p, p + height), slice(q, q + width)
        for total, values in zip(self._total, logits, strict=True):
            total[box] += values.transpose(self._order) * self._weights
        self._norm[box] += self._weights

    def finished(self, high: int) -> tuple[int, NDArray[np.float32]]:
        """The planes up to one, divided by their weights, and the number of the first; the last one of before is it."""
        if self._total is None:
            raise ValueError("an empty volume has no tiles")
        count = high - self._first
        self._total[:, 1 : 1 + count] /= self._norm[1 : 1 + count]
        begin = 0 if self._first else 1
        return self._first - 1 + begin, self._total[:, begin : 1 + count]

    def move_on(self, high: int) -> None:
        """Forget the planes before one, except for the last of them."""
        count = high - self._first
        for plane in (self._norm, *(() if self._total is None else self._total)):
            plane[: len(plane) - count] = plane[count:]
            plane[len(plane) - count :] = 0
        self._first = high


def padded_to(voxels: NDArray[np.float32], tile: Shape) -> tuple[NDArray[np.float32], Shape]:
    """Voxels `[C, X, Y, Z]` of at least a tile, by repeating their border, and where the first of them lies then."""
    missing = [max(0, length - size) for length, size in zip(tile, voxels.shape[1:], strict=True)]
    low = (missing[0] // 2, missing[1] // 2, missing[2] // 2)
    widths = [(0, 0), *((before, total - before) for before, total in zip(low, missing, strict=True))]
    return (np.pad(voxels, widths, mode="edge") if any(missing) else voxels), low


def centre_tile(voxels: NDArray[np.float32], tile: Shape, overlap: float) -> NDArray[np.float32]:
    """The tile `[C, *tile]` nearest to the middle of a volume, of those that `rolling_window` computes.

    Args:
        voxels: `[C, X, Y, Z]` network input.
        tile: Tile size in voxels.
        overlap: Fraction shared by neighbouring tiles.
    """
    shape = np.array(voxels.shape[1:])
    whole = np.maximum(shape, tile)
    x, y, z = whole.tolist()
    middles = np.array(tile_starts((x, y, z), tile, overlap)) * 2 + tile
    nearest = np.abs(middles - whole).sum(axis=1).argmin()
    first = (middles[nearest] - tile) // 2 - (whole - shape) // 2
    low, high = np.maximum(first, 0), np.minimum(first + tile, shape)
    inside = voxels[(slice(None), *(slice(start, stop) for start, stop in zip(low, high, strict=True)))]
    return np.pad(inside, [(0, 0), *zip(low - first, first + tile - high, strict=True)], mode="edge")


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
