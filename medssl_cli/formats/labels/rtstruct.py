"""Radiotherapy structure sets: contours in the patient that become masks on the slices of their series.

A voxel belongs to a structure if its CENTRE lies inside its contours on that slice by the even-odd rule
(`fill_polygon` says what holds for a centre exactly on a contour); `unite_contours` says what several contours are
together. Contours are taken by their own axes, whatever the orientation of the series. (PS3.3 C.8.8.5, C.8.8.6)

A contour that cannot be right costs its structure, never the others: no structure is stored without a part of it.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import (
    STRUCTURE_SET,
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
    uids,
)
from medssl_cli.formats.labels.polygons import fill_contours, unite_contours
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.source import Source
from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_NUMBERS: Final = 30_000_000
MAX_CONTOURS: Final = 500_000
MAX_ROI_NUMBER: Final = 2**31 - 1
MAX_OFF_SLICE_MM: Final = 0.1
MAX_OFF_SLICE_FRACTION: Final = 0.05
MAX_LINE_WIDTH_MM: Final = 1e-3
_CLOSED: Final = "CLOSED_PLANAR"
_EXCLUSIVE: Final = "CLOSEDPLANAR_XOR"
_WITHOUT_AREA: Final = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Structure:
    """Closed contours of one structure.

    Args:
        number: ROINumber.
        contours: Points `[N, 3]` in RAS+ millimetres.
        sources: Place in `MaskLabel.sources` of what each contour was drawn on.
        is_exclusive: They are combined by exclusive or (CLOSEDPLANAR_XOR).
    """

    number: int
    contours: tuple[Points, ...]
    sources: tuple[int, ...]
    is_exclusive: bool = False


@dataclass(frozen=True)
class Contours:
    """Structures by their value in the label map; several of one name have one value."""

    by_value: dict[int, tuple[Structure, ...]]

    def paint(
        self, shape: Shape, affine: Affine, classes: dict[int, str], sources: Collection[int] | None = None
    ) -> Painting:
        """Label map `[X, Y, Z]`; Z are the slices on which contours lie.

        Raises:
            InputError: `E_SEGMENT_OVERLAP`.
        """
        # Whole slices are written: one after the other in memory.
        labels = blank_labels(shape, self.by_value, order="F")
        drawn: dict[int, str] = {}
        notes: list[Flaw] = []
        slices: dict[int, set[int]] = {}
        for value, structures in self.by_value.items():
            chosen = [_drawn_on(structure, sources) for structure in structures]
            if sources is not None and not any(structure.contours for structure in chosen):
                continue
            masks, found = _masks(chosen, shape, affine)
            notes += found
            if any(flaw.is_refusal for flaw in found):
                continue
            for index, mask in masks.items():
                self._mark(labels[:, :, index], mask, value)
            drawn[value] = classes[value]
            if not any(mask.any() for mask in masks.values()):
                message = "its contours hold no voxel of the image"
                notes += [Flaw("W_EMPTY_LABEL", message, (structure.number,)) for structure in structures]
            slices[structures[0].number] = {index for index, mask in masks.items() if mask.any()}
        return Painting(labels.copy(), drawn, (*_together(notes), *gap_flaw(slices)))

    def _mark(self, labels: LabelMap, mask: NDArray[np.bool_], value: int) -> None:
        taken = labels[mask]
        if taken.any():
            other = int(taken[taken != 0][0])
            numbers = ([structure.number for structure in self.by_value[one]] for one in (other, value))
            raise overlap_error(int(np.count_nonzero(taken)), *numbers)
        labels[mask] = value


def read_rtstruct(source: Source, *, structures: Sequence[str] | None = None) -> MaskLabel:
    """Read a structure set.

    Structures that have only points or open contours (isocentres, markers) have no area and are left out, and so are
    contours without area beside others.

    Args:
        source: An RTSTRUCT object.
        structures: Take these only, by ROIName; the first becomes value 1. By default all, numbered by their names:
            values then agree between files only if the files have the same structures.

    Returns:
        A mask; its classes are the ROINames, as they may be stored (`safe_name`).

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_CONTOUR`, `E_VALUE_INVALID`, `E_LABEL_VALUES`, `E_NAME_ENCODING`,
            `E_NAME_COLLISION`, `E_LABEL_AMBIGUOUS`, `E_TOO_BIG`, or what `read_bytes` raises.
    """
    with only_label_errors("structure set"):
        return _parse(read_object(source, max_bytes=MAX_FILE_BYTES), structures)


def _parse(dataset: Any, structures: Sequence[str] | None) -> MaskLabel:
    if text(dataset, "SOPClassUID") != STRUCTURE_SET:
        raise InputError("E_LABEL_FORMAT", "not a structure set")
    names, flaws = _roi_names(dataset)
    parsed = _parsed_contours(dataset)
    sound = {number: structure for number, structure in parsed.structures.items() if number in names}
    refused = {flaw.numbers[0] for flaw in (*flaws.values(), *parsed.flaws) if flaw.is_refusal}
    for number in parsed.structures.keys() - names.keys() - flaws.keys():
        flaws[number] = Flaw("E_LABEL_FORMAT", "the object does not declare it", (number,))
    with_contours = {number: names[number] for number in names if number in sound or number in refused}
    if not with_contours and not flaws:
        raise InputError("E_CONTOUR", f"none of {len(names)} structures has a closed contour")
    found = (*(flaws[number] for number in sorted(flaws)), *parsed.flaws)
    if not with_contours:
        raise refusal_of(found)
    values, classes = number_structures(with_contours, structures, keep_numbers=False)
    bad = {values[number] for number in refused if number in values}
    by_value: dict[int, tuple[Structure, ...]] = {}
    for number, value in sorted(values.items(), key=lambda pair: (pair[1], pair[0])):
        if value not in bad:
            by_value[value] = (*by_value.get(value, ()), sound[number])
    told = tuple(flaw for flaw in found if structures is None or set(flaw.numbers) & values.keys())
    if not by_value:
        raise refusal_of(told)
    reference = _reference(dataset)
    if reference.frame_of_reference is None and len(_places(dataset)) > 1 and frozenset() in parsed.sources:
        raise InputError("E_LABEL_AMBIGUOUS", "contours in several frames of reference do not name their images")
    kept = {value: classes[value] for value in by_value}
    return MaskLabel(reference, kept, Contours(by_value), parsed.sources, told)


def _roi_names(dataset: Any) -> tuple[dict[int, str], dict[int, Flaw]]:
    """ROIName by number, which may be empty, and structures whose name cannot be read."""
    names: dict[int, str] = {}
    flaws: dict[int, Flaw] = {}
    sets = character_sets(dataset)
    for roi in items(dataset, "StructureSetROISequence"):
        number = integer(roi, "ROINumber", low=0, high=MAX_ROI_NUMBER)
        if number in names or number in flaws:
            raise InputError("E_LABEL_FORMAT", f"structure {number} is declared twice")
        try:
            names[number] = name_text(roi, "ROIName", sets) or f"structure {number}"
        except InputError as error:
            flaws[number] = _flaw(error, number)
    return names, flaws


@dataclass
class _Parsed:
    """Contours by ROI number, the sets of instances that they name, and what was wrong with some of them."""

    structures: dict[int, Structure] = field(default_factory=dict)
    flaws: list[Flaw] = field(default_factory=list)
    index_of: dict[frozenset[Instance], int] = field(default_factory=dict)
    num_numbers: int = 0

    @property
    def sources(self) -> tuple[frozenset[Instance], ...]:
        """In the order of their indices."""
        return tuple(self.index_of)


def _parsed_contours(dataset: Any) -> _Parsed:
    parsed = _Parsed()
    by_number: dict[int, list[Any]] = defaultdict(list)
    for roi in items(dataset, "ROIContourSequence"):
        contours = items(roi, "ContourSequence")
        if contours:
            by_number[integer(roi, "ReferencedROINumber", low=0, high=MAX_ROI_NUMBER)] += contours
    if sum(map(len, by_number.values())) > MAX_CONTOURS:
        raise InputError("E_TOO_BIG", f"more than {MAX_CONTOURS} contours")
    for number, contours in by_number.items():
        try:
            _add_structure(parsed, number, contours)
        except InputError as error:
            if error.code == "E_TOO_BIG":
                raise
            parsed.flaws.append(_flaw(error, number))
    return parsed


def _add_structure(parsed: _Parsed, number: int, contours: Sequence[Any]) -> None:
    """Parse the closed contours of one structure; those without area are counted."""
    kinds = {text(contour, "ContourGeometricType").upper() for contour in contours}
    if not kinds <= {_CLOSED, _EXCLUSIVE, *_WITHOUT_AREA}:
        raise InputError("E_CONTOUR", "it has contours of an unknown type")
    if kinds >= {_CLOSED, _EXCLUSIVE}:
        raise InputError("E_CONTOUR", "some of its contours are combined by exclusive or and others are not")
    if kinds <= {*_WITHOUT_AREA}:
        return
    points: list[Points] = []
    sources: list[int] = []
    num_left_out = 0
    for contour in contours:
        corners = _points(contour, MAX_NUMBERS - parsed.num_numbers)
        parsed.num_numbers += corners.size
        if text(contour, "ContourGeometricType").upper() in _WITHOUT_AREA or _is_line(corners):
            num_left_out += 1
            continue
        drawn_on = instances(items(contour, "ContourImageSequence"))
        points.append(corners)
        sources.append(parsed.index_of.setdefault(drawn_on, len(parsed.index_of)))
    if num_left_out:
        message = f"{num_left_out} of its {len(contours)} contours have no area and were left out"
        parsed.flaws.append(Flaw("W_CONTOUR_LEFT_OUT", message, (number,)))
    if points:
        parsed.structures[number] = Structure(number, tuple(points), tuple(sources), _EXCLUSIVE in kinds)


def _points(contour: Any, max_count: int) -> Points:
    """`[N, 3]` in RAS+ millimetres."""
    numbers = decimals(contour, "ContourData", max_count=max_count)
    announced = decimals(contour, "NumberOfContourPoints", max_count=1)
    if len(numbers) % 3 or (len(announced) and announced[0] * 3 != len(numbers)):
        raise InputError("E_CONTOUR", f"a contour has {len(numbers)} coordinates, not three for each of its points")
    return numbers.reshape(-1, 3) * np.diag(LPS_TO_RAS)[:3]


def _is_line(points: Points) -> bool:
    """Whether corners span no area: fewer than three of them, or all on one line."""
    if len(points) < 3:
        return True
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return float(spread[1]) <= MAX_LINE_WIDTH_MM


def _flaw(error: InputError, number: int) -> Flaw:
    return Flaw(error.code, error.message, (number,), error.hint)


def _places(dataset: Any) -> frozenset[str]:
    """The frames of reference of the object."""
    frames = uids(items(dataset, "ReferencedFrameOfReferenceSequence"), "FrameOfReferenceUID")
    return frames or uids(items(dataset, "StructureSetROISequence"), "ReferencedFrameOfReferenceUID")


def _reference(dataset: Any) -> Reference:
    frames = items(dataset, "ReferencedFrameOfReferenceSequence")
    studies = [study for frame in frames for study in items(frame, "RTReferencedStudySequence")]
    series = [one for study in studies for one in items(study, "RTReferencedSeriesSequence")]
    named, places = uids(series, "SeriesInstanceUID"), _places(dataset)
    return Reference(
        sop_uids=uids([i for s in series for i in items(s, "ContourImageSequence")], "ReferencedSOPInstanceUID"),
        series_uid=next(iter(named)) if len(named) == 1 else None,
        frame_of_reference=next(iter(places)) if len(places) == 1 else None,
        all_series=named,
        patient=patient_id(dataset),
    )


def _drawn_on(structure: Structure, sources: Collection[int] | None) -> Structure:
    """Only the contours that were drawn on some sources."""
    if sources is None:
        return structure
    pairs = [pair for pair in zip(structure.contours, structure.sources, strict=True) if pair[1] in sources]
    contours, indices = tuple(one for one, _ in pairs), tuple(index for _, index in pairs)
    return Structure(structure.number, contours, indices, structure.is_exclusive)


def _masks(
    structures: Sequence[Structure], shape: Shape, affine: Affine
) -> tuple[dict[int, NDArray[np.bool_]], list[Flaw]]:
    """The slices of one class, `[X, Y]` each; a structure that cannot be put there gives a refusal."""
    masks: dict[int, NDArray[np.bool_]] = {}
    flaws: list[Flaw] = []
    for structure in structures:
        num_inside = num_overlaps = 0
        try:
            for index, contours in _by_slice(structure, shape, affine).items():
                if structure.is_exclusive:
                    mask = fill_contours(contours, shape[:2])
                else:
                    united = unite_contours(contours, shape[:2])
                    mask = united.mask
                    num_inside += united.num_inside
                    num_overlaps += united.num_overlaps
                masks[index] = masks[index] | mask if index in masks else mask
        except InputError as error:
            flaws.append(_flaw(error, structure.number))
            continue
        if num_inside:
            flaws.append(Flaw("W_CONTOUR_NESTED", "contours inside others were taken for holes", (structure.number,)))
        if num_overlaps:
            flaws.append(Flaw("W_CONTOUR_OVERLAP", "contours that overlap were united", (structure.number,)))
    return masks, flaws


def _together(flaws: Sequence[Flaw]) -> list[Flaw]:
    """Refusals one by one, notes of one kind together."""
    notes: dict[tuple[str, str], tuple[int, ...]] = {}
    for flaw in flaws:
        if not flaw.is_refusal:
            notes[flaw.code, flaw.message] = (*notes.get((flaw.code, flaw.message), ()), *flaw.numbers)
    return [
        *(flaw for flaw in flaws if flaw.is_refusal),
        *(Flaw(code, message, numbers) for (code, message), numbers in notes.items()),
    ]


def _by_slice(structure: Structure, shape: Shape, affine: Affine) -> dict[int, list[Points]]:
    """Contours as corners `[N, 2]` in voxel indices, by slice."""
    to_index = np.linalg.inv(affine)
    spacing = spacing_mm(affine)[2]
    limit = max(MAX_OFF_SLICE_MM, MAX_OFF_SLICE_FRACTION * spacing)
    found: dict[int, list[Points]] = defaultdict(list)
    seen: set[tuple[int, bytes]] = set()
    for points in structure.contours:
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
        if key in seen and structure.is_exclusive:
            raise InputError("E_CONTOUR", "the same contour twice on one slice would erase itself")
        if key not in seen:
            found[index].append(indices[:, :2])
        seen.add(key)
    return found
