"""Figures of several models on the same images, for comparing them: how each does, and whether two differ.

A model is known by its place among all of them. An arm of a study is several models, trainings of one kind, in rows:
those of a row have learnt from the same patients, and those of two arms are compared one by one.

Shapes: N images, R resamples.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.metrics.statistics import (
    CHUNK,
    ROUNDING,
    Estimate,
    Figure,
    bootstrap_crossed_figure,
    bootstrap_figure,
    paired_sign_flip_test,
    patient_means,
    ratio,
)

RESAMPLING_SEED: Final = 0
Array = NDArray[np.float64]
Rows = Sequence[Sequence[int]]
"""Models of an arm, row by row."""
PairRows = Sequence[Sequence[tuple[int, int]]]
"""Pairs of models of two arms, row by row."""


@dataclass(frozen=True)
class PairedFigure:
    """One figure of every model, on the images of which it is known for all of them.

    Args:
        metric: What it is, such as `Dice`; one of which less is better says so in `less_is_better`.
        structure: What it is of.
        is_main: It sums up the others of its metric.
        patients: Whose image each one is, N.
        figures: Figures of each model; see `statistics.Figure`.
        p_value: P-value of the hypothesis that some models and as many others do equally well, each compared with one
            of the others.
        values: Values of each model, patient to value, where the figure is a mean over patients.
        less_is_better: Whether a model with a lower one is better.
    """

    metric: str
    structure: str
    is_main: bool
    patients: Sequence[str]
    figures: Sequence[Figure]
    p_value: Callable[[Sequence[int], Sequence[int]], float]
    values: Sequence[Mapping[str, float]] = ()
    less_is_better: bool = False

    def value(self, place: int) -> float:
        """The figure of one model."""
        return float(self.figures[place](np.ones((1, len(self.patients))))[0])

    def level(self, place: int) -> Estimate:
        """How one model does, with its interval over patients."""
        return bootstrap_figure(self.figures[place], self.patients, rng=np.random.default_rng(RESAMPLING_SEED))

    def difference(self, place: int, other: int) -> Estimate:
        """How much more one model has than another, with its interval: both see the same drawn patients."""
        return self.difference_over_patients([[(place, other)]])

    def arm_level(self, rows: Rows) -> Estimate:
        """How an arm does, with an interval over rows and patients."""
        return self._crossed([mean_of_figures([self.figures[place] for place in row]) for row in rows])

    def arm_difference(self, rows: PairRows) -> Estimate:
        """How much more an arm has than another, with an interval over rows and patients."""
        return self._crossed([self._minus(row) for row in rows])

    def difference_over_patients(self, rows: PairRows) -> Estimate:
        """The same with an interval over patients alone, which holds for these trainings only."""
        figure = mean_of_figures([self._minus(row) for row in rows])
        return bootstrap_figure(figure, self.patients, rng=np.random.default_rng(RESAMPLING_SEED))

    def arm_p_value(self, rows: PairRows) -> float:
        """P-value of the hypothesis that two arms do equally well; it holds for these trainings only."""
        pairs = [pair for row in rows for pair in row]
        return self.p_value([one for one, _ in pairs], [other for _, other in pairs])

    def num_better(self, rows: PairRows) -> int | None:
        """How many patients do better in one arm than in another; None where patients have no value of their own."""
        if not self.values:
            return None
        sign = -1 if self.less_is_better else 1
        gains = [
            [np.mean([self.values[one][patient] - self.values[other][patient] for one, other in row]) for row in rows]
            for patient in self.values[0]
        ]
        return sum(bool(sign * np.mean(gain) > 0) for gain in gains)

    def _minus(self, row: Sequence[tuple[int, int]]) -> Figure:
        """Mean difference of the pairs of a row."""
        first, second = (mean_of_figures([self.figures[pair[side]] for pair in row]) for side in (0, 1))
        return lambda weights: first(weights) - second(weights)

    def _crossed(self, figures: Sequence[Figure]) -> Estimate:
        return bootstrap_crossed_figure(figures, self.patients, rng=np.random.default_rng(RESAMPLING_SEED))


def mean_of_figures(figures: Sequence[Figure]) -> Figure:
    """The mean of figures as one."""

    def mean(weights: Array) -> Array:
        values: Array = np.mean([figure(weights) for figure in figures], axis=0)
        return values

    return mean


def mean_figure(
    metric: str,
    structure: str,
    values: Array,
    patients: Sequence[str],
    *,
    is_main: bool,
    less_is_better: bool = False,
) -> PairedFigure:
    """A mean over patients, each of whom has the mean of their images.

    Args:
        metric: See `PairedFigure`.
        structure: See `PairedFigure`.
        values: Values of each model and image, `[M, N]`; NaN where it does not apply. Only images count that all models
            have.
        patients: Whose image each one is, N.
        is_main: See `PairedFigure`.
        less_is_better: See `PairedFigure`.
    """
    places = np.flatnonzero(~np.isnan(values).any(axis=0)).tolist()
    kept = [patients[place] for place in places]
    own = values[:, places]
    means = [patient_means(row.tolist(), kept) for row in own]
    counts = Counter(kept)
    shares = 1 / np.array([counts[patient] for patient in kept], dtype=np.float64)

    def figure_of(row: Array) -> Figure:
        return lambda weights: ratio((weights * shares * row).sum(axis=-1), (weights * shares).sum(axis=-1))

    def p_value(first: Sequence[int], second: Sequence[int]) -> float:
        sides = ([means[place] for place in places] for places in (first, second))
        one, other = (
            {patient: float(np.mean([row[patient] for row in rows])) for patient in rows[0]} for rows in sides
        )
        return paired_sign_flip_test(one, other, rng=np.random.default_rng(RESAMPLING_SEED)).p_value

    return PairedFigure(
        metric, structure, is_main, kept, [figure_of(row) for row in own], p_value, means, less_is_better
    )


def exchange_test(
    figure: Figure, patients: Sequence[str], *, num_resamples: int = 2000, rng: np.random.Generator
) -> float:
    """Two-sided p-value of the hypothesis that two models' answers about a patient could be exchanged.

    What `ranking.swap_test` is to AUROC, for any figure that takes weights.

    Args:
        figure: Figure of the images of the first model followed by the same images of the second, `[R, 2 N]` to `[R]`.
        patients: Whose image each of the N is.
        num_resamples: Exchanges to draw; the observed one is counted too.
        rng: Draws them.
    """
    keys, places = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    per_chunk = max(1, CHUNK // max(1, len(places)))
    differences = []
    for first in range(0, num_resamples + 1, per_chunk):
        size = min(per_chunk, num_resamples + 1 - first)
        is_swapped = rng.random((size, len(keys))) < 0.5
        if first == 0:
            is_swapped[0] = False
        swapped = is_swapped[:, places].astype(np.float64)
        differences.append(figure(np.hstack([1 - swapped, swapped])) - figure(np.hstack([swapped, 1 - swapped])))
    every = np.abs(np.concatenate(differences))
    observed = float(every[0])
    if math.isnan(observed):
        return math.nan
    return float(np.count_nonzero(every >= observed - ROUNDING * max(1.0, observed)) / len(every))
