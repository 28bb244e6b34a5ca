"""Honest scores of a detection: every class by itself, with images on which nothing is, patient by patient.

Shapes: N images, M boxes of an image, D axes of space.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.base.csv_text import csv_text
from medssl_cli.base.errors import NothingUsableError
from medssl_cli.base.plain_json import without_nan
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import images_of_examples, of_examples, with_annotations
from medssl_cli.heads import BoxesHead, OperatingPoint
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.marks import (
    CURVE_RATES,
    FALSE_PER_IMAGE,
    Marks,
    average_precision,
    marks_of,
    mean_sensitivity,
    overlaps,
    sensitivity_at,
    threshold_at,
)
from medssl_cli.metrics.statistics import Estimate, bootstrap_figure, estimate_of, shown
from medssl_cli.report.gallery import Shown
from medssl_cli.report.viewer import Scene
from medssl_cli.tasks import Contract, ExportedModel, OnCase, Results, Subject, answers_of
from medssl_cli.tasks.detection import FIGURE
from medssl_cli.tasks.detection.image_boxes import ImageBoxes, class_marks, truth_of
from medssl_cli.tasks.detection.page import detection_page, detection_picture, detection_scene
from medssl_cli.tasks.detection.paired import paired_figures as paired_figures
from medssl_cli.tasks.detection.volume_scores import METRIC, froc_scores, hits, rows_of

SCHEMA: Final = "medssl.detection/1"
BOOTSTRAP_SEED: Final = 0
MOST_FALSE: Final = 1.0
"""False boxes per image that an operating point allows."""
COLUMNS: Final = ("class", "boxes", "AP", "AP of a constant box", "mean sensitivity")
Array = NDArray[np.float64]


def chosen_points(
    found: Sequence[ImageBoxes], truth: Sequence[ImageBoxes], records: Sequence[ItemRecord], head: BoxesHead
) -> dict[str, OperatingPoint]:
    """Operating point of each class on some images; in volumes a box is a false one by the rule of LUNA16."""
    num_patients = len({record.patient_key for record in records})
    points = {}
    for place, name in head.classes.items():
        if head.tile_size is None:
            marks = class_marks(found, truth, place, min_overlap=head.match_overlap)
        else:
            marks = hits(found, truth, records, place)
        points[name] = operating_point(marks, min_score=head.min_score, num_patients=num_patients)
    return points


def operating_point(marks: Marks, *, min_score: float, num_patients: int) -> OperatingPoint:
    """Where boxes of a class count as a yes: down to one false box per image; one half where no box is there.

    Args:
        marks: Marks of the class on all images.
        min_score: Boxes below it are not reported anyway.
        num_patients: Number of patients of the images.
    """
    allowed = threshold_at(marks, MOST_FALSE, lowest=min_score)
    if math.isnan(allowed.sensitivity):
        return OperatingPoint(threshold=0.5, rule="fixed", num_patients=num_patients)
    return OperatingPoint(
        threshold=allowed.threshold,
        rule="one_false_per_image",
        sensitivity=allowed.sensitivity,
        false_per_image=allowed.false_per_image,
        num_patients=num_patients,
    )


def mean_average_precision(
    found: Sequence[ImageBoxes], truth: Sequence[ImageBoxes], num_classes: int, *, min_overlap: float
) -> float:
    """Over the classes of which there is a box; 0 if there is none."""
    each = [
        average_precision(class_marks(found, truth, place, min_overlap=min_overlap)) for place in range(num_classes)
    ]
    values = np.array(each, dtype=np.float64)
    return float(np.nanmean(values)) if not np.isnan(values).all() else 0.0


def evaluate_boxes(
    found: Sequence[ImageBoxes],
    truth: Sequence[ImageBoxes],
    records: Sequence[ItemRecord],
    classes: Sequence[str],
    *,
    min_overlap: float,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The document of an evaluation; numbers that do not apply are null.

    Args:
        found: Found boxes of each image.
        truth: True boxes of each image.
        records: The images.
        classes: Names.
        min_overlap: Least intersection over union at which a box counts as found.
        about: Facts to write beside the scores.
    """
    patients = [record.patient_key for record in records]
    is_flat = found[0].corners.shape[1] == 4
    points = {} if is_flat else {name: hits(found, truth, records, place) for place, name in enumerate(classes)}
    each = [class_marks(found, truth, place, min_overlap=min_overlap) for place in range(len(classes))]
    document = {
        "schema": SCHEMA,
        **about,
        "num_patients": len(set(patients)),
        "num_items": len(records),
        "match_overlap": min_overlap,
        "mean_average_precision": asdict(_mean(each, patients)),
        "classes": {
            name: _scores(marks, patients)
            | {"constant_predictor": _constant(truth, records, place, min_overlap)}
            | ({} if is_flat else {"froc": froc_scores(points[name], patients)})
            for place, (name, marks) in enumerate(zip(classes, each, strict=True))
        },
        "cases": [
            {
                "item": record.item_id,
                "patient": record.patient_key,
                "mean_overlap": mean_overlap(own, there.that_count),
                "found": _rows(own, classes),
                "there": _rows(there.that_count, classes),
                **({"ignored": there.ignored.corners.tolist()} if len(there.ignored.scores) else {}),
                **({} if is_flat else {"points": {name: rows_of(marks, number) for name, marks in points.items()}}),
            }
            for number, (record, own, there) in enumerate(zip(records, found, truth, strict=True))
        ],
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def mean_overlap(found: ImageBoxes, truth: ImageBoxes) -> float:
    """Mean over the boxes that are there of the best overlap with one of the same class; NaN without boxes."""
    best: list[float] = []
    for place in np.unique(truth.classes):
        pairs = overlaps(found.of(place).corners, truth.of(place).corners)
        best += pairs.max(axis=0).tolist() if len(pairs) else [0.0] * pairs.shape[1]
    return float(np.mean(best)) if best else float("nan")


def _scores(marks: Marks, patients: Sequence[str]) -> dict[str, Any]:
    rng = partial(np.random.default_rng, BOOTSTRAP_SEED)
    return {
        "average_precision": asdict(bootstrap_figure(partial(average_precision, marks), patients, rng=rng())),
        "mean_sensitivity": asdict(bootstrap_figure(partial(mean_sensitivity, marks), patients, rng=rng())),
        "sensitivity": {f"{rate:g}": float(sensitivity_at(marks, rate)) for rate in FALSE_PER_IMAGE},
        "curve": [float(sensitivity_at(marks, rate)) for rate in CURVE_RATES],
        "num_boxes": int(marks.num_boxes.sum()),
        "num_images": int((marks.num_boxes > 0).sum()),
        "num_marks": len(marks.scores),
    }


def _constant(truth: Sequence[ImageBoxes], records: Sequence[ItemRecord], place: int, min_overlap: float) -> float:
    """Average precision of the same box on every image: the median of those that are there, by the image's size."""
    dims = truth[0].corners.shape[1] // 2
    sizes = [np.tile(record.shape[:dims], 2).astype(np.float64) for record in records]
    there = [boxes.of(place).corners for boxes in truth]
    shares = np.concatenate([own / size for own, size in zip(there, sizes, strict=True)])
    if not len(shares):
        return float("nan")
    median = np.median(shares, axis=0)
    same = [(median * size)[None] for size in sizes]
    return float(average_precision(marks_of(same, [np.ones(1)] * len(same), there, min_overlap=min_overlap)))


def _mean(each: Sequence[Marks], patients: Sequence[str]) -> Estimate:
    """Over the classes of which there is a box."""
    present = [marks for marks in each if marks.num_boxes.any()]

    def figure(weights: Array) -> Array:
        values = [average_precision(marks, weights) for marks in present]
        mean: Array = np.mean(values, axis=0) if values else np.full(len(weights), np.nan)
        return mean

    return bootstrap_figure(figure, patients, rng=np.random.default_rng(BOOTSTRAP_SEED))


def _rows(boxes: ImageBoxes, classes: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"class": classes[place], "score": score, "corners": corners}
        for corners, place, score in zip(
            boxes.corners.tolist(), boxes.classes.tolist(), boxes.scores.tolist(), strict=True
        )
    ]


