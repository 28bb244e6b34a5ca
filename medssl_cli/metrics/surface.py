"""How far apart the surfaces of two masks lie, in millimetres, on grids of any spacing.

The surface of a mask is those of its voxels that a 6-connected erosion removes; beyond the image lies background.
Distances run between voxel centres, from each surface voxel to the nearest surface voxel of the other mask, and are
exact. They are found with a k-d tree of the surface points: as exact as a distance transform, several times faster on
anatomical shapes, and its memory grows with the surfaces instead of with the box around them.

Definitions, P and R being the surface voxels of prediction and reference, d(p, R) the distance from p to the nearest r:

    HD95 = max(percentile95 {d(p, R)}, percentile95 {d(r, P)}), percentiles interpolated linearly
    NSD  = (|{p: d(p, R) <= t}| + |{r: d(r, P) <= t}|) / (|P| + |R|) with tolerance t
    ASSD = (sum of d(p, R) + sum of d(r, P)) / (|P| + |R|)

A structure that only one of the two marks takes the worst values, so that it cannot vanish from a mean: Dice, IoU and
NSD 0, HD95 and ASSD the diagonal of the image, a volume error of 200 %. A structure that neither marks is not
applicable: NaN.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medssl_cli.metrics.overlap import (
    Mask,
    bounding_box,
    dice,
    iou,
    require_same_shape,
    volume_error_percent,
    volume_ml,
)

Spacing = tuple[float, float, float]
Outcome = Literal["scored", "missed", "hallucinated", "absent"]

ROUNDING_MM: Final = 1e-4
"""Added to a tolerance: spacings read from float32 headers must not push a distance of "exactly 1 mm" beyond 1 mm."""
LEAF_SIZE: Final = 32
"""Points per leaf of the tree: measured, halves the worst case (surfaces far apart) and costs nothing elsewhere."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in millimetres between the surfaces of two masks that are not empty.

    Args:
        to_reference: `[P]`, of each surface voxel of the prediction to the reference's surface.
        to_prediction: `[R]`, of each surface voxel of the reference to the prediction's surface.
    """

    to_reference: NDArray[np.float64]
    to_prediction: NDArray[np.float64]


@dataclass(frozen=True)
class StructureScores:
    """How well one structure of one image was found.

    Args:
        dice: 0 (worst) to 1; NaN if absent.
        iou: 0 (worst) to 1; NaN if absent.
        hd95_mm: 0 to the image's diagonal (worst); NaN if absent.
        assd_mm: 0 to the image's diagonal (worst); NaN if absent.
        nsd: 0 (worst) to 1; NaN if absent.
        volume_error_ml: Difference of the volumes; NaN if absent.
        volume_error_percent: The same as a share of their mean, 0 to 200 (worst); NaN if absent.
        volume_ml: Volume of the prediction.
        reference_ml: Volume of the reference.
        outcome: "scored": both mark it; "missed": only the reference does; "hallucinated": only the prediction does;
            "absent": neither does.
    """

    dice: float
    iou: float
    hd95_mm: float
    assd_mm: float
    nsd: float
    volume_error_ml: float
    volume_error_percent: float
    volume_ml: float
    reference_ml: float
    outcome: Outcome


def surface(mask: Mask) -> Mask:
    """Voxels of a mask with at least one of their 6 neighbours outside of it.

    Args:
        mask: `[X, Y, Z]`. Axes of length 1 are no direction: the surface of a flat image is its outline.

    Returns:
        `[X, Y, Z]`.
    """
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis, size in enumerate(mask.shape):
        if size == 1:
            continue
        for neighbours in (slice(0, -2), slice(2, None)):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = neighbours
            inner &= padded[tuple(window)]
    return mask & ~inner


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances between the surfaces of two masks, each way.

    Args:
        prediction: `[X, Y, Z]`, not empty.
        reference: `[X, Y, Z]`, not empty.
        spacing_mm: Distance (x, y, z) between voxel centres in millimetres.

    Raises:
        ValueError: The shapes differ, or a mask is empty.
    """
    require_same_shape(prediction, reference)
    predicted, expected = _surface_points_mm(prediction, spacing_mm), _surface_points_mm(reference, spacing_mm)
    if not len(predicted) or not len(expected):
        raise ValueError("an empty mask has no surface")
    return SurfaceDistances(
        to_reference=_nearest_mm(predicted, expected), to_prediction=_nearest_mm(expected, predicted)
    )


