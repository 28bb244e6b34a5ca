"""DICOM Segmentation objects: label maps or masks that a PACS can store and show over the series they belong to.

Built by highdicom over a clean description of the series, never over its files: of these come valid attributes of
patient and study only, and the UIDs of the slices. Before anybody sees an object it is read back without highdicom:
the position of each frame must lead to exactly the voxels that were written.
"""

import hashlib
import io
import uuid
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, InputError
from medssl_cli.formats.anatomy_codes import Code, StructureCode, structure_code
from medssl_cli.formats.dicom import Header
from medssl_cli.formats.dicom.tags import MR_IMAGE
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.seg_attributes import (
    MAX_BYTES,
    clean_attributes,
    clean_date,
    clean_text,
    clean_time,
    usable_uid,
    valid_uid,
    whole_number,
)
from medssl_cli.formats.seg_frames import MAX_INDEX_ERROR, read_masks, read_segmentation
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.imaging.geometry import Affine, displacement_limit_mm, spacing_mm

NAMESPACE: Final = uuid.UUID("6f3c2a52-3a0e-5a86-9a55-6d2f1c0b7e41")
AI: Final[Code] = ("123109", "DCM", "Artificial Intelligence")
MAX_SERIES_NUMBER: Final = 2_000_000


@dataclass(frozen=True)
class SegmentationObject:
    """A DICOM file, and what in its source was not as the standard wants it.

    Args:
        data: The file.
        changed: Keywords of attributes that were repaired or left out.
        invalid: Keywords of UIDs that are not valid and are kept, since they name the source.
    """

    data: bytes
    changed: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What a report says about it; empty if there is nothing to say."""
        parts = [f"repaired or left out: {', '.join(self.changed)}"] if self.changed else []
        if self.invalid:
            parts.append(f"kept as the series has it, though it is no valid UID: {', '.join(self.invalid)}")
        return f"in the DICOM SEG {'; '.join(parts)}" if parts else ""


def write_segmentation(
    labels: NDArray[np.uint8],
    slices: Sequence[Header],
    classes: Mapping[int, str],
    *,
    affine: Affine,
    model_sha256: str,
    algorithm_name: str,
    codes: Mapping[str, StructureCode] | None = None,
) -> SegmentationObject:
    """A DICOM SEG of a label map or of masks in the frame of reference of its series, deterministic down to the byte.

    The same series, model and voxels give the same object and the same UIDs; its dates are those of the series.
    Segment numbers are the label map's values. They may have no gaps, so classes that were not found are listed up to
    the last one that was; if none was, all are. Masks are a segment each, which may overlap.

    Args:
        labels: `[X, Y, Z]`, 0 is background; or masks `[K, X, Y, Z]` of 0 and 1, the k-th of class k, from 1 on.
        slices: Slices of the series, in any order; frames of a multi-frame object are slices, too.
        classes: Names by label value, background left out.
        affine: Affine of its grid, voxel-centre index to RAS+ millimetres.
        model_sha256: SHA-256 of the model; part of the UIDs.
        algorithm_name: What made the segmentation; its words decide what `anterior` means.
        codes: Codes by name of a class, instead of those that its name suggests.

    Returns:
        An object. Slices without a structure are left out, unless all are empty.

    Raises:
        InputError: `E_PATIENT_MIX` if the slices belong to several patients or studies, `E_SEG_SOURCE` if they have no
            UIDs that an object could name, `E_OUTPUT_CHECK` if highdicom does not take them.
        GateError: `E_OUTPUT_CHECK` if the object does not read back as the same voxels at the same places.
    """
    _require_one_patient(slices)
    invalid = _require_uids(slices)
    first = min(slices, key=lambda header: (str(header.source), header.frame))
    source = _read_without_pixels(first.source)
    attributes, changed = clean_attributes(source)
    uids = _Uids(slices, model_sha256, labels)
    places = _places(slices, affine, labels.shape[-1])
    given = {name: structure_code(name, task=algorithm_name) for name in classes.values()} | dict(codes or {})
    listed = range(1, (_last_segment(labels) or max(classes)) + 1)
    segments = [_description(value, classes[value], given[classes[value]], algorithm_name) for value in listed]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of the source that are none of the mask's business
            templates = _templates(labels, first, attributes, affine=affine, uids=uids)
            segmentation = _build(labels, templates, segments, uids=uids, algorithm_name=algorithm_name)
            segmentation.SeriesNumber = _series_number(source, model_sha256)
            _make_deterministic(segmentation, source, uids)
            numbers = {str(item.SOPInstanceUID): k for k, item in enumerate(templates)}
            _name_sources(segmentation, slices, numbers, places)
            buffer = io.BytesIO()
            segmentation.save_as(buffer)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            "E_OUTPUT_CHECK",
            f"no DICOM SEG can be made of this series ({type(error).__name__})",
            hint="the NIfTI mask is written all the same",
        ) from error
    data = buffer.getvalue()
    _check(data, labels, affine)
    return SegmentationObject(data, tuple(changed), tuple(invalid))


class _Uids:
    """UIDs as functions of the series, the model and, for the instance, the slices and the voxels.

    A series may hold several images, phases for example, whose masks may be the same.
    """

    def __init__(self, slices: Sequence[Header], model_sha256: str, labels: NDArray[np.uint8]) -> None:
        source_series = slices[0].SeriesInstanceUID
        names = sorted(f"{header.SOPInstanceUID}#{header.frame}" for header in slices)
        content = hashlib.sha256("|".join(names).encode() + np.ascontiguousarray(labels).tobytes()).hexdigest()
        base = f"{source_series}|{model_sha256}"
        self.series = _uid("series", base)
        self.instance = _uid("instance", base, content)
        self.frame_of_reference = _uid("frame of reference", source_series)
        self.dimensions = _uid("dimensions", base)


def _uid(*parts: str) -> str:
    """A UID under 2.25, the arc of UUIDs (PS3.5 annex B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(parts)).int}"


