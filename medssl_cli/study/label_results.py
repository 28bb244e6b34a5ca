"""From scored trainings to what can be said about pre-training: means, intervals, paired differences."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from medssl_cli.metrics.statistics import (
    bootstrap_crossed_mean,
    bootstrap_mean,
    holm_adjusted,
    paired_sign_flip_test,
    patient_means,
)
from medssl_cli.plain_json import without_nan
from medssl_cli.study.labels import SCRATCH, Scored
from medssl_cli.study.ranking_results import ranking_tables

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
    is_ranking = "classes" in scored[0].scores
    tables = ranking_tables(scored) if is_ranking else _dice_tables(scored)
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


def _dice_tables(scored: Sequence[Scored]) -> dict[str, Any]:
    """Levels, differences and runs of segmentations."""
    dice = {entry.cell: _structure_dice(entry.scores) for entry in scored}
    arms = list(dict.fromkeys(cell.arm for cell in dice))
    numbers = sorted({cell.patients for cell in dice})
    levels, differences = [], []
    for number in numbers:
        rows = {
            arm: {cell.seed: dice[cell] for cell in dice if (cell.arm, cell.patients) == (arm, number)} for arm in arms
        }
        for structure in (ALL_STRUCTURES, *_structures(scored)):
            for arm in arms:
                levels.append({"arm": arm, "patients": number, "structure": structure, **_level(rows[arm], structure)})
            differences += [
                {
                    "arm": arm,
                    "patients": number,
                    "structure": structure,
                    **_difference(rows[arm], rows[SCRATCH], structure),
                }
                for arm in arms
                if arm != SCRATCH
            ]
    return {"figure": "Dice", "runs": [_run(entry) for entry in scored], "levels": levels, "differences": differences}


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


def _structures(scored: Sequence[Scored]) -> list[str]:
    return list(scored[0].scores["structures"])


def _structure_dice(scores: Mapping[str, Any]) -> dict[str, PatientDice]:
    """Structure, and the mean of all, to the Dice of every patient."""
    cases = scores["cases"]
    patients = [case["patient"] for case in cases]
    values = {
        name: [math.nan if (dice := case["scores"][name]["dice"]) is None else dice for case in cases]
        for name in scores["structures"]
    }
    means = [_mean([values[name][index] for name in values]) for index in range(len(cases))]
    return {name: patient_means(column, patients) for name, column in {ALL_STRUCTURES: means, **values}.items()}


def _run(entry: Scored) -> dict[str, Any]:
    """One training: every structure's mean with its interval over patients."""
    structures = {}
    for name, by_patient in _structure_dice(entry.scores).items():
        rng = np.random.default_rng(RESAMPLING_SEED)
        structures[name] = asdict(bootstrap_mean(list(by_patient.values()), list(by_patient), rng=rng))
    return {**asdict(entry.cell), "structures": structures}


def _level(by_seed: Mapping[int, Mapping[str, PatientDice]], structure: str) -> dict[str, Any]:
    """Mean of an arm at one number of patients."""
    rows = [by_seed[seed][structure] for seed in sorted(by_seed)]
    estimate = bootstrap_crossed_mean(rows, rng=np.random.default_rng(RESAMPLING_SEED))
    return {**asdict(estimate), "per_seed": [_mean(list(row.values())) for row in rows]}


def _difference(
    first: Mapping[int, Mapping[str, PatientDice]], second: Mapping[int, Mapping[str, PatientDice]], structure: str
) -> dict[str, Any]:
    """Paired difference of two arms."""
    pairs = [(first[seed][structure], second[seed][structure]) for seed in sorted(first)]
    rows = [{patient: one[patient] - other[patient] for patient in one} for one, other in pairs]
    estimate = bootstrap_crossed_mean(rows, rng=np.random.default_rng(RESAMPLING_SEED))
    one, other = (_over_seeds([pair[side] for pair in pairs]) for side in (0, 1))
    test = paired_sign_flip_test(one, other, rng=np.random.default_rng(RESAMPLING_SEED))
    over_patients = bootstrap_mean(
        [one[patient] - other[patient] for patient in one], list(one), rng=np.random.default_rng(RESAMPLING_SEED)
    )
    return {
        **asdict(estimate),
        "over_patients": {"low": over_patients.low, "high": over_patients.high},
        "per_seed": [_mean(list(row.values())) for row in rows],
        "p_value": test.p_value,
    }


def _over_seeds(rows: Sequence[PatientDice]) -> PatientDice:
    return {patient: float(np.mean([row[patient] for row in rows])) for patient in rows[0]}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
