"""What happens at each threshold of a probability, and how far a probability can be taken at its word.

Figures with intervals take weights, as in `metrics.ranking`; what does not exist is NaN.

Shapes: N images, R resamples (any leading axes of weights), T distinct scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl_cli.metrics.ranking import NUM_BINS, Array, cumulated, weights_of
from medssl_cli.metrics.statistics import ROUNDING, ratio


@dataclass(frozen=True)
class OperatingCurve:
    """What every threshold gives, from the one that says yes to nothing to the one that says yes to all.

    Args:
        thresholds: `[T + 1]`, falling; the first is infinite. A score of at least the threshold is a yes.
        sensitivity: Share of the positives that are a yes, `[T + 1]`; NaN without positives.
        false_share: Share of the negatives that are a yes (1 - specificity), `[T + 1]`; NaN without negatives.
        precision: Share of the yes that are positives, `[T + 1]`; NaN where there is no yes.
    """

    thresholds: Array
    sensitivity: Array
    false_share: Array
    precision: Array


def operating_curve(scores: Array, is_positive: NDArray[np.bool_]) -> OperatingCurve:
    """The points of the ROC curve and of the precision-recall curve.

    Args:
        scores: `[N]`.
        is_positive: `[N]`.
    """
    nothing = np.zeros(1)
    counts = cumulated(scores, is_positive) if len(scores) else (np.zeros(0), np.zeros(0))
    true, false = (np.concatenate([nothing, each]) for each in counts)
    return OperatingCurve(
        thresholds=np.concatenate([[np.inf], np.unique(scores)[::-1]]),
        sensitivity=ratio(true, np.full_like(true, true[-1])),
        false_share=ratio(false, np.full_like(false, false[-1])),
        precision=ratio(true, true + false),
    )


def sensitivity_at(
    scores: Array, is_positive: NDArray[np.bool_], specificity: float, weights: Array | None = None
) -> Array:
    """The largest sensitivity of all thresholds with at least some specificity.

    The threshold is chosen on these very images: it tells what the ranking allows, not what a fixed threshold keeps.

    Args:
        scores: `[N]`.
        is_positive: `[N]`.
        specificity: 0 to 1.
        weights: `[..., N]`, not negative; 1 if not given.

    Returns:
        `[...]`; NaN without positives or without negatives.
    """
    true, false = cumulated(scores, is_positive, weights)
    is_allowed = false <= (1 - specificity + ROUNDING) * false[..., -1:]
    found = np.where(is_allowed, true, 0.0).max(axis=-1)
    return np.where(false[..., -1] > 0, ratio(found, true[..., -1]), np.nan)


def brier(probabilities: Array, is_positive: NDArray[np.bool_], weights: Array | None = None) -> Array:
    """Mean squared difference of a probability and what is so: 0 is best, 0.25 is that of always one half.

    Brier, Monthly Weather Review 78 (1950).

    Args:
        probabilities: `[N]`, 0 to 1.
        is_positive: `[N]`.
        weights: `[..., N]`, not negative; 1 if not given.

    Returns:
        `[...]`; NaN without images.
    """
    weighed = weights_of(probabilities, weights)
    return ratio((weighed * (probabilities - is_positive) ** 2).sum(axis=-1), weighed.sum(axis=-1))


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose probabilities are much the same.

    Args:
        probability: Their mean.
        share: Share of positives among them.
        number: Number of images.
    """

    probability: float
    share: float
    number: int


def reliability(probabilities: Array, is_positive: NDArray[np.bool_]) -> list[ReliabilityBin]:
    """What is so where the model says so: ten bins of equal width, the empty ones left out.

    Args:
        probabilities: `[N]`, 0 to 1.
        is_positive: `[N]`.
    """
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    found = []
    for place in np.unique(bins):
        own = bins == place
        found.append(ReliabilityBin(float(probabilities[own].mean()), float(is_positive[own].mean()), int(own.sum())))
    return found


@dataclass(frozen=True)
class ThresholdRow:
    """What a threshold gives; NaN for what cannot be told.

    Args:
        threshold: Probabilities of at least this count as a yes.
        num_yes: Images that are a yes.
        sensitivity: Share of the positives that are a yes.
        specificity: Share of the negatives that are a no.
        positive_value: Share of the yes that are positives.
        negative_value: Share of the no that are negatives.
    """

    threshold: float
    num_yes: int
    sensitivity: float
    specificity: float
    positive_value: float
    negative_value: float


def threshold_rows(
    probabilities: Array, is_positive: NDArray[np.bool_], thresholds: Sequence[float]
) -> list[ThresholdRow]:
    """What each of some thresholds gives.

    Args:
        probabilities: `[N]`.
        is_positive: `[N]`.
        thresholds: Thresholds of the table.
    """
    at = np.asarray(thresholds, dtype=np.float64)
    is_yes = probabilities >= at[:, np.newaxis]
    yes, no = is_yes.sum(axis=1).astype(np.float64), (~is_yes).sum(axis=1).astype(np.float64)
    true, right = (is_yes & is_positive).sum(axis=1), (~is_yes & ~is_positive).sum(axis=1)
    shares = (
        ratio(true, np.full(len(at), is_positive.sum())),
        ratio(right, np.full(len(at), (~is_positive).sum())),
        ratio(true, yes),
        ratio(right, no),
    )
    return [
        ThresholdRow(threshold, int(number), *(float(value) for value in values))
        for threshold, number, *values in zip(thresholds, yes, *shares, strict=True)
    ]
