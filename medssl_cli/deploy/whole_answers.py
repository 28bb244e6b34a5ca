"""What models of findings and of boxes leave behind, a JSON file for each image, and the tables of all images.

Boxes are in pixel edges of the picture as it was read: pixel 0 covers 0 to 1, x along its rows and y along its columns.
Those of volumes are in the patient; see `candidates`.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from medssl_cli.base.csv_text import csv_text
from medssl_cli.base.errors import InputError
from medssl_cli.base.files import json_bytes
from medssl_cli.deploy.bundle import Bundle
from medssl_cli.deploy.candidates import CANDIDATES, boxes_in_patient, candidate_rows
from medssl_cli.deploy.measurements import MEASUREMENT_COLUMNS, MEASUREMENTS_TABLE, measurement_rows
from medssl_cli.deploy.results import ScanResult
from medssl_cli.formats.predictions import ANSWER, ANSWER_KEY, TABLE_START
from medssl_cli.heads import BoxesHead, FindingsHead, Head, MasksHead
from medssl_cli.imaging.geometry import Affine, Shape

REGIONS: Final = "regions"
"""How a report calls answers of several masks."""
TABLES: Final = {
    "findings": "findings.csv", "boxes": "boxes.csv", CANDIDATES: "candidates.csv", REGIONS: "volumes.csv",
}  # fmt: skip
DECIMALS: Final = 6
PIXEL_EDGES: Final = "pixel edges"
_BOX_COLUMNS: Final = ("class", "score", "threshold", "is_yes", "low_x", "low_y", "high_x", "high_y", "units")


@dataclass(frozen=True)
class FoundBox:
    """One box; `is_yes` where its score reaches the operating point.

    Args:
        name: Name of its class.
        score: Score from 0 to 1.
        is_yes: See above.
        corners: Low and high ones, in pixel edges of a picture or RAS+ millimetres of a volume.
        diameter_mm: Mean of the sides of a box in a volume.
    """

    name: str
    score: float
    is_yes: bool
    corners: tuple[float, ...]
    diameter_mm: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As reports tell it."""
        told = {"class": self.name, "score": self.score, "is_yes": self.is_yes, "corners": list(self.corners)}
        return told if self.diameter_mm is None else {**told, "diameter_mm": self.diameter_mm}


@dataclass(frozen=True)
class WholeAnswer:
    """What a model says of one image.

    Args:
        head: `findings`, `boxes`, or `candidates`, which are boxes of volumes.
        findings: Probabilities by name.
        boxes: The best first.
        thresholds: Thresholds of the operating points, by name.
    """

    head: str
    findings: dict[str, float] = field(default_factory=dict)
    boxes: tuple[FoundBox, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)


def require_size(bundle: Bundle, shape: Shape) -> None:
    """Refuse a volume for a model of pictures.

    Raises:
        InputError: `E_MODALITY_MISMATCH`.
    """
    if bundle.takes_flat and shape[2] != 1:
        message = f"the model is for single pictures (2D), this scan is a volume of {shape[2]} slices"
        raise InputError("E_MODALITY_MISMATCH", message, hint="use a model that was trained on volumes")


def answer_kind(head: Head) -> str:
    """How reports call what a head answers with: boxes of volumes are `candidates`, several masks are `regions`."""
    if isinstance(head, MasksHead) and head.are_regions:
        return REGIONS
    return CANDIDATES if isinstance(head, BoxesHead) and head.tile_size is not None else head.kind


def whole_answer(bundle: Bundle, answer: Any, shape: Shape, affine: Affine) -> WholeAnswer:
    """Names and numbers of what `OnnxModel.answer` returns for an image.

    Args:
        bundle: Bundle of the model.
        answer: Answer of the model.
        shape: Shape of the image.
        affine: Affine of the image.
    """
    head = bundle.head
    assert isinstance(head, FindingsHead | BoxesHead)
    thresholds = {name: point.threshold for name, point in head.operating_points.items()}
    if isinstance(head, FindingsHead):
        scores = {name: round(float(score), DECIMALS) for name, score in zip(head.names, answer, strict=True)}
        return WholeAnswer(head.kind, findings=scores, thresholds=thresholds)
    if head.tile_size is not None:
        found = _boxes_of_volume(head, answer, shape, affine)
        return WholeAnswer(CANDIDATES, boxes=found, thresholds=thresholds)
    boxes = []
    for corners, score, place in zip(answer.boxes, answer.scores, answer.classes, strict=True):
        inside = np.clip(corners, 0, [*shape[:2], *shape[:2]]).round(2).tolist()
        if inside[2] > inside[0] and inside[3] > inside[1]:
            name, rounded = head.names[place], round(float(score), DECIMALS)
            boxes.append(FoundBox(name, rounded, head.is_yes(name, float(score)), tuple(inside)))
    return WholeAnswer(head.kind, boxes=tuple(boxes), thresholds=thresholds)


def _boxes_of_volume(head: BoxesHead, answer: Any, shape: Shape, affine: Affine) -> tuple[FoundBox, ...]:
    """Boxes in the patient, the best first."""
    corners, diameters = boxes_in_patient(answer.boxes, shape, affine)
    return tuple(
        FoundBox(
            head.names[place],
            round(float(score), DECIMALS),
            head.is_yes(head.names[place], float(score)),
            tuple(own.round(4).tolist()),
            round(float(diameter), 3),
        )
        for own, diameter, score, place in zip(corners, diameters, answer.scores, answer.classes, strict=True)
    )


