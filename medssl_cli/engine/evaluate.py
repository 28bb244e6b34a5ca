"""Honest scores of a segmentation: every patient of a split counts, and a missing structure is the worst value."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import table_of, to_classes
from medssl_cli.classes import IGNORE, WantedClasses
from medssl_cli.engine.labelled import check_reference
from medssl_cli.engine.results import without_nan
from medssl_cli.engine.talk import Talk
from medssl_cli.errors import NothingUsableError
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.statistics import Estimate, bootstrap_mean
from medssl_cli.metrics.surface import StructureScores, segmentation_scores

METRICS: Final = ("dice", "hd95_mm", "nsd")
BOOTSTRAP_SEED: Final = 0

Segment = Callable[[Volume], NDArray[np.uint8]]
"""An image to a label map on its own grid."""


@dataclass(frozen=True)
class Case:
    """Scores of one item."""

    item_id: str
    patient_key: str
    scores: dict[str, StructureScores]

    @property
    def mean_dice(self) -> float:
        """Over the structures that apply; NaN if none does."""
        known = [scores.dice for scores in self.scores.values() if not math.isnan(scores.dice)]
        return float(np.mean(known)) if known else math.nan


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases and their means over patients.

    Args:
        cases: One per item.
        estimates: By structure and metric, with bootstrap confidence intervals over patients.
        constant_dice: By structure, the mean Dice of marking every voxel as that structure.
    """

    cases: list[Case]
    estimates: dict[str, dict[str, Estimate]]
    constant_dice: dict[str, float]

    @property
    def mean_dice(self) -> float:
        """Over structures of the means over patients."""
        return float(np.nanmean([metrics["dice"].mean for metrics in self.estimates.values()]))


def evaluate(
    segment: Segment,
    cache: Cache,
    records: Sequence[ItemRecord],
    *,
    label_set: str,
    wanted: WantedClasses,
    nsd_tolerance_mm: float,
    talk: Talk,
    on_case: Callable[[Case, Volume, NDArray[np.uint8], NDArray[np.uint8]], None] | None = None,
) -> Evaluation:
    """Segment every item of a split and compare with its label map on the native grid.

    Args:
        segment: The model.
        cache: Holds the items.
        records: The split.
        label_set: Which label maps are the reference.
        wanted: Which labels make up which class of the model.
        nsd_tolerance_mm: Surface distance that counts as agreement.
        talk: Progress.
        on_case: Called with the case, its image, prediction and reference, for pictures.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS` for an empty split.
        UsageError: `E_LABEL_CLASSES` if labels and classes contradict each other, or have no class in common.
    """
    if not records:
        raise NothingUsableError("E_TOO_FEW_PATIENTS", "the split holds no patients")
    classes = wanted.names
    check_reference(records, label_set, wanted, talk)
    cases: list[Case] = []
    constant: dict[str, list[float]] = {name: [] for name in classes.values()}
    for done, record in enumerate(records, start=1):
        image = cache.read_image(record)
        reference = to_classes(
            cache.read_label(record, label_set).voxels[0], table_of(record.labels[label_set], wanted)
        )
        prediction = segment(image)
        is_ignored = reference == IGNORE
        prediction[is_ignored] = reference[is_ignored] = 0
        scores = segmentation_scores(
            prediction, reference, classes=classes, spacing_mm=image.spacing_mm, nsd_tolerance_mm=nsd_tolerance_mm
        )
        case = Case(record.item_id, record.patient_key, scores)
        cases.append(case)
        for value, name in classes.items():
            share = float((reference == value).mean())
            constant[name].append(2 * share / (1 + share) if share else math.nan)
        if on_case is not None:
            on_case(case, image, prediction, reference)
        talk.progress("evaluating", done, len(records))
    estimates = {name: _estimates(cases, name) for name in classes.values()}
    return Evaluation(cases, estimates, {name: _nanmean(values) for name, values in constant.items()})


def _estimates(cases: list[Case], structure: str) -> dict[str, Estimate]:
    patients = [case.patient_key for case in cases]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    return {
        metric: bootstrap_mean([getattr(case.scores[structure], metric) for case in cases], patients, rng=rng)
        for metric in METRICS
    }


def _nanmean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def to_document(evaluation: Evaluation, about: dict[str, Any]) -> dict[str, Any]:
    """JSON of an evaluation; numbers that do not apply are null."""
    document = {
        "schema": "medssl.evaluation/1",
        **about,
        "num_patients": len({case.patient_key for case in evaluation.cases}),
        "num_items": len(evaluation.cases),
        "mean_dice": evaluation.mean_dice,
        "structures": {
            name: {metric: asdict(estimate) for metric, estimate in metrics.items()}
            | {"constant_predictor_dice": evaluation.constant_dice[name]}
            for name, metrics in evaluation.estimates.items()
        },
        "cases": [
            {
                "item": case.item_id,
                "patient": case.patient_key,
                "scores": {name: asdict(scores) for name, scores in case.scores.items()},
            }
            for case in evaluation.cases
        ],
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def to_csv(evaluation: Evaluation) -> str:
    """One row per item and structure."""
    buffer = io.StringIO()
    columns = ["item", "patient", "structure", *StructureScores.__dataclass_fields__]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for case in evaluation.cases:
        for name, scores in case.scores.items():
            row = {key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(scores).items()}
            writer.writerow({"item": case.item_id, "patient": case.patient_key, "structure": name, **row})
    return buffer.getvalue()


def split_of_manifest(cache: Cache, manifest: dict[str, Any], split: str) -> list[ItemRecord]:
    """The cached items of a run's split, in the run's order.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY` if the cache lacks any of them.
    """
    records = {record.item_id: record for record in cache.records()}
    wanted = [entry["item"] for entry in manifest["splits"][split]]
    missing = [item for item in wanted if item not in records]
    if missing:
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            f"{len(missing)} of {len(wanted)} items of the run's {split} split are not in this cache",
            hint="name the cache that the run was trained on with --cache",
        )
    return [records[item] for item in wanted]
