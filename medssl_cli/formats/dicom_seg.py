"""DICOM Segmentation objects: label maps or masks that a PACS can store and show over the series they belong to.

Built by highdicom over a clean description of the series, never over its files: of these come valid attributes of
patient and study only, and the UIDs of the slices. Before anybody sees an object it is read back without highdicom:
the position of each frame must lead to exactly the voxels that were written.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, InputError
from medssl_cli.formats.anatomy_codes import StructureCode, structure_code
from medssl_cli.formats.derived_objects import (
    answer_digest,
    date_and_time,
    derived_uid,
    first_slice,
    frame_of_reference,
    object_label,
    read_without_pixels,
    require_one_patient,
    require_uids,
    series_number,
    slices_at,
    source_image,
    version_and_family,
)
from medssl_cli.formats.dicom import Header
from medssl_cli.formats.dicom.tags import MR_IMAGE
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.seg_attributes import (
    clean_attributes,
    clean_text,
)
from medssl_cli.formats.seg_frames import read_masks, read_segmentation
from medssl_cli.formats.seg_storage import DEFLATED, PLAIN, SegStorage
from medssl_cli.imaging.geometry import Affine, spacing_mm
from medssl_cli.recipe_sections import Algorithm


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
    algorithm: Algorithm | None = None,
    codes: Mapping[str, StructureCode] | None = None,
    storage: SegStorage = SegStorage.binary,
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
        algorithm: Version, family and source of that, if they are not medssl's.
        codes: Codes by name of a class, instead of those that its name suggests.
        storage: How voxels are stored; a label map holds no masks that overlap.

    Returns:
        An object. Slices without a structure are left out, unless all are empty.

    Raises:
        InputError: `E_PATIENT_MIX` if the slices belong to several patients or studies, `E_SEG_SOURCE` if they have no
            UIDs that an object could name, `E_OUTPUT_CHECK` if highdicom does not take them.
        GateError: `E_OUTPUT_CHECK` if the object does not read back as the same voxels at the same places.
    """
    require_one_patient(slices)
    invalid = require_uids(slices)
    first = first_slice(slices)
    source = read_without_pixels(first.source)
    attributes, changed = clean_attributes(source)
    uids = _Uids(slices, model_sha256, labels, storage)
    places = slices_at(slices, affine, labels.shape[-1])
    given = {name: structure_code(name, task=algorithm_name) for name in classes.values()} | dict(codes or {})
    listed = range(1, (_last_segment(labels) or max(classes)) + 1)
    identification = _identification(algorithm_name, algorithm)
    segments = [_description(value, classes[value], given[classes[value]], identification) for value in listed]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of the source that are none of the mask's business
            templates = _templates(labels, first, attributes, affine=affine, uids=uids)
            segmentation = _build(
                labels, templates, segments, uids=uids, algorithm_name=algorithm_name, storage=storage
            )
            segmentation.SeriesNumber = series_number(source, model_sha256)
            _make_deterministic(segmentation, source, uids)
            numbers = {str(item.SOPInstanceUID): k for k, item in enumerate(templates)}
            _name_sources(segmentation, slices, numbers, places)
            segmentation.file_meta.TransferSyntaxUID = storage.transfer_syntax
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

    def __init__(
        self, slices: Sequence[Header], model_sha256: str, labels: NDArray[np.uint8], storage: SegStorage
    ) -> None:
        source_series = slices[0].SeriesInstanceUID
        form = () if storage is SegStorage.binary else (storage.value,)
        content = answer_digest(slices, np.ascontiguousarray(labels).tobytes(), *form)
        base = f"{source_series}|{model_sha256}"
        self.series = derived_uid("series", base)
        self.instance = derived_uid("instance", base, content)
        self.dimensions = derived_uid("dimensions", base)


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
        item.SOPClassUID, item.SOPInstanceUID = MR_IMAGE, derived_uid("template", uids.series, str(k))
        item.StudyInstanceUID, item.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
        item.FrameOfReferenceUID = frame_of_reference(first)
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
    labels: NDArray[np.uint8],
    templates: Sequence[Any],
    segments: Sequence[Any],
    *,
    uids: _Uids,
    algorithm_name: str,
    storage: SegStorage,
) -> Any:
    from highdicom.seg import Segmentation, SegmentationTypeValues

    return Segmentation(
        source_images=templates,
        pixel_array=_pixels(labels, len(segments)),
        segmentation_type=SegmentationTypeValues.LABELMAP if storage.is_label_map else SegmentationTypeValues.BINARY,
        transfer_syntax_uid=PLAIN if storage.transfer_syntax == DEFLATED else storage.transfer_syntax,
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


def _identification(name: str, algorithm: Algorithm | None) -> Any:
    """What made the segments."""
    import highdicom as hd

    version, family = version_and_family(algorithm)
    return hd.AlgorithmIdentificationSequence(
        name=clean_text(name),
        family=hd.sr.CodedConcept(*family),
        version=version,
        source=None if algorithm is None else algorithm.source,
    )


def _description(number: int, name: str, code: StructureCode, identification: Any) -> Any:
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    description = SegmentDescription(
        segment_number=number,
        segment_label=object_label(name, number),
        segmented_property_category=hd.sr.CodedConcept(*code.category),
        segmented_property_type=hd.sr.CodedConcept(*code.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=deepcopy(identification),
        anatomic_regions=None if code.region is None else [hd.sr.CodedConcept(*code.region)],
        display_color=None if code.colour is None else hd.color.CIELabColor.from_rgb(*code.colour),
    )
    if code.modifiers:
        modifiers = [hd.sr.CodedConcept(*modifier) for modifier in code.modifiers]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return description


def _make_deterministic(segmentation: Any, source: Any, uids: _Uids) -> None:
    """Replace what highdicom draws at random or takes from the clock."""
    date, time = date_and_time(source)
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
    derivations: dict[str, list[Dataset]] = {}
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        if "DerivationImageSequence" not in groups:
            continue
        (known,) = groups.DerivationImageSequence  # frames of several segments share one
        (template,) = known.SourceImageSequence
        uid = str(template.ReferencedSOPInstanceUID)
        if uid not in derivations:
            headers = places.get(numbers[uid], ())
            derivation = deepcopy(known)
            derivation.SourceImageSequence = [source_image(template, header) for header in headers]
            derivations[uid] = [derivation] if headers else []
        groups.DerivationImageSequence = derivations[uid]


def _check(data: bytes, labels: NDArray[np.uint8], affine: Affine) -> None:
    x, y, z = labels.shape[-3:]
    found = (
        read_segmentation(data, affine, (x, y, z))
        if labels.ndim == 3
        else read_masks(data, affine, (len(labels), x, y, z))
    )
    if not np.array_equal(found, labels):
        raise GateError("E_OUTPUT_CHECK", "the segmentation object does not read back as the mask")
