"""Which voxels a polygon holds: those whose centre is inside, by the even-odd rule."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.errors import InputError

MAX_CROSSINGS: Final = 50_000_000
_CORNER_DIGITS: Final = 2
_CROSSING_DIGITS: Final = 9


def fill_polygon(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxels of a slice whose centre lies inside a closed polygon.

    The even-odd rule: inside is what a ray leaves through an odd number of edges, so a keyhole or an outline that
    crosses itself cuts out. A centre exactly on an edge belongs to the polygon if its inside lies towards increasing
    index there (of x, and for edges along x, of y): polygons that share an edge share no voxel and leave no gap.
    Corners are rounded to a hundredth of a voxel first: files give them in micrometres at best, and "exactly" shall not
    hang on their last digit.

    Args:
        points: `[N, 2]` corners (x, y) in continuous voxel indices, the last joined to the first.
        size: Of the slice (X, Y).

    Returns:
        `[X, Y]`.

    Raises:
        InputError: `E_TOO_BIG`, the polygon crosses the rows more than 50 million times.
    """
    width, height = size
    corners = np.round(points, _CORNER_DIGITS) + 0.0
    starts, ends = corners, np.roll(corners, -1, axis=0)
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first = np.clip(np.ceil(low), 0, height).astype(np.int64)
    counts = np.clip(np.ceil(high), 0, height).astype(np.int64) - first
    total = int(counts.sum())
    if total > MAX_CROSSINGS:
        raise InputError("E_TOO_BIG", f"a contour crosses the rows of its slice more than {MAX_CROSSINGS} times")
    edge = np.repeat(np.arange(len(corners)), counts)
    row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    step = ends[edge] - starts[edge]
    crossing = np.round(starts[edge, 0] + (row - starts[edge, 1]) * step[:, 0] / step[:, 1], _CROSSING_DIGITS)
    column = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    mask = np.zeros(size, dtype=np.bool_)
    if total:
        top, left, bottom, right = row.min(), column.min(), row.max() + 1, column.max() + 1
        toggles = np.zeros((right - left, bottom - top), dtype=np.int64)
        np.add.at(toggles, (column - left, row - top), 1)
        inside = np.cumsum(toggles, axis=0) % 2 == 1
        mask[left:right, top:bottom] = inside[: width - left]
    return mask


def fill_contours(contours: list[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Even-odd over several contours of one slice: one inside another cuts a hole; see `fill_polygon`."""
    mask = np.zeros(size, dtype=np.bool_)
    for points in contours:
        mask ^= fill_polygon(points, size)
    return mask


def outline_voxels(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxels `[X, Y]` whose centre lies on the outline of a polygon with whole-numbered corners.

    Raises:
        InputError: `E_TOO_BIG`, the outline is longer than 50 million voxels.
    """
    starts = points.astype(np.int64)
    steps = np.roll(starts, -1, axis=0) - starts
    counts = np.maximum(np.gcd(np.abs(steps[:, 0]), np.abs(steps[:, 1])), 1)
    total = int(counts.sum())
    if total > MAX_CROSSINGS:
        raise InputError("E_TOO_BIG", f"an outline is longer than {MAX_CROSSINGS} voxels")
    edge = np.repeat(np.arange(len(starts)), counts)
    along = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    voxels = starts[edge] + along[:, None] * (steps // counts[:, None])[edge]
    inside = voxels[((voxels >= 0) & (voxels < size)).all(axis=1)]
    mask = np.zeros(size, dtype=np.bool_)
    mask[inside[:, 0], inside[:, 1]] = True
    return mask
