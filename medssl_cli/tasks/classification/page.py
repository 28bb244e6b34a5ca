"""The page of a classification's evaluation: each class with its intervals, and every image."""

from collections.abc import Mapping
from typing import Any, Final

from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.page import Page

MAX_IMAGES: Final = 2000
"""Rows of the page; `scores.csv` holds all."""


def classification_page(document: Mapping[str, Any]) -> str:
    """HTML of an evaluation.

    Args:
        document: As `scores.evaluate_findings` returns it.
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
        ("class", "sensitivity", "specificity", "calibration error"),
        [
            (name, scores["sensitivity"], scores["specificity"], scores["calibration_error"])
            for name, scores in classes.items()
        ],
        caption="A loss with balanced classes gives higher probabilities to rare classes than their share.",
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


def _word(target: float | None) -> str:
    return {1.0: "yes", 0.0: "no"}.get(target, "?") if target is not None else "?"
