"""How sure one can be of a mean over patients, or of another figure of theirs.

The patient is the unit: several images of one patient are averaged first, so that they do not count as evidence twice.
NaN means "not applicable" (see `metrics.overlap`); such values are left out of means and counted.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ROUNDING: Final = 1e-12
"""Two means of the same numbers in another order of summation may differ by this fraction."""
CHUNK: Final = 2**22
"""Weights that a bootstrap holds in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A mean over patients (or another figure of theirs) and how far it could lie from the truth.

    Args:
        mean: The figure itself; NaN without patients.
        low: Lower end of the confidence interval; NaN with fewer than two patients.
        high: Upper end.
        confidence: Level of the interval, 0 to 1.
        num_patients: Patients that entered the mean.
        num_missing: Patients without any applicable value.
    """

    mean: float
    low: float
    high: float
    confidence: float
    num_patients: int
    num_missing: int


def estimate_of(entry: Mapping[str, Any]) -> Estimate:
    """An estimate from a document, in which null stands for what does not apply and there may be more."""
    names = [each.name for each in fields(Estimate)]
    values: dict[str, Any] = {name: known(entry[name]) for name in names}
    return Estimate(**values)


def known(value: float | None) -> float:
    """A number of a document, in which null stands for what does not apply."""
    return math.nan if value is None else value


def shown(estimate: Estimate) -> str:
    """An estimate with its interval, for a table."""
    if math.isnan(estimate.mean):
        return "n/a"
    if math.isnan(estimate.low):
        return f"{estimate.mean:.3f}"
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def mean_of_known(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of the values whose weight is not 0; NaN if there are none."""
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    total = math.fsum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if pairs else math.nan


@dataclass(frozen=True)
class PairedTest:
    """Whether two methods differ on the same patients.

    Args:
        mean_difference: Mean over patients of first minus second; NaN without pairs.
        p_value: Two-sided, of the hypothesis that each patient's difference could as well have had the other sign.
        num_patients: Patients with both values.
        num_missing: Patients that lack one of them.
        is_exact: All sign patterns were counted, none drawn.
    """

    mean_difference: float
    p_value: float
    num_patients: int
    num_missing: int
    is_exact: bool


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """A quotient, NaN where there is nothing to divide by."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return quotient


def patient_means(values: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """Average the values of each patient, leaving out those that are not applicable.

    Args:
        values: One per image; NaN if not applicable.
        patients: Whose image each one is.

    Returns:
        Patient to mean in order of first appearance; NaN for a patient without an applicable value.

    Raises:
        ValueError: Not one patient per value.
    """
    grouped: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        applicable = grouped.setdefault(patient, [])
        if not math.isnan(value):
            applicable.append(value)
    return {patient: math.fsum(group) / len(group) if group else math.nan for patient, group in grouped.items()}


def bootstrap_mean(
    values: Sequence[float],
    patients: Sequence[str],
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Estimate:
    """Mean over patients with its percentile bootstrap interval; patients, not images, are drawn with replacement.

    Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Args:
        values: One per image; NaN if not applicable.
        patients: Whose image each one is.
        num_resamples: Drawn sets of patients.
        confidence: Level of the interval, 0 to 1.
        rng: Draws the patients.

    Raises:
        ValueError: Not one patient per value.
    """
    all_means = np.array(list(patient_means(values, patients).values()), dtype=np.float64)
    means = all_means[~np.isnan(all_means)]
    num_missing = len(all_means) - len(means)
    if len(means) < 2:
        mean = float(means[0]) if len(means) else math.nan
        return Estimate(mean, math.nan, math.nan, confidence, len(means), num_missing)
    resampled = means[rng.integers(len(means), size=(num_resamples, len(means)))].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(means.mean()), float(low), float(high), confidence, len(means), num_missing)


Figure = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Function of weights `[R, N]`, how often each of R resamples has each of N images, to `[R]`."""


def bootstrap_figure(
    figure: Figure,
    patients: Sequence[str],
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
    has_interval: bool = True,
) -> Estimate:
    """A figure of all images that is no mean, such as a rank statistic, with its percentile bootstrap interval.

    Patients are drawn with replacement; all images of a patient come as often as the patient does. Resamples in which
    the figure does not exist are left out; if it does not in half of them, there is no interval.

    Args:
        figure: See `Figure`.
        patients: Whose image each one is, N.
        num_resamples: Drawn sets of patients.
        confidence: Level of the interval, 0 to 1.
        rng: Draws the patients.
        has_interval: Whether there are patients enough for one.
    """
    return bootstrap_crossed_figure(
        [figure],
        patients,
        num_resamples=num_resamples,
        confidence=confidence,
        rng=rng,
        has_interval=has_interval,
    )


