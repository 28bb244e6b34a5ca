"""Annotations that arrive apart from their images: masks, boxes and findings, and what says whose they are.

A reader parses one file and knows nothing about images. What it returns is put on an image's grid afterwards, by
position in the patient or by pixel, exactly or not at all.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePath
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
    """

    sop_uids: frozenset[str] = frozenset()
    series_uid: str | None = None
    frame_of_reference: str | None = None
    name: str | None = None
    study: str | None = None
    patient: str | None = None


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
    """

    reference: Reference
    classes: dict[int, str]
    painter: Painter | None = None

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
    """

    reference: Reference
    placer: Placer
    size: tuple[int, int] | None = None

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
    """Findings of an image, a study or a patient: 1 present, 0 absent, between them a probability."""

    reference: Reference
    findings: dict[str, float] = field(default_factory=dict)


Label = MaskLabel | BoxLabel | FindingsLabel


def file_name(path: str) -> str:
    """The last part of a path as any system writes it."""
    return PurePath(path.replace("\\", "/")).name.strip()


def name_key(name: str) -> str:
    """What the names of one image have in common: folders and the suffix of an image left out, lower case."""
    return stem_of(file_name(name)).lower()


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
