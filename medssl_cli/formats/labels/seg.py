"""DICOM Segmentation objects: frames of marked pixels, each with its own place in the patient (PS3.3 A.51, C.8.20).

A frame is put on the image's grid by its position alone, so sparse frames, frames in another order and frames that
are stored mirrored or transposed all land where they were drawn; a frame between voxels is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import LABEL_MAP_SEGMENTATION, SEGMENTATION, MaskLabel, Reference
from medssl_cli.formats.labels.objects import (
    decimals,
    integer,
    items,
    number_structures,
    only_label_errors,
    raw,
    read_object,
    text,
    uid,
    uids,
)
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.source import Source
from medssl_cli.imaging.geometry import Affine, Shape, displacement_limit_mm, is_invertible

MAX_FILE_BYTES: Final = 2 * 2**30
MAX_FRAMES: Final = 200_000
MAX_SIDE: Final = 32_767
MAX_SEGMENT: Final = 65_535
_UNCOMPRESSED: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")


@dataclass(frozen=True)
class SegFrames:
    """Frames of a segmentation.

    Args:
        pixels: All frames as they are stored, without gaps between them.
        bits: Of a pixel: 1, 8 or 16.
        frame_shape: Rows and columns.
        segments: `[F]` segment number of each frame; 0 where pixels are segment numbers (label map).
        affines: `[F, 4, 4]`, (column, row, 0, 1) to RAS+ millimetres.
        values: Value in the label map of each segment that is wanted.
        threshold: Smallest stored value that counts as marked, for frames of one segment.
    """

    pixels: bytes
    bits: int
    frame_shape: tuple[int, int]
    segments: NDArray[np.int64]
    affines: NDArray[np.float64]
    values: dict[int, int]
    threshold: int = 1

    def paint(self, shape: Shape, affine: Affine) -> NDArray[np.uint8]:
        """Label map `[X, Y, Z]`.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, `E_SEGMENT_OVERLAP`, `E_LABEL_VALUES`.
        """
        labels = np.zeros(shape, dtype=np.uint8)
        for index, number in enumerate(self.segments):
            for value, rows, columns in self._marked(index, int(number)):
                voxels = _voxels_of(self.affines[index], rows, columns, self.frame_shape, shape, affine)
                taken = labels[tuple(voxels)]
                overlap = int(np.count_nonzero((taken != 0) & (taken != value)))
                if overlap:
                    raise InputError(
                        "E_SEGMENT_OVERLAP",
                        f"{overlap} voxels of one frame belong to two segments",
                        hint="name segments that do not overlap",
                    )
                labels[tuple(voxels)] = value
        return labels

    def _marked(self, index: int, number: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(value, rows, columns) of the marked pixels of a frame, one class at a time."""
        if number and number not in self.values:
            return
        frame = self._frame(index)
        if number:
            rows, columns = np.nonzero(frame >= self.threshold)
            if len(rows):
                yield self.values[number], rows, columns
            return
        for segment in np.unique(frame):
            if int(segment) in self.values:
                rows, columns = np.nonzero(frame == segment)
                yield self.values[int(segment)], rows, columns

    def _frame(self, index: int) -> NDArray[np.unsignedinteger[Any]]:
        """`[rows, columns]`; single bits lie least significant first, across byte borders (PS3.5 section 8.1.1)."""
        rows, columns = self.frame_shape
        size = rows * columns
        if self.bits > 1:
            kind = np.dtype("<u2" if self.bits == 16 else "u1")
            return np.frombuffer(self.pixels, kind, count=size, offset=index * size * kind.itemsize).reshape(
                rows, columns
            )
        first = index * size
        packed = np.frombuffer(self.pixels, np.uint8)[first // 8 : (first + size + 7) // 8]
        return np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size].reshape(rows, columns)


