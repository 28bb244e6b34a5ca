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


def iou(prediction: Mask, reference: Mask) -> float:
    """Intersection over union (Jaccard index), |P and R| / |P or R|.

    Args:
        prediction: Boolean mask of any shape.
        reference: Boolean mask of the same shape.

    Returns:
        0 to 1; 0 if exactly one mask is empty; NaN if both are.

    Raises:
        ValueError: The shapes differ.
    """
    require_same_shape(prediction, reference)
    union = np.count_nonzero(prediction | reference)
    return float(np.count_nonzero(prediction & reference) / union) if union else math.nan


def volume_ml(mask: Mask, spacing_mm: tuple[float, float, float]) -> float:
    """Volume of a mask `[X, Y, Z]` in millilitres: its voxels times the volume of one.

    Args:
        mask: Boolean mask.
        spacing_mm: Distance (x, y, z) between voxel centres in millimetres.
    """
    return float(np.count_nonzero(mask) * math.prod(spacing_mm) / CUBIC_MM_PER_ML)


def volume_error_percent(volume: float, reference: float) -> float:
    """Difference of two volumes as a share of their mean, in per cent.

    Of the mean and not of the reference, so that a structure that is not there but marked has a worst value like one
    that is missed: |P - R| / ((P + R) / 2).

    Args:
        volume: Volume of the prediction.
        reference: Volume of the reference, in the same unit.

    Returns:
        0 to 200; 200 if exactly one volume is 0; NaN if both are.
    """
    total = volume + reference
    return 200 * abs(volume - reference) / total if total else math.nan


def bounding_box(mask: Mask, *, margin: int = 0) -> tuple[slice, ...]:
    """The box around a mask, wider by a margin where the image allows; of an empty mask an empty box.

    Args:
        mask: `[X, Y, Z]`.
        margin: Voxels.
    """
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        ends = (max(int(occupied[0]) - margin, 0), int(occupied[-1]) + 1 + margin) if occupied.size else (0, 0)
        box.append(slice(*ends))
    return tuple(box)


def require_same_shape(prediction: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    """Refuse to compare voxels of different grids.

    Raises:
        ValueError: The shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} are not on the same grid")