def to_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per class, for a table; of volumes the last column is LUNA16's figure."""
    return [
        (
            name,
            f"{scores['num_boxes']} on {scores['num_images']} images",
            shown(estimate_of(scores["average_precision"])),
            "n/a" if scores["constant_predictor"] is None else f"{scores['constant_predictor']:.3f}",
            shown(estimate_of(scores["froc"][METRIC] if "froc" in scores else scores["mean_sensitivity"])),
        )
        for name, scores in document["classes"].items()
    ]


def to_csv(document: dict[str, Any]) -> str:
    """One row per box, found or there; corners in voxel edges of the stored image."""
    is_flat = next(iter(document["classes"].values())).get("froc") is None
    edges = [f"{side}_{axis}" for side in ("low", "high") for axis in ("xy" if is_flat else "xyz")]
    rows: list[Sequence[object]] = [("item", "patient", "kind", "class", "score", *edges)]
    for case in document["cases"]:
        for kind in ("found", "there"):
            for box in case[kind]:
                corners = [f"{value:.2f}" for value in box["corners"]]
                score = f"{box['score']:.6f}" if kind == "found" else ""
                rows.append((case["item"], case["patient"], kind, box["class"], score, *corners))
    return csv_text(rows)


@dataclass(frozen=True)
class DetectionSubject(Subject):
    """A model that finds boxes.

    Args:
        found: Boxes on all images.
        truth: Those that are there.
        match_overlap: Least intersection over union at which a box counts as found.
    """

    figure = FIGURE

    found: Callable[[Cache, Talk], list[ImageBoxes]]
    truth: Callable[[], list[ImageBoxes]]
    match_overlap: float

    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        """See `Subject.score`: average precision and sensitivities per class."""
        if not self.records:
            raise NothingUsableError("E_TOO_FEW_PATIENTS", "the split holds no patients")
        found, truth = self.found(cache, talk), self.truth()
        document = evaluate_boxes(
            found,
            truth,
            self.records,
            list(self.classes.values()),
            min_overlap=self.match_overlap,
            about={"model": self.name, "split": split, "task": self.task},
        )
        if on_case is not None:
            for record, case in zip(self.records, document["cases"], strict=True):
                figure = math.nan if case["mean_overlap"] is None else case["mean_overlap"]
                on_case(record.item_id, figure, partial(cache.read_image, record), case["found"], case["there"])
        mean = document["mean_average_precision"]["mean"]
        return Results(document, to_csv(document), COLUMNS, to_rows(document), np.nan if mean is None else mean)

    def pooled(self, others: Sequence[Self]) -> Self:
        """See `Subject.pooled`."""
        parts = (self, *others)
        return replace(
            self,
            records=[record for part in parts for record in part.records],
            found=lambda cache, talk: [boxes for part in parts for boxes in part.found(cache, talk)],
            truth=lambda: [boxes for part in parts for boxes in part.truth()],
        )

    def page(self, document: dict[str, Any], pictures: list[Shown]) -> str:
        """See `Subject.page`."""
        return detection_page(document, pictures, self.classes)

    def draw(self, image: Volume, prediction: Any, reference: Any) -> Image.Image:
        """See `Subject.draw`."""
        return detection_picture(image, prediction, reference, self.classes)

    def stage(self, image: Volume, prediction: Any, reference: Any) -> Scene:
        """See `Subject.stage`."""
        return detection_scene(image, prediction, reference)


