"""The page of a segmentation's evaluation: scores with their intervals, every patient, and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.metrics.statistics import estimate_of
from medssl_cli.report import structure_colours
from medssl_cli.report.gallery import Shown
from medssl_cli.report.mosaic import slice_row
from medssl_cli.report.page import Page
from medssl_cli.report.pictures import comparison, mid_planes, tissue_window
from medssl_cli.report.plots import Group, structure_scores
from medssl_cli.report.shown_cases import add_shown_cases
from medssl_cli.report.viewer import Scene, scene_of
from medssl_cli.tasks.segmentation.decode import painted

CONTEXT_MM: Final = 30.0
SLICE_CONTEXT_MM: Final = 15.0
DISTANCES: Final = {
    "hd95_mm": "HD95 mm",
    "assd_mm": "ASSD mm",
    "volume_error_ml": "volume error mL",
    "volume_error_percent": "volume error %",
}
LESIONS: Final = {
    "lesion_dice": "lesion-wise Dice",
    "lesion_sensitivity": "sensitivity",
    "false_per_scan": "false positives per scan",
}


def segmentation_picture(
    image: Volume, prediction: NDArray[np.uint8], reference: NDArray[np.uint8], classes: dict[int, str]
) -> Image.Image:
    """Reference and model, label maps `[X, Y, Z]` or masks of regions `[K, X, Y, Z]`, planes first, slices below.

    Of regions that overlap the smaller one is seen.

    Args:
        image: Image under both.
        prediction: Prediction of the model.
        reference: What is there.
        classes: Names by label value.
    """
    window = tissue_window(image)
    prediction, reference = painted(prediction, reference), painted(reference, reference)
    either = np.maximum(prediction, reference)
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
    if image.voxels.shape[3] > 1:
        colours = structure_colours({*classes, *np.unique(either).tolist()})
        rows += [
            (
                f"slices: {name}",
                slice_row(
                    image.voxels[0],
                    image.affine,
                    mask,
                    colours,
                    focus=either,
                    window=window,
                    margin_mm=SLICE_CONTEXT_MM,
                ),
            )
            for name, mask in (("reference", reference), ("model", prediction))
        ]
    return comparison(rows)


def segmentation_scene(image: Volume, prediction: NDArray[np.uint8], reference: NDArray[np.uint8]) -> Scene:
    """Reference and model for the slice viewer; for arguments see `segmentation_picture`."""
    return scene_of(
        image,
        painted(prediction, reference),
        painted(reference, reference),
        window=tissue_window(image),
        margin_mm=CONTEXT_MM,
    )


def segmentation_page(
    document: Mapping[str, Any], pictures: Sequence[Shown], classes: Mapping[int, str] | None = None
) -> str:
    """HTML of an evaluation.

    Args:
        document: As `scores.to_document` returns it.
        pictures: Worst first.
        classes: Names by label value, for the slice viewer.
    """
    structures: dict[str, Any] = document["structures"]
    page = Page(f"{document['task']}: {document['split']} split", f"model {document['model']}")
    page.paragraph(
        f"{document['num_items']} images of {document['num_patients']} patients, scored on their native grids. "
        "Means over patients with 95 % bootstrap intervals. A structure that is missed counts as the worst value."
    )
    if document.get("are_regions"):
        page.paragraph("Structures overlap: each is scored for itself, and pictures show the smaller one of them.")
    page.heading("Scores").table(
        ("structure", "Dice", "IoU", "NSD", "Dice of marking every voxel"),
        [
            (name, *(estimate_of(scores[key]) for key in ("dice", "iou", "nsd")), scores["constant_predictor_dice"])
            for name, scores in structures.items()
        ],
    )
    _table_of(page, structures, DISTANCES, "Surfaces and volumes; errors of volumes without sign, in % of the mean")
    if all("lesion_dice" in scores for scores in structures.values()):
        _table_of(
            page, structures, LESIONS, "Lesion by lesion, by the rule of BraTS 2023; sensitivity is of all lesions"
        )
    plot = structure_scores({name: {"model": _group(document, name)} for name in structures}, limits=(0, 1))
    page.figure(plot, alt="Dice of every patient per structure, with mean and interval", caption="One dot per patient")
    add_shown_cases(
        page,
        pictures,
        figure="mean Dice",
        alt="Reference and prediction of item",
        classes=classes or {},
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


def _table_of(page: Page, structures: Mapping[str, Any], columns: Mapping[str, str], caption: str) -> None:
    """A table of estimates, a row per structure."""
    page.table(
        ("structure", *columns.values()),
        [(name, *(estimate_of(scores[key]) for key in columns)) for name, scores in structures.items()],
        caption=caption,
        decimals=dict.fromkeys(DISTANCES.values(), 1),
    )


def _group(document: Mapping[str, Any], structure: str) -> Group:
    values: dict[str, list[float]] = {}
    for case in document["cases"]:
        dice = case["scores"][structure]["dice"]
        values.setdefault(case["patient"], []).append(float("nan") if dice is None else dice)
    means = {patient: float(np.mean(scores)) for patient, scores in values.items()}
    return Group(means, estimate_of(document["structures"][structure]["dice"]))
