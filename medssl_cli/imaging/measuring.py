"""What is measured of each class of an answer: volume, values, diameters, extent, place, parts, whether it is cut off.

One pass over the answer and the scan, a few planes at a time; beside them nothing is held that grows with a scan but a
few numbers for each class. Planes are those of the third axis, as the slices of a DICOM series.

Shapes: X Y Z space, K regions, R runs.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.diameters import TIE, Axes, Sizes, axes_of, bounds_of_long_axis_mm
from medssl_cli.imaging.geometry import Affine, Shape, axis_order, spacing_mm
from medssl_cli.imaging.runs import Numbers, PartCounter, Runs
from medssl_cli.imaging.volume import Volume

CUBIC_MM_PER_ML: Final = 1000.0
PLANES_AT_ONCE: Final = 16
"""Planes that are brought into the order of memory together, where slices do not lie one after the other, and in which
connected parts are looked for; fewer where they are large."""
VOXELS_AT_ONCE: Final = 2**22
NUM_LABELS: Final = 256
DIRECTIONS: Final = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Words for the low and the high end of each axis of the world."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is measured of one class that was found.

    Args:
        voxels: How many it has.
        volume_ml: Their volume; if the class is cut off, there is more of it.
        cut_off: Sides of the patient on which it reaches the edge of the scan; an axis of one voxel has no sides.
        mean: Mean of the scan's values in it.
        sd: Their standard deviation, of the voxels as they are (not of a sample).
        minimum: The lowest of them.
        maximum: The highest of them.
        long_axis_mm: Longest distance in any slice between two points of the outline of one connected part.
        short_axis_mm: Longest distance at right angles to that, in the same part and slice.
        axes_slice: Which slice that is, from 0 on.
        extent_mm: Size of the box around it, along the scan's axes: from right to left, front to back, top to bottom.
        centre_mm: Its centre of mass in RAS+ millimetres.
        parts: How many connected parts it has; voxels that share a corner are connected.
    """

    voxels: int
    volume_ml: float
    cut_off: tuple[str, ...]
    mean: float
    sd: float
    minimum: float
    maximum: float
    long_axis_mm: float
    short_axis_mm: float
    axes_slice: int
    extent_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    parts: int


