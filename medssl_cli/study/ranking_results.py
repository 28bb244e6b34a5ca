"""The same comparison for classifications, whose AUROC has no value per patient: intervals and tests redraw it whole.

Shapes: S seeds, N images, K classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.metrics.ranking import auroc, has_patients_enough, swap_test
from medssl_cli.metrics.statistics import bootstrap_crossed_figure, bootstrap_figure
from medssl_cli.study.labels import Cell, Scored

ALL_CLASSES: Final = "mean of classes"
RESAMPLING_SEED: Final = 0
Array = NDArray[np.float64]


class Rankings:
    """Probabilities of the same images by all trainings; classes that too few test patients show are left out.

    Args:
        scored: All cells of a plan.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`, no class is left.
    """

    name = "AUROC"

    def __init__(self, scored: Sequence[Scored]) -> None:
        first = scored[0].scores
        items = [case["item"] for case in first["cases"]]
        self.patients = [case["patient"] for case in first["cases"]]
        self._targets = _columns(first, items, "target")
        self._probabilities = {entry.cell: _columns(entry.scores, items, "probability") for entry in scored}
        places = [place for place, column in enumerate(self._targets.T) if self._is_told(column)]
        if not places:
            raise NothingUsableError(
                "E_TOO_FEW_PATIENTS", "no class is shown by two test patients and not by two others"
            )
        names = list(first["classes"])
        self._classes = {ALL_CLASSES: places, **{names[place]: [place] for place in places}}
        self.structures = tuple(self._classes)

    def _is_told(self, column: Array) -> bool:
        known = np.isfinite(column)
        return has_patients_enough(column[known] == 1, np.asarray(self.patients)[known].tolist())

    def figure(self, cell: Cell, structure: str, weights: Array) -> Array:
        """Mean AUROC over the classes of a structure, `[R]`, of weights `[R, N]`."""
        values = []
        for place in self._classes[structure]:
            known = np.isfinite(self._targets[:, place])
            scores, answers = self._probabilities[cell][known, place], self._targets[known, place] == 1
            values.append(auroc(scores, answers, weights[:, known]))
        mean: Array = np.mean(values, axis=0)
        return mean

    def p_value(self, first: Sequence[Cell], second: Sequence[Cell], structure: str) -> float:
        """Of the hypothesis that the arms' answers about a patient could be exchanged."""
        places = self._classes[structure]
        one, other = (np.stack([self._probabilities[cell][:, places] for cell in cells]) for cells in (first, second))
        rng = np.random.default_rng(RESAMPLING_SEED)
        return swap_test(one, other, self._targets[:, places], self.patients, rng=rng)

    def level(self, cells: Sequence[Cell], structure: str) -> dict[str, Any]:
        """Of an arm at one number of patients."""
        return self._crossed([partial(self.figure, cell, structure) for cell in cells])

    def difference(self, first: Sequence[Cell], second: Sequence[Cell], structure: str) -> dict[str, Any]:
        """Of two arms, seed by seed."""

        def minus(one: Cell, other: Cell, weights: Array) -> Array:
            return self.figure(one, structure, weights) - self.figure(other, structure, weights)

        figures = [partial(minus, one, other) for one, other in zip(first, second, strict=True)]
        over_patients = bootstrap_figure(
            lambda weights: np.mean([each(weights) for each in figures], axis=0),
            self.patients,
            rng=np.random.default_rng(RESAMPLING_SEED),
        )
        return {
            **self._crossed(figures),
            "over_patients": {"low": over_patients.low, "high": over_patients.high},
            "p_value": self.p_value(first, second, structure),
        }

    def run(self, cell: Cell) -> dict[str, Any]:
        """One training with intervals over patients."""
        return {
            structure: asdict(
                bootstrap_figure(
                    partial(self.figure, cell, structure), self.patients, rng=np.random.default_rng(RESAMPLING_SEED)
                )
            )
            for structure in self.structures
        }

    def _crossed(self, figures: Sequence[Any]) -> dict[str, Any]:
        estimate = bootstrap_crossed_figure(figures, self.patients, rng=np.random.default_rng(RESAMPLING_SEED))
        whole = np.ones((1, len(self.patients)))
        return {**asdict(estimate), "per_seed": [float(figure(whole)[0]) for figure in figures]}


def _columns(scores: Mapping[str, Any], items: Sequence[str], what: str) -> Array:
    """`[N, K]` of an evaluation in the order of the items; NaN for null."""
    cases = {case["item"]: case[what] for case in scores["cases"]}
    rows = [[np.nan if value is None else value for value in cases[item].values()] for item in items]
    return np.array(rows, dtype=np.float64)
