"""From logits on a grid to classes or masks on the image as it came, a few planes at a time.

Logits are interpolated linearly, one axis after the other, in blocks that stay in a processor's cache; then it is
decided, and no interpolated logit outlives its block. A block in which no other class can win is not interpolated.

The answer is that of `separable.planes`, which computes in double precision, to the voxel. Here is computed in single
precision, with an error below `ROUNDING` of the largest logit: wherever a decision is closer than that it is taken
again from the eight neighbours in the arithmetic of `planes`.

Shapes: K classes, N P Q planes and their two axes on the grid, T R S the same of a block of the image, M voxels.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Shape, axis_order, reorient_to_ras
from medssl_cli.imaging.placement import GridPlacement, axes_of, slices_of
from medssl_cli.imaging.separable import Axis

ROUNDING: Final = 2.0**-18
"""Share of the largest logit of a block by which two interpolated ones may seem to differ wrongly: each of three steps
is wrong by seven units of 2^-24 at most, of two logits together less than 48."""
BLOCK_PLANES: Final = 16
BLOCK_WIDTH: Final = 256
BLOCK_VOXELS: Final = 2**16
VOXELS_AT_ONCE: Final = 2**14
Values = NDArray[np.float32]
Places = tuple[NDArray[np.intp], ...]
"""Indices along T, R and S."""


@dataclass(frozen=True)
class Block:
    """A box of the image, and the logits around it.

    Args:
        values: Logits `[K, N, P, Q]` of the box on the grid that the block lies in.
        axes: Where the block's voxels lie in it, along T, R and S.
        order: Order in which `planes` interpolates along these: x, y and z, whichever they are.
    """

    values: Values
    axes: tuple[Axis, Axis, Axis]
    order: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size (T, R, S)."""
        t, r, s = (len(axis.low) for axis in self.axes)
        return t, r, s

    @property
    def is_exact(self) -> bool:
        """Whether the block's voxels are those of the grid."""
        return all(axis.is_identity for axis in self.axes)

    def interpolated(self, number: int) -> Values:
        """Logits `[T, R, S]` of a class, in single precision."""
        values = self.values[number]
        for dim in (2, 1, 0):
            axis = self.axes[dim]
            if axis.is_identity and len(axis.low) == values.shape[dim]:
                continue
            low = values.take(axis.low, dim)
            between = values.take(axis.high, dim)
            between -= low
            between *= axis.weight.astype(np.float32).reshape([-1 if each == dim else 1 for each in range(3)])
            low += between
            values = low
        return values

    def exactly(self, numbers: Sequence[int] | NDArray[np.intp], places: Places) -> Values:
        """Logits `[K, M]` of some classes at some voxels of the block, as `separable.planes` gives them."""
        found = np.empty((len(numbers), len(places[0])), dtype=np.float32)
        for start in range(0, found.shape[1], VOXELS_AT_ONCE):
            part = slice(start, start + VOXELS_AT_ONCE)
            ends: list[NDArray[np.intp]] = []
            weights = []
            for dim, (axis, place) in enumerate(zip(self.axes, places, strict=True)):
                shape = [2 if each == dim else 1 for each in range(3)]
                ends.append(np.stack([axis.low[place[part]], axis.high[place[part]]]).reshape(*shape, -1))
                weights.append(axis.weight[place[part]])
            around: Places = tuple(ends)
            for row, number in zip(found, numbers, strict=True):
                corners = self.values[number][around].astype(np.float64)
                for dim in self.order:
                    ends_of = corners.swapaxes(0, dim)
                    corners = (ends_of[:1] + (ends_of[1:] - ends_of[:1]) * weights[dim]).swapaxes(0, dim)
                row[part] = corners[0, 0, 0]
        return found

    def beyond(self) -> Iterator[tuple[tuple[Any, ...], Values]]:
        """Voxels that lie more than half a voxel outside of the grid, and logits of the nearest of the grid.

        Yields:
            Where they are in the block, and `[K, T, R, S]` of these.
        """
        for dim, axis in enumerate(self.axes):
            outside = np.flatnonzero(axis.is_outside)
            if outside.size:
                nearest = [each.nearest for each in self.axes]
                nearest[dim] = axis.nearest[outside]
                where: list[Any] = [slice(None)] * 3
                where[dim] = outside
                a, b, c = np.ix_(*nearest)
                yield tuple(where), self.values[:, a, b, c]


