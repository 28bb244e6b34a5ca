"""Runs of equal labels along the rows of a plane, and which of them are connected.

What is measured of a label map needs no copy of it: a run is a few numbers, and a plane of structures has few runs.
Voxels that share a face, an edge or a corner belong together, as in `components`.

Shapes: X Y of a plane, R runs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """Neighbours of one label in a row, `[R]` each, row after row and from left to right; background has none.

    Args:
        rows: Row of each.
        starts: First column.
        ends: Column behind the last.
        labels: Label, from 1 on.
        started: How many runs start before each place of the plane, with a row around it and two columns behind it,
            `[Y + 2, X + 2]`.
    """

    rows: Numbers
    starts: Numbers
    ends: Numbers
    labels: Numbers
    started: NDArray[np.int32]

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
        is_first = np.zeros((height + 2, width + 2), dtype=np.bool_)
        np.logical_and(is_start, plane, out=is_first[1:-1, 1:-1])
        started = np.cumsum(is_first, dtype=np.int32).reshape(is_first.shape)
        return cls(rows, starts, starts + lengths[kept], labels[kept].astype(np.int64), started)

    @property
    def lengths(self) -> Numbers:
        """How many voxels each has."""
        return self.ends - self.starts

    def neighbours(self, others: "Runs", *, rows_away: int) -> tuple[Numbers, Numbers]:
        """Pairs of runs of one label that touch, at a corner at least: places among these, and among others.

        Args:
            others: Runs of this plane or of the next one.
            rows_away: How many rows behind these the others lie.
        """
        rows = others.rows - rows_away
        first = self.started[rows + 1, others.starts]
        last = np.maximum(first - 1, 0)
        first -= (first > 0) & (self.rows[last] == rows) & (self.ends[last] >= others.starts)
        counts = self.started[rows + 1, others.ends + 1] - first
        theirs = np.repeat(np.arange(len(counts)), counts)
        own = np.arange(len(theirs)) + np.repeat(first + counts - np.cumsum(counts), counts)
        is_same = self.labels[own] == others.labels[theirs]
        return own[is_same], theirs[is_same]

    def parts(self) -> tuple[int, Numbers]:
        """Connected parts of the plane: how many, and the number of each run's."""
        return connected(len(self.rows), *self.neighbours(self, rows_away=1))


def connected(num: int, first: Numbers, second: Numbers) -> tuple[int, Numbers]:
    """Connected parts of things of which pairs belong together: how many, and the number of each thing's.

    Args:
        num: How many things there are.
        first: One of each pair.
        second: The other one.
    """
    roots = np.arange(num)
    while (apart := roots[first] != roots[second]).any():
        first, second = first[apart], second[apart]
        low, high = np.minimum(roots[first], roots[second]), np.maximum(roots[first], roots[second])
        np.minimum.at(roots, high, low)
        while not np.array_equal(further := roots[roots], roots):
            roots = further
    return renumbered(roots)


def renumbered(numbers: Numbers) -> tuple[int, Numbers]:
    """How many different numbers, from 0 on, there are, and which of them, in their order, each is."""
    is_used = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.int64)
    is_used[numbers] = 1
    return int(is_used.sum()), (np.cumsum(is_used) - 1)[numbers]


class PartCounter:
    """How many connected parts each label of a label map has, plane after plane; only the last plane is kept.

    Args:
        num_labels: Labels are below it.
    """

    def __init__(self, num_labels: int) -> None:
        self.counts = np.zeros(num_labels, dtype=np.int64)
        self._last: Runs | None = None
        self._groups = np.zeros(0, dtype=np.int64)

    def add(self, runs: Runs, num_parts: int, part_of: Numbers) -> None:
        """Count the next plane.

        Args:
            runs: Runs of the plane.
            num_parts: See `Runs.parts`.
            part_of: See `Runs.parts`.
        """
        num_groups = int(self._groups.max(initial=-1)) + 1
        pairs = [] if self._last is None else [self._last.neighbours(runs, rows_away=away) for away in (-1, 0, 1)]
        first = np.concatenate([self._groups[own] for own, _ in pairs] or [np.zeros(0, dtype=np.int64)])
        second = np.concatenate([part_of[theirs] for _, theirs in pairs] or [np.zeros(0, dtype=np.int64)])
        count, merged = connected(num_groups + num_parts, first, second + num_groups)
        label_of = np.zeros(count, dtype=np.int64)
        if self._last is not None:
            label_of[merged[self._groups]] = self._last.labels
            before = np.zeros(num_groups, dtype=np.int64)
            before[self._groups] = self._last.labels
            self.counts -= np.bincount(before, minlength=len(self.counts))
        label_of[merged[num_groups + part_of]] = runs.labels
        self.counts += np.bincount(label_of, minlength=len(self.counts))
        _, self._groups = renumbered(merged[num_groups + part_of])
        self._last = runs

    def skip(self) -> None:
        """A plane without any label is next."""
        self._last, self._groups = None, self._groups[:0]
