"""The page of a detection's evaluation: each class with its intervals, the worst and best pictures, and every image."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.gallery import Shown
from medssl_cli.report.page import Figure, Page
from medssl_cli.report.projections import box_comparison

MAX_IMAGES: Final = 2000
"""Rows of the page; `scores.csv` holds all boxes."""


def detection_picture(
    image: Volume, found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]], classes: dict[int, str]
) -> Image.Image:
    """Reference and model, lists of boxes on a 2D image, side by side; see `projections.box_comparison`.

    Args:
        image: Under both.
        found: By the model.
        there: What is there.
        classes: Names, by numbers that choose the colours.
    """
    return box_comparison(image.voxels[0, :, :, 0], image.spacing_mm[:2], found, there, classes)


def detection_page(document: Mapping[str, Any], pictures: Sequence[Shown]) -> str:
    """HTML of an evaluation.

    Args:
        document: As `scores.evaluate_boxes` returns it.
        pictures: Worst first.
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
    rates = next(iter(classes.values()))["sensitivity"]
    page.heading("Sensitivity by false marks per image").table(
        ("class", *rates),
        [(name, *scores["sensitivity"].values()) for name, scores in classes.items()],
    )
    if pictures:
        page.heading("Worst and best").figures(
            [
                Figure(
                    shown.picture,
                    f"Boxes that are there and boxes found on item {shown.item_id}",
                    f"`{shown.item_id[:8]}` mean overlap {shown.figure:.3f}; boxes found with a score of at least 0.5",
                )
                for shown in pictures
            ],
            columns=1,
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
