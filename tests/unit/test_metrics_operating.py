"""Thresholds and probabilities: four images by hand, definitions restated, and what does not exist."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl_cli.metrics.operating import (
    ReliabilityBin,
    brier,
    operating_curve,
    reliability,
    sensitivity_at,
    threshold_rows,
)
from medssl_cli.metrics.ranking import auroc

SCORES = np.array([0.9, 0.6, 0.4, 0.1])
IS_POSITIVE = np.array([True, False, True, False])
NONE = np.zeros(0), np.zeros(0, dtype=bool)


def test_curves_of_four_images_by_hand() -> None:
    curve = operating_curve(SCORES, IS_POSITIVE)

    assert curve.thresholds.tolist() == [math.inf, 0.9, 0.6, 0.4, 0.1]
    assert curve.sensitivity.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.false_share.tolist() == [0, 0, 0.5, 0.5, 1]
    assert curve.precision[1:].tolist() == [1, 1 / 2, 2 / 3, 1 / 2]


@pytest.mark.parametrize(("specificity", "expected"), [(0, 1), (0.5, 1), (0.51, 0.5), (1, 0.5)])
def test_sensitivity_at_a_specificity_of_four_images_by_hand(specificity: float, expected: float) -> None:
    assert float(sensitivity_at(SCORES, IS_POSITIVE, specificity)) == expected


def test_a_specificity_that_no_threshold_but_infinity_has_finds_nothing() -> None:
    assert float(sensitivity_at(-SCORES, IS_POSITIVE, 1.0)) == 0


samples = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12)


@given(rows=samples, specificity=st.sampled_from([0.0, 0.5, 2 / 3, 0.9, 1.0]))
def test_sensitivity_at_a_specificity_is_the_best_of_all_thresholds(
    rows: list[tuple[int, bool]], specificity: float
) -> None:
    scores, is_positive = (np.array(column) for column in zip(*rows, strict=True))
    scores, is_positive = scores.astype(float), is_positive.astype(bool)
    best = math.nan
    if is_positive.any() and not is_positive.all():
        allowed = [at for at in range(6) if (scores[~is_positive] < at).mean() >= specificity - 1e-9]
        best = max((scores[is_positive] >= at).mean() for at in allowed)

    assert float(sensitivity_at(scores, is_positive, specificity)) == pytest.approx(best, nan_ok=True)


@given(rows=samples)
def test_the_area_below_the_curve_is_the_auroc(rows: list[tuple[int, bool]]) -> None:
    scores, is_positive = (np.array(column) for column in zip(*rows, strict=True))
    curve = operating_curve(scores.astype(float), is_positive.astype(bool))

    area = float(np.trapezoid(curve.sensitivity, curve.false_share))
    assert area == pytest.approx(float(auroc(scores.astype(float), is_positive.astype(bool))), nan_ok=True)


def test_a_probability_is_taken_at_its_word() -> None:
    assert float(brier(np.array([1.0, 0.0]), np.array([True, False]))) == 0
    assert float(brier(np.full(4, 0.5), IS_POSITIVE)) == 0.25
    assert float(brier(np.array([0.8, 0.8]), np.array([True, False]), np.array([3.0, 1.0]))) == pytest.approx(
        (3 * 0.2**2 + 0.8**2) / 4
    )


def test_bins_hold_what_is_said_and_what_is_so() -> None:
    bins = reliability(np.array([0.72, 0.78, 0.1, 1.0]), np.array([True, False, False, True]))

    assert bins == [
        ReliabilityBin(0.1, 0, 1),
        ReliabilityBin(pytest.approx(0.75), 0.5, 2),
        ReliabilityBin(1.0, 1, 1),
    ]


def test_a_table_of_thresholds_by_hand() -> None:
    half, all_no = threshold_rows(SCORES, IS_POSITIVE, (0.5, 0.95))

    assert (half.num_yes, half.sensitivity, half.specificity) == (2, 0.5, 0.5)
    assert (half.positive_value, half.negative_value) == (0.5, 0.5)
    assert (all_no.num_yes, all_no.sensitivity, all_no.specificity, all_no.negative_value) == (0, 0, 1, 0.5)
    assert math.isnan(all_no.positive_value)


def test_what_cannot_be_told_is_no_number() -> None:
    only_positives = SCORES, np.ones(4, dtype=bool)

    assert math.isnan(float(sensitivity_at(*only_positives, 0.9)))
    assert math.isnan(float(sensitivity_at(*NONE, 0.9)))
    assert math.isnan(float(brier(*NONE)))
    assert reliability(*NONE) == []
    assert np.isnan(operating_curve(*only_positives).false_share).all()
    assert len(operating_curve(*NONE).thresholds) == 1
    (row,) = threshold_rows(*NONE, (0.5,))
    assert (row.num_yes, math.isnan(row.sensitivity), math.isnan(row.positive_value)) == (0, True, True)
