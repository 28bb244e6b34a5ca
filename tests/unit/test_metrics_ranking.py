"""Figures of classification against their slow definitions, and what must hold for any scores."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl_cli.metrics.ranking import (
    auroc,
    average_precision,
    balanced_accuracy,
    calibration_error,
    finding_estimates,
    sensitivity,
    specificity,
    swap_test,
    youden_threshold,
)
from medssl_cli.metrics.statistics import bootstrap_figure

samples = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12)


def arrays(rows: list[tuple[int, bool, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, is_positive, counts = zip(*rows, strict=True)
    return np.array(scores, float), np.array(is_positive), np.array(counts)


def pair_counting(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The definition: in how many pairs of a positive and a negative the positive wins."""
    pairs = [(p > n) + 0.5 * (p == n) for p, n in product(scores[is_positive], scores[~is_positive])]
    return float(np.mean(pairs)) if pairs else math.nan


def mean_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """The definition: for each positive, the share of positives among what scores at least as much."""
    if not is_positive.any() or is_positive.all():
        return math.nan
    return float(np.mean([is_positive[scores >= score].mean() for score in scores[is_positive]]))


@given(samples)
def test_auroc_counts_pairs_and_ties_as_half(rows: list[tuple[int, bool, int]]) -> None:
    scores, is_positive, _ = arrays(rows)

    assert float(auroc(scores, is_positive)) == pytest.approx(pair_counting(scores, is_positive), nan_ok=True)


@given(samples)
def test_average_precision_is_the_mean_precision_at_the_positives(rows: list[tuple[int, bool, int]]) -> None:
    scores, is_positive, _ = arrays(rows)

    found = float(average_precision(scores, is_positive))
    assert found == pytest.approx(mean_precision(scores, is_positive), nan_ok=True)


@pytest.mark.parametrize("figure", [auroc, average_precision])
@given(rows=samples)
def test_a_weight_is_a_number_of_copies(figure: object, rows: list[tuple[int, bool, int]]) -> None:
    scores, is_positive, counts = arrays(rows)

    weighed = figure(scores, is_positive, counts[None].astype(float))  # type: ignore[operator]
    copied = figure(scores.repeat(counts), is_positive.repeat(counts))  # type: ignore[operator]
    assert weighed.shape == (1,)
    assert float(weighed[0]) == pytest.approx(float(copied), nan_ok=True)


@given(samples)
def test_auroc_of_turned_scores_is_the_rest_to_one(rows: list[tuple[int, bool, int]]) -> None:
    scores, is_positive, _ = arrays(rows)

    assert float(auroc(-scores, is_positive)) == pytest.approx(1 - float(auroc(scores, is_positive)), nan_ok=True)


def test_figures_of_four_images_by_hand() -> None:
    # Positives 0.9, 0.4; negatives 0.6, 0.1. Pairs won: 0.9 beats both, 0.4 beats one: 3 of 4.
    # Precision at 0.9 is 1/1, at 0.4 it is 2/3: mean 5/6.
    scores, is_positive = np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False])

    assert float(auroc(scores, is_positive)) == 0.75
    assert float(average_precision(scores, is_positive)) == pytest.approx(5 / 6)
    assert float(sensitivity(scores, is_positive, 0.4)) == 1
    assert float(specificity(scores, is_positive, 0.6)) == 0.5
    assert float(specificity(scores, is_positive, 0.1)) == 0


@pytest.mark.parametrize("is_positive", [[True, True], [False, False]])
def test_without_one_of_the_kinds_there_is_no_ranking(is_positive: list[bool]) -> None:
    scores, kinds = np.array([0.1, 0.9]), np.array(is_positive)

    assert math.isnan(auroc(scores, kinds))
    assert math.isnan(average_precision(scores, kinds))
    assert math.isnan(sensitivity(scores, kinds, 0.5)) == (not kinds.any())
    assert math.isnan(specificity(scores, kinds, 0.5)) == bool(kinds.all())


def test_nothing_at_all_has_no_figures() -> None:
    nothing, none = np.zeros(0), np.zeros(0, bool)

    assert math.isnan(auroc(nothing, none))
    assert math.isnan(average_precision(nothing, none))
    assert math.isnan(calibration_error(nothing, none))
    assert math.isnan(balanced_accuracy(np.zeros(0, int), np.zeros(0, int)))


def test_balanced_accuracy_gives_a_rare_class_the_same_say() -> None:
    # Class 0: 3 of 4 recognised; class 1: 1 of 1; class 2 does not occur.
    classes, predicted = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 2, 1])

    assert float(balanced_accuracy(predicted, classes)) == (0.75 + 1) / 2


def test_calibration_error_is_the_gap_between_what_is_said_and_what_is_so() -> None:
    # Bin 0.8-0.9: said 0.8, half are positive: gap 0.3 of two images. Bin 0.1-0.2: said 0.1, none: gap 0.1 of two.
    probabilities = np.array([0.8, 0.8, 0.1, 0.1])
    is_positive = np.array([True, False, False, False])

    assert calibration_error(probabilities, is_positive) == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)