def _require_one_patient(slices: Sequence[Header]) -> None:
    identities = {(header.PatientID, header.StudyInstanceUID) for header in slices}
    if len(identities) > 1:
        raise InputError("E_PATIENT_MIX", f"the slices of one series name {len(identities)} patients or studies")


def _require_uids(slices: Sequence[Header]) -> list[str]:
    """Keywords of UIDs that are not valid, and can be named all the same.

    Raises:
        InputError: `E_SEG_SOURCE`.
    """
    found = {
        keyword: {getattr(header, keyword) for header in slices}
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    }
    unusable = [keyword for keyword, uids in found.items() if not all(map(usable_uid, uids))]
    if unusable:
        raise InputError("E_SEG_SOURCE", f"a DICOM SEG must name its source, which has no usable {unusable[0]}")
    return [keyword for keyword, uids in found.items() if not all(map(valid_uid, uids))]


def _read_without_pixels(source: Source) -> Any:
    from pydicom import dcmread

    stream = source if isinstance(source, Path) else io.BytesIO(read_bytes(source))
    return dcmread(stream, stop_before_pixels=True, force=True)


def _places(slices: Sequence[Header], affine: Affine, num_slices: int) -> dict[int, list[Header]]:
    """Slices of the series by the slice of the label map that lies where they do; of a mended series some have none."""
    to_index = np.linalg.inv(LPS_TO_RAS @ affine)
    limit = displacement_limit_mm(affine) / min(spacing_mm(affine)) + MAX_INDEX_ERROR
    found: dict[int, list[Header]] = {}
    for header in slices:
        if header.ImagePositionPatient is None:
            continue
        index = to_index @ (*header.ImagePositionPatient, 1.0)
        k = round(index[2])
        if abs(index[2] - k) < limit and 0 <= k < num_slices:
            found.setdefault(k, []).append(header)
    return found


def _templates(
    labels: NDArray[np.uint8], first: Header, attributes: Mapping[str, Any], *, affine: Affine, uids: _Uids
) -> list[Any]:
    """A data set per slice of the label map, with its exact geometry: what highdicom sees of the series.

    They are of a kind that has one frame each, whatever the series is; `_name_sources` puts the true kind in.
    """
    from pydicom import Dataset

    lps = LPS_TO_RAS @ affine
    x_mm, y_mm, z_mm = spacing_mm(affine)
    templates = []
    for k in range(labels.shape[-1]):
        item = Dataset()
        for keyword, value in attributes.items():
            setattr(item, keyword, value)
        item.SpecificCharacterSet = "ISO_IR 192"
        item.SOPClassUID, item.SOPInstanceUID = MR_IMAGE, _uid("template", uids.series, str(k))
        item.StudyInstanceUID, item.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
        reference = first.FrameOfReferenceUID
        item.FrameOfReferenceUID = reference if valid_uid(reference) else uids.frame_of_reference
        item.Modality = first.Modality
        item.Columns, item.Rows = labels.shape[-3], labels.shape[-2]
        item.PixelSpacing = [y_mm, x_mm]
        item.SliceThickness = z_mm
        item.ImageOrientationPatient = _orientation(lps)
        item.ImagePositionPatient = (lps @ (0, 0, k, 1))[:3].tolist()
        templates.append(item)
    return templates


def _orientation(lps: Affine) -> list[float]:
    """The two orthogonal unit vectors nearest to rows and columns of a slice."""
    u, _, v = np.linalg.svd(lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0), full_matrices=False)
    return (u @ v).T.ravel().tolist()


def _build(
    labels: NDArray[np.uint8], templates: Sequence[Any], segments: Sequence[Any], *, uids: _Uids, algorithm_name: str
) -> Any:
    from highdicom.seg import Segmentation, SegmentationTypeValues

    return Segmentation(
        source_images=templates,
        pixel_array=_pixels(labels, len(segments)),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=uids.series,
        series_number=1,
        sop_instance_uid=uids.instance,
        instance_number=1,
        manufacturer="medssl",
        manufacturer_model_name=clean_text(algorithm_name),
        software_versions=__version__,
        device_serial_number="0",
        omit_empty_frames=bool(labels.any()),
        series_description=clean_text(f"{algorithm_name} segmentation"),
    )


