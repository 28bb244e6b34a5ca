"""How much of a structure two masks share, and how large it is.

Empty masks: a structure that neither mask marks cannot be scored, so its Dice is NaN ("not applicable"); a structure
that only one of them marks scores 0. A missed structure is thereby never dropped from a mean.
"""

import math

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
LabelMap = NDArray[np.integer]

CUBIC_MM_PER_ML = 1000.0


def dice(prediction: Mask, reference: Mask) -> float:
    """Dice similarity coefficient, 2 |P and R| / (|P| + |R|).

    Dice, Ecology 26 (1945): https://doi.org/10.2307/1932409

    Args:
        prediction: Boolean mask of any shape.
        reference: Boolean mask of the same shape.

    Returns:
        0 to 1; 0 if exactly one mask is empty; NaN if both are.

    Raises:
        ValueError: The shapes differ.
    """
    require_same_shape(prediction, reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    if total == 0:
        return math.nan
    return float(2 * np.count_nonzero(prediction & reference) / total)


def volume_ml(mask: Mask, spacing_mm: tuple[float, float, float]) -> float:
    """Volume of a mask `[X, Y, Z]` in millilitres: its voxels times the volume of one.

    Args:
        mask: Boolean mask.
        spacing_mm: Distance (x, y, z) between voxel centres in millimetres.
    """
    return float(np.count_nonzero(mask) * math.prod(spacing_mm) / CUBIC_MM_PER_ML)


def require_same_shape(prediction: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    """Refuse to compare voxels of different grids.

    Raises:
        ValueError: The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} are not on the same grid")
