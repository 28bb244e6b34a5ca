"""Intervals and tests over patients: exact answers for small numbers, coverage for simulated ones."""

import math

import numpy as np
import pytest

from medssl_cli.metrics.statistics import (
    Estimate,
    PairedTest,
    bootstrap_crossed_mean,
    bootstrap_mean,
    holm_adjusted,
    paired_sign_flip_test,
    patient_means,
)

NAN = math.nan


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def named(values: list[float]) -> dict[str, float]:
    return {f"patient{index}": value for index, value in enumerate(values)}


def test_images_of_one_patient_are_averaged_before_patients_are():
    assert patient_means([0.0, 1.0, 1.0], ["a", "a", "b"]) == {"a": 0.5, "b": 1.0}


def test_values_that_are_not_applicable_are_left_out_of_the_patients_mean():
    means = patient_means([NAN, 1.0, NAN], ["a", "a", "b"])

    assert means["a"] == 1
    assert math.isnan(means["b"])


def test_every_value_needs_a_patient():
    with pytest.raises(ValueError, match="zip"):
        patient_means([1.0, 2.0], ["a"])


def test_a_patient_with_many_images_weighs_as_much_as_one_with_few(rng):
    estimate = bootstrap_mean([0.0] * 99 + [1.0], ["a"] * 99 + ["b"], rng=rng)

    assert estimate.mean == 0.5
    assert estimate.num_patients == 2


def test_patients_without_an_applicable_value_are_counted_and_not_averaged(rng):
    estimate = bootstrap_mean([1.0, NAN, 0.0, NAN], list("abcc"), rng=rng)

    assert (estimate.mean, estimate.num_patients, estimate.num_missing) == (0.5, 2, 1)


def test_equal_patients_have_an_interval_of_no_width(rng):
    assert bootstrap_mean([0.5] * 4, list("abcd"), rng=rng) == Estimate(0.5, 0.5, 0.5, 0.95, 4, 0)


def test_one_patient_gives_a_mean_and_no_interval(rng):
    estimate = bootstrap_mean([0.8], ["a"], rng=rng)

    assert estimate.mean == 0.8
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_no_patient_gives_no_mean(rng):
    estimate = bootstrap_mean([], [], rng=rng)

    assert math.isnan(estimate.mean)
    assert (estimate.num_patients, estimate.num_missing) == (0, 0)


def test_the_interval_of_many_patients_is_the_one_of_the_normal_distribution(rng):
    values = rng.normal(size=400).tolist()
    half_width = 1.96 * float(np.std(values)) / math.sqrt(400)

    estimate = bootstrap_mean(values, [str(index) for index in range(400)], rng=rng)

    # A 2.5 % quantile from 2000 draws has a standard error of about 0.06 standard errors of the mean: 3 % of 1.96.
    assert estimate.mean - estimate.low == pytest.approx(half_width, rel=0.12)
    assert estimate.high - estimate.mean == pytest.approx(half_width, rel=0.12)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says(rng):
    patients = [str(index) for index in range(30)]
    hits = 0
    for _ in range(200):
        estimate = bootstrap_mean(rng.normal(size=30).tolist(), patients, num_resamples=300, rng=rng)
        hits += estimate.low <= 0 <= estimate.high

    # The percentile interval of 30 values covers 0.93 to 0.95; 200 trials have a standard deviation of 0.017.
    assert 0.88 <= hits / 200 <= 1


def test_the_same_generator_gives_the_same_interval():
    values, patients = [0.1, 0.5, 0.9], list("abc")

    first, second = (bootstrap_mean(values, patients, rng=np.random.default_rng(3)) for _ in range(2))

    assert first == second


def test_when_all_patients_improve_the_p_value_is_that_of_one_pattern_and_its_mirror(rng):
    result = paired_sign_flip_test(named([0.9, 0.8, 0.7]), named([0.5, 0.5, 0.5]), rng=rng)

    assert result.is_exact
    assert result.mean_difference == pytest.approx((0.4 + 0.3 + 0.2) / 3)
    assert result.p_value == 2 / 2**3