def voxel_ml(affine: Affine) -> float:
    """Volume of a voxel in millilitres."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / CUBIC_MM_PER_ML


def measured(answer: NDArray[np.uint8], scan: Volume) -> dict[int, Measurement]:
    """What is measured of each class that was found.

    Args:
        answer: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]` of 0 and 1.
        scan: The scan on the same grid; of several channels, the first.

    Returns:
        By label, or by place of the region from 1 on.
    """
    if answer.ndim == 3:
        return _of_label_map(answer, scan)
    found = ((place, _of_label_map(mask, scan)) for place, mask in enumerate(answer, start=1))
    return {place: of_mask[1] for place, of_mask in found if of_mask}


def _of_label_map(labels: NDArray[np.uint8], scan: Volume) -> dict[int, Measurement]:
    sums = _Sums(spacing_mm(scan.affine))
    step = min(PLANES_AT_ONCE, max(1, VOXELS_AT_ONCE // (labels.shape[0] * labels.shape[1])))
    for start in range(0, labels.shape[2], step):
        places = slice(start, start + step)
        planes, values = (np.ascontiguousarray(each[:, :, places].T) for each in (labels, scan.voxels[0]))
        runs = [Runs.of(plane) for plane in planes]
        for number, found in enumerate(runs):
            if len(found.labels):
                sums.add(start + number, planes[number], found, values[number])
        sums.parts.add(planes, runs)
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    return {label: sums.measurement(label, scan.affine, shape) for label in np.flatnonzero(sums.counts).tolist()}


@dataclass
class _Sums:
    """What is known of each label after some planes, `[256]` each."""

    spacing: tuple[float, float, float]
    counts: Sizes = field(default_factory=lambda: np.zeros(NUM_LABELS))
    means: Sizes = field(default_factory=lambda: np.zeros(NUM_LABELS))
    squares: Sizes = field(default_factory=lambda: np.zeros(NUM_LABELS))
    least: Sizes = field(default_factory=lambda: np.full(NUM_LABELS, np.inf))
    most: Sizes = field(default_factory=lambda: np.full(NUM_LABELS, -np.inf))
    places: Sizes = field(default_factory=lambda: np.zeros((3, NUM_LABELS)))
    lows: Numbers = field(default_factory=lambda: np.full((3, NUM_LABELS), np.iinfo(np.int64).max))
    highs: Numbers = field(default_factory=lambda: np.full((3, NUM_LABELS), -1))
    longest_mm: Sizes = field(default_factory=lambda: np.zeros(NUM_LABELS))
    axes: dict[int, tuple[Axes, int]] = field(default_factory=dict)
    parts: PartCounter = field(default_factory=lambda: PartCounter(NUM_LABELS))

    def add(self, number: int, plane: NDArray[np.uint8], runs: Runs, values: NDArray[np.generic]) -> None:
        """Take in one plane `[Y, X]` that has labels, but for what is connected with other planes."""
        counts = np.bincount(runs.labels, weights=runs.lengths, minlength=NUM_LABELS).astype(np.float64)
        self._add_values(runs, counts, values[plane != 0].astype(np.float64))
        self._add_places(runs, counts, number)
        self._add_axes(runs, *runs.parts(plane), number)
        self.counts += counts

    def _add_values(self, runs: Runs, counts: Sizes, values: Sizes) -> None:
        """Mean and squared deviations, put together as of two groups (Chan, Golub, LeVeque 1979)."""
        begins = np.cumsum(runs.lengths) - runs.lengths
        np.minimum.at(self.least, runs.labels, np.minimum.reduceat(values, begins))
        np.maximum.at(self.most, runs.labels, np.maximum.reduceat(values, begins))
        some = np.maximum(counts, 1)
        means = np.bincount(runs.labels, weights=np.add.reduceat(values, begins), minlength=NUM_LABELS) / some
        values -= np.repeat(means[runs.labels], runs.lengths)
        values *= values
        squares = np.bincount(runs.labels, weights=np.add.reduceat(values, begins), minlength=NUM_LABELS)
        share = counts / np.maximum(self.counts + counts, 1)
        apart = means - self.means
        self.squares += squares + apart * apart * self.counts * share
        self.means += apart * share

    def _add_places(self, runs: Runs, counts: Sizes, number: int) -> None:
        columns = (runs.starts + runs.ends - 1) * runs.lengths / 2
        self.places[0] += np.bincount(runs.labels, weights=columns, minlength=NUM_LABELS)
        self.places[1] += np.bincount(runs.labels, weights=runs.rows * runs.lengths, minlength=NUM_LABELS)
        self.places[2] += counts * number
        planes = np.full(len(runs.rows), number)
        for axis, (low, high) in enumerate(((runs.starts, runs.ends - 1), (runs.rows, runs.rows), (planes, planes))):
            np.minimum.at(self.lows[axis], runs.labels, low)
            np.maximum.at(self.highs[axis], runs.labels, high)

    def _add_axes(self, runs: Runs, num_parts: int, part_of: Numbers, number: int) -> None:
        """Keep the longest axis of each label; only a part that may have a longer one is looked at."""
        label_of, left, right, top, bottom = (np.zeros(num_parts, dtype=np.int64) for _ in range(5))
        label_of[part_of] = runs.labels
        left[part_of], right[part_of], top[part_of] = runs.starts, runs.ends, runs.rows
        np.minimum.at(left, part_of, runs.starts)
        np.maximum.at(right, part_of, runs.ends)
        np.minimum.at(top, part_of, runs.rows)
        np.maximum.at(bottom, part_of, runs.rows)
        least, most = bounds_of_long_axis_mm(right - left, bottom - top + 1, self.spacing)
        longer_than = self.longest_mm.copy()
        np.maximum.at(longer_than, label_of, least / TIE)
        for part in np.flatnonzero(most > longer_than[label_of]).tolist():
            label = int(label_of[part])
            axes = axes_of(runs, np.flatnonzero(part_of == part), self.spacing)
            if axes.long_mm > TIE * self.longest_mm[label]:
                self.longest_mm[label] = axes.long_mm
                self.axes[label] = axes, number

    def measurement(self, label: int, affine: Affine, shape: Shape) -> Measurement:
        """What is known of a label in the end."""
        count = float(self.counts[label])
        order, is_backwards = axis_order(affine)
        low, high = self.lows[:, label], self.highs[:, label]
        extent = [float(high[axis] - low[axis] + 1) * self.spacing[axis] for axis in order]
        centre = affine[:3, :3] @ (self.places[:, label] / count) + affine[:3, 3]
        axes, number = self.axes[label]
        return Measurement(
            voxels=int(count),
            volume_ml=count * voxel_ml(affine),
            cut_off=_cut_off(low[list(order)], high[list(order)], [shape[axis] for axis in order], is_backwards),
            mean=float(self.means[label]),
            sd=float(np.sqrt(self.squares[label] / count)),
            minimum=float(self.least[label]),
            maximum=float(self.most[label]),
            long_axis_mm=axes.long_mm,
            short_axis_mm=axes.short_mm,
            axes_slice=number,
            extent_mm=(extent[0], extent[1], extent[2]),
            centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
            parts=int(self.parts.counts[label]),
        )


def _cut_off(low: Numbers, high: Numbers, sizes: list[int], is_backwards: tuple[bool, ...]) -> tuple[str, ...]:
    """Sides on which first and last voxels along the axes of the world are those of the scan."""
    found = []
    for words, first, last, size, turned in zip(DIRECTIONS, low, high, sizes, is_backwards, strict=True):
        ends = (first == 0, last == size - 1)
        found += [word for word, is_at in zip(words, ends[::-1] if turned else ends, strict=True) if is_at and size > 1]
    return tuple(found)