def read_seg(source: Source, *, structures: Sequence[str] | None = None, fraction: float | None = None) -> MaskLabel:
    """Read a segmentation object.

    Args:
        source: An uncompressed SEG of type BINARY, LABELMAP, or FRACTIONAL if `fraction` says where to cut.
        structures: Take these segments only; the first becomes value 1. By default all, with their numbers as values.
        fraction: A pixel of a FRACTIONAL object counts as marked from this share (0 to 1] of the maximum on.

    Returns:
        A mask; its classes are the SegmentLabels, reduced to the safe alphabet.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_PIXEL_LENGTH`, `E_VALUE_INVALID`, `E_GEOM_MISSING`, `E_LABEL_VALUES`,
            `E_TOO_BIG`, or what `read_bytes` raises.
    """
    with only_label_errors("segmentation object"):
        return _parse(read_object(source, max_bytes=MAX_FILE_BYTES), structures, fraction)


def _parse(dataset: Any, structures: Sequence[str] | None, fraction: float | None) -> MaskLabel:
    if text(dataset, "SOPClassUID") not in (SEGMENTATION, LABEL_MAP_SEGMENTATION):
        raise InputError("E_LABEL_FORMAT", "not a segmentation object")
    if str(dataset.file_meta.get("TransferSyntaxUID", "")) not in _UNCOMPRESSED:
        raise InputError("E_LABEL_FORMAT", "the segmentation is compressed or big endian", hint="store it uncompressed")
    kind = text(dataset, "SegmentationType").upper()
    bits = integer(dataset, "BitsAllocated", low=1, high=16)
    if bits not in {"BINARY": (1, 8), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}.get(kind, ()):
        raise InputError("E_LABEL_FORMAT", f"a segmentation of {bits} bits whose type does not go with that")
    threshold = _threshold(dataset, fraction) if kind == "FRACTIONAL" else 1
    rows, columns = (integer(dataset, name, low=1, high=MAX_SIDE) for name in ("Rows", "Columns"))
    num_frames = integer(dataset, "NumberOfFrames", low=1, high=MAX_FRAMES)
    pixels = _pixels(dataset, num_frames * rows * columns, bits)
    segments, affines = _frames(dataset, num_frames, has_segments=kind != "LABELMAP")
    names = _segment_names(dataset)
    if undeclared := set(segments.tolist()) - {0, *names}:
        raise InputError("E_LABEL_VALUES", f"frames of {len(undeclared)} segments that the object does not declare")
    values, classes = number_structures(names, structures, keep_numbers=True)
    frames = SegFrames(pixels, bits, (rows, columns), segments, affines, values, threshold)
    return MaskLabel(_reference(dataset), classes, frames)


def _threshold(dataset: Any, fraction: float | None) -> int:
    if fraction is None or not 0 < fraction <= 1:
        raise InputError(
            "E_LABEL_FORMAT", "a fractional segmentation", hint="say from which share on a voxel counts as marked"
        )
    maximum = integer(dataset, "MaximumFractionalValue", low=1, high=255)
    return max(1, int(np.ceil(fraction * maximum)))


def _pixels(dataset: Any, num_pixels: int, bits: int) -> bytes:
    needed = (num_pixels * bits + 7) // 8
    pixels = raw(dataset, "PixelData")
    if len(pixels) not in (needed, needed + needed % 2):
        raise InputError("E_PIXEL_LENGTH", f"{len(pixels)} bytes of pixels, the header announces {needed}")
    return pixels


def _segment_names(dataset: Any) -> dict[int, str]:
    """SegmentNumber and SegmentLabel; number 0 is the background of a label map."""
    names: dict[int, str] = {}
    for segment in items(dataset, "SegmentSequence"):
        number = integer(segment, "SegmentNumber", low=0, high=MAX_SEGMENT)
        if number in names:
            raise InputError("E_LABEL_FORMAT", f"segment {number} is declared twice")
        names[number] = text(segment, "SegmentLabel")
    names.pop(0, None)
    return names


