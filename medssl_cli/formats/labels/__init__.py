"""Annotations that arrive apart from their images: masks, boxes and findings, and what says whose they are.

A reader parses one file and knows nothing about images. What it returns is put on an image's grid afterwards, by
position in the patient or by pixel, exactly or not at all.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.table import stem_of
from medssl_cli.imaging.geometry import Affine, Shape

AnnotationKind = Literal["seg", "rtstruct", "lidc", "luna", "coco", "table"]
SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"
MAX_CLASSES: Final = 255
MAX_VALUE: Final = 65_535
MAX_FINDINGS: Final = 200
MAX_MARKS: Final = 10_000
_MAX_LISTED: Final = 10

LabelMap = NDArray[np.uint8] | NDArray[np.uint16]


class Instance(NamedTuple):
    """An image object that a mark was drawn on.

    Args:
        sop_uid: SOPInstanceUID.
        frame: One frame of it, counted from 1 as ReferencedFrameNumber does; None: the object as a whole.
    """

    sop_uid: str
    frame: int | None = None


@dataclass(frozen=True)
class Reference:
    """How a label finds its images, in the clear: lives in memory only.

    What is more specific decides alone: instances before the series, the series before the frame of reference.

    Args:
        sop_uids: SOPInstanceUIDs of images that it was drawn on.
        series_uid: SeriesInstanceUID, or the name of a file that is called so.
        all_series: Every SeriesInstanceUID that it names, also where there are several.
        frame_of_reference: FrameOfReferenceUID.
        name: File name of the image, possibly with folders; compared by `name_key`.
        study: StudyInstanceUID, for findings of a whole study.
        patient: PatientID, for findings of a patient; of masks, whose they say that they are.
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
    all_series: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Flaw:
    """Something about some structures of a mask that its user must know.

    Args:
        code: An `E_` code: they are not stored. A `W_` code: they are, with a doubt.
        message: Why; no names of structures, which may hold anything.
        numbers: The structures, as the file numbers them.
        hint: What to do about it.
    """

    code: str
    message: str
    numbers: tuple[int, ...] = ()
    hint: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether its structures are not stored."""
        return self.code.startswith("E_")

    @property
    def text(self) -> str:
        """The message, with the numbers of the structures."""
        return f"structure {listed(self.numbers)}: {self.message}" if self.numbers else self.message


@dataclass(frozen=True)
class Painting:
    """A mask on a grid.

    Args:
        labels: `[X, Y, Z]`, uint8 or uint16; 0 is background.
        classes: Names of its values; without those of structures that could not be put on the grid.
        flaws: What is not in it, and what is there with a doubt.
    """

    labels: LabelMap
    classes: dict[int, str]
    flaws: tuple[Flaw, ...] = ()


class Painter(Protocol):
    """Parsed marks of a file that can be put on a grid."""

    def paint(
        self, shape: Shape, affine: Affine, classes: dict[int, str], sources: Collection[int] | None = None
    ) -> Painting:
        """The mask on a grid; see `MaskLabel.on_grid`."""


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
        sources: What its marks (frames, contours) say that they were drawn on: the different sets of instances, an
            empty one for marks that do not say. Marks of one file may be drawn on several images.
        flaws: Flaws of structures that were not read, or read with a doubt.
    """

    reference: Reference
    classes: dict[int, str]
    painter: Painter | None = None
    sources: tuple[frozenset[Instance], ...] = ()
    flaws: tuple[Flaw, ...] = ()

    def on_grid(self, shape: Shape, affine: Affine, sources: Collection[int] | None = None) -> Painting:
        """The label map on a grid, exact: no voxel is resampled.

        Args:
            shape: Size (X, Y, Z) of the image.
            affine: Its voxel-centre index to RAS+ millimetres.
            sources: Only marks drawn on these of `self.sources`; their structures are then the only classes. By default
                all.

        Returns:
            Label map, classes and everything that is not right about them. A structure of which a part cannot be put
            there is left out as a whole.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, it was drawn on another grid; `E_CONTOUR`, contours of all structures
                lie beside the slices; `E_SEGMENT_OVERLAP`, a voxel has several classes.
        """
        if self.painter is None:
            raise ValueError("this mask was read for its reference only")
        painting = self.painter.paint(shape, affine, self.classes, sources)
        painting = replace(painting, flaws=(*self.flaws, *painting.flaws))
        has_refusals = any(flaw.is_refusal for flaw in painting.flaws)
        if not painting.classes or (has_refusals and not painting.labels.any()):
            raise refusal_of(painting.flaws)
        return painting

    def to_grid(self, shape: Shape, affine: Affine) -> LabelMap:
        """The label map of `on_grid`, `[X, Y, Z]`."""
        return self.on_grid(shape, affine).labels


@dataclass(frozen=True)
class BoxMark:
    """A box in continuous voxel indices (x, y, z); voxel i covers [i - 0.5, i + 0.5].

    Args:
        name: What it holds, of the safe alphabet (`safe_name`).
        lower: One corner.
        upper: The opposite corner.
        diameter_mm: Diameter of a nodule.
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
        reference: Reference to whom or what they are about.
        findings: Findings by name.
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


def blank_labels(shape: Shape, values: Collection[int], order: Literal["C", "F"] = "C") -> LabelMap:
    """A label map of background only, of as many bits as some values need."""
    if max(values, default=0) <= np.iinfo(np.uint8).max:
        return np.zeros(shape, dtype=np.uint8, order=order)
    return np.zeros(shape, dtype=np.uint16, order=order)


def listed(numbers: Collection[int]) -> str:
    """Numbers for a message: the first ten, and how many more there are."""
    first = ", ".join(map(str, sorted(numbers)[:_MAX_LISTED]))
    return first if len(numbers) <= _MAX_LISTED else f"{first} and {len(numbers) - _MAX_LISTED} more"


def refusal_of(flaws: Collection[Flaw]) -> InputError:
    """The error of a mask of which nothing is left: its first refusal."""
    refusals = [flaw for flaw in flaws if flaw.is_refusal]
    if not refusals:
        return InputError("E_LABEL_VALUES", "no structure has a mark on this image")
    return InputError(refusals[0].code, refusals[0].text, hint=refusals[0].hint)


def overlap_error(num_voxels: int, first: Collection[int], second: Collection[int]) -> InputError:
    """What is said where voxels belong to two classes, by the numbers of their structures in the file."""
    return InputError(
        "E_SEGMENT_OVERLAP",
        f"{num_voxels} voxels of one slice belong to structure {listed(first)} and to structure {listed(second)}",
        hint="name structures that do not overlap",
    )


def gap_flaw(slices: dict[int, set[int]]) -> tuple[Flaw, ...]:
    """A note about structures that are missing on slices between others on which they are.

    Args:
        slices: Indices of the slices on which each structure has voxels.
    """
    missing = {number: max(found) - min(found) + 1 - len(found) for number, found in slices.items() if found}
    numbers = tuple(number for number, count in missing.items() if count)
    if not numbers:
        return ()
    most = max(missing.values())
    return (Flaw("W_LABEL_GAPS", f"not drawn on up to {most} slices between its first and its last", numbers),)


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
