"""The page of an evaluation: scores with their intervals, every patient, and the worst and best pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report.page import Figure, Page
from medssl_cli.report.pictures import comparison, mid_planes
from medssl_cli.report.plots import Group, structure_scores
from medssl_cli.report.projections import box_comparison

CONTEXT_MM = 30.0


@dataclass(frozen=True)
class Shown:
    """One image with its reference and prediction, drawn."""

    item_id: str
    figure: float
    picture: Image.Image


class Gallery:
    """Keeps the pictures of the worst and best images while an evaluation runs.

    Args:
        draw: Picture of an image with what was found and what is there, see `segmentation_picture` and `box_picture`.
        limit: How many of each to keep.
    """

    def __init__(self, draw: Callable[[Volume, Any, Any], Image.Image], *, limit: int) -> None:
        self._draw = draw
        self._limit = limit
        self._shown: list[Shown] = []

    def add(
        self,
        item_id: str,
        figure: float,
        image: Volume,
        prediction: Any,
        reference: Any,
    ) -> None:
        """Draw an image if it is among the worst or best so far."""
        if not self._limit or np.isnan(figure):
            return
        ranked = sorted(shown.figure for shown in self._shown)
        if len(ranked) >= 2 * self._limit and ranked[self._limit - 1] <= figure <= ranked[-self._limit]:
            return
        self._shown.append(Shown(item_id, figure, self._draw(image, prediction, reference)))
        self._shown.sort(key=lambda shown: (shown.figure, shown.item_id))
        if len(self._shown) > 2 * self._limit:
            del self._shown[self._limit]

    def pictures(self) -> list[Shown]:
        """Worst first."""
        return self._shown


def segmentation_picture(classes: dict[int, str]) -> Callable[[Volume, Any, Any], Image.Image]:
    """Reference and model, label maps `[X, Y, Z]`, one above the other.

    Args:
        classes: Names by label value.
    """

    def draw(image: Volume, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Image.Image:
        window = (-200.0, 600.0) if image.units == "HU" else None
        rows = [
            (
                name,
                mid_planes(
                    image.voxels[0],
                    image.affine,
                    mask=mask,
                    classes=classes,
                    window=window,
                    focus=reference,
                    margin_mm=CONTEXT_MM,
                    max_size_px=(900, 300),
                ),
            )
            for name, mask in (("reference", reference), ("model", prediction))
        ]
        return comparison(rows)

    return draw


def box_picture(classes: dict[int, str]) -> Callable[[Volume, Any, Any], Image.Image]:
    """Reference and model, lists of boxes on a 2D image, side by side; see `projections.box_comparison`.

    Args:
        classes: Names, by numbers that choose the colours.
    """

    def draw(image: Volume, found: Any, there: Any) -> Image.Image:
        return box_comparison(image.voxels[0, :, :, 0], image.spacing_mm[:2], found, there, classes)

    return draw


def evaluation_page(document: Mapping[str, Any], pictures: list[Shown]) -> str:
    """HTML of an evaluation.

    Args:
        document: As `engine.evaluate.to_document` returns it.
        pictures: Worst first.
    """
    structures: dict[str, Any] = document["structures"]
    page = Page(f"{document['task']}: {document['split']} split", f"model {document['model']}")
    page.paragraph(
        f"{document['num_items']} images of {document['num_patients']} patients, scored on their native grids. "
        "Means over patients with 95 % bootstrap intervals. A structure that is missed counts as the worst value."
    )
    page.heading("Scores").table(
        ("structure", "Dice", "HD95 mm", "NSD", "Dice of marking every voxel"),
        [
            (name, *(estimate_of(scores[key]) for key in ("dice", "hd95_mm", "nsd")), scores["constant_predictor_dice"])
            for name, scores in structures.items()
        ],
        decimals={"HD95 mm": 1},
    )
    plot = structure_scores({name: {"model": _group(document, name)} for name in structures}, limits=(0, 1))
    page.figure(plot, alt="Dice of every patient per structure, with mean and interval", caption="One dot per patient")
    if pictures:
        page.heading("Worst and best").figures(
            [
                Figure(shown.picture, f"Reference and prediction of item {shown.item_id}", _caption(shown))
                for shown in pictures
            ],
            columns=1,
        )
    page.heading("Every image").table(
        ("item", "patient", *structures),
        [
            (case["item"][:8], case["patient"][:8], *(case["scores"][name]["dice"] for name in structures))
            for case in document["cases"]
        ],
        caption="Dice",
    )
    return page.render()


def _caption(shown: Shown) -> str:
    return f"`{shown.item_id[:8]}` mean Dice {shown.figure:.3f}"


def _group(document: Mapping[str, Any], structure: str) -> Group:
    values: dict[str, list[float]] = {}
    for case in document["cases"]:
        dice = case["scores"][structure]["dice"]
        values.setdefault(case["patient"], []).append(float("nan") if dice is None else dice)
    means = {patient: float(np.mean(scores)) for patient, scores in values.items()}
    return Group(means, estimate_of(document["structures"][structure]["dice"]))
