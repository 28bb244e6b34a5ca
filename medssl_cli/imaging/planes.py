"""The middle planes of a volume, small enough to be sent and drawn."""

from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_PLANE_VOXELS: Final = 160

Planes = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


class Readable(Protocol):
    """What can be read in parts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""

    def __getitem__(self, index: tuple[slice, ...], /) -> NDArray[Any]:
        """A part."""


def middle_planes(array: Readable) -> Planes:
    """The three planes through the middle of a volume, of which nothing else is read.

    Args:
        array: `[X, Y, Z]`, in memory or on disk.

    Returns:
        `[1, Y', Z']`, `[X', 1, Z']` and `[X', Y', 1]`, every `step(size)`-th voxel of each axis.
    """
    planes = [_plane(array, axis) for axis in range(3)]
    return planes[0], planes[1], planes[2]


def step(size: int) -> int:
    """Which voxels along an axis of so many are kept: of at most 319, all; of larger ones every second, third, ..."""
    return max(1, size // MAX_PLANE_VOXELS)


def _plane(array: Readable, axis: int) -> NDArray[Any]:
    middle = array.shape[axis] // 2
    plane = np.asarray(array[tuple(slice(middle, middle + 1) if at == axis else slice(None) for at in range(3))])
    return np.ascontiguousarray(plane[tuple(slice(None, None, step(size)) for size in plane.shape)])