def answer_json(bundle: Bundle, answer: WholeAnswer, *, name: str, model_sha256: str, shape: Shape) -> bytes:
    """The file of one image; it bears the mark of what inference writes."""
    head = bundle.head
    assert isinstance(head, FindingsHead | BoxesHead)
    document: dict[str, Any] = {
        ANSWER_KEY: ANSWER,
        "head": head.kind,
        "name": name,
        "task": bundle.task,
        "model_sha256": model_sha256,
        "intended_use": bundle.intended_use,
        "shape": list(shape),
        "operating_points": {each: point.model_dump() for each, point in head.operating_points.items()},
    }
    if isinstance(head, FindingsHead):
        document["findings"] = {
            each: {"probability": score, "is_yes": head.is_yes(each, score)} for each, score in answer.findings.items()
        }
        if head.is_exclusive:
            document["most_probable"] = max(answer.findings, key=lambda each: answer.findings[each])
    else:
        document["coordinates"] = PIXEL_EDGES if head.tile_size is None else "RAS mm"
        document["boxes"] = [box.to_json() for box in answer.boxes]
    return json_bytes(document)


def tables_of(entries: Iterable[ScanResult]) -> dict[str, bytes]:
    """The tables of all images of a folder, by the names of their files; those without any image are left out.

    Images that were answered for once and are refused now have no row: their files may hold another patient.

    Args:
        entries: Entries of the folder's report.
    """
    known, measured, num_measured = [], io.StringIO(), 0
    measured.write(csv_text([MEASUREMENT_COLUMNS]))
    for entry in entries:  # measurements of many scans are held as text only
        if entry.input_sha256:
            num_measured += len(entry.volumes_ml)
            measured.write(csv_text(measurement_rows(entry) if entry.status == "done" else ()))
            known += [entry] if entry.head else []
    rows_of = {
        "findings": _findings_rows, "boxes": _boxes_rows, CANDIDATES: candidate_rows, REGIONS: _volumes_rows,
    }  # fmt: skip
    of_head = {head: [entry for entry in known if entry.head == head] for head in rows_of}
    tables = {
        TABLES[head]: _encoded(csv_text(rows_of[head]([entry for entry in own if entry.status == "done"])))
        for head, own in of_head.items()
        if own
    }
    return {**tables, MEASUREMENTS_TABLE: _encoded(measured.getvalue())} if num_measured else tables


def _findings_rows(entries: Sequence[ScanResult]) -> list[Sequence[object]]:
    """One row per image, three columns per finding; of models with other findings they are empty."""
    names = sorted({name for entry in entries for name in entry.findings})
    columns = [column for name in names for column in (name, f"{name} threshold", f"{name} is_yes")]
    rows: list[Sequence[object]] = [(*TABLE_START, *columns, "units")]
    for entry in entries:
        cells: list[object] = []
        for name in names:
            if name in entry.findings:
                score, threshold = entry.findings[name], entry.thresholds.get(name, 1.0)
                cells += [f"{score:.6f}", f"{threshold:.6f}", int(score >= threshold)]
            else:
                cells += ["", "", ""]
        rows.append((entry.name, entry.path, entry.task, *cells, "probability"))
    return rows


def _volumes_rows(entries: Sequence[ScanResult]) -> list[Sequence[object]]:
    """One row per case: the volume of each region in millilitres, and the sides on which it is cut off.

    Cells about regions that a model has not are empty.
    """
    names = sorted({name for entry in entries for name in entry.volumes_ml})
    columns = (*(f"{name} mL" for name in names), *(f"{name} cut_off" for name in names))
    rows: list[Sequence[object]] = [(*TABLE_START, *columns)]
    for entry in entries:
        cells = [f"{entry.volumes_ml[name]:.6f}" if name in entry.volumes_ml else "" for name in names]
        sides = [" ".join(entry.cut_off(name)) for name in names]
        rows.append((entry.name, entry.path, entry.task, *cells, *sides))
    return rows


def _boxes_rows(entries: Sequence[ScanResult]) -> list[Sequence[object]]:
    """One row per box; an image without any has a row of its own."""
    rows: list[Sequence[object]] = [(*TABLE_START, *_BOX_COLUMNS)]
    for entry in entries:
        start = (entry.name, entry.path, entry.task)
        for box in entry.boxes:
            threshold = entry.thresholds.get(box["class"], 1.0)
            told = (box["class"], f"{box['score']:.6f}", f"{threshold:.6f}", int(box["is_yes"]))
            rows.append((*start, *told, *(f"{edge:.2f}" for edge in box["corners"]), PIXEL_EDGES))
        if not entry.boxes:
            rows.append((*start, *[""] * len(_BOX_COLUMNS)))
    return rows


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def fields_of(answer: WholeAnswer) -> dict[str, Any]:
    """What the report says of an image."""
    told = asdict(answer)
    return {**told, "boxes": tuple(box.to_json() for box in answer.boxes)}
