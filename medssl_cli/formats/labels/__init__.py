"""Annotations that arrive apart from their images: masks, boxes and findings, and what says whose they are.

A reader parses one file and knows nothing about images. What it returns is put on an image's grid afterwards, by
position in the patient or by pixel, exactly or not at all.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from medssl_cli.errors import InputError
from medssl_cli.formats.source import stem_of
from medssl_cli.imaging.geometry import Affine, Shape

AnnotationKind = Literal["seg", "rtstruct", "lidc", "luna", "coco", "table"]
SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"
MAX_CLASSES: Final = 255
MAX_FINDINGS: Final = 200
MAX_MARKS: Final = 10_000


@dataclass(frozen=True)
class Reference:
    """How a label finds its images, in the clear: lives in memory only.

    What is more specific decides alone: instances before the series, the series before the frame of reference.

    Args:
        sop_uids: SOPInstanceUIDs of images that it was drawn on.
        series_uid: SeriesInstanceUID, or the name of a file that is called so.
        frame_of_reference: FrameOfReferenceUID.
        name: File name of the image, possibly with folders; compared by `name_key`.
        study: StudyInstanceUID, for findings of a whole study.
        patient: PatientID, for findings of a patient.
        num_shared: How many of the folders in front of `name` all names of the file of labels have in common. They
            tell nothing apart, so the images may lie in folders that are called otherwise.
        also: Less specific words of the same row, which must not speak of other images.
    """

    sop_uids: frozenset[str] = frozenset()
    series_uid: str | None = None
    frame_of_reference: str | None = None
    name: str | None = None
    study: str | None = None
    patient: str | None = None
    num_shared: int = 0
    also: "Reference | None" = None


class Painter(Protocol):
    """Parsed marks of a file that can be put on a grid."""

    def paint(self, shape: Shape, affine: Affine) -> NDArray[np.uint8]:
        """Label map `[X, Y, Z]`; see `MaskLabel.to_grid`."""


class Placer(Protocol):
    """Parsed marks of a file that become boxes on a grid."""

    def place(self, shape: Shape, affine: Affine) -> "Placed":
        """Boxes in voxel indices; see `BoxLabel.to_grid`."""


@dataclass(frozen=True)
class MaskLabel:
    """A mask that can be put onto the grid of the image that it was drawn on.

    Args:
        reference: Which image.
        classes: Names of its values, background left out.
        painter: Does it; None where only the reference is wanted.
        rows: None: it is one thing.
    """

    reference: Reference
    classes: dict[int, str]
    painter: Painter | None = None
    rows: tuple[int, ...] = ()

    def to_grid(self, shape: Shape, affine: Affine) -> NDArray[np.uint8]:
        """The label map on a grid, exact: no voxel is resampled.

        Args:
            shape: Size (X, Y, Z) of the image.
            affine: Its voxel-centre index to RAS+ millimetres.

        Returns:
            `[X, Y, Z]` uint8; 0 is background.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, it was drawn on another grid; `E_CONTOUR`, contours lie beside the
                slices; `E_SEGMENT_OVERLAP`, a voxel has several classes.
        """
        if self.painter is None:
            raise ValueError("this mask was read for its reference only")
        return self.painter.paint(shape, affine)


@dataclass(frozen=True)
class BoxMark:
    """A box in continuous voxel indices (x, y, z); voxel i covers [i - 0.5, i + 0.5].

    Args:
        name: What it holds, of the safe alphabet (`safe_name`).
        lower: One corner.
        upper: The opposite corner.
        diameter_mm: Of a nodule.
        num_readers: How many readers marked it.
    """

    name: str
    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    diameter_mm: float | None = None
    num_readers: int | None = None


@dataclass(frozen=True)
class Placed:
    """Boxes on a grid, and how many marks lie wholly outside of it."""

    boxes: tuple[BoxMark, ...]
    num_outside: int = 0


@dataclass(frozen=True)
class BoxLabel:
    """Boxes that can be put onto the grid of their image.

    Args:
        reference: Which image.
        placer: Does it.
        size: Columns and rows of the picture that they were drawn on, where it is known.
        rows: Where each of them stands in its file: a line of a table, or the number of an entry; see `RefusedRow`.
    """

    reference: Reference
    placer: Placer
    size: tuple[int, int] | None = None
    rows: tuple[int, ...] = ()

    def to_grid(self, shape: Shape, affine: Affine) -> Placed:
        """The boxes in continuous voxel indices of an image.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, the image has another size or the boxes lie outside of it;
                `E_CONTOUR`, outlines lie beside its slices.
        """
        if self.size is not None and shape != (*self.size, 1):
            raise InputError(
                "E_LABEL_GRID_MISMATCH",
                f"the boxes are for {self.size[0]} x {self.size[1]} pixels, the image has {shape}",
            )
        return self.placer.place(shape, affine)


@dataclass(frozen=True)
class FindingsLabel:
    """Findings of an image, a study or a patient: 1 present, 0 absent, between them a probability.

    Args:
        reference: Of whom or what.
        findings: By name.
        rows: Lines of the table that say so.
    """

    reference: Reference
    findings: dict[str, float] = field(default_factory=dict)
    rows: tuple[int, ...] = ()


Label = MaskLabel | BoxLabel | FindingsLabel


@dataclass(frozen=True)
class RefusedRow:
    """A part of a file of labels that was not taken, while the rest was.

    Args:
        row: A line of a table, from 1 for the first of the file; or the number of an entry, from 1; 0 for none.
        code: Why.
        reason: Why, with numbers; nothing of the file is quoted.
        hint: What to do about it, where the code's own remedy does not say.
    """

    row: int
    code: str
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Reading:
    """What a file of labels says, and what of it was not taken.

    Args:
        labels: Each of one image, series, study or patient.
        refused: Rows or columns that were refused.
        notes: A `W_` code and what there is to say, for what is left out by rule or was changed.
        num_silent: Rows that say nothing: all of their findings are unknown.
    """

    labels: tuple[Label, ...]
    refused: tuple[RefusedRow, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    num_silent: int = 0


def refusals(why: RefusedRow, rows: Iterable[int]) -> list[RefusedRow]:
    """The row that is at fault first, then those that are refused with it."""
    others = [row for row in rows if row != why.row]
    return [why, *(RefusedRow(row, why.code, "it stands with a row that is refused", why.hint) for row in others)]


def file_name(path: str) -> str:
    """The last part of a path as any system writes it."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2].strip()


