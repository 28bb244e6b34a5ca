"""DICOM Segmentation objects: frames of marked pixels, each with its own place in the patient (PS3.3 A.51, C.8.20).

A frame is put on the image's grid by its position alone, so sparse frames, frames in another order and frames that
are stored mirrored or transposed all land where they were drawn; a frame between voxels is refused.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import (
    LABEL_MAP_SEGMENTATION,
    SEGMENTATION,
    Flaw,
    Instance,
    LabelMap,
    MaskLabel,
    Painting,
    Reference,
    blank_labels,
    gap_flaw,
    overlap_error,
    refusal_of,
)
from medssl_cli.formats.labels.objects import (
    character_sets,
    decimals,
    instances,
    integer,
    items,
    name_text,
    number_structures,
    only_label_errors,
    patient_id,
    read_object,
    text,
    uid,
    uids,
)
from medssl_cli.formats.labels.seg_pixels import StoredFrames, num_frames, read_pixels
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.source import Source
from medssl_cli.imaging.geometry import Affine, Shape, displacement_limit_mm, is_invertible

MAX_FILE_BYTES: Final = 2 * 2**30
MAX_SEGMENT: Final = 65_535
MAX_REFERENCES: Final = 5_000_000
_BACKGROUND: Final = "125040"  # DCM: Background

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SegFrames:
    """Frames of a segmentation.

    Args:
        pixels: As they are stored.
        segments: `[F]` segment number of each frame; 0 where pixels are segment numbers (label map).
        affines: `[F, 4, 4]`, (column, row, 0, 1) to RAS+ millimetres.
        values: Value in the label map of each segment that is wanted.
        sources: Place in `MaskLabel.sources` of what each frame was drawn on.
        threshold: Smallest stored value that counts as marked, for frames of one segment.
        is_label_map: Pixels are segment numbers.
    """

    pixels: StoredFrames
    segments: Indices
    affines: NDArray[np.float64]
    values: dict[int, int]
    sources: tuple[int, ...]
    threshold: int = 1
    is_label_map: bool = False

    def paint(
        self, shape: Shape, affine: Affine, classes: dict[int, str], sources: Collection[int] | None = None
    ) -> Painting:
        """Label map `[X, Y, Z]`; a segment of which a frame lies on no voxels of the grid is left out as a whole.

        Raises:
            InputError: `E_SEGMENT_OVERLAP`, `E_LABEL_FORMAT`.
        """
        labels = blank_labels(shape, self.values.values())
        slices: dict[int, set[int]] = {}
        refused: dict[int, Flaw] = {}
        frames = [index for index, source in enumerate(self.sources) if sources is None or source in sources]
        self._check_places(frames)
        for index in frames:
            for number, rows, columns in self._marked(index):
                value = self.values[number]
                if value in refused:
                    continue
                try:
                    voxels = _voxels_of(self.affines[index], rows, columns, self.pixels.shape, shape, affine)
                except InputError as error:
                    refused[value] = Flaw(error.code, error.message, (number,), error.hint)
                    continue
                self._mark(labels, voxels, number)
                across = voxels[2]
                is_one_slice = bool((across == across[0]).all())
                slices.setdefault(value, set()).update((across[:1] if is_one_slice else np.unique(across)).tolist())
        for value in refused:
            labels[labels == value] = 0
        meant = classes if sources is None else {value: classes[value] for value in sorted(self._values_of(frames))}
        drawn = {value: name for value, name in meant.items() if value not in refused}
        by_number = {min(self._numbers(value)): found for value, found in slices.items() if value in drawn}
        return Painting(labels, drawn, (*refused.values(), *gap_flaw(by_number)))

    def _mark(self, labels: LabelMap, voxels: Indices, number: int) -> None:
        taken = labels[tuple(voxels)]
        if others := taken[(taken != 0) & (taken != self.values[number])].tolist():
            raise overlap_error(len(others), self._numbers(others[0]), [number])
        labels[tuple(voxels)] = self.values[number]

    def _numbers(self, value: int) -> list[int]:
        """Segments that have a value in the label map."""
        return [number for number, one in self.values.items() if one == value]

    def _values_of(self, frames: Sequence[int]) -> set[int]:
        """Values that frames speak of, whether they mark any pixel or not."""
        if not self.is_label_map:
            return {self.values[number] for number in self.segments[frames].tolist() if number in self.values}
        present = set().union(*(np.unique(self.pixels[index]).tolist() for index in frames))
        return {value for number, value in self.values.items() if number in present}

    def _check_places(self, frames: Sequence[int]) -> None:
        """A segment has one frame at one place of one image: two that differ are of different time points."""
        seen: dict[tuple[int, bytes], int] = {}
        for index in frames:
            number = int(self.segments[index])
            if not self.is_label_map and number not in self.values:
                continue
            first = seen.setdefault((number, np.round(self.affines[index], 3).tobytes()), index)
            if first != index and not np.array_equal(self.pixels[first], self.pixels[index]):
                raise InputError(
                    "E_LABEL_FORMAT",
                    "two frames of one segment lie at one place and differ",
                    hint="export each time point with the images that it was drawn on",
                )

    def _marked(self, index: int) -> Iterator[tuple[int, Indices, Indices]]:
        """(segment number, rows, columns) of the marked pixels of a frame, one segment at a time."""
        number = int(self.segments[index])
        if not self.is_label_map:
            if number in self.values:
                rows, columns = np.nonzero(self.pixels[index] >= self.threshold)
                if len(rows):
                    yield number, rows, columns
            return
        frame = self.pixels[index]
        for segment in np.unique(frame).tolist():
            if segment in self.values:
                rows, columns = np.nonzero(frame == segment)
                yield segment, rows, columns


def read_seg(source: Source, *, structures: Sequence[str] | None = None, fraction: float | None = None) -> MaskLabel:
    """Read a segmentation object.

    Args:
        source: A SEG of type BINARY, LABELMAP, or FRACTIONAL if `fraction` says where to cut; plain or compressed.
        structures: Take these segments only; the first becomes value 1. By default all, with their numbers as values.
        fraction: A pixel of a FRACTIONAL object counts as marked from this share (0 to 1] of the maximum on.

    Returns:
        A mask; its classes are the SegmentLabels, as they may be stored (`safe_name`).

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_PIXEL_LENGTH`, `E_VALUE_INVALID`, `E_GEOM_MISSING`, `E_LABEL_VALUES`,
            `E_NAME_ENCODING`, `E_NAME_COLLISION`, `E_TOO_BIG`, `E_TRUNCATED`, `E_CODESTREAM_MISMATCH`,
            `E_PIXEL_DECODE`, or what `read_bytes` raises.
    """
    with only_label_errors("segmentation object"):
        return _parse(read_object(source, max_bytes=MAX_FILE_BYTES), structures, fraction)


def _parse(dataset: Any, structures: Sequence[str] | None, fraction: float | None) -> MaskLabel:
    if text(dataset, "SOPClassUID") not in (SEGMENTATION, LABEL_MAP_SEGMENTATION):
        raise InputError("E_LABEL_FORMAT", "not a segmentation object")
    kind = text(dataset, "SegmentationType").upper()
    is_label_map = kind == "LABELMAP"
    threshold = _threshold(dataset, fraction) if kind == "FRACTIONAL" else 1
    pixels = read_pixels(dataset, kind)
    frames = _frames(dataset, has_segments=not is_label_map)
    names, flaws = _segment_names(dataset)
    background = _background(dataset, names) if is_label_map else 0
    names.pop(background, None)
    used = _values_in(pixels, len(frames.segments)) if is_label_map else set(frames.segments.tolist())
    if undeclared := used - {background} - names.keys() - flaws.keys():
        raise InputError("E_LABEL_VALUES", f"pixels of {len(undeclared)} segments that the object does not declare")
    told = tuple(flaws[number] for number in sorted(flaws)) if structures is None else ()
    if flaws and not names:
        raise refusal_of(flaws.values())
    values, classes = number_structures(names, structures, keep_numbers=True)
    painter = SegFrames(pixels, frames.segments, frames.affines, values, frames.sources, threshold, is_label_map)
    return MaskLabel(_reference(dataset), classes, painter, tuple(frames.index_of), told)


def _threshold(dataset: Any, fraction: float | None) -> int:
    if fraction is None or not 0 < fraction <= 1:
        raise InputError(
            "E_LABEL_FORMAT", "a fractional segmentation", hint="say from which share on a voxel counts as marked"
        )
    maximum = integer(dataset, "MaximumFractionalValue", low=1, high=255)
    # 0.07 of 100 is 7, whatever the product of the two numbers is in binary.
    return max(1, int(np.ceil(round(fraction * maximum, 9))))


def _values_in(pixels: StoredFrames, count: int) -> set[int]:
    """Values that occur in a label map."""
    counts = np.zeros(MAX_SEGMENT + 1, dtype=np.int64)
    for index in range(count):
        frame = np.bincount(pixels[index].ravel())
        counts[: len(frame)] += frame
    return set(np.flatnonzero(counts).tolist())


def _segment_names(dataset: Any) -> tuple[dict[int, str], dict[int, Flaw]]:
    """SegmentNumber and SegmentLabel, and segments whose label cannot be read; none is without a name."""
    names: dict[int, str] = {}
    flaws: dict[int, Flaw] = {}
    sets = character_sets(dataset)
    for segment in items(dataset, "SegmentSequence"):
        number = integer(segment, "SegmentNumber", low=0, high=MAX_SEGMENT)
        if number in names or number in flaws:
            raise InputError("E_LABEL_FORMAT", f"segment {number} is declared twice")
        try:
            names[number] = (
                name_text(segment, "SegmentLabel", sets) or _name_of_kind(segment, sets) or f"segment {number}"
            )
        except InputError as error:
            flaws[number] = Flaw(error.code, error.message, (number,), error.hint)
    return names, flaws


def _name_of_kind(segment: Any, sets: Sequence[str]) -> str:
    """What a segment without a label is by its code: the meaning of its SegmentedPropertyTypeCodeSequence."""
    kinds = items(segment, "SegmentedPropertyTypeCodeSequence")
    return next((name_text(kind, "CodeMeaning", sets) for kind in kinds), "")


def _background(dataset: Any, names: dict[int, str]) -> int:
    """The pixel value of a label map that is no segment: Pixel Padding Value (PS3.3 C.8.20.2), else 0.

    Returns:
        -1 if every value is a segment: 0 is declared as one and not as the background.
    """
    if "PixelPaddingValue" in dataset:
        return integer(dataset, "PixelPaddingValue", low=0, high=MAX_SEGMENT)
    for segment in items(dataset, "SegmentSequence"):
        kinds = items(segment, "SegmentedPropertyTypeCodeSequence")
        is_called_so = names.get(0, "").lower() == "background" or any(
            text(kind, "CodeValue") == _BACKGROUND for kind in kinds
        )
        if text(segment, "SegmentNumber") == "0" and not is_called_so:
            return -1
    return 0


@dataclass
class _Frames:
    """What the functional groups say about each frame."""

    segments: Indices
    affines: NDArray[np.float64]
    sources: tuple[int, ...]
    index_of: dict[frozenset[Instance], int]


def _frames(dataset: Any, *, has_segments: bool) -> _Frames:
    """Segment number, affine and source images of each frame."""
    count = num_frames(dataset)
    shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), Dataset())
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != count:
        raise InputError("E_LABEL_FORMAT", f"{len(per_frame)} descriptions of {count} frames")
    segments = np.zeros(count, dtype=np.int64)
    affines = np.zeros((count, 4, 4))
    index_of: dict[frozenset[Instance], int] = {}
    sources: list[int] = []
    num_references = 0
    of_all = _source_images(shared)
    for index, groups in enumerate(per_frame):
        if has_segments:
            identification = _macro("SegmentIdentificationSequence", shared, groups)
            segments[index] = integer(identification, "ReferencedSegmentNumber", low=1, high=MAX_SEGMENT)
        affines[index] = _frame_affine(shared, groups)
        drawn_on = _source_images(groups) or of_all
        num_references += len(drawn_on)
        if num_references > MAX_REFERENCES:
            raise InputError("E_TOO_BIG", f"more than {MAX_REFERENCES} references to source images")
        sources.append(index_of.setdefault(drawn_on, len(index_of)))
    return _Frames(segments, affines, tuple(sources), index_of)


def _source_images(groups: Any) -> frozenset[Instance]:
    """What frames were drawn on: the Derivation Image macro (PS3.3 C.7.6.16.2.6); empty where it is missing."""
    derivations = items(groups, "DerivationImageSequence")
    return instances([image for one in derivations for image in items(one, "SourceImageSequence")])


def _macro(name: str, shared: Any, groups: Any) -> Any:
    """What equals in all frames may be stated once for all of them (PS3.3 C.7.6.16); one item of it is allowed."""
    found = items(groups, name) or items(shared, name)
    if not found:
        raise InputError("E_GEOM_MISSING", "a frame lacks its position, orientation, spacing or segment")
    if len(found) > 1:
        raise InputError("E_LABEL_FORMAT", f"{len(found)} items in a functional group of a frame that has one")
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
        all_series=named,
        patient=patient_id(dataset),
    )


def _voxels_of(
    frame_affine: Affine,
    rows: Indices,
    columns: Indices,
    frame_shape: tuple[int, int],
    shape: Shape,
    affine: Affine,
) -> Indices:
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