def usable(cache: Cache, bundle: Contract, *, label_set: str, talk: Talk) -> list[ItemRecord]:
    """Images of a cache that an exported model can be scored on: those that somebody looked for boxes on.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, `E_CHANNEL_MISSING`.
    """
    is_flat = bundle.head.tile_size is None
    found = with_annotations(cache, "boxes", label_set, modality=bundle.modality, is_flat=is_flat, talk=talk)
    return of_examples(cache, found, bundle.preprocessing, talk)


def of_model(
    model: ExportedModel, *, name: str, folder: Path, records: Sequence[ItemRecord], label_set: str
) -> DetectionSubject:
    """An exported model with the images to score it on.

    Args:
        model: The model.
        name: Name of its file.
        folder: Where results go by default.
        records: The images.
        label_set: Set of labels of the boxes to score it by.
    """
    head: BoxesHead = model.bundle.head

    def found(cache: Cache, talk: Talk) -> list[ImageBoxes]:
        examples = images_of_examples(cache, records, model.bundle.preprocessing)
        each = answers_of(model, examples, len(records), talk)
        return [ImageBoxes(own.boxes, own.classes, own.scores.astype(np.float64)) for own in each]

    return DetectionSubject(
        name=name,
        task=model.bundle.task,
        folder=folder,
        records=records,
        classes={place + 1: each for place, each in head.classes.items()},
        found=found,
        truth=lambda: truth_of(records, label_set, head),
        match_overlap=head.match_overlap,
    )
