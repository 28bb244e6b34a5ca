"""DICOM structure sets (RTSTRUCT): the outlines of masks, which planning systems can show over the series.

Contours run along the edges of voxels, so that they hold exactly the voxels of the mask; a hole is a contour inside
another. Before anybody sees an object, its contours are read back and filled: every structure must be the mask again.
(PS3.3 A.19, C.8.8.5, C.8.8.6, C.8.8.8)
"""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

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
from medssl_cli.formats.labels import STRUCTURE_SET
from medssl_cli.formats.labels.polygons import unite_contours
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.formats.outlines import mask_outlines
from medssl_cli.formats.predictions import MANUFACTURER
from medssl_cli.formats.seg_attributes import clean_attributes, clean_text
from medssl_cli.imaging.geometry import Affine
from medssl_cli.recipe_sections import Algorithm

STUDY_CLASS: Final = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired: what PS3.3 C.8.8.5 lets a structure set call a study."""
LABEL_BYTES: Final = 16
DECIMALS_MM: Final = 4
GREY: Final = (128, 128, 128)


def write_structure_set(
    labels: NDArray[np.uint8],
    slices: Sequence[Header],
    classes: Mapping[int, str],
    *,
    affine: Affine,
    model_sha256: str,
    algorithm_name: str,
    algorithm: Algorithm | None = None,
    codes: Mapping[str, StructureCode] | None = None,
) -> bytes:
    """An RTSTRUCT of a label map or of masks in the frame of reference of its series, deterministic down to the byte.

    Args:
        labels: `[X, Y, Z]`, 0 is background; or masks `[K, X, Y, Z]` of 0 and 1, the k-th of class k, from 1 on.
        slices: Slices of the series, in any order.
        classes: Names by label value, background left out; each is a structure, also where nothing was found.
        affine: Affine of its grid, voxel-centre index to RAS+ millimetres.
        model_sha256: SHA-256 of the model; part of the UIDs.
        algorithm_name: What made the masks.
        algorithm: Version, family and source of that, where they are told.
        codes: By name of a class, instead of those that its name suggests.

    Raises:
        InputError: `E_PATIENT_MIX`, `E_SEG_SOURCE`: see `write_segmentation`.
        GateError: `E_OUTPUT_CHECK` if the contours do not read back as the same voxels.
    """
    require_one_patient(slices)
    require_uids(slices)
    first = first_slice(slices)
    source = read_without_pixels(first.source)
    digest = answer_digest(slices, np.ascontiguousarray(labels).tobytes())
    base = f"{first.SeriesInstanceUID}|{model_sha256}"
    dataset = _described(source, first, base=base, digest=digest, model_sha256=model_sha256, name=algorithm_name)
    frame = frame_of_reference(first)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = frame, ""
    dataset.ReferencedFrameOfReferenceSequence = [_referenced(slices, frame)]
    given = {name: structure_code(name, task=algorithm_name) for name in classes.values()} | dict(codes or {})
    places = slices_at(slices, affine, labels.shape[-1])
    dataset.StructureSetROISequence = []
    dataset.ROIContourSequence = []
    dataset.RTROIObservationsSequence = []
    for value, name in sorted(classes.items()):
        code = given[name]
        dataset.StructureSetROISequence.append(_structure(value, name, frame, algorithm))
        dataset.ROIContourSequence.append(_contours(value, code, _mask(labels, value), affine, places))
        dataset.RTROIObservationsSequence.append(_observation(value, code))
    data = _saved(dataset)
    _check(data, labels, affine, classes)
    return data


def _mask(labels: NDArray[np.uint8], value: int) -> NDArray[np.bool_]:
    """The voxels of one class."""
    return labels == value if labels.ndim == 3 else labels[value - 1] != 0


def _described(source: Any, first: Header, *, base: str, digest: str, model_sha256: str, name: str) -> Any:
    """An object without structures: patient, study, series and equipment."""
    from pydicom import Dataset

    dataset = Dataset()
    attributes, _ = clean_attributes(source)
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    day, time = date_and_time(source)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = STRUCTURE_SET
    dataset.SOPInstanceUID = derived_uid("rtstruct instance", base, digest)
    dataset.StudyInstanceUID = first.StudyInstanceUID
    dataset.SeriesInstanceUID = derived_uid("rtstruct series", base)
    dataset.SeriesNumber, dataset.InstanceNumber = series_number(source, model_sha256), 1
    dataset.Modality, dataset.OperatorsName = "RTSTRUCT", ""
    dataset.SeriesDescription = clean_text(f"{name} structures")
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, clean_text(name)
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = __version__, "0"
    dataset.StructureSetLabel = clean_text(name, LABEL_BYTES) or MANUFACTURER
    dataset.StructureSetDate, dataset.StructureSetTime = day, time
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _referenced(slices: Sequence[Header], frame: str) -> Any:
    """The series, with all its images."""
    from pydicom import Dataset

    series, study, reference = Dataset(), Dataset(), Dataset()
    named = sorted({(header.SOPClassUID, header.SOPInstanceUID): header for header in slices}.items())
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    series.ContourImageSequence = []
    for (class_uid, uid), _ in named:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, uid
        series.ContourImageSequence.append(item)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY_CLASS, slices[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    reference.FrameOfReferenceUID = frame
    reference.RTReferencedStudySequence = [study]
    return reference


def _structure(number: int, name: str, frame: str, algorithm: Algorithm | None) -> Any:
    """A structure's name, and what made it where that is told (PS3.3 C.8.8.5, ROI Derivation Algorithm)."""
    from pydicom import Dataset

    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = number, frame
    item.ROIName, item.ROIGenerationAlgorithm = object_label(name, number), "AUTOMATIC"
    if algorithm is not None:
        item.ROIDerivationAlgorithmIdentificationSequence = [_identification(algorithm)]
    return item


