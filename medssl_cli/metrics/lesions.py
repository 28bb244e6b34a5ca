"""How well the single lesions of a structure are found: sensitivity, false positives and Dice, lesion by lesion.

The rule is that of the BraTS challenge of 2023. Voxels that touch by a face, an edge or a corner belong together. Parts
of the reference whose dilations touch are one lesion, for one lesion is often drawn in pieces. A component of the
prediction belongs to every lesion whose dilation it touches; one that belongs to none is a false positive.

    Dice of a lesion = that of the lesion and all components that belong to it
    lesion-wise Dice = sum of the Dice of the lesions / (number of lesions + number of false positives)

Small lesions are left out, and what belongs to them is no false positive. A lesion is found if the prediction marks at
least one of its voxels; what only lies near it neither finds it nor is a false positive. Without lesions and without
false positives there is no Dice: NaN. Of a prediction that marks nothing every lesion has the Dice 0.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medssl_cli.heads import LesionRule
from medssl_cli.metrics.overlap import Mask, bounding_box, require_same_shape
from medssl_cli.metrics.surface import Spacing

NEIGHBOURS: Final = ndimage.generate_binary_structure(3, 3)
"""Voxels that share a face, an edge or a corner."""
STEP: Final = ndimage.generate_binary_structure(3, 2)
"""A dilation by one voxel: to those that share a face or an edge."""


@dataclass(frozen=True)
class LesionScores:
    """How well the lesions of one structure of one image were found.

    Args:
        lesion_dice: Lesion-wise, 0 (worst) to 1; NaN without lesions and without false positives.
        num_lesions: Number of lesions of the reference, small ones left out.
        num_found: Those of them that are found.
        num_false: Components of the prediction that belong to no lesion.
    """

    lesion_dice: float
    num_lesions: int
    num_found: int
    num_false: int


def lesion_scores(prediction: Mask, reference: Mask, spacing_mm: Spacing, rule: LesionRule) -> LesionScores:
    """Scores of the lesions of one structure of one image.

    Args:
        prediction: Mask `[X, Y, Z]`.
        reference: Mask `[X, Y, Z]` on the same grid.
        spacing_mm: Distance (x, y, z) between voxel centres in millimetres.
        rule: What is one lesion, and which are left out.

    Raises:
        ValueError: The shapes differ.
    """
    require_same_shape(prediction, reference)
    box = bounding_box(prediction | reference, margin=rule.dilation_voxels)
    prediction, reference = prediction[box], reference[box]
    around, num_all = _components(_dilated(reference, rule.dilation_voxels))
    components, num_components = _components(prediction)
    sizes = np.bincount(around[reference], minlength=num_all + 1)
    shared = np.bincount(around[reference & prediction], minlength=num_all + 1)
    component_sizes = np.bincount(components.ravel(), minlength=num_components + 1)
    pairs = np.stack([around[prediction], components[prediction]], axis=1)
    touched = np.unique(pairs[pairs[:, 0] > 0], axis=0)
    assigned = np.bincount(touched[:, 0], component_sizes[touched[:, 1]], minlength=num_all + 1)
    counts = sizes * math.prod(spacing_mm) > rule.min_volume_mm3
    counts[0] = False
    num_lesions, num_false = int(counts.sum()), num_components - len(np.unique(touched[:, 1]))
    dice = 2 * shared[counts] / (sizes[counts] + assigned[counts])
    number = num_lesions + num_false
    return LesionScores(
        lesion_dice=float(dice.sum() / number) if number else math.nan,
        num_lesions=num_lesions,
        num_found=int(np.count_nonzero(shared[counts])),
        num_false=num_false,
    )


def _dilated(mask: Mask, voxels: int) -> Mask:
    """A mask and all that is within so many steps of it."""
    if not voxels or not mask.any():
        return mask
    dilated: Mask = ndimage.binary_dilation(mask, STEP, iterations=voxels)
    return dilated


def _components(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Number of the component of each voxel, 0 outside, and how many there are."""
    components, number = ndimage.label(mask, NEIGHBOURS)
    return components, int(number)
