"""Scores of lesions one by one: by hand on a few lesions, and beside the rule restated with sets of voxels."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl_cli.heads import LesionRule
from medssl_cli.metrics.lesions import LesionScores, lesion_scores

Voxel = tuple[int, int, int]
SHAPE = (20, 12, 8)
ONE_MM = (1.0, 1.0, 1.0)
EVERY_LESION = LesionRule(dilation_voxels=0, min_volume_mm3=0)


def marked(*blocks: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    for block in blocks:
        mask[block] = True
    return mask


def cube(x: int, size: int = 2) -> tuple[slice, slice, slice]:
    return (slice(x, x + size), slice(2, 2 + size), slice(2, 2 + size))


def test_lesions_count_the_same_however_large_they_are() -> None:
    reference = marked(cube(1, 4), cube(10), cube(15))
    prediction = marked(cube(1, 4), cube(18))

    # One found exactly, two missed, one mark for nothing: Dice 1 of 3 lesions and 1 false positive.
    assert lesion_scores(prediction, reference, ONE_MM, EVERY_LESION) == LesionScores(1 / 4, 3, 1, 1)


def test_all_that_belongs_to_a_lesion_enters_its_dice() -> None:
    reference = marked(cube(4))
    prediction = marked(cube(4), cube(8))
    rule = LesionRule(dilation_voxels=3, min_volume_mm3=0)

    # The second cube begins 3 voxels behind the first: within its dilation. 2 * 8 / (8 + 16).
    assert lesion_scores(prediction, reference, ONE_MM, rule) == LesionScores(2 / 3, 1, 1, 0)
    assert lesion_scores(prediction, reference, ONE_MM, EVERY_LESION) == LesionScores(1 / 2, 1, 1, 1)


def test_parts_whose_dilations_touch_are_one_lesion() -> None:
    reference = marked(cube(2), cube(9))  # a gap of five voxels, from 4 to 8
    prediction = marked(cube(2))

    def num_lesions(dilation: int) -> int:
        rule = LesionRule(dilation_voxels=dilation, min_volume_mm3=0)
        return lesion_scores(prediction, reference, ONE_MM, rule).num_lesions

    assert [num_lesions(dilation) for dilation in (0, 1, 2, 3)] == [2, 2, 2, 1]  # dilations by two leave one between


@pytest.mark.parametrize(("spacing", "num_lesions"), [(ONE_MM, 0), ((1.0, 1.0, 6.25), 0), ((1.0, 1.0, 6.3), 1)])
def test_small_lesions_are_left_out_and_what_marks_them_is_not_false(
    spacing: tuple[float, float, float], num_lesions: int
) -> None:
    scores = lesion_scores(marked(cube(4)), marked(cube(4)), spacing, LesionRule())  # 8 voxels; 50 mm3 are not enough

    assert (scores.num_lesions, scores.num_found, scores.num_false) == (num_lesions, num_lesions, 0)
    assert math.isnan(scores.lesion_dice) == (num_lesions == 0)


def test_a_mark_beside_a_lesion_neither_finds_it_nor_is_false() -> None:
    rule = LesionRule(dilation_voxels=3, min_volume_mm3=0)

    assert lesion_scores(marked(cube(8)), marked(cube(4)), ONE_MM, rule) == LesionScores(0, 1, 0, 0)


def test_missing_everything_is_the_worst_and_nothing_to_find_is_no_score() -> None:
    nothing, lesion = marked(), marked(cube(4, 4))

    assert lesion_scores(nothing, lesion, ONE_MM, LesionRule()) == LesionScores(0, 1, 0, 0)
    assert lesion_scores(lesion, nothing, ONE_MM, LesionRule()) == LesionScores(0, 0, 0, 1)
    absent = lesion_scores(nothing, nothing, ONE_MM, LesionRule())
    assert (absent.num_lesions, absent.num_found, absent.num_false) == (0, 0, 0)
    assert math.isnan(absent.lesion_dice)


def test_masks_of_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="same grid"):
        lesion_scores(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), ONE_MM, LesionRule())


def parts(voxels: set[Voxel]) -> list[set[Voxel]]:
    """Groups of voxels that touch by a face, an edge or a corner."""
    left, found = set(voxels), []
    while left:
        group, border = set(), {left.pop()}
        while border:
            group |= border
            border = {voxel for voxel in left if any(max(abs(a - b) for a, b in zip(voxel, other, strict=True)) == 1
                                                     for other in border)}  # fmt: skip
            left -= border
        found.append(group)
    return found


def dilated(voxels: set[Voxel], times: int, shape: tuple[int, ...]) -> set[Voxel]:
    """Voxels that so many steps over a face or an edge reach."""
    for _ in range(times):
        voxels = {
            tuple(a + b for a, b in zip(voxel, step, strict=True))
            for voxel in voxels
            for step in itertools.product((-1, 0, 1), repeat=3)
            if sum(map(abs, step)) <= 2
        }
        voxels = {voxel for voxel in voxels if all(0 <= a < size for a, size in zip(voxel, shape, strict=True))}
    return voxels


def literal_scores(prediction: np.ndarray, reference: np.ndarray, volume_mm3: float, rule: LesionRule) -> LesionScores:
    """The rule lesion by lesion, with sets."""
    found, there = ({tuple(map(int, voxel)) for voxel in np.argwhere(mask)} for mask in (prediction, reference))
    lesions = [part & there for part in parts(dilated(there, rule.dilation_voxels, reference.shape))]
    components, used, dices, num_found = parts(found), [], [], 0
    for lesion in lesions:
        around = dilated(lesion, rule.dilation_voxels, reference.shape)
        own = [component for component in components if component & around]
        used += own
        if len(lesion) * volume_mm3 > rule.min_volume_mm3:
            union = set().union(*own)
            dices.append(2 * len(union & lesion) / (len(union) + len(lesion)))
            num_found += bool(union & lesion)
    num_false = sum(component not in used for component in components)
    number = len(dices) + num_false
    return LesionScores(sum(dices) / number if number else math.nan, len(dices), num_found, num_false)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shares=st.tuples(*[st.sampled_from([0.0, 0.01, 0.05, 0.2])] * 2),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    spacing=st.sampled_from([ONE_MM, (0.7, 0.7, 5.0)]),
    dilation=st.integers(0, 2),
    smallest=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_scores_equal_the_rule_with_sets(
    seed: int,
    shares: tuple[float, float],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    dilation: int,
    smallest: float,
) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = (rng.random(shape) < share for share in shares)
    rule = LesionRule(dilation_voxels=dilation, min_volume_mm3=smallest)

    ours = lesion_scores(prediction, reference, spacing, rule)
    theirs = literal_scores(prediction, reference, math.prod(spacing), rule)

    assert ours.lesion_dice == pytest.approx(theirs.lesion_dice, abs=1e-9, nan_ok=True)
    assert (ours.num_lesions, ours.num_found, ours.num_false) == (
        theirs.num_lesions,
        theirs.num_found,
        theirs.num_false,
    )
