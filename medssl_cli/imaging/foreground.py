"""Where in an image the body lies, by its brightness alone.

Shapes: X Y Z space.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Shape

STRAY: Final = 0.005
"""Share of the bright voxels that may lie beyond either end of the box along an axis: noise, a table, a tube."""


def foreground_box(voxels: NDArray[np.generic]) -> tuple[Shape, Shape]:
    """The box of what is brighter than the image's mean, without the few voxels that lie far outside.

    Unlike the field of view, which differs from scanner to scanner, it goes with the body.

    Args:
        voxels: `[X, Y, Z]`.

    Returns:
        Its first voxel along each axis, and the one after its last; the whole image where all voxels are equal.
    """
    is_bright = voxels > voxels.mean(dtype=np.float64)
    if not is_bright.any():
        x, y, z = voxels.shape
        return (0, 0, 0), (x, y, z)
    ends = []
    for axis in range(3):
        counts = is_bright.sum(axis=tuple({0, 1, 2} - {axis}))
        shares = np.cumsum(counts) / counts.sum()
        first = int(np.searchsorted(shares, STRAY, side="right"))
        last = int(np.searchsorted(shares, 1 - STRAY, side="left"))
        ends.append((first, max(first, last) + 1))
    (low_x, high_x), (low_y, high_y), (low_z, high_z) = ends
    return (low_x, low_y, low_z), (high_x, high_y, high_z)