def test_images_of_one_patient_are_drawn_together() -> None:
    # Both images of a patient carry the same weight in every resample.
    seen = []

    def figure(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights.mean(axis=1)

    estimate = bootstrap_figure(figure, ["a", "a", "b"], num_resamples=50, rng=np.random.default_rng(0))

    drawn = np.concatenate(seen[1:])
    assert drawn.shape == (50, 3)
    assert np.array_equal(drawn[:, 0], drawn[:, 1])
    assert (drawn[:, 0] + drawn[:, 2] == 2).all()
    assert (estimate.mean, estimate.num_patients) == (1, 2)


def test_the_interval_of_a_figure_that_is_a_mean_is_that_of_means() -> None:
    values = np.random.default_rng(3).normal(size=200)
    patients = [str(number) for number in range(200)]

    estimate = bootstrap_figure(
        lambda weights: (weights * values).sum(axis=1) / weights.sum(axis=1), patients, rng=np.random.default_rng(0)
    )

    half_width = 1.96 * values.std() / math.sqrt(200)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.mean - estimate.low == pytest.approx(half_width, rel=0.15)
    assert estimate.high - estimate.mean == pytest.approx(half_width, rel=0.15)


def test_a_figure_that_most_resamples_lack_has_no_interval() -> None:
    def figure(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:, 0] == 1, 0.5, np.nan)

    # With ten patients the first is drawn exactly once in about 39 % of the resamples.
    estimate = bootstrap_figure(figure, [str(number) for number in range(10)], rng=np.random.default_rng(0))

    assert estimate.mean == 0.5
    assert math.isnan(estimate.low)


def test_one_patient_with_the_finding_gives_a_figure_without_an_interval() -> None:
    scores, is_positive = np.array([0.9, 0.8, 0.3, 0.2]), np.array([True, True, False, False])

    alone = finding_estimates(scores, is_positive, ["a", "a", "b", "c"], rng=np.random.default_rng(0))
    several = finding_estimates(scores, is_positive, ["a", "d", "b", "c"], rng=np.random.default_rng(0))

    assert alone["auroc"].mean == several["auroc"].mean == 1
    assert math.isnan(alone["auroc"].low)
    assert (several["auroc"].low, several["auroc"].high) == (1, 1)


def test_the_interval_covers_the_true_auroc_about_as_often_as_it_says() -> None:
    # Normal scores one standard deviation apart: AUROC = Phi(1 / sqrt 2) = 0.760.
    rng, truth, hits = np.random.default_rng(1), 0.5 * (1 + math.erf(0.5)), 0
    is_positive = np.arange(80) % 2 == 0
    patients = [str(number) for number in range(80)]
    for _ in range(100):
        scores = rng.normal(size=80) + is_positive
        estimate = bootstrap_figure(
            lambda weights, scores=scores: auroc(scores, is_positive, weights),  # type: ignore[misc]
            patients,
            num_resamples=200,
            rng=rng,
        )
        hits += estimate.low <= truth <= estimate.high

    assert 87 <= hits <= 100  # 95 expected; 100 trials have a standard deviation of 2.2


def two_methods(gain: float, *, number: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Scores of two methods on the same images, the first of which is better by a gain."""
    rng = np.random.default_rng(0)
    targets = (np.arange(number) % 2).astype(float)
    shared = rng.normal(size=number)
    first, second = (shared + rng.normal(0, 0.5, number) + each * targets for each in (0.5 + gain, 0.5))
    return first[None, :, None], second[None, :, None], targets[:, None], [str(place) for place in range(number)]


def test_equal_methods_cannot_be_told_apart_and_a_much_better_one_can() -> None:
    rng = np.random.default_rng(1)
    better, worse, targets, patients = two_methods(2.0)

    assert swap_test(better, better, targets, patients, rng=rng) == 1
    assert swap_test(better, worse, targets, patients, num_resamples=500, rng=rng) < 0.01
    assert swap_test(worse, better, targets, patients, num_resamples=500, rng=rng) < 0.01


def test_a_method_that_ranks_the_same_way_on_another_scale_is_the_same() -> None:
    first, _, targets, patients = two_methods(0.0)

    assert swap_test(first, np.exp(3 * first), targets, patients, rng=np.random.default_rng(1)) == 1


def test_false_alarms_are_as_rare_as_the_p_value_says() -> None:
    rng, alarms = np.random.default_rng(2), 0
    targets = (np.arange(40) % 2).astype(float)[:, None]
    patients = [str(place) for place in range(40)]
    for _ in range(200):
        first, second = (rng.normal(size=(1, 40, 1)) + targets[None] for _ in range(2))
        alarms += swap_test(first, second, targets, patients, num_resamples=99, rng=rng) <= 0.1

    assert 8 <= alarms <= 34  # 20 expected; 200 trials have a standard deviation of 4.2


def test_images_of_one_patient_change_sides_together_so_they_count_once() -> None:
    # One patient with all images: both exchanges give the same absolute difference.
    better, worse, targets, _ = two_methods(2.0)

    assert swap_test(better, worse, targets, ["one"] * 60, rng=np.random.default_rng(1)) == 1


def test_the_threshold_of_youden_lies_between_two_scores() -> None:
    scores, is_positive = np.array([0.1, 0.2, 0.4, 0.6, 0.8]), np.array([False, False, True, False, True])

    # At 0.3: sensitivity 1, specificity 2/3, together 5/3. At 0.7: 1/2 and 1, together 3/2. At 0.15: 1 and 1/3.
    assert youden_threshold(scores, is_positive) == pytest.approx(0.3)
    assert np.isnan(youden_threshold(scores, np.ones(5, dtype=bool)))
    assert np.isnan(youden_threshold(np.full(5, 0.5), is_positive))
