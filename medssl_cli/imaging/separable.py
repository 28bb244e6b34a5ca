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
    mixed = matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))
    if np.abs(mixed * np.array(target_shape)).max() > MAX_MIX:
        raise ValueError("the grids do not share their axes")
    x, y, z = (_axis(matrix[i, i], matrix[i, 3], source_shape[i], target_shape[i], is_fast=i == 0) for i in range(3))
    return x, y, z


def planes(voxels: NDArray[np.float32], axes: tuple[Axis, Axis, Axis]) -> Iterator[NDArray[np.float32]]:
    """Resampled values `[C, Y, Z]`, one plane of the target's x axis after the other.

    Args:
        voxels: `[C, X, Y, Z]` on the source grid.
        axes: Axes of `shared_axes`.

    Yields:
        The same array each time, with other values.
    """
    x, y, z = axes
    between = _Plane(y, z, voxels.shape[2:])
    values = np.empty((len(voxels), len(y.low), len(z.low)), dtype=np.float32)
    far = y.is_outside[:, None] | z.is_outside[None, :]
    has_far = bool(far.any())
    for low, high, weight, nearest, is_outside in zip(x.low, x.high, x.weight, x.nearest, x.is_outside, strict=True):
        for channel, out in zip(voxels, values, strict=True):
            if not is_outside:
                out[...] = between.interpolate(channel[low], channel[high], weight)
            if is_outside or has_far:
                np.copyto(out, channel[nearest].take(y.nearest, 0).take(z.nearest, 1), where=is_outside or far)
        yield values


class _Plane:
    """Points between the voxels of two planes; its arrays stay in a processor's cache."""

    def __init__(self, y: Axis, z: Axis, shape: tuple[int, ...]) -> None:
        self._y, self._z = y, z
        wide = (len(y.low), shape[1])
        self._source = np.empty(shape), np.empty(shape)
        self._rows = np.empty(wide), np.empty(wide)
        self._points = np.empty((wide[0], len(z.low))), np.empty((wide[0], len(z.low)))

    def interpolate(self, low: NDArray[np.float32], high: NDArray[np.float32], weight: float) -> NDArray[np.float64]:
        """Values `[Y, Z]` at a fraction of the way from one plane of the source to the next."""
        values, difference = self._source
        values[...] = low
        if weight:
            np.subtract(high, values, out=difference)
            difference *= weight
            values += difference
        values = _between(values, self._y, 0, *self._rows)
        return _between(values, self._z, 1, *self._points)


def _between(
    plane: NDArray[np.float64],
    axis: Axis,
    number: int,
    low: NDArray[np.float64],
    difference: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Points between the voxels of one axis of a plane, in the two arrays given."""
    if axis.is_identity and len(axis.low) == plane.shape[number]:
        return plane
    plane.take(axis.low, number, out=low, mode="clip")  # "raise" would copy what it writes
    plane.take(axis.high, number, out=difference, mode="clip")
    difference -= low
    difference *= axis.weight[:, None] if number == 0 else axis.weight
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
