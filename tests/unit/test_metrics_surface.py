"""Surface distances on shapes whose answer is known by hand, and the scores of structures that are missing."""

import dataclasses
import math

import numpy as np
import pytest

from medssl_cli.metrics.surface import (
    SurfaceDistances,
    assd_mm,
    hd95_mm,
    image_diagonal_mm,
    nsd,
    structure_scores,
    surface,
    surface_distances,
)

SHAPE = (12, 12, 12)


def block(low: tuple[int, int, int], high: tuple[int, int, int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
    return mask


def test_the_surface_of_a_cube_is_the_cube_without_its_inside():
    cube = block((3, 3, 3), (8, 8, 8))

    assert np.array_equal(surface(cube), cube & ~block((4, 4, 4), (7, 7, 7)))


def test_beyond_the_image_lies_background():
    assert surface(np.ones((3, 3, 3), dtype=bool)).sum() == 26


def test_the_surface_of_a_flat_image_is_its_outline():
    assert surface(np.ones((4, 5, 1), dtype=bool)).sum() == 4 * 5 - 2 * 3


def test_a_structure_of_one_slice_in_a_deep_image_is_all_surface():
    plate = block((2, 2, 5), (9, 9, 6))
    distances = surface_distances(plate, plate, (1, 1, 1))

    assert distances.to_reference.size == 49


def test_identical_masks_are_no_distance_apart():
    cube = block((3, 3, 3), (8, 8, 8))
    distances = surface_distances(cube, cube, (1, 2, 3))

    assert (hd95_mm(distances), assd_mm(distances), nsd(distances, 0)) == (0, 0, 1)


@pytest.mark.parametrize(("axis", "spacing"), [(0, 0.7), (1, 1.5), (2, 10.0)])
def test_distances_are_millimetres_along_each_axis(axis, spacing):
    first, second = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    first[5, 5, 5] = True
    shifted = [5, 5, 5]
    shifted[axis] += 4
    second[tuple(shifted)] = True

    distances = surface_distances(first, second, (0.7, 1.5, 10.0))

    assert hd95_mm(distances) == pytest.approx(4 * spacing)
    assert assd_mm(distances) == pytest.approx(4 * spacing)


def test_hd95_is_the_larger_of_the_two_directed_percentiles():
    # One voxel of the prediction in twenty-one lies 9 mm away: 20 zeros and one 9, whose 95th percentile sits at
    # index 0.95 * 20 = 19, the last zero. The other direction has only zeros but one 2.
    distances = SurfaceDistances(to_reference=np.array([0.0] * 20 + [9.0]), to_prediction=np.array([0.0, 2.0]))

    assert hd95_mm(distances) == pytest.approx(0.95 * 2)


def test_nsd_is_the_share_of_both_surfaces_within_the_tolerance():
    distances = SurfaceDistances(to_reference=np.array([0.0, 1.0, 3.0]), to_prediction=np.array([0.0, 2.0]))

    assert [nsd(distances, tolerance) for tolerance in (0, 1, 2, 3)] == [2 / 5, 3 / 5, 4 / 5, 1]


def test_nsd_forgives_the_rounding_of_float32_spacings():
    distances = SurfaceDistances(to_reference=np.array([3 * float(np.float32(0.1))]), to_prediction=np.array([0.3]))

    assert distances.to_reference[0] > 0.3
    assert nsd(distances, 0.3) == 1


def test_assd_averages_over_the_voxels_of_both_surfaces():
    distances = SurfaceDistances(to_reference=np.array([0.0, 1.0, 2.0]), to_prediction=np.array([3.0]))

    assert assd_mm(distances) == 6 / 4


def test_an_empty_mask_has_no_surface_to_measure_to():
    with pytest.raises(ValueError, match="empty"):
        surface_distances(np.zeros(SHAPE, dtype=bool), block((0, 0, 0), (2, 2, 2)), (1, 1, 1))


def scores_of(prediction: np.ndarray, reference: np.ndarray):
    return structure_scores(prediction.astype(bool), reference.astype(bool), (1.0, 1.0, 2.0), 1.0)


EMPTY = np.zeros(SHAPE, dtype=bool)
CUBE = block((2, 2, 2), (7, 7, 7))


def test_a_structure_found_exactly_has_perfect_scores():
    scores = scores_of(CUBE, CUBE)

    assert dataclasses.astuple(scores) == (
        1,
        1,
        0,
        0,
        1,
        0,
        0,
        0.25,
        0.25,
        "scored",
    )  # 5^3 voxels of 2 cubic millimetres


def test_a_missed_structure_takes_the_worst_value_of_every_score():
    scores = scores_of(EMPTY, CUBE)

    assert scores.outcome == "missed"
    assert (scores.dice, scores.iou, scores.nsd, scores.volume_ml, scores.reference_ml) == (0, 0, 0, 0, 0.25)
    assert (scores.volume_error_ml, scores.volume_error_percent) == (0.25, 200)
    assert scores.hd95_mm == scores.assd_mm == math.sqrt(12**2 + 12**2 + 24**2)


def test_a_hallucinated_structure_takes_the_worst_value_of_every_score():
    scores = scores_of(CUBE, EMPTY)

    assert scores.outcome == "hallucinated"
    assert (scores.dice, scores.iou, scores.nsd, scores.volume_ml, scores.reference_ml) == (0, 0, 0, 0.25, 0)
    assert (scores.volume_error_ml, scores.volume_error_percent) == (0.25, 200)
    assert scores.hd95_mm == scores.assd_mm == image_diagonal_mm(SHAPE, (1.0, 1.0, 2.0))


def test_a_structure_that_neither_marks_is_not_applicable():
    scores = scores_of(EMPTY, EMPTY)

    assert scores.outcome == "absent"
    assert all(math.isnan(value) for value in dataclasses.astuple(scores)[:-3])
    assert (scores.volume_ml, scores.reference_ml) == (0, 0)


def test_no_distance_within_an_image_is_worse_than_missing_the_structure():
    corners = block((0, 0, 0), (1, 1, 1)), block((11, 11, 11), (12, 12, 12))

    assert scores_of(*corners).hd95_mm < scores_of(EMPTY, CUBE).hd95_mm


def test_masks_of_different_grids_are_not_compared():
    with pytest.raises(ValueError, match="same grid"):
        structure_scores(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), (1, 1, 1), 1)
