"""How much of a structure two masks share, and how large it is.

Empty masks: a structure that neither mask marks cannot be scored, so its Dice is NaN ("not applicable"); a structure
that only one of them marks scores 0. A missed structure is thereby never dropped from a mean.
"""

import math
from collections.abc import Mapping

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


def dice_per_class(prediction: LabelMap, reference: LabelMap, classes: Mapping[int, str]) -> dict[str, float]:
    """Dice of every class of two label maps, under the class's name.

    Args:
        prediction: Label map of any shape.
        reference: Label map of the same shape.
        classes: Label value to name. Other values count as background.

    Raises:
        ValueError: The shapes differ.
    """
    return {name: dice(prediction == value, reference == value) for value, name in classes.items()}


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
