"""The page of a classification's evaluation: each class with its intervals and curves, and every image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.operating import operating_curve
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.curves import Panel, share_curves
from medssl_cli.report.findings import Bar, findings_picture
from medssl_cli.report.gallery import Shown
from medssl_cli.report.page import Page
from medssl_cli.report.pictures import tissue_window
from medssl_cli.report.shown_cases import add_shown_cases
from medssl_cli.report.viewer import Scene, scene_of

WORDS: Final = {"yes": "is there", "no": "is not there", "?": "not known"}
THRESHOLD: Final = 0.5
"""Probability from which a class counts as found where no operating point is chosen."""
MAX_IMAGES: Final = 2000
"""Rows of the page; `scores.csv` holds all."""


def classification_picture(
    image: Volume, probabilities: Mapping[str, float], known: Mapping[str, float | None]
) -> Image.Image:
    """An image with a bar for the probability of each class and what is known of it.

    Args:
        image: The image.
        probabilities: Probabilities by class.
        known: What is known of each class: 1 present, 0 absent, None unknown.
    """
    bars = [Bar(name, value, THRESHOLD, WORDS[_word(known[name])]) for name, value in probabilities.items()]
    return findings_picture(image, bars, window=tissue_window(image))


def classification_scene(image: Volume, probabilities: Mapping[str, float], known: Mapping[str, float | None]) -> Scene:
    """The same for the slice viewer; for arguments see `classification_picture`."""
    notes = [f"{name}: {value:.3f}, {WORDS[_word(known[name])]}" for name, value in probabilities.items()]
    return replace(scene_of(image, window=tissue_window(image), margin_mm=None), notes=tuple(notes))


def classification_page(document: Mapping[str, Any], pictures: Sequence[Shown] = ()) -> str:
    """HTML of an evaluation.

    Args:
        document: As `scores.evaluate_findings` returns it.
        pictures: Worst first.
    """
    classes: dict[str, Any] = document["classes"]
    page = Page(f"{document['task']}: {document['split']} split", f"model {document['model']}")
    page.paragraph(
        f"{document['num_items']} images of {document['num_patients']} patients. 95 % intervals draw patients, not "
        "images. A class is scored over the images of which it is known; if all or none show it, it has no AUROC."
    )
    means: dict[str, Any] = {"mean AUROC": estimate_of(document["mean_auroc"])}
    if document["balanced_accuracy"] is not None:
        means["balanced accuracy"] = estimate_of(document["balanced_accuracy"])
    page.heading("Scores").key_values(means)
    page.table(
        ("class", "positive", "known", "AUROC", "average precision", "share of positives"),
        [
            (
                name,
                scores["num_positive"],
                scores["num_known"],
                estimate_of(scores["auroc"]),
                estimate_of(scores["average_precision"]),
                scores["num_positive"] / max(1, scores["num_known"]),
            )
            for name, scores in classes.items()
        ],
        caption="By chance the AUROC is 0.5, the average precision the share of positives.",
    )
    page.heading(f"At a probability of {document['threshold']:g}").table(
        ("class", "sensitivity", "specificity", "calibration error", "Brier score"),
        [
            (
                name,
                scores["sensitivity"],
                scores["specificity"],
                scores["calibration_error"],
                estimate_of(scores["brier"]),
            )
            for name, scores in classes.items()
        ],
        caption="A loss with balanced classes gives higher probabilities to rare classes than their share.",
    )
    _add_specificities(page, classes)
    for name, scores in classes.items():
        _add_class(page, document, name, scores)
    add_shown_cases(
        page,
        pictures,
        figure="agreement",
        alt="Probabilities and what is known of item",
        note="Agreement: the probability that the model gives to what is known, mean over the classes of which it is.",
        classes={},
        shows="nothing",
    )
    cases = document["cases"][:MAX_IMAGES]
    page.heading("Every image").table(
        ("item", "patient", *(f"{name}{what}" for name in classes for what in ("", " (known)"))),
        [
            (
                case["item"][:8],
                case["patient"][:8],
                *(cell for name in classes for cell in (case["probability"][name], _word(case["target"][name]))),
            )
            for case in cases
        ],
        caption="Probability, and what is known" + (f"; the first {MAX_IMAGES}" if len(cases) == MAX_IMAGES else ""),
    )
    return page.render()


def _add_specificities(page: Page, classes: Mapping[str, Any]) -> None:
    """Sensitivities at fixed specificities."""
    least = list(next(iter(classes.values()))["sensitivity_at_specificity"])
    page.heading("Sensitivity at a fixed specificity").table(
        ("class", *(f"at {float(each):.0%}" for each in least)),
        [
            (name, *(estimate_of(scores["sensitivity_at_specificity"][each]) for each in least))
            for name, scores in classes.items()
        ],
        caption="With the threshold that has the specificity on these images: what the ranking allows",
    )


def _add_class(page: Page, document: Mapping[str, Any], name: str, scores: Mapping[str, Any]) -> None:
    """Curves of a class, and what its thresholds give."""
    known = [case for case in document["cases"] if case["target"][name] is not None]
    curve = operating_curve(
        np.array([case["probability"][name] for case in known], dtype=np.float64),
        np.array([case["target"][name] == 1 for case in known], dtype=bool),
    )
    share, bins = scores["num_positive"] / max(1, scores["num_known"]), scores["reliability"]
    panels = [
        Panel("ROC", "1 - specificity", "sensitivity", curve.false_share.tolist(), curve.sensitivity.tolist(), (0, 1)),
        Panel(
            "Precision and sensitivity",
            "sensitivity",
            "precision",
            curve.sensitivity.tolist(),
            [*curve.precision[1:2].tolist(), *curve.precision[1:].tolist()],
            (share, share),
            is_stepped=True,
        ),
        Panel(
            "Reliability",
            "mean probability",
            "share of positives",
            [each["probability"] for each in bins],
            [each["share"] for each in bins],
            (0, 1),
            numbers=[each["number"] for each in bins],
        ),
    ]
    page.heading(name).figure(
        share_curves(panels),
        alt=f"ROC curve, precision over sensitivity and reliability of {name}",
        caption="Dashed: by chance; of the reliability, what a calibrated model has. Dots grow with the images.",
    )
    columns = {"threshold": "threshold", "num_yes": "images that are a yes", "sensitivity": "sensitivity",
               "specificity": "specificity", "positive_value": "positive predictive value",
               "negative_value": "negative predictive value"}  # fmt: skip
    page.table(
        tuple(columns.values()),
        [tuple(row[key] for key in columns) for row in scores["thresholds"]],
        caption="A probability of at least the threshold is a yes",
        decimals={"threshold": 1},
    )


def _word(target: float | None) -> str:
    return {1.0: "yes", 0.0: "no"}.get(target, "?") if target is not None else "?"
