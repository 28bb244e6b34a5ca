"""Scores of segmentations beside MONAI's and SimpleITK's: random masks, single voxels, anisotropic grids."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from medssl_cli.metrics.surface import StructureScores, structure_scores

TOLERANCE_MM = 1.05
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.5, 0.4, 1.3)]


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a reference of several parts that overlap in some places."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((2, 4, 5, 3)) < 0.35
    masks = [mask.repeat(3, 0).repeat(3, 1).repeat(2, 2) for mask in coarse]
    return np.roll(masks[0], int(rng.integers(3)), axis=0) | masks[1] & (rng.random(masks[1].shape) < 0.8), masks[1]


def single_voxels(_: int) -> tuple[np.ndarray, np.ndarray]:
    masks = np.zeros((2, 6, 7, 5), dtype=bool)
    masks[0, 1, 2, 3] = masks[1, 4, 2, 0] = True
    return masks[0], masks[1]


def beside_the_edge(_: int) -> tuple[np.ndarray, np.ndarray]:
    masks = np.zeros((2, 6, 7, 5), dtype=bool)
    masks[0, :, :4], masks[1, :3] = True, True
    return masks[0], masks[1]


CASES = [(blobs, seed) for seed in range(8)] + [(single_voxels, 0), (beside_the_edge, 0)]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("make", "seed"), CASES)
def test_scores_equal_those_of_monai(
    make: Callable[[int], tuple[np.ndarray, np.ndarray]], seed: int, spacing: tuple[float, float, float]
) -> None:
    prediction, reference = make(seed)
    scores = structure_scores(prediction, reference, spacing, TOLERANCE_MM)
    masks = [torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in (prediction, reference)]

    theirs = {
        "dice": compute_dice(*masks),
        "iou": compute_iou(*masks),
        "hd95_mm": compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing),
        "assd_mm": compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=spacing),
        "nsd": compute_surface_dice(*masks, [TOLERANCE_MM], include_background=True, spacing=spacing),
    }

    for name, value in theirs.items():
        # Their percentiles are found in float32, to some 1e-6; `test_surface_literal.py` compares those in float64.
        tolerance = 1e-5 if name == "hd95_mm" else 1e-6
        assert getattr(scores, name) == pytest.approx(float(value), rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("make", "seed"), CASES)
def test_overlap_and_volumes_equal_those_of_simpleitk(
    make: Callable[[int], tuple[np.ndarray, np.ndarray]], seed: int, spacing: tuple[float, float, float]
) -> None:
    scores, overlap = ours_and_simpleitk(*make(seed), spacing)

    assert scores.dice == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-6)
    assert scores.iou == pytest.approx(overlap.GetJaccardCoefficient(1), abs=1e-6)
    assert scores.volume_error_percent == pytest.approx(100 * abs(overlap.GetVolumeSimilarity(1)), abs=1e-6)
    shape = sitk.LabelShapeStatisticsImageFilter()
    for mask, volume in zip(make(seed), (scores.volume_ml, scores.reference_ml), strict=True):
        shape.Execute(image_of(mask, spacing))
        assert volume == pytest.approx(shape.GetPhysicalSize(1) / 1000, rel=1e-6)
    assert scores.volume_error_ml == pytest.approx(abs(scores.volume_ml - scores.reference_ml), rel=1e-12)


@pytest.mark.parametrize("is_missed", [True, False])
def test_a_structure_that_only_one_side_marks_has_the_worst_volume_error(is_missed: bool) -> None:
    masks = np.zeros((2, 4, 4, 4), dtype=bool)
    masks[int(is_missed), 1, 1, 1] = True

    scores, overlap = ours_and_simpleitk(masks[0], masks[1], (1.0, 1.0, 3.0))

    assert scores.volume_error_percent == pytest.approx(100 * abs(overlap.GetVolumeSimilarity(1))) == 200
    assert scores.volume_error_ml == pytest.approx(0.003)
    assert scores.iou == 0
    assert not math.isnan(scores.assd_mm)


def ours_and_simpleitk(
    prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float]
) -> tuple[StructureScores, sitk.LabelOverlapMeasuresImageFilter]:
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(image_of(prediction, spacing), image_of(reference, spacing))
    return structure_scores(prediction, reference, spacing, TOLERANCE_MM), overlap


def image_of(mask: np.ndarray, spacing: tuple[float, float, float]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.T.astype(np.uint8)))
    image.SetSpacing(spacing)
    return image
