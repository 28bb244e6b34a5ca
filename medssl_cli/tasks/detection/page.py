"""The page of a detection's evaluation: each class with its intervals, pictures, and every image."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from medssl_cli.imaging.geometry import reorient_to_ras
from medssl_cli.imaging.placement import move_boxes
from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.marks import CURVE_RATES, FALSE_PER_IMAGE
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.gallery import Shown
from medssl_cli.report.page import Figure, Page
from medssl_cli.report.plots import rate_curves
from medssl_cli.report.projections import box_comparison

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
    image: Volume, found: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]], classes: dict[int, str]
) -> Image.Image:
    """Reference and model, lists of boxes on an image, side by side; see `projections.box_comparison`.

    Of a volume the axial slice through the middle of the first box that is there is seen, else of the best one found,
    from below: the patient's right is on the left.

    Args:
        image: Image under both.
        found: Boxes that the model found, the best first.
        there: What is there.
        classes: Names, by numbers that choose the colours.
    """
    if all(len(box["corners"]) == 4 for box in (*found, *there)) and image.shape[2] == 1:
        return box_comparison(image.voxels[0, :, :, 0], image.spacing_mm[:2], found, there, classes)
    seen = from_below(image)
    moved, truth = (_moved_to(seen, image, boxes) for boxes in (found, there))
    first = (*truth, *moved)[:1]
    height = int((first[0]["corners"][2] + first[0]["corners"][5]) / 2) if first else seen.shape[2] // 2
    height = min(max(height, 0), seen.shape[2] - 1)
    planes = [[_in_plane(box) for box in boxes if _crosses(box, height)] for boxes in (moved, truth)]
    return box_comparison(seen.voxels[0, :, :, height], seen.spacing_mm[:2], planes[0], planes[1], classes)


def from_below(image: Volume) -> Volume:
    """A volume whose x runs to the patient's left, y to the back and z to the head."""
    voxels, affine = reorient_to_ras(image.voxels, image.affine)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = voxels.shape[1] - 1, voxels.shape[2] - 1
    return Volume(voxels[:, ::-1, ::-1], affine @ turn, image.modality, image.units)


def _moved_to(seen: Volume, image: Volume, boxes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Boxes with corners in voxel edges of another grid of the same axes."""
    matrix = np.linalg.inv(seen.affine) @ image.affine
    corners = np.array([box["corners"] for box in boxes], dtype=np.float64).reshape(-1, 2, 3) - 0.5
    moved = move_boxes(corners, matrix).reshape(-1, 6) + 0.5
    return [{**box, "corners": own.tolist()} for box, own in zip(boxes, moved, strict=True)]


def _crosses(box: Mapping[str, Any], height: int) -> bool:
    """Whether a box shows on a slice."""
    crosses: bool = box["corners"][2] < height + 1 and box["corners"][5] > height
    return crosses


def _in_plane(box: Mapping[str, Any]) -> dict[str, Any]:
    """What a slice shows of a box."""
    low_x, low_y, _, high_x, high_y, _ = box["corners"]
    return {**box, "corners": [low_x, low_y, high_x, high_y]}


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
    if any("froc" in scores for scores in classes.values()):
        _add_froc(page, classes)
    rates = next(iter(classes.values()))["sensitivity"]
    page.heading("Sensitivity by false marks per image").table(
        ("class", *rates),
        [(name, *scores["sensitivity"].values()) for name, scores in classes.items()],
    )
    _add_curves(page, classes, "false marks per image")
    if pictures:
        page.heading("Worst, median and best").figures(
            [
                Figure(
                    shown.picture,
                    f"Boxes that are there and boxes found on item {shown.item_id}",
                    f"{shown.place}: `{shown.item_id[:8]}` mean overlap {shown.figure:.3f}; boxes found with a score "
                    "of at least 0.5",
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