def largest(block: Block) -> NDArray[np.uint8]:
    """The class `[T, R, S]` of the largest logit at each voxel, of equal ones the lowest."""
    lows, highs = block.values.min(axis=(1, 2, 3)), block.values.max(axis=(1, 2, 3))
    margin = 0.0 if block.is_exact else ROUNDING * float(np.maximum(abs(lows), abs(highs)).max())
    rivals = np.flatnonzero(~(highs < lows.max() - margin))
    classes = np.full(block.shape, rivals[0], dtype=np.uint8)
    if len(rivals) == 1:
        return classes
    best = block.interpolated(rivals[0]).copy()
    second = np.full_like(best, -np.inf)
    for number in rivals[1:]:
        candidate = block.interpolated(number)
        wins = candidate > best
        np.maximum(second, np.minimum(best, candidate), out=second)
        if wins.any():
            np.maximum(classes, wins.view(np.uint8) * np.uint8(number), out=classes)  # no earlier number is higher
            np.maximum(best, candidate, out=best)
    if not block.is_exact:
        places = np.nonzero(best - second <= margin)
        if places[0].size:
            classes[places] = rivals[block.exactly(rivals, places).argmax(axis=0)]
        for where, values in block.beyond():
            classes[where] = values.argmax(axis=0)
    return classes


def above_zero(block: Block) -> NDArray[np.bool_]:
    """Masks `[K, T, R, S]` of where each logit is above zero."""
    masks = np.empty((len(block.values), *block.shape), dtype=np.bool_)
    for number, (mask, logits) in enumerate(zip(masks, block.values, strict=True)):
        low, high = float(logits.min()), float(logits.max())
        margin = 0.0 if block.is_exact else ROUNDING * max(abs(low), abs(high))
        if low > margin or high < -margin:
            mask[...] = low > margin
            continue
        values = block.interpolated(number)
        np.greater(values, 0, out=mask)
        if not block.is_exact:
            places = np.nonzero(np.abs(values) <= margin)
            mask[places] = block.exactly([number], places)[0] > 0
    if not block.is_exact:
        for where, values in block.beyond():
            masks[(slice(None), *where)] = values > 0
    return masks


