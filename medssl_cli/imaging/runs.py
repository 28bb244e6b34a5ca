"""Runs of equal labels along the rows of a plane, and how many connected parts a label map has.

What is measured of a label map needs no copy of it: a run is a few numbers, and a plane of structures has few runs.
Voxels that share a face, an edge or a corner belong together, as in `components`.

Shapes: X Y of a plane, R runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.components import connected_parts

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Neighbours of one label in a row, `[R]` each, row after row and from left to right; background has none.

    Args:
        rows: Row of each.
        starts: First column.
        ends: Column behind the last.
        labels: Label, from 1 on.
    """

    rows: Numbers
    starts: Numbers
    ends: Numbers
    labels: Numbers

    @classmethod
    def of(cls, plane: NDArray[np.uint8]) -> "Runs":
        """The runs of a label map `[Y, X]`."""
        height, width = plane.shape
        is_start = np.ones((height, width), dtype=np.bool_)
        np.not_equal(plane[:, 1:], plane[:, :-1], out=is_start[:, 1:])
        places = np.flatnonzero(is_start)
        labels = plane.ravel()[places]
        lengths = np.diff(places, append=height * width)
        kept = np.flatnonzero(labels)
        rows, starts = np.divmod(places[kept], width)
        return cls(rows, starts, starts + lengths[kept], labels[kept].astype(np.int64))

    @property
    def lengths(self) -> Numbers:
        """How many voxels each has."""
        return self.ends - self.starts

    def parts(self, plane: NDArray[np.uint8]) -> tuple[int, Numbers]:
        """Connected parts of the plane that these are of: how many, and the number of each run's, from 0 on."""
        parts, num_parts = connected_parts(plane)
        return num_parts, self.values_of(parts)

    def values_of(self, numbers: NDArray[np.unsignedinteger]) -> Numbers:
        """What numbers from 1 on `[Y, X]`, each the same along a run, say of each run, from 0 on."""
        return numbers[self.rows, self.starts].astype(np.int64) - 1


class PartCounter:
    """How many connected parts each label of a label map has, some planes after others; only the last plane is kept.

    Args:
        num_labels: Labels are below it.
    """

    def __init__(self, num_labels: int) -> None:
        self.counts = np.zeros(num_labels, dtype=np.int64)
        self._last: tuple[NDArray[np.uint8], Runs, Numbers] | None = None

    def add(self, planes: NDArray[np.uint8], runs: Sequence[Runs]) -> None:
        """Count the next planes `[Z, Y, X]`, each of which has these runs."""
        plane_before, runs_before, known = self._last or _nothing_before(planes[0])
        stack = np.concatenate([plane_before[np.newaxis], planes])
        numbers, num_found = connected_parts(stack)
        found = [each.values_of(of_plane) for each, of_plane in zip((runs_before, *runs), numbers, strict=True)]
        known_labels = _labels_of([known], [runs_before])
        num_known = len(known_labels)
        joined = _connected(num_known + num_found, known, num_known + found[0])
        parts = [joined[num_known + each] for each in found]
        self.counts += np.bincount(_labels_of(parts, [runs_before, *runs]), minlength=len(self.counts))
        self.counts -= np.bincount(known_labels, minlength=len(self.counts))
        self._last = planes[-1], runs[-1], _renumbered(parts[-1])


def _nothing_before(plane: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Runs, Numbers]:
    empty = np.zeros_like(plane)
    return empty, Runs.of(empty), np.zeros(0, dtype=np.int64)


def _labels_of(parts: Sequence[Numbers], runs: Sequence[Runs]) -> Numbers:
    """The label of each part, by the parts of runs of some planes."""
    labels = np.zeros(max(int(each.max(initial=-1)) for each in parts) + 1, dtype=np.int64)
    for part_of, of_plane in zip(parts, runs, strict=True):
        labels[part_of] = of_plane.labels
    return labels


def _connected(num: int, first: Numbers, second: Numbers) -> Numbers:
    """The number, from 0 on, of the connected part of each of some things, of which these pairs belong together."""
    roots = np.arange(num)
    while (apart := roots[first] != roots[second]).any():
        first, second = first[apart], second[apart]
        low, high = np.minimum(roots[first], roots[second]), np.maximum(roots[first], roots[second])
        np.minimum.at(roots, high, low)
        while not np.array_equal(further := roots[roots], roots):
            roots = further
    return _renumbered(roots)


def _renumbered(numbers: Numbers) -> Numbers:
    """The same numbers from 0 on, none left out."""
    is_used = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.bool_)
    is_used[numbers] = True
    return (np.cumsum(is_used) - 1)[numbers]
