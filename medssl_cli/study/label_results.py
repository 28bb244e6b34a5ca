"""From scored trainings to what can be said about pre-training: means, intervals, paired differences."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any, Final

import numpy as np

from medssl_cli.base.plain_json import without_nan
from medssl_cli.metrics.statistics import (
    Estimate,
    bootstrap_crossed_mean,
    bootstrap_mean,
    holm_adjusted,
    mean_of_known,
    paired_sign_flip_test,
    patient_means,
)
from medssl_cli.study.labels import SCRATCH, Cell, Scored
from medssl_cli.study.ranking_results import Rankings

SCHEMA: Final = "medssl.label-efficiency/1"
RESAMPLING_SEED: Final = 0
ALL_STRUCTURES: Final = "mean of structures"

PatientDice = dict[str, float]
"""Patient to Dice."""


def label_results(scored: Sequence[Scored], about: Mapping[str, Any]) -> dict[str, Any]:
    """What `results.json` holds.

    Every difference is pre-trained minus scratch, training by training with the same seed and patient by patient. Its
    interval draws trainings and patients; the p-value is of the patients' means over the seeds, adjusted for the number
    of comparisons (Holm), and holds for these trainings only. Of classifications the figure is the AUROC; see
    `study.ranking_results`.

    Args:
        scored: All cells of a plan.
        about: Facts to write beside them.
    """
    tables = _tables(scored, Rankings(scored) if "classes" in scored[0].scores else StructureDice(scored))
    whole, differences = tables["levels"][0]["structure"], tables["differences"]
    main = {f"{entry['arm']} {entry['patients']}": entry for entry in differences if entry["structure"] == whole}
    for name, p_value in holm_adjusted({name: entry["p_value"] for name, entry in main.items()}).items():
        main[name]["p_holm"] = p_value
    document = {
        "schema": SCHEMA,
        **about,
        "num_test_patients": scored[0].scores["num_patients"],
        **tables,
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def _tables(scored: Sequence[Scored], figures: "StructureDice | Rankings") -> dict[str, Any]:
    """Levels, differences and runs, number of patients by number of patients."""
    cells = [entry.cell for entry in scored]
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    levels, differences = [], []
    for number in sorted({cell.patients for cell in cells}):
        rows = {
            arm: sorted((c for c in cells if (c.arm, c.patients) == (arm, number)), key=attrgetter("seed"))
            for arm in arms
        }
        for structure in figures.structures:
            for arm in arms:
                about = {"arm": arm, "patients": number, "structure": structure}
                levels.append({**about, **figures.level(rows[arm], structure)})
                if arm != SCRATCH:
                    differences.append({**about, **figures.difference(rows[arm], rows[SCRATCH], structure)})
    runs = [{**asdict(cell), "structures": figures.run(cell)} for cell in cells]
    return {"figure": figures.name, "runs": runs, "levels": levels, "differences": differences}


def results_csv(document: Mapping[str, Any]) -> str:
    """One row per training and structure, with the interval over patients.

    Args:
        document: As `label_results` returns it.
    """
    buffer = io.StringIO()
    figure = str(document["figure"]).lower()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("arm", "patients", "seed", "structure", figure, "low", "high"))
    for run in document["runs"]:
        for structure, estimate in run["structures"].items():
            values = (estimate[key] for key in ("mean", "low", "high"))
            writer.writerow((run["arm"], run["patients"], run["seed"], structure, *values))
    return buffer.getvalue()


class StructureDice:
    """Dice of every patient, structure by structure, of all trainings.

    Args:
        scored: All cells of a plan.
    """

    name = "Dice"

    def __init__(self, scored: Sequence[Scored]) -> None:
        self._dice = {entry.cell: _structure_dice(entry.scores) for entry in scored}
        self.structures = (ALL_STRUCTURES, *scored[0].scores["structures"])

    def run(self, cell: Cell) -> dict[str, Any]:
        """Every structure's mean of one training, with its interval over patients."""
        return {name: asdict(_mean_of(by_patient)) for name, by_patient in self._dice[cell].items()}

    def level(self, cells: Sequence[Cell], structure: str) -> dict[str, Any]:
        """Mean of an arm at one number of patients."""
        return _crossed([self._dice[cell][structure] for cell in cells])

    def difference(self, first: Sequence[Cell], second: Sequence[Cell], structure: str) -> dict[str, Any]:
        """Paired difference of two arms, seed by seed."""
        pairs = [
            (self._dice[one][structure], self._dice[other][structure]) for one, other in zip(first, second, strict=True)
        ]
        crossed = _crossed([{patient: one[patient] - other[patient] for patient in one} for one, other in pairs])
        one, other = (_over_seeds([pair[side] for pair in pairs]) for side in (0, 1))
        over_patients = _mean_of({patient: one[patient] - other[patient] for patient in one})
        return {
            **crossed,
            "over_patients": {"low": over_patients.low, "high": over_patients.high},
            "p_value": paired_sign_flip_test(one, other, rng=np.random.default_rng(RESAMPLING_SEED)).p_value,
        }


def _crossed(rows: Sequence[PatientDice]) -> dict[str, Any]:
    """Mean over trainings and patients with its interval, and the mean of each training."""
    estimate = bootstrap_crossed_mean(rows, rng=np.random.default_rng(RESAMPLING_SEED))
    return {**asdict(estimate), "per_seed": [mean_of_known(list(row.values())) for row in rows]}


def _mean_of(by_patient: PatientDice) -> Estimate:
    """Mean over patients with its interval."""
    return bootstrap_mean(list(by_patient.values()), list(by_patient), rng=np.random.default_rng(RESAMPLING_SEED))


def _structure_dice(scores: Mapping[str, Any]) -> dict[str, PatientDice]:
    """Structure, and the mean of all, to the Dice of every patient."""
    cases = scores["cases"]
    patients = [case["patient"] for case in cases]
    values = {
        name: [math.nan if (dice := case["scores"][name]["dice"]) is None else dice for case in cases]
        for name in scores["structures"]
    }
    means = [mean_of_known([values[name][index] for name in values]) for index in range(len(cases))]
    return {name: patient_means(column, patients) for name, column in {ALL_STRUCTURES: means, **values}.items()}


def _over_seeds(rows: Sequence[PatientDice]) -> PatientDice:
    return {patient: float(np.mean([row[patient] for row in rows])) for patient in rows[0]}