def _frames(dataset: Any, num_frames: int, *, has_segments: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Segment number and affine of each frame."""
    shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), Dataset())
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != num_frames:
        raise InputError("E_LABEL_FORMAT", f"{len(per_frame)} descriptions of {num_frames} frames")
    segments = np.zeros(num_frames, dtype=np.int64)
    affines = np.zeros((num_frames, 4, 4))
    for index, groups in enumerate(per_frame):
        if has_segments:
            identification = _macro("SegmentIdentificationSequence", shared, groups)
            segments[index] = integer(identification, "ReferencedSegmentNumber", low=1, high=MAX_SEGMENT)
        affines[index] = _frame_affine(shared, groups)
    return segments, affines


def _macro(name: str, shared: Any, groups: Any) -> Any:
    """What equals in all frames may be stated once for all of them (PS3.3 C.7.6.16)."""
    found = items(groups, name) or items(shared, name)
    if not found:
        raise InputError("E_GEOM_MISSING", "a frame lacks its position, orientation, spacing or segment")
    return found[0]


def _frame_affine(shared: Any, groups: Any) -> Affine:
    """(column, row, 0, 1) of a frame to RAS+ millimetres: PS3.3 equation C.7.6.2.1-1."""
    spacing = decimals(_macro("PixelMeasuresSequence", shared, groups), "PixelSpacing", count=2)
    cosines = decimals(_macro("PlaneOrientationSequence", shared, groups), "ImageOrientationPatient", count=6)
    position = decimals(_macro("PlanePositionSequence", shared, groups), "ImagePositionPatient", count=3)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * spacing[1]
    affine[:3, 1] = cosines[3:] * spacing[0]
    affine[:3, 2] = np.cross(cosines[:3], cosines[3:])
    affine[:3, 3] = position
    if not is_invertible(affine):
        raise InputError("E_VALUE_INVALID", "the axes of a frame do not span a plane")
    return LPS_TO_RAS @ affine


def _reference(dataset: Any) -> Reference:
    series = items(dataset, "ReferencedSeriesSequence")
    instances = [instance for item in series for instance in items(item, "ReferencedInstanceSequence")]
    named = uids(series, "SeriesInstanceUID")
    return Reference(
        sop_uids=uids(instances, "ReferencedSOPInstanceUID"),
        series_uid=next(iter(named)) if len(named) == 1 else None,
        frame_of_reference=uid(dataset, "FrameOfReferenceUID"),
    )


def _voxels_of(
    frame_affine: Affine,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    frame_shape: tuple[int, int],
    shape: Shape,
    affine: Affine,
) -> NDArray[np.int64]:
    """Voxels `[3, N]` of a grid under pixels of a frame whose pixels are voxels of that grid."""
    to_index = np.linalg.inv(affine) @ frame_affine
    steps, origin = np.rint(to_index[:3, :2]), np.rint(to_index[:3, 3])
    corners = np.array([(0, 0), (frame_shape[1] - 1, 0), (0, frame_shape[0] - 1)], dtype=np.float64).T
    error = (to_index[:3, :2] - steps) @ corners + (to_index[:3, 3] - origin)[:, None]
    distance = float(np.linalg.norm(affine[:3, :3] @ error, axis=0).max())
    is_pixel_a_voxel = (np.abs(steps).sum(axis=0) == 1).all() and (np.abs(steps).sum(axis=1) <= 1).all()
    if not is_pixel_a_voxel or distance > displacement_limit_mm(affine):
        raise InputError("E_LABEL_GRID_MISMATCH", f"a frame lies up to {distance:.3g} mm beside the image's voxels")
    voxels = (origin[:, None] + steps @ np.stack([columns, rows])).astype(np.int64)
    outside = int(((voxels < 0) | (voxels >= np.array(shape)[:, None])).any(axis=0).sum())
    if outside:
        raise InputError("E_LABEL_GRID_MISMATCH", f"{outside} marked voxels of a frame lie outside of the image")
    return voxels
