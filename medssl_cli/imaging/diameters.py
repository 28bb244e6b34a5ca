"""The long axis of a region in a plane and the axis across it, as a reader of images measures them (RECIST 1.1).

Measured is the region's outline halfway between the centres of pixels inside and outside: through the middles of
the pixels' edges. A rectangle's sides are then measured as they are; of discs the axes are up to 0.9 pixels too long
(through the pixels' corners up to 1.3, through their centres up to 0.5 too short, and of a rectangle 1).

Shapes: R runs, P parts, H corners of a convex hull.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.runs import Numbers, Runs

HALF: Final = 0.5
TIE: Final = 1 + 1e-9
"""Lengths whose ratio is less are equal: nothing hangs on how a processor rounds."""
Sizes = NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """The longest distance between two points of an outline, and the longest one at right angles to it, in mm.

    Args:
        long_mm: Long axis.
        short_mm: Short axis; it need not cross the long one in its middle.
    """

    long_mm: float
    short_mm: float


def bounds_of_long_axis_mm(widths: Numbers, heights: Numbers, spacing_mm: Sequence[float]) -> tuple[Sizes, Sizes]:
    """What the long axes of parts reach at least, the longer side of a part's box, and at most, its diagonal.

    Args:
        widths: Columns of each part's box, `[P]`.
        heights: Rows of it.
        spacing_mm: Millimetres between columns and between rows.
    """
    across, down = widths * spacing_mm[0], heights * spacing_mm[1]
    return np.maximum(across, down), np.hypot(across, down)


def axes_of(runs: Runs, chosen: Numbers, spacing_mm: Sequence[float]) -> Axes:
    """The axes of one connected part of a plane.

    Args:
        runs: Runs of the plane.
        chosen: Which of them are the part, `[R]`, in their order.
        spacing_mm: Millimetres between columns and between rows.
    """
    hull = _hull(runs.rows[chosen], runs.starts[chosen], runs.ends[chosen])
    steps = (hull[:, None] - hull[None]) * (HALF * np.asarray(spacing_mm[:2]))
    lengths = np.hypot(steps[..., 0], steps[..., 1])
    long_mm = float(lengths.max())
    pairs = [(int(a), int(b)) for a, b in np.argwhere(lengths * TIE > long_mm) if a < b]
    return Axes(long_mm, min(long_mm, max(_across(steps, a, b) for a, b in pairs)))


def _across(steps: Sizes, a: int, b: int) -> float:
    """The longest chord of a convex polygon at right angles to the line between two corners that lie farthest apart.

    Args:
        steps: Millimetres between each two corners, `[H, H, 2]`, in the order of the polygon.
        a: One of them.
        b: The other one, behind it.
    """
    along = steps[b, a] / np.hypot(*steps[b, a])
    places = steps[:, a] @ along
    heights = steps[:, a] @ np.array([-along[1], along[0]])
    there, back = np.arange(a, b + 1), np.arange(b, a + len(steps) + 1) % len(steps)
    one = np.interp(places, places[there], heights[there])
    other = np.interp(places, places[back[::-1]], heights[back[::-1]])
    return float(np.abs(one - other).max())


def _hull(rows: Numbers, starts: Numbers, ends: Numbers) -> Numbers:
    """Corners of the convex hull of the middles of the pixels' edges, counter-clockwise, `[H, 2]`.

    In half pixels, so that all is exact: pixel (x, y) has its centre at (2x, 2y).
    """
    first = int(rows[0])
    begins = np.flatnonzero(np.diff(rows, prepend=-1))
    lows, highs = np.minimum.reduceat(starts, begins), np.maximum.reduceat(ends, begins) - 1
    levels = 2 * len(lows) + 1  # a row, and the edges above and below it
    left, right = np.full(levels, np.iinfo(np.int64).max), np.full(levels, -1)
    for edge in (slice(0, -2, 2), slice(2, None, 2)):
        np.minimum(left[edge], 2 * lows, out=left[edge])
        np.maximum(right[edge], 2 * highs, out=right[edge])
    left[1::2], right[1::2] = 2 * lows - 1, 2 * highs + 1
    heights = np.arange(2 * first - 1, 2 * first - 1 + levels)
    up = _chain(np.stack([right, heights], axis=1))
    down = _chain(np.stack([left, heights], axis=1)[::-1])
    corners = np.concatenate([up, down])
    return corners[(corners != np.roll(corners, -1, axis=0)).any(axis=1)]


def _chain(points: Numbers) -> Numbers:
    """Those of a row of points `[N, 2]` that turn left only."""
    while True:
        x, y = np.diff(points, axis=0).T
        turns_left = x[:-1] * y[1:] - y[:-1] * x[1:] > 0
        if turns_left.all():
            return points
        points = points[np.concatenate([[True], turns_left, [True]])]