def bootstrap_crossed_figure(
    figures: Sequence[Figure],
    patients: Sequence[str],
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
    has_interval: bool = True,
) -> Estimate:
    """Mean over trainings of a figure that is no mean over patients; trainings and patients are drawn on their own.

    What `bootstrap_crossed_mean` is to means. With few trainings the interval is too narrow, as there.

    Args:
        figures: One per training, see `Figure`.
        patients: Whose image each one is, N.
        num_resamples: Drawn sets.
        confidence: Level of the interval, 0 to 1.
        rng: Draws patients and trainings.
        has_interval: Whether there are patients enough for one.
    """
    keys, places = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    number = len(keys)
    whole = np.ones((1, len(places)))
    value = float(np.mean([figure(whole)[0] for figure in figures])) if number else math.nan
    nothing = Estimate(value, math.nan, math.nan, confidence, number, 0)
    if number < 2 or math.isnan(value) or not has_interval:
        return nothing
    per_chunk = max(1, CHUNK // len(places))
    rows = []
    for first in range(0, num_resamples, per_chunk):
        size = min(per_chunk, num_resamples - first)
        counts = rng.multinomial(number, np.full(number, 1 / number), size=size).astype(np.float64)
        weights = counts[:, places]
        rows.append(np.stack([figure(weights) for figure in figures], axis=1))
    height = len(figures)
    shares = rng.multinomial(height, np.full(height, 1 / height), size=num_resamples) / height
    drawn = (np.concatenate(rows) * shares).sum(axis=1)
    known = drawn[~np.isnan(drawn)]
    if 2 * len(known) < num_resamples:
        return nothing
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), confidence, number, 0)


def bootstrap_crossed_mean(
    rows: Sequence[Mapping[str, float]],
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Estimate:
    """Mean over trainings and patients with an interval that holds for other trainings as well as other patients.

    Rows (trainings) and columns (patients) are drawn with replacement, each on their own, as in Owen, Ann. Appl. Stat.
    1 (2007): https://doi.org/10.1214/07-AOAS122. Of R trainings, their own variance comes out (R - 1) / R of what it
    is, so with three of them the interval is still too narrow: look at the single trainings too.

    Args:
        rows: Values by patient, for each training. Patients that lack a value in any training are left out and counted.
        num_resamples: Drawn sets.
        confidence: Level of the interval, 0 to 1.
        rng: Draws trainings and patients.
    """
    everyone = list(dict.fromkeys(patient for row in rows for patient in row))
    table = np.array([[row.get(patient, math.nan) for patient in everyone] for row in rows], dtype=np.float64)
    table = table[:, ~np.isnan(table).any(axis=0)]
    height, width = table.shape
    num_missing = len(everyone) - width
    if width == 0:
        return Estimate(math.nan, math.nan, math.nan, confidence, 0, num_missing)
    if width < 2:
        return Estimate(float(table.mean()), math.nan, math.nan, confidence, width, num_missing)
    drawn_rows = rng.integers(height, size=(num_resamples, height, 1))
    drawn_columns = rng.integers(width, size=(num_resamples, 1, width))
    means = table[drawn_rows, drawn_columns].mean(axis=(1, 2))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(table.mean()), float(low), float(high), confidence, width, num_missing)


def paired_sign_flip_test(
    first: Mapping[str, float], second: Mapping[str, float], *, num_resamples: int = 10_000, rng: np.random.Generator
) -> PairedTest:
    """Test whether two methods differ in their mean on the same patients, without assuming a distribution.

    If they do not, each patient's difference is as likely with the other sign. The p-value is the share of sign
    patterns whose mean difference is at least as large as the observed one: over all 2^n patterns if these are no
    more than `num_resamples`, else over that many drawn ones and the observed one.

    Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9 (2010): https://doi.org/10.2202/1544-6115.1585

    Args:
        first: Patient to value (`patient_means`); NaN if not applicable.
        second: The same of the other method.
        num_resamples: Sign patterns to draw when there are too many to count.
        rng: Draws them.
    """
    everyone = first.keys() | second.keys()
    paired = [first[patient] - second[patient] for patient in first if patient in second]
    differences = np.array([difference for difference in paired if not math.isnan(difference)], dtype=np.float64)
    size = len(differences)
    if size == 0:
        return PairedTest(math.nan, math.nan, 0, len(everyone), is_exact=True)
    is_exact = 2**size <= num_resamples
    signs = _all_signs(size) if is_exact else rng.choice((-1.0, 1.0), size=(num_resamples, size))
    observed = abs(float(differences.mean()))
    threshold = observed - ROUNDING * float(np.abs(differences).max())
    extreme = np.count_nonzero(np.abs(signs @ differences / size) >= threshold)
    p_value = extreme / len(signs) if is_exact else (extreme + 1) / (num_resamples + 1)
    return PairedTest(float(differences.mean()), float(p_value), size, len(everyone) - size, is_exact)


def holm_adjusted(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of several tests so that comparing each to 0.05 keeps the chance of any false alarm at 5 %.

    Holm, Scand. J. Statist. 6 (1979): the k-th smallest of m is multiplied by m - k + 1, never falls below the one
    before it, and is at most 1.

    Args:
        p_values: Test to p-value; NaN (no pairs) stays NaN and is not counted.

    Returns:
        Test to adjusted p-value, in the order given.
    """
    ranked = sorted((value, name) for name, value in p_values.items() if not math.isnan(value))
    adjusted, largest = dict(p_values), 0.0
    for rank, (value, name) in enumerate(ranked):
        largest = max(largest, min(1.0, value * (len(ranked) - rank)))
        adjusted[name] = largest
    return adjusted


def _all_signs(size: int) -> NDArray[np.float64]:
    """Every pattern of signs, `[2^size, size]`."""
    return np.array(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=np.float64)
