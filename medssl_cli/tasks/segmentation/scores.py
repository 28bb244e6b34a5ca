"""Honest scores of a segmentation: every patient of a split counts, and a missing structure is the worst value."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.base.classes import IGNORE, WantedClasses
from medssl_cli.base.csv_text import csv_text
from medssl_cli.base.errors import NothingUsableError
from medssl_cli.base.plain_json import without_nan
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import table_of, to_classes
from medssl_cli.data.examples import Example
from medssl_cli.data.label_checks import check_reference
from medssl_cli.data.selection import examples_of, of_examples, read_images
from medssl_cli.heads import LesionRule
from medssl_cli.imaging.placement import brought_to
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.lesions import LesionScores, lesion_scores
from medssl_cli.metrics.statistics import (
    Estimate,
    bootstrap_figure,
    bootstrap_mean,
    mean_of_known,
    ratio,
    shown,
    weighted_mean,
)
from medssl_cli.metrics.surface import StructureScores, structure_scores
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.report.gallery import Shown
from medssl_cli.report.viewer import Scene
from medssl_cli.tasks import Contract, ExportedModel, OnCase, Results, Subject
from medssl_cli.tasks.segmentation import FIGURE
from medssl_cli.tasks.segmentation.decode import Segment, structure
from medssl_cli.tasks.segmentation.page import segmentation_page, segmentation_picture, segmentation_scene
from medssl_cli.tasks.segmentation.paired import paired_figures as paired_figures

METRICS: Final = ("dice", "hd95_mm", "nsd", "iou", "assd_mm", "volume_error_ml", "volume_error_percent")
TABLE: Final = ("dice", "hd95_mm", "nsd")
COLUMNS: Final = ("structure", "Dice", "HD95 mm", "NSD", "Dice of marking all")
BOOTSTRAP_SEED: Final = 0


@dataclass(frozen=True)
class SegmentationCase:
    """Scores of one item.

    Args:
        item_id: Identifier of the item in the cache.
        patient_key: Whose image it is.
        scores: Scores by structure.
        lesions: Lesions by structure, where they are scored one by one.
    """

    item_id: str
    patient_key: str
    scores: dict[str, StructureScores]
    lesions: dict[str, LesionScores] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float:
        """Over the structures that apply; NaN if none does."""
        return mean_of_known([scores.dice for scores in self.scores.values()])


@dataclass(frozen=True)
class SegmentationEvaluation:
    """Scores of all cases and their means over patients.

    Args:
        cases: One per item.
        estimates: Estimates by structure and metric, with bootstrap confidence intervals over patients.
        constant_dice: Mean Dice of marking every voxel as one structure, by structure.
    """

    cases: list[SegmentationCase]
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
    preprocessing: Preprocessing | None = None,
    lesions: LesionRule | None = None,
    on_case: Callable[[SegmentationCase, Volume, NDArray[np.uint8], NDArray[np.uint8]], None] | None = None,
) -> SegmentationEvaluation:
    """Segment every example of a split and compare with its label map on the native grid of its first image.

    Args:
        segment: The model.
        cache: Holds the items.
        records: The split: the image of each example that has the label map.
        label_set: Which label maps are the reference.
        wanted: Which labels make up which class of the model.
        nsd_tolerance_mm: Surface distance that counts as agreement.
        talk: Progress.
        preprocessing: Names the channels of an example; without it every image is one by itself.
        lesions: What is one lesion, if lesions are scored one by one.
        on_case: Called with the case, its first image, prediction and reference, for pictures.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS` for an empty split.
        UsageError: `E_LABEL_CLASSES` if labels and classes contradict each other, or have no class in common.
    """
    if not records:
        raise NothingUsableError("E_TOO_FEW_PATIENTS", "the split holds no patients")
    classes = wanted.names
    check_reference(records, label_set, wanted, talk)
    cases: list[SegmentationCase] = []
    constant: dict[str, list[float]] = {name: [] for name in classes.values()}
    examples = [Example((each,)) for each in records]
    if preprocessing is not None:
        examples = examples_of(cache, records, preprocessing)
    for done, (record, example) in enumerate(zip(records, examples, strict=True), start=1):
        images = read_images(cache, example)
        image, reference = images[0], reference_of(cache, record, label_set, wanted, images[0])
        prediction = segment(image if len(images) == 1 else images)
        is_ignored = reference == IGNORE
        prediction[is_ignored] = reference[is_ignored] = 0
        masks = {name: (structure(prediction, place), structure(reference, place)) for place, name in classes.items()}
        scores = {
            name: structure_scores(found, there, image.spacing_mm, nsd_tolerance_mm)
            for name, (found, there) in masks.items()
        }
        by_lesion = {} if lesions is None else {
            name: lesion_scores(found, there, image.spacing_mm, lesions) for name, (found, there) in masks.items()
        }  # fmt: skip
        case = SegmentationCase(record.item_id, record.patient_key, scores, by_lesion)
        cases.append(case)
        for name, (_, there) in masks.items():
            share = float(there.mean())
            constant[name].append(2 * share / (1 + share) if share else math.nan)
        if on_case is not None:
            on_case(case, image, prediction, reference)
        talk.progress("evaluating", done, len(records))
    estimates = {name: _estimates(cases, name) for name in classes.values()}
    return SegmentationEvaluation(cases, estimates, {name: mean_of_known(values) for name, values in constant.items()})


def merged(parts: Sequence[SegmentationEvaluation]) -> SegmentationEvaluation:
    """Evaluations of different images as one."""
    cases = [case for part in parts for case in part.cases]
    constant = {
        name: weighted_mean(
            [part.constant_dice[name] for part in parts],
            [sum(case.scores[name].reference_ml > 0 for case in part.cases) for part in parts],
        )
        for name in parts[0].constant_dice
    }
    return SegmentationEvaluation(cases, {name: _estimates(cases, name) for name in constant}, constant)


def reference_of(
    cache: Cache, record: ItemRecord, label_set: str, wanted: WantedClasses, first: Volume
) -> NDArray[np.uint8]:
    """Classes `[X, Y, Z]` or regions `[K, X, Y, Z]` on the grid of an example's first image.

    Args:
        cache: Holds the label map.
        record: Image of the example that the label map belongs to.
        label_set: Name of the label map.
        wanted: Which labels make up which class.
        first: The example's first image.
    """
    label = brought_to(first, cache.read_label(record, label_set), is_label=True)
    return to_classes(label.voxels[0], table_of(record.labels[label_set], wanted))


def _estimates(cases: list[SegmentationCase], structure: str) -> dict[str, Estimate]:
    patients = [case.patient_key for case in cases]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    estimates = {
        metric: bootstrap_mean([getattr(case.scores[structure], metric) for case in cases], patients, rng=rng)
        for metric in METRICS
    }
    return estimates | _lesion_estimates([case for case in cases if case.lesions], structure, rng)


def _lesion_estimates(cases: list[SegmentationCase], structure: str, rng: np.random.Generator) -> dict[str, Estimate]:
    """Estimates of the cases whose lesions are scored one by one; nothing without any."""
    if not cases:
        return {}
    patients, scores = [case.patient_key for case in cases], [case.lesions[structure] for case in cases]
    found = np.array([each.num_found for each in scores], dtype=np.float64)
    there = np.array([each.num_lesions for each in scores], dtype=np.float64)
    return {
        "lesion_dice": bootstrap_mean([each.lesion_dice for each in scores], patients, rng=rng),
        "lesion_sensitivity": bootstrap_figure(
            lambda weights: ratio(weights @ found, weights @ there), patients, rng=rng
        ),
        "false_per_scan": bootstrap_mean([each.num_false for each in scores], patients, rng=rng),
    }


def to_document(evaluation: SegmentationEvaluation, about: dict[str, Any]) -> dict[str, Any]:
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
                "scores": {
                    name: asdict(scores) | (asdict(case.lesions[name]) if case.lesions else {})
                    for name, scores in case.scores.items()
                },
            }
            for case in evaluation.cases
        ],
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def to_csv(evaluation: SegmentationEvaluation) -> str:
    """One row per item and structure."""
    columns = ["item", "patient", "structure", *(each.name for each in fields(StructureScores))]
    if any(case.lesions for case in evaluation.cases):
        columns += [each.name for each in fields(LesionScores)]
    rows: list[Sequence[object]] = [columns]
    for case in evaluation.cases:
        for name, scores in case.scores.items():
            values = asdict(scores) | (asdict(case.lesions[name]) if case.lesions else {})
            told = [values.get(column, "") for column in columns[3:]]
            cells = ["" if isinstance(value, float) and math.isnan(value) else value for value in told]
            rows.append((case.item_id, case.patient_key, name, *cells))
    return csv_text(rows)


@dataclass(frozen=True)
class SegmentationSubject(Subject):
    """A model that segments.

    Args:
        wanted: Which labels make up which class.
        segment: Images of an example to a label map, or to masks of regions.
        label_set: Name of the reference labels.
        nsd_tolerance_mm: Surface distance that counts as agreement.
        preprocessing: Names the channels of an example.
        lesions: What is one lesion, if lesions are scored one by one.
        others: Further models with images of their own.
    """

    figure = FIGURE

    wanted: WantedClasses
    segment: Segment
    label_set: str
    nsd_tolerance_mm: float
    preprocessing: Preprocessing | None = None
    lesions: LesionRule | None = None
    others: tuple["SegmentationSubject", ...] = ()

    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        """See `Subject.score`: overlap, distances and volumes per structure, of its lesions where asked for."""

        def tell(case: SegmentationCase, image: Any, prediction: Any, reference: Any) -> None:
            if on_case is not None:
                on_case(case.item_id, case.mean_dice, lambda: image, prediction, reference)

        about: dict[str, Any] = {"model": self.name, "split": split, "task": self.task, "label_set": self.label_set}
        if self.wanted.are_regions:
            about["are_regions"] = True
        scores = merged(
            [
                evaluate(
                    part.segment,
                    cache,
                    part.records,
                    label_set=part.label_set,
                    wanted=part.wanted,
                    nsd_tolerance_mm=part.nsd_tolerance_mm,
                    talk=talk,
                    preprocessing=part.preprocessing,
                    lesions=part.lesions,
                    on_case=tell,
                )
                for part in (self, *self.others)
            ]
        )
        return Results(
            document=to_document(scores, about),
            csv=to_csv(scores),
            columns=COLUMNS,
            rows=[
                (name, *(shown(metrics[key]) for key in TABLE), f"{scores.constant_dice[name]:.3f}")
                for name, metrics in scores.estimates.items()
            ],
            value=scores.mean_dice,
        )

    def pooled(self, others: Sequence[Self]) -> Self:
        """See `Subject.pooled`."""
        return replace(self, others=(*self.others, *others))

    def page(self, document: dict[str, Any], pictures: list[Shown]) -> str:
        """See `Subject.page`."""
        return segmentation_page(document, pictures, self.classes)

    def draw(self, image: Volume, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Image.Image:
        """See `Subject.draw`."""
        return segmentation_picture(image, prediction, reference, self.classes)

    def stage(self, image: Volume, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Scene:
        """See `Subject.stage`."""
        return segmentation_scene(image, prediction, reference)


def usable(cache: Cache, bundle: Contract, *, label_set: str, talk: Talk) -> list[ItemRecord]:
    """Volumes of a cache that an exported model can be scored on, whose examples are whole.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, `E_CHANNEL_MISSING`.
    """
    records = cache.require_records(modality=bundle.modality, label_set=label_set)
    return of_examples(cache, [record for record in records if record.is_volume], bundle.preprocessing, talk)


def of_model(
    model: ExportedModel, *, name: str, folder: Path, records: Sequence[ItemRecord], label_set: str
) -> SegmentationSubject:
    """An exported model with the images to score it on.

    Args:
        model: The model.
        name: Name of its file.
        folder: Where results go by default.
        records: The images.
        label_set: Name of the set of the labels to score it by.
    """
    bundle = model.bundle
    return SegmentationSubject(
        name=name,
        task=bundle.task,
        folder=folder,
        segment=model.answer,
        records=records,
        label_set=label_set,
        classes=bundle.head.classes,
        wanted=bundle.head.wanted,
        nsd_tolerance_mm=bundle.head.nsd_tolerance_mm,
        lesions=bundle.head.lesions,
        preprocessing=bundle.preprocessing,
    )