def hd95_mm(distances: SurfaceDistances) -> float:
    """The larger of the two directed 95th percentiles of the surface distances, in millimetres.

    Huttenlocher et al., IEEE TPAMI 15 (1993), with the percentile for robustness to single voxels:
    https://doi.org/10.1109/34.232073
    """
    return float(max(np.percentile(distances.to_reference, 95), np.percentile(distances.to_prediction, 95)))


def nsd(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Normalised surface Dice: the share of both surfaces that lies within the tolerance of the other, 0 to 1.

    Nikolov et al., JMIR 23 (2021), section "Surface Dice", with surface voxels counted instead of areas:
    https://doi.org/10.2196/26151
    """
    limit = tolerance_mm + ROUNDING_MM
    close = np.count_nonzero(distances.to_reference <= limit) + np.count_nonzero(distances.to_prediction <= limit)
    return float(close / (distances.to_reference.size + distances.to_prediction.size))


def assd_mm(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance in millimetres: the mean over the surface voxels of both masks."""
    return float(np.concatenate([distances.to_reference, distances.to_prediction]).mean())


def image_diagonal_mm(shape: tuple[int, ...], spacing_mm: Spacing) -> float:
    """Length in millimetres of the diagonal of an image of size (X, Y, Z): no distance within it is larger."""
    return math.hypot(*(size * spacing for size, spacing in zip(shape, spacing_mm, strict=True)))


def structure_scores(prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float) -> StructureScores:
    """Scores of one structure of one image.

    Args:
        prediction: Mask `[X, Y, Z]`.
        reference: Mask `[X, Y, Z]` on the same grid.
        spacing_mm: Distance (x, y, z) between voxel centres in millimetres.
        tolerance_mm: Deviation that counts as none, for example the disagreement of two readers.

    Returns:
        Scores; masks that are empty on one side take the worst values, on both sides NaN (see the head of this module).

    Raises:
        ValueError: The shapes differ.
    """
    require_same_shape(prediction, reference)
    found, exists = bool(prediction.any()), bool(reference.any())
    volumes = volume_ml(prediction, spacing_mm), volume_ml(reference, spacing_mm)
    hd95, assd, share = math.nan, math.nan, math.nan
    outcome: Outcome = "absent"
    if found and exists:
        distances = surface_distances(prediction, reference, spacing_mm)
        hd95, assd, share = hd95_mm(distances), assd_mm(distances), nsd(distances, tolerance_mm)
        outcome = "scored"
    elif found or exists:
        hd95 = assd = image_diagonal_mm(reference.shape, spacing_mm)
        share, outcome = 0.0, "missed" if exists else "hallucinated"
    return StructureScores(
        dice=dice(prediction, reference),
        iou=iou(prediction, reference),
        hd95_mm=hd95,
        assd_mm=assd,
        nsd=share,
        volume_error_ml=abs(volumes[0] - volumes[1]) if found or exists else math.nan,
        volume_error_percent=volume_error_percent(*volumes),
        volume_ml=volumes[0],
        reference_ml=volumes[1],
        outcome=outcome,
    )


def _surface_points_mm(mask: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """Positions `[N, 3]` of the surface voxels."""
    box = bounding_box(mask, margin=1)  # one voxel wider, so that only a flat image has a flat box
    corner = np.array([edge.start for edge in box], dtype=np.float64)
    return (np.argwhere(surface(mask[box])) + corner) * np.asarray(spacing_mm, dtype=np.float64)


def _nearest_mm(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance `[N]` of each point `[N, 3]` to the nearest of the others `[M, 3]`."""
    distances, _ = cKDTree(others, leafsize=LEAF_SIZE).query(points)
    return np.asarray(distances, dtype=np.float64)
