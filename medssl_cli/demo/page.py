"""The demo's page: what went in, what was refused, how training went, what the masks look like."""

import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.base.codes import CODES
from medssl_cli.base.files import write_atomic
from medssl_cli.demo.anatomy import STRUCTURES
from medssl_cli.demo.road import (
    PRETRAINED,
    PRETRAINING,
    SCRATCH,
    DemoResult,
    commands_for_own_data,
    first_report,
)
from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.formats.dicom import group_headers, read_headers, read_series
from medssl_cli.formats.nifti import read_nifti
from medssl_cli.imaging.geometry import Affine, reorient_to_ras
from medssl_cli.metrics.overlap import dice
from medssl_cli.metrics.statistics import bootstrap_mean, estimate_of
from medssl_cli.report.page import Page
from medssl_cli.report.pictures import comparison, mid_planes
from medssl_cli.report.plots import Curve, Group, group_comparison, loss_curves, structure_scores

NOTICE: Final = (
    "Everything here was learnt from phantoms: chests drawn by a program. It shows that the road works on this "
    "machine. It is no evidence that any method helps patients, and the models are of no use on real scans."
)
METHODS: Final = {"scratch": "from scratch", "pretrained": "pre-trained"}
WINDOW_HU: Final = (-160.0, 400.0)
CONTEXT_MM: Final = 45.0
PICTURE_PX: Final = (1000, 330)

Voxels = NDArray[Any]


def write_page(result: DemoResult) -> None:
    """Write `demo.html`: one file without links to others.

    Args:
        result: Result of a finished demo.

    Raises:
        StorageError: `E_IO`.
    """
    page = Page("medssl demo", "The whole road on phantoms: ingest, pretrain, finetune, evaluate, export, infer")
    page.notice(NOTICE, kind="warning")
    _scores(page, result)
    _masks(page, result)
    _training(page, result.folder)
    _ingest(page, result)
    _commands(page, result)
    write_atomic(result.page, page.render().encode())


def _scores(page: Page, result: DemoResult) -> None:
    first = result.scores["scratch"]
    num_train = _summary(result.folder / SCRATCH).get("num_train_patients", "?")
    page.heading("Few labels, with and without pre-training")
    page.paragraph(
        f"Two networks of the same kind saw the same {num_train} labelled patients for the same number of steps. One "
        f"started from random weights, the other from the encoder that had looked at all training scans without "
        f"labels. Both were tested on {first['num_patients']} patients that neither had seen. One run each, no choice "
        f"among several: with so few patients the difference may be chance."
    )
    page.table(("structure", "Dice from scratch", "Dice pre-trained", "marking every voxel"), _score_rows(result))
    groups = {METHODS[name]: _mean_group(scores) for name, scores in result.scores.items()}
    page.figure(
        group_comparison(groups),
        alt="Mean Dice of each test patient, from scratch and pre-trained",
        caption="One dot per test patient; the bar is a 95 % bootstrap interval of the mean.",
    )
    by_structure = {
        structure: {METHODS[name]: _group(scores, structure) for name, scores in result.scores.items()}
        for structure in first["structures"]
    }
    page.figure(
        structure_scores(by_structure, limits=(0, 1)),
        alt="Dice of each structure, from scratch and pre-trained",
        caption="Dice by structure and test patient.",
    )


def _score_rows(result: DemoResult) -> list[tuple[str, ...]]:
    structures = result.scores["scratch"]["structures"]
    constant = [f"{metrics['constant_predictor_dice'] or 0:.3f}" for metrics in structures.values()]
    rows = result.table()
    return [(name.replace("_", " "), *dice, base) for (name, *dice), base in zip(rows, [*constant, ""], strict=True)]


def _group(scores: dict[str, Any], structure: str) -> Group:
    values = {case["patient"]: _number(case["scores"][structure]["dice"]) for case in scores["cases"]}
    return Group(values, estimate_of(scores["structures"][structure]["dice"]))


