"""Honest scores of a classification: every class by itself, over the images of which it is known, patient by patient.

Shapes: N images, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
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
from medssl_cli.cache.findings import finding_names, targets_of
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import images_of_examples, of_examples, with_annotations
from medssl_cli.heads import FindingsHead, OperatingPoint
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.operating import brier, reliability, sensitivity_at, threshold_rows
from medssl_cli.metrics.paired import PairedFigure
from medssl_cli.metrics.ranking import (
    auroc,
    balanced_accuracy,
    calibration_error,
    finding_estimates,
    has_patients_enough,
    sensitivity,
    specificity,
    swap_test,
    youden_threshold,
)
from medssl_cli.metrics.statistics import Estimate, Figure, bootstrap_figure, estimate_of, known, shown
from medssl_cli.report.gallery import Shown
from medssl_cli.report.viewer import Scene
from medssl_cli.tasks import Contract, ExportedModel, OnCase, Results, Subject, answers_of
from medssl_cli.tasks.classification import FIGURE
from medssl_cli.tasks.classification.page import (
    THRESHOLD,
    classification_page,
    classification_picture,
    classification_scene,
)

SCHEMA: Final = "medssl.classification/1"
ALL_CLASSES: Final = "mean of classes"
BOOTSTRAP_SEED: Final = 0
SPECIFICITIES: Final = (0.8, 0.9, 0.95)
THRESHOLDS: Final = tuple(round(0.1 * number, 1) for number in range(1, 10))
COLUMNS: Final = ("class", "positive", "AUROC", "average precision", "sensitivity", "specificity")
Array = NDArray[np.float64]


def evaluate_findings(
    probabilities: Array,
    targets: NDArray[np.float32],
    records: Sequence[ItemRecord],
    classes: Sequence[str],
    *,
    is_exclusive: bool,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The document of an evaluation; numbers that do not apply are null.

    Args:
        probabilities: `[N, K]`.
        targets: `[N, K]`, 1 present, 0 absent, NaN unknown.
        records: Records of the images.
        classes: Names.
        is_exclusive: Every image is of exactly one class.
        about: Facts to write beside the scores.
    """
    patients = np.array([record.patient_key for record in records])
    document = {
        "schema": SCHEMA,
        **about,
        "num_patients": len(set(patients.tolist())),
        "num_items": len(records),
        "threshold": THRESHOLD,
        "mean_auroc": asdict(_mean_auroc(probabilities, targets, patients)),
        "balanced_accuracy": asdict(_accuracy(probabilities, targets, patients)) if is_exclusive else None,
        "classes": {
            name: _class_scores(probabilities[:, place], targets[:, place], patients)
            for place, name in enumerate(classes)
        },
        "cases": [
            {
                "item": record.item_id,
                "patient": record.patient_key,
                "probability": dict(zip(classes, probabilities[place].tolist(), strict=True)),
                "target": dict(zip(classes, targets[place].tolist(), strict=True)),
            }
            for place, record in enumerate(records)
        ],
    }
    cleaned: dict[str, Any] = without_nan(document)
    return cleaned


def _class_scores(probabilities: Array, targets: NDArray[np.float32], patients: NDArray[np.str_]) -> dict[str, Any]:
    is_known = ~np.isnan(targets)
    scores, is_positive, owners = probabilities[is_known], targets[is_known] == 1, patients[is_known].tolist()
    estimates = finding_estimates(scores, is_positive, owners, rng=np.random.default_rng(BOOTSTRAP_SEED))

    def estimate(figure: Figure, *, has_interval: bool = True) -> dict[str, Any]:
        rng = np.random.default_rng(BOOTSTRAP_SEED)
        return asdict(bootstrap_figure(figure, owners, rng=rng, has_interval=has_interval))

    has_both = has_patients_enough(is_positive, owners)
    return {
        **{name: asdict(estimate) for name, estimate in estimates.items()},
        "sensitivity": float(sensitivity(scores, is_positive, THRESHOLD)),
        "specificity": float(specificity(scores, is_positive, THRESHOLD)),
        "sensitivity_at_specificity": {
            f"{least:g}": estimate(partial(sensitivity_at, scores, is_positive, least), has_interval=has_both)
            for least in SPECIFICITIES
        },
        "calibration_error": calibration_error(scores, is_positive),
        "brier": estimate(partial(brier, scores, is_positive)),
        "reliability": [asdict(each) for each in reliability(scores, is_positive)],
        "thresholds": [asdict(row) for row in threshold_rows(scores, is_positive, THRESHOLDS)],
        "num_known": int(is_known.sum()),
        "num_positive": int(is_positive.sum()),
        "num_positive_patients": len(set(patients[is_known][is_positive].tolist())),
    }