def folders_of(path: str) -> tuple[str, ...]:
    """Folders in front of a file name, as they are compared: lower case, Unicode form NFC.

    A drive, `.` and everything up to a last `..` are left out: they depend on where the path was written.
    """
    parts = unicodedata.normalize("NFC", path).replace("\\", "/").lower().rstrip("/").split("/")[:-1]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    return tuple(part for part in parts if part not in ("", ".") and not part.endswith(":"))


def name_key(name: str) -> str:
    """What the names of one image have in common: folders and the suffix of an image left out, lower case."""
    return unicodedata.normalize("NFC", stem_of(file_name(name))).lower()


def num_shared_folders(names: Iterable[str]) -> int:
    """How many leading folders all of some file names have in common; see `Reference`."""
    folders = [folders_of(name) for name in names]
    if not folders:
        return 0
    first, last = min(folders), max(folders)
    return next(
        (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )


def number_of(value: Any, *, limit: float = 1e6) -> float:
    """A finite number of a plain type within +-limit.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError("E_LABEL_FORMAT", "something else stands where a number is expected")
    if not -limit <= value <= limit:
        raise InputError("E_LABEL_FORMAT", f"a number that is not within +-{limit:g}")
    return float(value)


def parsed_number(text: str, *, limit: float = 1e6) -> float:
    """`number_of` for text: plain decimal notation, no `nan`, no digits of other scripts.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    if not re.fullmatch(r"\s*[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][+-]?\d{1,3})?\s*", text, flags=re.ASCII):
        raise InputError("E_LABEL_FORMAT", "text stands where a number is expected")
    return number_of(float(text), limit=limit)
