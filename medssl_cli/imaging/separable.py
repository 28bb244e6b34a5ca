"""Linear resampling between two grids that share their axes, plane by plane, in the arithmetic of ITK.

What `resample` does for any two grids at once is done here along one axis after the other, so that only a few planes
exist at a time. The values are those of `itk::LinearInterpolateImageFunction` to the last bit of float32: double
precision, x before y before z, the border's value up to half a voxel outside, the nearest voxel of all axes beyond.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape

MAX_MIX: Final = 1e-6
"""Voxels by which an index along one axis may depend on the other axes, and the axes still count as shared."""


@dataclass(frozen=True)
class Axis:
    """Where the points of a target axis lie on a source axis.

    Args:
        low: Source voxel at or before each point.
        high: The one behind it, or `low` again at the border.
        weight: Weight of `high`.
        nearest: Nearest source voxel.
        is_outside: The point lies more than half a voxel beyond the border.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float64]
    nearest: NDArray[np.intp]
    is_outside: NDArray[np.bool_]

    @property
    def is_identity(self) -> bool:
        """Whether every point is the source voxel of the same number."""
        return bool((self.weight == 0).all() and np.array_equal(self.low, np.arange(len(self.low))))


def shared_axes(matrix: Affine, source_shape: Shape, target_shape: Shape) -> tuple[Axis, Axis, Axis]:
    """The three axes of a map from target to source indices.

    Args:
        matrix: Affine from target to source indices.
        source_shape: Size (X, Y, Z) of the source.
        target_shape: Size of the target.

    Raises:
        ValueError: The grids do not share their axes.
    """
    axes = axes_between(matrix, source_shape, target_shape)
    if axes is None:
        raise ValueError("the grids do not share their axes")
    return axes


def axes_between(matrix: Affine, source_shape: Shape, target_shape: Shape) -> tuple[Axis, Axis, Axis] | None:
    """The same; None if the grids do not share their axes."""
    mixed = matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))
    if np.abs(mixed * np.array(target_shape)).max() > MAX_MIX:
        return None
    x, y, z = (_axis(matrix[i, i], matrix[i, 3], source_shape[i], target_shape[i], is_fast=i == 0) for i in range(3))
    return x, y, z


def planes(
    voxels: NDArray[np.generic], axes: tuple[Axis, Axis, Axis], *, along: int = 0
) -> Iterator[NDArray[np.float32]]:
    """Resampled values, one plane of the target after the other.

    Args:
        voxels: `[C, X, Y, Z]` on the source grid.
        axes: Axes of `shared_axes`.
        along: Axis that the planes follow each other along. It changes no value; planes that lie together in memory are
            read fastest.

    Yields:
        `[C, P, Q]`, the other two axes in their order; the same array each time, with other values.
    """
    first, second = (axis for number, axis in enumerate(axes) if number != along)
    channels = [_Channel(channel, axes, along) for channel in np.moveaxis(voxels, along + 1, 1)]
    values = np.empty((len(voxels), len(first.low), len(second.low)), dtype=np.float32)
    far = first.is_outside[:, None] | second.is_outside[None, :]
    has_far = bool(far.any())
    for place, is_outside in enumerate(axes[along].is_outside):
        for channel, out in zip(channels, values, strict=True):
            if not is_outside:
                out[...] = channel.interpolated(place)
            if is_outside or has_far:
                np.copyto(out, channel.nearest(place), where=is_outside or far)
        yield values


class _Channel:
    """Planes `[N, P, Q]` of one channel, and points between them. Of each plane is known for a while what it gives."""

    def __init__(self, planes_: NDArray[np.generic], axes: tuple[Axis, Axis, Axis], along: int) -> None:
        first, second = (number for number in range(3) if number != along)
        self._is_turned = abs(planes_.strides[1]) < abs(planes_.strides[2])
        self._planes = planes_.swapaxes(1, 2) if self._is_turned else planes_  # rows that lie together in memory
        rows = (second, first) if self._is_turned else (first, second)
        self._along, self._axes = axes[along], [(axes[number], rows.index(number)) for number in (first, second)]
        self._before = [pair for pair, number in zip(self._axes, (first, second), strict=True) if number < along]
        self._behind = self._axes[len(self._before) :]
        self._known: dict[int, NDArray[np.float64]] = {}

    def interpolated(self, place: int) -> NDArray[np.float64]:
        """Values `[P, Q]` at a point of the axis that the planes follow: along x, then y, then z."""
        low, high, weight = self._along.low[place], self._along.high[place], self._along.weight[place]
        self._known = {number: self._known.get(number, _NONE) for number in (low, high)}
        values = self._source(low)
        if weight:
            values = values + (self._source(high) - values) * weight
        for axis, dim in self._behind:
            values = _between(values, axis, dim)
        return values.T if self._is_turned else values

    def nearest(self, place: int) -> NDArray[np.generic]:
        """The nearest voxels `[P, Q]`."""
        values = self._planes[self._along.nearest[place]]
        for axis, dim in self._axes:
            values = values.take(axis.nearest, dim)
        return values.T if self._is_turned else values

    def _source(self, number: int) -> NDArray[np.float64]:
        """A plane of the source at the points of the axes that come before the one that planes follow."""
        if self._known[number] is _NONE:
            values = self._planes[number].astype(np.float64)
            for axis, dim in self._before:
                values = _between(values, axis, dim)
            self._known[number] = values
        return self._known[number]


_NONE: Final = np.empty((0, 0))


def _between(plane: NDArray[np.float64], axis: Axis, dim: int) -> NDArray[np.float64]:
    """Points between the voxels of one axis of a plane."""
    if axis.is_identity and len(axis.low) == plane.shape[dim]:
        return plane
    low = plane.take(axis.low, dim)
    difference = plane.take(axis.high, dim)
    difference -= low
    difference *= axis.weight[:, None] if dim == 0 else axis.weight
    low += difference
    return low


def _axis(step: float, start: float, source: int, target: int, *, is_fast: bool) -> Axis:
    numbers = np.arange(target)
    # ITK walks along x from the first index to the one behind the last, and multiplies on the other axes.
    index = start + (start + step * target - start) * (numbers / target) if is_fast else step * numbers + start
    low = np.maximum(np.floor(index).astype(np.intp), 0)
    weight = index - low
    has_next = (weight > 0) & (low + 1 < source)
    return Axis(
        low=np.minimum(low, source - 1),
        high=np.where(has_next, low + 1, np.minimum(low, source - 1)),
        weight=np.where(has_next, weight, 0.0),
        nearest=np.clip(np.floor(index + 0.5).astype(np.intp), 0, source - 1),
        is_outside=(index < -0.5) | (index >= source - 0.5),
    )
