"""How well scores tell images with a finding from images without it.

Every figure takes weights, so that a bootstrap over patients (`statistics.bootstrap_figure`) draws an image twice by
giving it the weight 2. A figure that does not exist because one of the two kinds is absent is NaN, never a guess.

Shapes: N images, R resamples (any leading axes of weights), T distinct scores.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medssl_cli.metrics.statistics import ROUNDING, Estimate, bootstrap_figure, ratio

Array = NDArray[np.float64]
NUM_BINS: Final = 10


def auroc(scores: Array, is_positive: NDArray[np.bool_], weights: Array | None = None) -> Array:
    """Share of the pairs of a positive and a negative in which the positive has the higher score; ties count half.

    Args:
        scores: `[N]`.
        is_positive: `[N]`.
        weights: `[..., N]`, not negative; 1 if not given.

    Returns:
        `[...]`; NaN without positives or without negatives.
    """
    true, false = cumulated(scores, is_positive, weights)
    steps = np.diff(false, axis=-1, prepend=0.0)
    before = np.concatenate([np.zeros_like(true[..., :1]), true[..., :-1]], axis=-1)
    area = (steps * (before + true) / 2).sum(axis=-1)
    return ratio(area, true[..., -1] * false[..., -1])


def average_precision(scores: Array, is_positive: NDArray[np.bool_], weights: Array | None = None) -> Array:
    """Mean over the positives of the precision at their score: sum over thresholds of (R_t - R_t-1) P_t.

    Images of the same score are found together. By chance it is the share of positives.

    Args:
        scores: `[N]`.
        is_positive: `[N]`.
        weights: `[..., N]`, not negative; 1 if not given.

    Returns:
        `[...]`; NaN without positives or without negatives.
    """
    true, false = cumulated(scores, is_positive, weights)
    steps = np.diff(true, axis=-1, prepend=0.0)
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    average = ratio((steps * precision).sum(axis=-1), true[..., -1])
    return np.where(false[..., -1] > 0, average, np.nan)


def sensitivity(scores: Array, is_positive: NDArray[np.bool_], threshold: float, weights: Array | None = None) -> Array:
    """Share of the positives whose score is at least the threshold, `[...]`; NaN without positives."""
    weighed = weights_of(scores, weights)
    positives = weighed * is_positive
    return ratio((positives * (scores >= threshold)).sum(axis=-1), positives.sum(axis=-1))


def specificity(scores: Array, is_positive: NDArray[np.bool_], threshold: float, weights: Array | None = None) -> Array:
    """Share of the negatives whose score is below the threshold, `[...]`; NaN without negatives."""
    return sensitivity(-scores, ~is_positive, float(np.nextafter(-threshold, np.inf)), weights)


def youden_threshold(scores: Array, is_positive: NDArray[np.bool_]) -> float:
    """The threshold with the largest sum of sensitivity and specificity, in the middle between two scores.

    Youden, Cancer 3 (1950). Of several as good the lowest, which misses the fewest.

    Args:
        scores: `[N]`.
        is_positive: `[N]`.

    Returns:
        NaN without positives, without negatives, or where all scores are the same.
    """
    values = np.unique(scores)
    if len(values) < 2 or is_positive.all() or not is_positive.any():
        return float("nan")
    middles = (values[:-1] + values[1:]) / 2
    ranked = np.sort(scores[is_positive]), np.sort(scores[~is_positive])
    missed, left = (np.searchsorted(each, middles) / len(each) for each in ranked)
    return float(middles[np.argmax(left - missed)])


def balanced_accuracy(predicted: NDArray[np.int64], classes: NDArray[np.int64], weights: Array | None = None) -> Array:
    """Mean over the classes present of the share that is recognised; 1 / K by chance.

    Args:
        predicted: `[N]`.
        classes: `[N]`.
        weights: `[..., N]`, not negative; 1 if not given.

    Returns:
        `[...]`; NaN without images.
    """
    weighed = weights_of(predicted, weights)
    present = [weighed * (classes == value) for value in np.unique(classes)]
    shares = np.array([ratio((each * (predicted == classes)).sum(axis=-1), each.sum(axis=-1)) for each in present])
    if not len(shares):
        return np.full(weighed.shape[:-1], np.nan)
    known = ~np.isnan(shares)
    return ratio(np.where(known, shares, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))


def calibration_error(probabilities: Array, is_positive: NDArray[np.bool_]) -> float:
    """Expected calibration error: in ten bins of equal width, |share of positives - mean probability|, by their size.

    Guo et al., ICML 2017, equation 3: https://arxiv.org/abs/1706.04599, for the probability of the finding itself.

    Args:
        probabilities: `[N]`, 0 to 1.
        is_positive: `[N]`.
    """
    if not len(probabilities):
        return float("nan")
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    excess = np.bincount(bins, is_positive - probabilities, minlength=NUM_BINS)
    return float(np.abs(excess).sum() / len(probabilities))


def finding_estimates(
    scores: Array, is_positive: NDArray[np.bool_], patients: Sequence[str], *, rng: np.random.Generator
) -> dict[str, Estimate]:
    """AUROC and average precision with intervals over patients.

    Args:
        scores: `[N]`; higher for the finding.
        is_positive: `[N]`.
        patients: Whose image each one is.
        rng: Draws patients; both figures see the same ones.
    """
    seed = int(rng.integers(2**32))
    found = {}
    for name, figure in (("auroc", auroc), ("average_precision", average_precision)):
        found[name] = bootstrap_figure(
            partial(figure, scores, is_positive),
            patients,
            rng=np.random.default_rng(seed),
            has_interval=has_patients_enough(is_positive, patients),
        )
    return found


def swap_test(
    first: Array,
    second: Array,
    targets: Array,
    patients: Sequence[str],
    *,
    num_resamples: int = 2000,
    rng: np.random.Generator,
) -> float:
    """Two-sided p-value of the hypothesis that two methods rank the same images equally well by AUROC.

    If they do, their answers about a patient can be exchanged. Scores become ranks first, so that they can. Figures are
    means over trainings and classes; a patient's answers change sides in all of them together.

    Bandos et al., Stat. Med. 24 (2005): https://doi.org/10.1002/sim.2149

    Args:
        first: Scores of one method, `[S, N, K]` of S trainings and K classes.
        second: Scores of the other.
        targets: `[N, K]`, 1 present, 0 absent, NaN unknown; every class is both.
        patients: Whose image each one is.
        num_resamples: Exchanges to draw; the observed one is counted too.
        rng: Draws them.
    """
    keys, places = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    is_swapped = rng.random((num_resamples, len(keys))) < 0.5
    is_swapped = np.concatenate([np.zeros((1, len(keys)), dtype=bool), is_swapped])[:, places]
    total = np.zeros(num_resamples + 1)
    for place, column in enumerate(targets.T):
        known = np.isfinite(column)
        is_positive, swapped = column[known] == 1, is_swapped[:, known]
        for one, other in zip(first[:, known, place], second[:, known, place], strict=True):
            ranks = rankdata(one), rankdata(other)
            total += _areas(np.where(swapped, ranks[1], ranks[0]), is_positive)
            total -= _areas(np.where(swapped, ranks[0], ranks[1]), is_positive)
    observed = abs(total[0])
    return float(np.count_nonzero(np.abs(total) >= observed - ROUNDING * max(1.0, observed)) / len(total))


def _areas(scores: Array, is_positive: NDArray[np.bool_]) -> Array:
    """AUROC of many rankings of the same images, `[R, N]` to `[R]`: Mann and Whitney's statistic."""
    ranks = rankdata(scores, axis=1)
    number = int(is_positive.sum())
    wins = ranks[:, is_positive].sum(axis=1) - number * (number + 1) / 2
    areas: Array = wins / (number * (len(is_positive) - number))
    return areas


def has_patients_enough(is_positive: NDArray[np.bool_], patients: Sequence[str]) -> bool:
    """Whether at least two patients show the finding and two do not: with fewer, drawing patients says nothing."""
    answers = list(zip(patients, is_positive.tolist(), strict=True))
    return all(len({patient for patient, answer in answers if answer is kind}) > 1 for kind in (True, False))


def weights_of(scores: NDArray[np.generic], weights: Array | None) -> Array:
    """The weights of images, 1 where none are given."""
    return np.ones(len(scores)) if weights is None else weights


def cumulated(scores: Array, is_positive: NDArray[np.bool_], weights: Array | None = None) -> tuple[Array, Array]:
    """Weight of the positives and of the negatives that score at least as much, per distinct score, `[..., T]`."""
    weighed = weights_of(scores, weights)
    order = np.argsort(-scores, kind="stable")
    if not len(order):
        nothing = np.zeros((*weighed.shape[:-1], 1))
        return nothing, nothing
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    sorted_weights, positive = weighed[..., order], is_positive[order]
    true = np.cumsum(sorted_weights * positive, axis=-1)[..., last_of_ties]
    false = np.cumsum(sorted_weights * ~positive, axis=-1)[..., last_of_ties]
    return true, false
