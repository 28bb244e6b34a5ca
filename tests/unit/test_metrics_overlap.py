"""Dice and volume: values that follow from counting voxels, and the policy for empty masks."""

import math

import numpy as np
import pytest

from medssl_cli.metrics.overlap import dice, volume_ml


def line(*marked: int, length: int = 10) -> np.ndarray:
    mask = np.zeros((length, 1, 1), dtype=bool)
    mask[list(marked)] = True
    return mask


def test_dice_is_twice_the_shared_voxels_over_all_marked_ones():
    assert dice(line(0, 1, 2), line(2, 3, 4, 5, 6)) == 2 * 1 / (3 + 5)


def test_dice_is_one_for_equal_masks_and_zero_for_disjoint_ones():
    assert dice(line(1, 2), line(1, 2)) == 1
    assert dice(line(1, 2), line(3)) == 0


def test_dice_does_not_depend_on_which_mask_is_called_the_reference():
    assert dice(line(0, 1, 2), line(2, 3)) == dice(line(2, 3), line(0, 1, 2))


@pytest.mark.parametrize(("prediction", "reference"), [(line(), line(3)), (line(3), line())])
def test_a_missed_or_hallucinated_structure_scores_zero(prediction, reference):
    assert dice(prediction, reference) == 0


def test_a_structure_that_neither_mask_marks_is_not_applicable():
    assert math.isnan(dice(line(), line()))


def test_masks_of_different_grids_are_not_compared():
    with pytest.raises(ValueError, match="same grid"):
        dice(line(length=10), line(length=11))


def test_volume_is_voxels_times_their_size():
    mask = np.ones((10, 10, 10), dtype=bool)

    assert volume_ml(mask, (1.0, 1.0, 1.0)) == 1  # 1 mL is a cube of 10 mm
    assert volume_ml(mask, (0.5, 0.5, 8.0)) == 2