def _mean_group(scores: dict[str, Any]) -> Group:
    """Mean over structures per patient; its interval is that of the patients' means."""
    values = {
        case["patient"]: float(np.nanmean([_number(entry["dice"]) for entry in case["scores"].values()]))
        for case in scores["cases"]
    }
    return Group(values, bootstrap_mean(list(values.values()), list(values), rng=np.random.default_rng(0)))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _masks(page: Page, result: DemoResult) -> None:
    page.heading("Masks of two scans that no training has seen")
    for name, what in (("dicom", "DICOM series"), ("nifti", "NIfTI file")):
        image, affine = _scan(result, name)
        reference = _on_ras(result.cohort.reference(name))
        mask = _on_ras(_mask_file(result.folder / "masks" / name))
        scores = [dice(mask == value, reference == value) for value in STRUCTURES]
        pictures = [
            ("reference: where the phantom was drawn", reference),
            (f"the installed model: mean Dice {np.nanmean(scores):.3f}", mask),
        ]
        drawn = [(caption, _picture(image, affine, mask, reference)) for caption, mask in pictures]
        page.figure(
            comparison(drawn), alt=f"Reference and the model's mask of the unseen {what}", caption=f"Unseen {what}."
        )


def _picture(image: Voxels, affine: Affine, mask: Voxels, focus: Voxels) -> Image.Image:
    return mid_planes(
        image,
        affine,
        mask=mask,
        classes=STRUCTURES,
        window=WINDOW_HU,
        focus=focus,
        margin_mm=CONTEXT_MM,
        max_size_px=PICTURE_PX,
    )


def _scan(result: DemoResult, name: str) -> tuple[Voxels, Affine]:
    """An unseen scan `[X, Y, Z]` along R, A and S."""
    if name == "nifti":
        volume = read_nifti(result.cohort.unseen_nifti).image.volume
    else:
        headers = [header for path in sorted(result.cohort.unseen_series.iterdir()) for header in read_headers(path)]
        volume = read_series(group_headers(headers)[0][0]).volume
    turned, affine = reorient_to_ras(volume.voxels, volume.affine)
    return turned[0], affine


def _on_ras(path: Path) -> Voxels:
    """A label map `[X, Y, Z]` along R, A and S."""
    volume = read_nifti(path, is_label=True).image.volume
    turned, _ = reorient_to_ras(volume.voxels, volume.affine)
    mask: Voxels = turned[0]
    return mask


def _mask_file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.nii.gz"))))


def _training(page: Page, folder: Path) -> None:
    page.heading("How training went")
    entries = read_metrics(folder / PRETRAINING)
    baselines = {
        name.removeprefix("baseline/").replace("_", " "): value
        for name, value in entries[-1].items()
        if name.startswith("baseline/")
    }
    page.figure(
        loss_curves({"VoCo": _curve(entries, "loss")}, baselines=baselines, title="Pre-training without labels"),
        alt="Loss of pre-training over steps beside those of trivial predictors",
        caption="A network that has learnt nothing cannot get below the dashed lines.",
    )
    runs = {
        METHODS["scratch"]: read_metrics(folder / SCRATCH),
        METHODS["pretrained"]: read_metrics(folder / PRETRAINED),
    }
    page.figure(
        loss_curves({name: _curve(log, "loss") for name, log in runs.items()}, title="Fine-tuning: training loss"),
        alt="Training loss over steps, from scratch and pre-trained",
        caption="Dice loss plus cross-entropy on random crops.",
    )
    page.figure(
        loss_curves(
            {name: _curve(log, "val_dice") for name, log in runs.items()},
            title="Fine-tuning: validation",
            ylabel="mean Dice",
        ),
        alt="Validation Dice over steps, from scratch and pre-trained",
        caption="Whole scans of the validation patients; the best step is the one that is tested and exported.",
    )


def _curve(entries: list[dict[str, Any]], name: str) -> Curve:
    known = [(entry["step"], entry[name]) for entry in entries if entry.get(name) is not None]
    return Curve([step for step, _ in known], [value for _, value in known])


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    document: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return document


def _ingest(page: Page, result: DemoResult) -> None:
    report = first_report(result.folder)
    page.heading("What went in, and what did not")
    page.paragraph(
        f"The folder held {result.cohort.num_series + 1} DICOM series of as many patients in a messy tree, one "
        f"of them twice and one with a slice lost in transfer, junk files, and {result.cohort.num_labelled} labelled "
        "NIfTI files."
    )
    counts = report.get("counts", {})
    page.table(("", "files"), [(name, str(value)) for name, value in counts.items()])
    codes = [(code, CODES[code].meaning, str(number)) for code, number in report.get("by_code", {}).items()]
    if codes:
        page.table(("code", "reason", "count"), codes)


def _commands(page: Page, result: DemoResult) -> None:
    page.heading("The commands of this demo")
    page.paragraph(f"Typed in {result.folder.resolve().name}/, they do the same again.")
    page.table(("command", "seconds"), [(done.step.command, f"{done.seconds:.0f}") for done in result.steps])
    page.heading("The same on your own scans")
    page.code("\n".join(commands_for_own_data()))
