"""Whether voxels look like a label map: whole numbers, few of them, and neighbours that are mostly equal."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

FEW: Final = 16
MOST: Final = 256
_LOOKED_AT: Final = 2**18
_LARGEST: Final = 65_535
_BLURRED: Final = 24
_PURE: Final = 0.9


def is_label_like(voxels: NDArray[np.generic], *, at_most: int = MOST) -> bool:
    """Whether a volume could be a label map.

    Up to 16 different whole numbers are enough. Images of 8 bits have up to 256, so of more than 16 half of all
    neighbours along the longest axis that are not both background must be equal: in a label map only those at an edge
    differ.

    Args:
        voxels: `[X, Y, Z]`.
        at_most: Different values.
    """
    voxels = np.moveaxis(voxels, int(np.argmax(voxels.shape)), 0)
    _, y, z = voxels.shape
    step = max(1, int(np.sqrt(voxels.size / _LOOKED_AT)))
    block = voxels[:, :: min(step, y), :: min(step, z)]
    if _num_values(block, at_most) is None:
        return False
    number = _num_values(voxels, at_most)
    return number is not None and (number <= FEW or _share_of_equal_neighbours(block) >= 0.5)


def _num_values(voxels: NDArray[np.generic], at_most: int) -> int | None:
    """How many different values there are; None if they are too many, or not whole numbers from 0 to 65,535."""
    low, high = float(voxels.min()), float(voxels.max())
    if not (low >= 0 and high <= _LARGEST):
        return None
    whole = voxels.astype(np.uint16)
    if voxels.dtype.kind == "f" and not np.array_equal(whole, voxels):
        return None
    present = np.zeros(int(high) + 1, bool)
    present[whole.ravel()] = True
    found = int(present.sum())
    return found if found <= at_most else None


def _share_of_equal_neighbours(voxels: NDArray[np.generic]) -> float:
    first, second = voxels[:-1], voxels[1:]
    is_inside = (first != 0) | (second != 0)
    return float((first == second)[is_inside].mean()) if is_inside.any() else 1.0


def is_black_and_white(voxels: NDArray[np.generic]) -> bool:
    """Whether a picture of 8 bits has both colours and hardly a pixel between: a mask that JPEG has blurred."""
    if voxels.dtype != np.uint8:
        return False
    grey = np.bincount(voxels.ravel().astype(np.uint8), minlength=256) / voxels.size
    black, white = float(grey[: _BLURRED + 1].sum()), float(grey[255 - _BLURRED :].sum())
    return min(black, white) > 0 and black + white >= _PURE