class RestoredPlanes(ABC):
    """The way back from a grid, for logits that come a few planes at a time.

    Args:
        placement: Placement of the grid.
        along: Axis of the grid that the planes come along.
        like: An array `[X, Y, Z]` of the image, whose order in memory the answer takes.

    `beside`, where it is set, is told of every block that was decided about, and where its voxels lie.

    Raises:
        ValueError: The grids do not share their axes.
    """

    def __init__(self, placement: GridPlacement, *, along: int = 0, like: NDArray[np.generic] | None = None) -> None:
        self._placement = placement
        self._memory_order = _memory_order(np.empty(placement.source_shape, np.bool_) if like is None else like)
        order = (along, *(axis for axis in range(3) if axis != along))
        self._turn = order
        axes = axes_of(placement)
        self._axes = axes[order[0]], axes[order[1]], axes[order[2]]
        self._order = order.index(0), order.index(1), order.index(2)
        self._is_done = np.zeros(len(self._axes[0].low), dtype=np.bool_)
        self.beside: Callable[[tuple[slice, slice, slice], Block], None] | None = None

    def add(self, first: int, planes: Values) -> None:
        """Decide about all voxels that lie between planes which are known.

        Args:
            first: Number of the first plane on the grid.
            planes: Logits `[K, N, P, Q]`, beginning with the last plane of before.
        """
        start, shape = self._placement.content_start, self._placement.content_shape
        begin, p, q = (start[axis] for axis in self._turn)
        length, height, width = (shape[axis] for axis in self._turn)
        skipped = max(0, begin - first)
        content = planes[:, skipped : begin + length - first, p : p + height, q : q + width]
        first = first + skipped - begin
        axis = self._axes[0]
        last = first + content.shape[1] - 1
        ready = np.flatnonzero((axis.low >= first) & (axis.high <= last) & ~self._is_done)
        self._is_done[ready] = True
        if ready.size:
            self._decide(slice(int(ready[0]), int(ready[-1]) + 1), first, content)

    def _decide(self, ready: slice, first: int, content: Values) -> None:
        """Do all blocks of some planes of the image."""
        _, height, width = (len(axis.low) for axis in self._axes)
        for s in _pieces(0, width, BLOCK_WIDTH):
            for t in _pieces(ready.start, ready.stop, BLOCK_PLANES):
                rows = max(BLOCK_PLANES, BLOCK_VOXELS // ((t.stop - t.start) * (s.stop - s.start)))
                for r in _pieces(0, height, rows):
                    whole = (_part(self._axes[0], t, first), _part(self._axes[1], r), _part(self._axes[2], s))
                    (n, t_axis), (p, r_axis), (q, s_axis) = whole
                    block = Block(content[:, n, p, q], (t_axis, r_axis, s_axis), self._order)
                    self._write((t, r, s), block)
                    if self.beside is not None:
                        self.beside((t, r, s), block)

    @abstractmethod
    def _write(self, box: tuple[slice, slice, slice], block: Block) -> None:
        """Keep the answer of a block, whose voxels lie there along T, R and S."""

    def _blank(self, num: int, dtype: type[np.generic]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Arrays `[num, X, Y, Z]` of zeros, and the part of them that the network saw, `[num, T, R, S]`."""
        order = self._memory_order
        shape = [self._placement.source_shape[axis] for axis in order]
        blank = np.zeros((num, *shape), dtype).transpose(0, *(1 + order.index(axis) for axis in range(3)))
        return blank, self.seen_part(blank)

    @property
    def source_shape(self) -> Shape:
        """Size (X, Y, Z) of the image."""
        return self._placement.source_shape

    @property
    def slowest(self) -> int:
        """Axis of the image that the planes come along."""
        return axis_order(self._placement.source_affine)[0][self._turn[0]]

    def seen_part(self, whole: NDArray[Any]) -> NDArray[Any]:
        """The part of an array `[num, X, Y, Z]` of the image that the network saw, as a view `[num, T, R, S]`."""
        in_ras, _ = reorient_to_ras(whole, self._placement.source_affine)
        box = in_ras[(slice(None), *slices_of(self._placement.box_start, self._placement.box_shape))]
        return box.transpose(0, *(1 + axis for axis in self._turn))


class RestoredLabels(RestoredPlanes):
    """A label map: of classes that exclude each other, the one with the largest logit; see `RestoredPlanes`."""

    def __init__(self, placement: GridPlacement, *, along: int = 0, like: NDArray[np.generic] | None = None) -> None:
        super().__init__(placement, along=along, like=like)
        self._whole, self._box = self._blank(1, np.uint8)

    @property
    def answer(self) -> NDArray[np.uint8]:
        """`[X, Y, Z]`; background outside of the box that the network saw."""
        answer: NDArray[np.uint8] = self._whole[0]
        return answer

    def _write(self, box: tuple[slice, slice, slice], block: Block) -> None:
        self._box[(0, *box)] = largest(block)


class RestoredMasks(RestoredPlanes):
    """Masks of classes that may overlap; see `RestoredPlanes`.

    Args:
        num_masks: How many classes K.
    """

    def __init__(
        self, placement: GridPlacement, num_masks: int, *, along: int = 0, like: NDArray[np.generic] | None = None
    ) -> None:
        super().__init__(placement, along=along, like=like)
        self._whole, self._box = self._blank(num_masks, np.bool_)

    @property
    def answer(self) -> NDArray[np.bool_]:
        """`[K, X, Y, Z]`; false outside of the box that the network saw."""
        answer: NDArray[np.bool_] = self._whole
        return answer

    def _write(self, box: tuple[slice, slice, slice], block: Block) -> None:
        self._box[(slice(None), *box)] = above_zero(block)


def restore_labels(logits: Values, placement: GridPlacement) -> NDArray[np.uint8]:
    """Class per voxel of the image as it came, from logits on the grid.

    Logits are interpolated linearly, then the largest wins, of equal ones the lowest class.

    Args:
        logits: `[K, X', Y', Z']`.
        placement: Placement of the grid.

    Returns:
        `[X, Y, Z]`, uint8; background outside of the box that the network saw.

    Raises:
        ValueError: The grids do not share their axes.
    """
    restored = RestoredLabels(placement)
    restored.add(0, logits)
    return restored.answer


def restore_masks(logits: Values, placement: GridPlacement) -> NDArray[np.bool_]:
    """Masks of classes that may overlap, on the image as it came: where an interpolated logit is above zero.

    Args:
        logits: `[K, X', Y', Z']`.
        placement: Placement of the grid.

    Returns:
        `[K, X, Y, Z]`, bool; false outside of the box that the network saw.
    """
    restored = RestoredMasks(placement, len(logits))
    restored.add(0, logits)
    return restored.answer


def _part(axis: Axis, part: slice, first: int = 0) -> tuple[slice, Axis]:
    """The voxels of the grid around some of an axis' points, and where the points lie among these."""
    low, high, nearest = axis.low[part], axis.high[part], axis.nearest[part]
    begin, end = int(min(low.min(), nearest.min())), int(max(high.max(), nearest.max()))
    moved = replace(
        axis,
        low=low - begin,
        high=high - begin,
        weight=axis.weight[part],
        nearest=nearest - begin,
        is_outside=axis.is_outside[part],
    )
    return slice(begin - first, end + 1 - first), moved


def _pieces(start: int, stop: int, length: int) -> Iterator[slice]:
    """A range in pieces of about the same length, and none longer."""
    count = -(-(stop - start) // length)
    ends = np.linspace(start, stop, count + 1).round().astype(int).tolist()
    for begin, end in itertools.pairwise(ends):
        yield slice(begin, end)


def _memory_order(array: NDArray[np.generic]) -> list[int]:
    """Axes of an array, those that lie farthest apart in memory first."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