def test_the_exact_p_value_counts_the_patterns_that_are_at_least_as_extreme(rng):
    # Differences 3, 1, -1: |sum| = 3. Of 8 patterns, |±3±1±1| is 5, 3, 3, 1 and their mirrors: six reach 3.
    result = paired_sign_flip_test(named([3.0, 1.0, 0.0]), named([0.0, 0.0, 1.0]), rng=rng)

    assert result.p_value == 6 / 8


def test_no_difference_is_no_evidence(rng):
    assert paired_sign_flip_test(named([1.0] * 5), named([1.0] * 5), rng=rng).p_value == 1


def test_drawn_patterns_agree_with_counted_ones(rng):
    first, second = named(rng.normal(0.6, 1, size=12).tolist()), named([0.0] * 12)

    exact = paired_sign_flip_test(first, second, num_resamples=2**12, rng=rng)
    drawn = paired_sign_flip_test(first, second, num_resamples=2**12 - 1, rng=rng)

    assert exact.is_exact
    assert not drawn.is_exact
    spread = math.sqrt(exact.p_value * (1 - exact.p_value) / 2**12)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=5 * spread + 1 / 2**12)


def test_a_drawn_p_value_is_never_zero(rng):
    first, second = named([1.0] * 40), named([0.0] * 40)

    assert paired_sign_flip_test(first, second, num_resamples=99, rng=rng).p_value == 1 / 100


def test_only_patients_with_both_values_are_compared(rng):
    result = paired_sign_flip_test({"a": 1.0, "b": NAN, "c": 1.0}, {"a": 0.0, "b": 0.0, "d": 0.0}, rng=rng)

    assert (result.num_patients, result.num_missing) == (1, 3)


def test_without_pairs_there_is_no_test(rng):
    result = paired_sign_flip_test({}, {}, rng=rng)

    assert math.isnan(result.p_value)
    assert isinstance(result, PairedTest)


def test_holm_multiplies_by_the_number_of_tests_left_and_keeps_the_order():
    # Sorted: 0.01 * 3, 0.02 * 2, then 0.03 * 1 which may not fall below the one before it.
    assert holm_adjusted({"c": 0.03, "a": 0.01, "b": 0.02}) == {"c": 0.04, "a": 0.03, "b": 0.04}


def test_holm_stays_a_probability_and_skips_tests_without_pairs():
    adjusted = holm_adjusted({"a": 0.7, "b": 0.6, "c": NAN})

    assert (adjusted["a"], adjusted["b"]) == (1, 1)
    assert math.isnan(adjusted["c"])


def test_trainings_that_agree_leave_the_uncertainty_of_patients_alone():
    row = named([0.1, 0.4, 0.5, 0.8])

    crossed = bootstrap_crossed_mean([row, row, row], num_resamples=20_000, rng=np.random.default_rng(1))
    alone = bootstrap_mean(list(row.values()), list(row), num_resamples=20_000, rng=np.random.default_rng(2))

    assert crossed.mean == pytest.approx(alone.mean)
    assert (crossed.low, crossed.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_patients_that_agree_leave_the_uncertainty_of_trainings_alone(rng):
    estimate = bootstrap_crossed_mean([named([0.2] * 5), named([0.5] * 5), named([0.8] * 5)], rng=rng)

    # One training alone is drawn in 1/27 of the resamples, more than 2.5 %: the ends are the extreme trainings.
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.5, 0.2, 0.8))


def test_a_patient_without_a_value_in_one_training_is_left_out_of_all(rng):
    estimate = bootstrap_crossed_mean([{"a": 1.0, "b": 0.0, "c": NAN}, {"a": 1.0, "b": 0.0}], rng=rng)

    assert (estimate.mean, estimate.num_patients, estimate.num_missing) == (0.5, 2, 1)


def test_crossed_means_without_enough_patients_have_no_interval(rng):
    assert math.isnan(bootstrap_crossed_mean([{"a": NAN}], rng=rng).mean)
    assert math.isnan(bootstrap_crossed_mean([{"a": 1.0}, {"a": 2.0}], rng=rng).low)