def _mean_auroc(probabilities: Array, targets: NDArray[np.float32], patients: NDArray[np.str_]) -> Estimate:
    """Over the classes that have an AUROC."""
    known = [~np.isnan(column) for column in targets.T]
    places = [place for place, each in enumerate(known) if len(set((targets[each, place] == 1).tolist())) == 2]

    def figure(weights: Array) -> Array:
        values = [
            auroc(probabilities[known[place], place], targets[known[place], place] == 1, weights[:, known[place]])
            for place in places
        ]
        mean: Array = np.mean(values, axis=0) if values else np.full(len(weights), np.nan)
        return mean

    return bootstrap_figure(figure, patients.tolist(), rng=np.random.default_rng(BOOTSTRAP_SEED))


def _accuracy(probabilities: Array, targets: NDArray[np.float32], patients: NDArray[np.str_]) -> Estimate:
    is_known = ~np.isnan(targets).any(axis=1)
    predicted, classes = probabilities[is_known].argmax(axis=1), targets[is_known].argmax(axis=1)
    return bootstrap_figure(
        lambda weights: balanced_accuracy(predicted, classes, weights),
        patients[is_known].tolist(),
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )


def to_rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per class, for a table."""
    return [
        (
            name,
            f"{scores['num_positive']} of {scores['num_known']}",
            shown(estimate_of(scores["auroc"])),
            shown(estimate_of(scores["average_precision"])),
            *("n/a" if scores[key] is None else f"{scores[key]:.3f}" for key in ("sensitivity", "specificity")),
        )
        for name, scores in document["classes"].items()
    ]


def to_csv(document: dict[str, Any]) -> str:
    """One row per item and class."""
    rows: list[Sequence[object]] = [("item", "patient", "class", "probability", "target")]
    for case in document["cases"]:
        for name, probability in case["probability"].items():
            target = case["target"][name]
            rows.append((case["item"], case["patient"], name, f"{probability:.6f}", "" if target is None else target))
    return csv_text(rows)


def aurocs(scores: NDArray[Any], targets: NDArray[np.float32]) -> list[float]:
    """Area under the curve of each class; NaN where it is not both present and absent.

    Args:
        scores: `[N, K]`.
        targets: `[N, K]`, NaN unknown.
    """
    known = [~np.isnan(column) for column in targets.T]
    return [float(auroc(scores[each, place].astype(np.float64), targets[each, place] == 1))
            for place, each in enumerate(known)]  # fmt: skip


def operating_point(probabilities: Array, targets: NDArray[np.float32], patients: Sequence[str]) -> OperatingPoint:
    """Where a finding counts as a yes, from images of which it is known; one half where these cannot tell.

    Args:
        probabilities: `[N]`.
        targets: `[N]`, 1 present, 0 absent, NaN unknown.
        patients: Whose image each one is.
    """
    is_known = ~np.isnan(targets)
    scores, is_positive = probabilities[is_known], targets[is_known] == 1
    num_patients = len({patient for patient, known in zip(patients, is_known, strict=True) if known})
    threshold = youden_threshold(scores, is_positive)
    if np.isnan(threshold):
        return OperatingPoint(threshold=THRESHOLD, rule="fixed", num_patients=num_patients)
    return OperatingPoint(
        threshold=threshold,
        rule="youden",
        sensitivity=float(sensitivity(scores, is_positive, threshold)),
        specificity=float(specificity(scores, is_positive, threshold)),
        num_patients=num_patients,
    )


@dataclass(frozen=True)
class ClassificationSubject(Subject):
    """A model that says what images show.

    Args:
        probabilities: Probabilities of all images and classes, `[N, K]`.
        targets: What is known of them, `[N, K]`.
        is_exclusive: Every image is of exactly one class.
    """

    figure = FIGURE

    probabilities: Callable[[Cache, Talk], NDArray[np.float64]]
    targets: Callable[[Cache], NDArray[np.float32]]
    is_exclusive: bool

    def score(self, cache: Cache, *, split: str, talk: Talk, on_case: OnCase | None = None) -> Results:
        """See `Subject.score`: AUROC and average precision per class."""
        if not self.records:
            raise NothingUsableError("E_TOO_FEW_PATIENTS", "the split holds no patients")
        document = evaluate_findings(
            self.probabilities(cache, talk),
            self.targets(cache),
            self.records,
            list(self.classes.values()),
            is_exclusive=self.is_exclusive,
            about={"model": self.name, "split": split, "task": self.task},
        )
        if on_case is not None:
            for record, case in zip(self.records, document["cases"], strict=True):
                probability, target = case["probability"], case["target"]
                on_case(
                    record.item_id,
                    agreement(probability, target),
                    partial(cache.read_image, record),
                    probability,
                    target,
                )
        mean = document["mean_auroc"]["mean"]
        return Results(document, to_csv(document), COLUMNS, to_rows(document), np.nan if mean is None else mean)

    def pooled(self, others: Sequence[Self]) -> Self:
        """See `Subject.pooled`."""
        parts = (self, *others)
        return replace(
            self,
            records=[record for part in parts for record in part.records],
            probabilities=lambda cache, talk: np.concatenate([part.probabilities(cache, talk) for part in parts]),
            targets=lambda cache: np.concatenate([part.targets(cache) for part in parts]),
        )

    def page(self, document: dict[str, Any], pictures: list[Shown]) -> str:
        """See `Subject.page`."""
        return classification_page(document, pictures)

    def draw(self, image: Volume, prediction: Any, reference: Any) -> Image.Image:
        """See `Subject.draw`."""
        return classification_picture(image, prediction, reference)

    def stage(self, image: Volume, prediction: Any, reference: Any) -> Scene:
        """See `Subject.stage`."""
        return classification_scene(image, prediction, reference)


def agreement(probabilities: Mapping[str, float], targets: Mapping[str, float | None]) -> float:
    """Mean probability of what is known to be there or not, over the classes of which that is known; NaN of none."""
    agreed = [1 - abs(probabilities[name] - target) for name, target in targets.items() if target is not None]
    return float(np.mean(agreed)) if agreed else float("nan")


def paired_figures(documents: Sequence[Mapping[str, Any]]) -> list[PairedFigure]:
    """AUROC of several models: of each class, and of the mean of those that have one.

    Args:
        documents: Evaluations of the same items in the same order.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`, no class is shown by two patients and not by two others.
    """
    cases = documents[0]["cases"]
    patients = [case["patient"] for case in cases]
    names = [name for name in documents[0]["classes"] if all(name in each["classes"] for each in documents)]
    targets = np.array([[known(case["target"][name]) for name in names] for case in cases], dtype=np.float64)
    answers = np.array(
        [[[case["probability"][name] for name in names] for case in document["cases"]] for document in documents],
        dtype=np.float64,
    )
    told = [place for place in range(len(names)) if _is_told(targets[:, place], patients)]
    if not told:
        raise NothingUsableError("E_TOO_FEW_PATIENTS", "no class is shown by two patients and not by two others")

    def figure_of(model: int, places: Sequence[int]) -> Figure:
        is_known = [np.isfinite(targets[:, place]) for place in places]

        def figure(weights: Array) -> Array:
            areas = [
                auroc(answers[model, own, place], targets[own, place] == 1, weights[:, own])
                for own, place in zip(is_known, places, strict=True)
            ]
            mean: Array = np.mean(areas, axis=0)
            return mean

        return figure

    def compared(structure: str, places: Sequence[int]) -> PairedFigure:
        def p_value(first: Sequence[int], second: Sequence[int]) -> float:
            pair = (answers[list(first)][:, :, places], answers[list(second)][:, :, places])
            return swap_test(*pair, targets[:, places], patients, rng=np.random.default_rng(BOOTSTRAP_SEED))

        figures = [figure_of(model, places) for model in range(len(documents))]
        return PairedFigure("AUROC", structure, structure == ALL_CLASSES, patients, figures, p_value)

    return [compared(ALL_CLASSES, told), *(compared(names[place], [place]) for place in told)]


def _is_told(column: Array, patients: Sequence[str]) -> bool:
    is_known = np.isfinite(column)
    return has_patients_enough(column[is_known] == 1, np.asarray(patients)[is_known].tolist())


def usable(cache: Cache, bundle: Contract, *, label_set: str, talk: Talk) -> list[ItemRecord]:
    """Images of a cache that an exported model can be scored on: those of which some finding is known.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, `E_CHANNEL_MISSING`.
    """
    is_flat = bundle.head.takes_flat(bundle.preprocessing)
    found = with_annotations(cache, "findings", label_set, modality=bundle.modality, is_flat=is_flat, talk=talk)
    found = of_examples(cache, found, bundle.preprocessing, talk)
    targets = _targets(cache, found, bundle.head, label_set)
    return [record for record, row in zip(found, targets, strict=True) if np.isfinite(row).any()]


def of_model(
    model: ExportedModel, *, name: str, folder: Path, records: Sequence[ItemRecord], label_set: str
) -> ClassificationSubject:
    """An exported model with the images to score it on.

    Args:
        model: The model.
        name: Name of its file.
        folder: Where results go by default.
        records: The images.
        label_set: Name of the set of the findings to score it by.
    """
    head: FindingsHead = model.bundle.head

    def found(cache: Cache, talk: Talk) -> Array:
        examples = images_of_examples(cache, records, model.bundle.preprocessing)
        return np.stack(answers_of(model, examples, len(records), talk))

    return ClassificationSubject(
        name=name,
        task=model.bundle.task,
        folder=folder,
        records=records,
        classes=head.classes,
        probabilities=found,
        targets=lambda cache: _targets(cache, records, head, label_set),
        is_exclusive=head.is_exclusive,
    )


def _targets(cache: Cache, records: Sequence[ItemRecord], head: FindingsHead, label_set: str) -> NDArray[np.float32]:
    """What is known of each image, `[N, K]`."""
    names, wanted = finding_names(cache.records(), label_set), {name: head.label_classes[name] for name in head.names}
    return targets_of(records, label_set, wanted, names, is_exclusive=head.is_exclusive)