def _identification(algorithm: Algorithm) -> Any:
    from pydicom import Dataset

    item, family = Dataset(), Dataset()
    version, (family.CodeValue, family.CodingSchemeDesignator, family.CodeMeaning) = version_and_family(algorithm)
    item.AlgorithmFamilyCodeSequence = [family]
    item.AlgorithmName, item.AlgorithmVersion = algorithm.name, version
    if algorithm.source is not None:
        item.AlgorithmSource = algorithm.source
    return item


def _observation(number: int, code: StructureCode) -> Any:
    """What a structure is."""
    from pydicom import Dataset

    item, coded = Dataset(), Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = code.type
    item.RTROIIdentificationCodeSequence = [coded]
    return item


def _contours(
    number: int,
    code: StructureCode,
    mask: NDArray[np.bool_],
    affine: Affine,
    places: Mapping[int, Sequence[Header]],
) -> Any:
    """The contours of one structure, slice by slice."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(code.colour or GREY)
    contours = []
    lps = LPS_TO_RAS @ affine
    for index in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        for outline in mask_outlines(mask[:, :, index]):
            corners = np.column_stack([outline, np.full(len(outline), index), np.ones(len(outline))])
            contour = Dataset()
            if index in places:
                contour.ContourImageSequence = [source_image(Dataset(), header) for header in places[index]]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(outline)
            millimetres = (corners @ lps.T)[:, :3].ravel().tolist()
            contour.ContourData = [f"{one:.{DECIMALS_MM}f}" for one in millimetres]
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _saved(dataset: Any) -> bytes:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    try:
        dataset.save_as(buffer, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise InputError(
            "E_OUTPUT_CHECK",
            f"no structure set can be made of this series ({type(error).__name__})",
            hint="the NIfTI mask is written all the same",
        ) from error
    return buffer.getvalue()


def read_contour_masks(data: bytes, affine: Affine, shape: tuple[int, int, int]) -> dict[int, NDArray[np.bool_]]:
    """Masks `[X, Y, Z]` of the structures of an object by their numbers, read without what wrote them.

    Args:
        data: The file.
        affine: Affine of a grid on whose slices the contours lie.
        shape: Its shape.
    """
    from pydicom import dcmread

    to_index = np.linalg.inv(LPS_TO_RAS @ affine)
    masks = {}
    for item in dcmread(io.BytesIO(data)).ROIContourSequence:
        by_slice: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
        for contour in item.get("ContourSequence", ()):
            points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            indices = points @ to_index[:3, :3].T + to_index[:3, 3]
            by_slice[round(float(indices[:, 2].mean()))].append(indices[:, :2])
        mask = np.zeros(shape, np.bool_)
        for index, outlines in by_slice.items():
            mask[:, :, index] = unite_contours(outlines, shape[:2]).mask
        masks[int(item.ReferencedROINumber)] = mask
    return masks


def _check(data: bytes, labels: NDArray[np.uint8], affine: Affine, classes: Mapping[int, str]) -> None:
    x, y, z = labels.shape[-3:]
    try:
        found = read_contour_masks(data, affine, (x, y, z))
    except (InputError, IndexError) as error:
        raise GateError("E_OUTPUT_CHECK", "the structure set cannot be read back") from error
    if not all(np.array_equal(found[value], _mask(labels, value)) for value in classes):
        raise GateError("E_OUTPUT_CHECK", "the structure set does not read back as the mask")