def _last_segment(labels: NDArray[np.uint8]) -> int:
    """The highest segment number that was found; 0 for none."""
    if labels.ndim == 3:
        return int(labels.max())
    return max((place for place, mask in enumerate(labels, start=1) if mask.any()), default=0)


def _pixels(labels: NDArray[np.uint8], num_segments: int) -> NDArray[np.uint8]:
    """Frames of a label map, `[Z, Y, X]`, or of the masks that are listed, `[Z, Y, X, K]`."""
    if labels.ndim == 3:
        return np.ascontiguousarray(labels.transpose(2, 1, 0))
    return np.ascontiguousarray(labels[:num_segments].transpose(3, 2, 1, 0))


def _description(number: int, name: str, code: StructureCode, algorithm_name: str) -> Any:
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    description = SegmentDescription(
        segment_number=number,
        segment_label=_label(name, number),
        segmented_property_category=hd.sr.CodedConcept(*code.category),
        segmented_property_type=hd.sr.CodedConcept(*code.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=clean_text(algorithm_name), family=hd.sr.CodedConcept(*AI), version=__version__
        ),
        anatomic_regions=None if code.region is None else [hd.sr.CodedConcept(*code.region)],
        display_color=None if code.colour is None else hd.color.CIELabColor.from_rgb(*code.colour),
    )
    if code.modifiers:
        modifiers = [hd.sr.CodedConcept(*modifier) for modifier in code.modifiers]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return description


def _label(name: str, number: int) -> str:
    """A class's name; one that is too long ends in its number, so that no two are the same."""
    whole, room = clean_text(name, 1000), clean_text(name)
    return (room if whole == room else f"{clean_text(name, MAX_BYTES - 6)} #{number}") or f"class {number}"


def _series_number(source: Any, model_sha256: str) -> int:
    """Behind the source's, so that viewers sort it there, and another one for most other models."""
    number = min(whole_number(source, "SeriesNumber") or 0, MAX_SERIES_NUMBER)
    return 1000 * number + 900 + int(model_sha256[:8], 16) % 100


def _make_deterministic(segmentation: Any, source: Any, uids: _Uids) -> None:
    """Replace what highdicom draws at random or takes from the clock."""
    date, time = _date_and_time(source)
    segmentation.ContentDate, segmentation.ContentTime = date, time
    for keyword, value in (
        ("InstanceCreationDate", date),
        ("InstanceCreationTime", time),
        ("SeriesDate", date),
        ("SeriesTime", time),
    ):
        if keyword in segmentation:
            setattr(segmentation, keyword, value)
    for equipment in segmentation.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = date + time
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = uids.dimensions
    for item in segmentation.DimensionIndexSequence:
        item.DimensionOrganizationUID = uids.dimensions


def _date_and_time(source: Any) -> tuple[str, str]:
    for name in ("Content", "Series", "Acquisition", "Study"):
        if (day := clean_date(str(source.get(f"{name}Date") or ""))) is not None:
            return day, clean_time(str(source.get(f"{name}Time") or "")) or "000000"
    return "19000101", "000000"


def _name_sources(
    segmentation: Any, slices: Sequence[Header], numbers: Mapping[str, int], places: Mapping[int, Sequence[Header]]
) -> None:
    """Name the slices of the series, which highdicom knows by those of the label map only.

    Args:
        segmentation: The object.
        slices: Slices of the series.
        numbers: Slice of the label map by the UID that highdicom knows it by.
        places: Slices of the series by slice of the label map.
    """
    from pydicom import Dataset

    instances = []
    for class_uid, uid in sorted({(header.SOPClassUID, header.SOPInstanceUID) for header in slices}):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, uid
        instances.append(item)
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = instances
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        if "DerivationImageSequence" not in groups:
            continue
        derivation = deepcopy(groups.DerivationImageSequence[0])  # frames of several segments share one
        (template,) = derivation.SourceImageSequence
        headers = places.get(numbers[str(template.ReferencedSOPInstanceUID)], ())
        derivation.SourceImageSequence = [_source_image(template, header) for header in headers]
        groups.DerivationImageSequence = [derivation] if headers else []


def _source_image(template: Any, header: Header) -> Any:
    """The reference to one slice, or to one frame of a multi-frame object (PS3.3 section 10.3)."""
    item = deepcopy(template)
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if header.NumberOfFrames > 1:
        item.ReferencedFrameNumber = header.frame + 1
    return item


def _check(data: bytes, labels: NDArray[np.uint8], affine: Affine) -> None:
    x, y, z = labels.shape[-3:]
    found = (
        read_segmentation(data, affine, (x, y, z))
        if labels.ndim == 3
        else read_masks(data, affine, (len(labels), x, y, z))
    )
    if not np.array_equal(found, labels):
        raise GateError("E_OUTPUT_CHECK", "the segmentation object does not read back as the mask")
