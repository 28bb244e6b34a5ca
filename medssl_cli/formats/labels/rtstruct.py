"""Radiotherapy structure sets: contours in the patient that become masks on the slices of their series.

A voxel belongs to a structure if its CENTRE lies inside its contours on that slice by the even-odd rule
(`fill_polygon` says what holds for a centre exactly on a contour). One contour inside another cuts a hole, and so does
a keyhole. Contours are taken by their own axes, whatever the orientation of the series. (PS3.3 C.8.8.5, C.8.8.6)
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import STRUCTURE_SET, MaskLabel, Reference
from medssl_cli.formats.labels.objects import (
    decimals,
    integer,
    items,
    number_structures,
    only_label_errors,
    read_object,
    text,
    uids,
)
from medssl_cli.formats.labels.polygons import fill_contours
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.source import Source
from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_NUMBERS: Final = 30_000_000
MAX_CONTOURS: Final = 500_000
MAX_ROI_NUMBER: Final = 2**31 - 1
MAX_OFF_SLICE_MM: Final = 0.1
MAX_OFF_SLICE_FRACTION: Final = 0.05
_CLOSED: Final = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_WITHOUT_AREA: Final = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")


@dataclass(frozen=True)
class Contours:
    """Closed contours of structures: for each value of the label map, points `[N, 3]` in RAS+ millimetres."""

    by_value: dict[int, tuple[NDArray[np.float64], ...]]

    def paint(self, shape: Shape, affine: Affine) -> NDArray[np.uint8]:
        """Label map `[X, Y, Z]`; Z are the slices on which contours lie.

        Raises:
            InputError: `E_CONTOUR`, `E_SEGMENT_OVERLAP`, `E_TOO_BIG`.
        """
        labels = np.zeros(shape, dtype=np.uint8, order="F")  # whole slices are written: one after the other in memory
        for value, contours in self.by_value.items():
            for index, members in _by_slice(contours, shape, affine).items():
                mask = fill_contours(members, shape[:2])
                overlap = int(np.count_nonzero(labels[:, :, index][mask]))
                if overlap:
                    raise InputError(
                        "E_SEGMENT_OVERLAP",
                        f"{overlap} voxels of one slice belong to two structures",
                        hint="name structures that do not overlap",
                    )
                labels[:, :, index][mask] = value
        return np.ascontiguousarray(labels)


def read_rtstruct(source: Source, *, structures: Sequence[str] | None = None) -> MaskLabel:
    """Read a structure set.

    Structures that have only points or open contours (isocentres, markers) have no area and are left out.

    Args:
        source: An RTSTRUCT object.
        structures: Take these only, by ROIName; the first becomes value 1. By default all, numbered by their names:
            values then agree between files only if the files have the same structures.

    Returns:
        A mask; its classes are the ROINames, reduced to the safe alphabet.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_CONTOUR`, `E_VALUE_INVALID`, `E_LABEL_VALUES`, `E_TOO_BIG`, or what
            `read_bytes` raises.
    """
    with only_label_errors("structure set"):
        return _parse(read_object(source, max_bytes=MAX_FILE_BYTES), structures)


def _parse(dataset: Any, structures: Sequence[str] | None) -> MaskLabel:
    if text(dataset, "SOPClassUID") != STRUCTURE_SET:
        raise InputError("E_LABEL_FORMAT", "not a structure set")
    names = _roi_names(dataset)
    contours, drawn_on = _contours(dataset)
    if unnamed := set(contours) - set(names):
        raise InputError("E_LABEL_FORMAT", f"contours of {len(unnamed)} structures that the object does not declare")
    if not contours:
        raise InputError("E_CONTOUR", f"none of {len(names)} structures has a closed contour")
    values, classes = number_structures({number: names[number] for number in contours}, structures, keep_numbers=False)
    painter = Contours({value: tuple(contours[number]) for number, value in values.items()})
    return MaskLabel(_reference(dataset, drawn_on), classes, painter)


def _roi_names(dataset: Any) -> dict[int, str]:
    names: dict[int, str] = {}
    for roi in items(dataset, "StructureSetROISequence"):
        number = integer(roi, "ROINumber", low=0, high=MAX_ROI_NUMBER)
        if number in names:
            raise InputError("E_LABEL_FORMAT", f"structure {number} is declared twice")
        names[number] = text(roi, "ROIName")
    return names


def _contours(dataset: Any) -> tuple[dict[int, list[NDArray[np.float64]]], frozenset[str]]:
    """Closed contours by ROI number, and the instances that contours say they were drawn on."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    images: list[Any] = []
    num_numbers = num_contours = 0
    for roi in items(dataset, "ROIContourSequence"):
        contours = items(roi, "ContourSequence")
        num_contours += len(contours)
        if num_contours > MAX_CONTOURS:
            raise InputError("E_TOO_BIG", f"more than {MAX_CONTOURS} contours")
        kinds = {text(contour, "ContourGeometricType").upper() for contour in contours}
        if kinds <= {*_WITHOUT_AREA}:
            continue
        if not kinds <= {*_CLOSED}:
            raise InputError("E_CONTOUR", "a structure mixes closed contours with open or unknown ones")
        number = integer(roi, "ReferencedROINumber", low=0, high=MAX_ROI_NUMBER)
        for contour in contours:
            points = _points(contour, MAX_NUMBERS - num_numbers)
            num_numbers += points.size
            found.setdefault(number, []).append(points)
            images += items(contour, "ContourImageSequence")
    return found, uids(images, "ReferencedSOPInstanceUID") if len(images) <= MAX_CONTOURS else frozenset()


def _points(contour: Any, max_count: int) -> NDArray[np.float64]:
    """`[N, 3]` in RAS+ millimetres."""
    numbers = decimals(contour, "ContourData", max_count=max_count)
    if len(numbers) < 9 or len(numbers) % 3:
        raise InputError("E_CONTOUR", f"a closed contour of {len(numbers)} coordinates")
    return numbers.reshape(-1, 3) * np.diag(LPS_TO_RAS)[:3]


def _reference(dataset: Any, drawn_on: frozenset[str]) -> Reference:
    frames = items(dataset, "ReferencedFrameOfReferenceSequence")
    studies = [study for frame in frames for study in items(frame, "RTReferencedStudySequence")]
    series = [one for study in studies for one in items(study, "RTReferencedSeriesSequence")]
    named = uids(series, "SeriesInstanceUID")
    places = uids(frames, "FrameOfReferenceUID")
    rois = items(dataset, "StructureSetROISequence")
    places = places or uids(rois, "ReferencedFrameOfReferenceUID")
    return Reference(
        sop_uids=drawn_on
        or uids([i for s in series for i in items(s, "ContourImageSequence")], "ReferencedSOPInstanceUID"),
        series_uid=next(iter(named)) if len(named) == 1 else None,
        frame_of_reference=next(iter(places)) if len(places) == 1 else None,
    )


def _by_slice(
    contours: Sequence[NDArray[np.float64]], shape: Shape, affine: Affine
) -> dict[int, list[NDArray[np.float64]]]:
    """Contours as corners `[N, 2]` in voxel indices, by slice."""
    to_index = np.linalg.inv(affine)
    spacing = spacing_mm(affine)[2]
    limit = max(MAX_OFF_SLICE_MM, MAX_OFF_SLICE_FRACTION * spacing)
    found: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    seen: set[tuple[int, bytes]] = set()
    for points in contours:
        indices = points @ to_index[:3, :3].T + to_index[:3, 3]
        index = int(np.rint(indices[:, 2].mean()))
        distance = float(np.abs(indices[:, 2] - index).max()) * spacing
        if distance > limit:
            raise InputError(
                "E_CONTOUR",
                f"a contour lies up to {distance:.3g} mm beside the nearest slice, {limit:.3g} are accepted",
            )
        if not 0 <= index < shape[2]:
            raise InputError("E_CONTOUR", f"a contour lies on slice {index}; the image has 0 to {shape[2] - 1}")
        key = (index, indices[:, :2].tobytes())
        if key in seen:
            raise InputError("E_CONTOUR", "a structure has the same contour twice on one slice")
        seen.add(key)
        found[index].append(indices[:, :2])
    return found
