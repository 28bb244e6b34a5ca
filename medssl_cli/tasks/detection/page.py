"""The page of a detection's evaluation: each class with its intervals, pictures, and every image."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.marks import CURVE_RATES, FALSE_PER_IMAGE
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report import structure_colours
from medssl_cli.report.boxes import ShownBox, box_picture, box_window
from medssl_cli.report.gallery import Shown
from medssl_cli.report.page import Page
from medssl_cli.report.plots import rate_curves
from medssl_cli.report.shown_cases import add_shown_cases
from medssl_cli.report.viewer import Scene, scene_of

CONTEXT_MM: Final = 30.0
SHOWN_FROM: Final = 0.5
"""Least score of the boxes that are drawn."""
MAX_IMAGES: Final = 2000
"""Rows of the page; `scores.csv` holds all boxes."""


def _add_froc(page: Page, classes: Mapping[str, Any]) -> None:
    """How well boxes find nodules by the rule of LUNA16."""
    rates = next(iter(classes.values()))["froc"]["sensitivity"]
    page.heading("Nodules hit, by false marks per scan").paragraph(
        "A mark hits what is there if its centre lies nearer to its centre than its radius. Further marks on what is "
        "hit, and marks on what counts for nothing, are no false ones; of each scan the 100 best count. Between two "
        "thresholds sensitivity is linear (FROC, as LUNA16)."
    )
    page.table(
        ("class", "competition metric", *rates),
        [
            (name, estimate_of(scores["froc"]["competition_metric"]), *scores["froc"]["sensitivity"].values())
            for name, scores in classes.items()
        ],
        caption="The competition metric is the mean over these rates",
    )
    _add_curves(page, {name: scores["froc"] for name, scores in classes.items()}, "false marks per scan")


def _add_curves(page: Page, classes: Mapping[str, Any], xlabel: str) -> None:
    """Sensitivity over false marks; nothing of documents of versions that wrote none."""
    known = {name: scores["curve"] for name, scores in classes.items() if None not in scores.get("curve", [None])}
    if known:
        plot = rate_curves(known, CURVE_RATES, FALSE_PER_IMAGE, xlabel=xlabel, ylabel="sensitivity")
        page.figure(plot, alt=f"Sensitivity over {xlabel}", caption="Dots: the rates of the table")


def detection_picture(
    image: Volume, found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]], classes: Mapping[int, str]
) -> Image.Image:
    """Boxes that are there, in dashes, and boxes that were found, on a picture or on slices; see `box_picture`.

    Args:
        image: Image under both.
        found: Boxes that the model found, the best first.
        there: What is there.
        classes: Names, by numbers that choose the colours.
    """
    colours = structure_colours(classes)
    by_name = {name: colours[number] for number, name in classes.items()}
    return box_picture(image, shown_boxes(found, there), by_name)


def detection_scene(image: Volume, found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]) -> Scene:
    """The same for the slice viewer; for arguments see `detection_picture`."""
    return scene_of(image, boxes=shown_boxes(found, there), window=box_window(image), margin_mm=CONTEXT_MM)


def shown_boxes(found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]) -> list[ShownBox]:
    """Boxes that are there, and then those that were found with a score of at least a half."""
    likely = [box for box in found if box["score"] >= SHOWN_FROM]
    return [
        *(ShownBox(box["class"], box["corners"]) for box in there),
        *(ShownBox(box["class"], box["corners"], box["score"]) for box in likely),
    ]


def detection_page(
    document: Mapping[str, Any], pictures: Sequence[Shown], numbers: Mapping[int, str] | None = None
) -> str:
    """HTML of an evaluation.

    Args:
        document: As `scores.evaluate_boxes` returns it.
        pictures: Worst first.
        numbers: Names of classes by the numbers that choose their colours.
    """
    classes: dict[str, Any] = document["classes"]
    page = Page(f"{document['task']}: {document['split']} split", f"model {document['model']}")
    page.paragraph(
        f"{document['num_items']} images of {document['num_patients']} patients. 95 % intervals draw patients, not "
        f"images. A box counts as found from an intersection over union of {document['match_overlap']:g}, by one mark."
    )
    page.heading("Scores").key_values({"mean average precision": estimate_of(document["mean_average_precision"])})
    page.table(
        ("class", "boxes", "images with one", "average precision", "of a constant box", "mean sensitivity"),
        [
            (
                name,
                scores["num_boxes"],
                scores["num_images"],
                estimate_of(scores["average_precision"]),
                scores["constant_predictor"],
                estimate_of(scores["mean_sensitivity"]),
            )
            for name, scores in classes.items()
        ],
        caption="A constant box: the median of those that are there. Mean sensitivity: of the table below.",
    )
    if any("froc" in scores for scores in classes.values()):
        _add_froc(page, classes)
    rates = next(iter(classes.values()))["sensitivity"]
    page.heading("Sensitivity by false marks per image").table(
        ("class", *rates),
        [(name, *scores["sensitivity"].values()) for name, scores in classes.items()],
    )
    _add_curves(page, classes, "false marks per image")
    add_shown_cases(
        page,
        pictures,
        figure="mean overlap",
        alt="Boxes that are there and boxes found on item",
        note=f"Dashed: boxes that are there. Solid: boxes found with a score of at least {SHOWN_FROM:g}.",
        classes=numbers or {},
    )
    page.heading("Every image").table(
        ("item", "patient", "boxes there", "boxes found", "mean overlap"),
        [
            (case["item"][:8], case["patient"][:8], len(case["there"]), len(case["found"]), case["mean_overlap"])
            for case in document["cases"][:MAX_IMAGES]
        ],
        caption="Overlap: of each box that is there with the best one found, of any score",
    )
    return page.render()
