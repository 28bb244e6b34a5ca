"""How arrays lie: letters of their axes, and voxels brought back to axes that they had before."""

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, axis_order


def orientation_code(affine: Affine) -> str:
    """Direction of increasing index of each array axis, for example "LPS"."""
    order, backwards = axis_order(affine)
    letters = ["?"] * 3
    for world in range(3):
        letters[order[world]] = ("LPI" if backwards[world] else "RAS")[world]
    return "".join(letters)


def reorient_like(voxels: NDArray[np.generic], affine: Affine) -> NDArray[np.generic]:
    """Undo `reorient_to_ras`: bring RAS-oriented voxels `[C, X, Y, Z]` back to the axes of the original affine."""
    order, backwards = axis_order(affine)
    flips = tuple(world + 1 for world in range(3) if backwards[world])
    inverse = [order.index(axis) + 1 for axis in range(3)]
    return np.flip(voxels, flips).transpose(0, *inverse)
