"""DICOM Segmentation objects: label maps that a PACS can store and show over the series they belong to.

Built by highdicom from a volume with its affine, never from a bare stack of frames, and read back here without
highdicom before anybody else sees them: the position of each frame must lead to exactly the voxels that were written.
"""

import hashlib
import io
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.errors import GateError, InputError
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.imaging.geometry import Affine, spacing_mm

MAX_INDEX_ERROR: Final = 0.01
NAMESPACE: Final = uuid.UUID("6f3c2a52-3a0e-5a86-9a55-6d2f1c0b7e41")
ANATOMICAL_STRUCTURE: Final = ("91723000", "SCT", "Anatomical structure")
GENERIC: Final = ("123037004", "SCT", "Body structure")
STRUCTURES: Final[dict[str, tuple[str, str, str]]] = {
    "heart": ("80891009", "SCT", "Heart"),
    "left_ventricle": ("87878005", "SCT", "Left cardiac ventricle"),
    "right_ventricle": ("53085002", "SCT", "Right cardiac ventricle"),
    "left_atrium": ("82471001", "SCT", "Left cardiac atrium"),
    "right_atrium": ("73829009", "SCT", "Right cardiac atrium"),
    "myocardium": ("74281007", "SCT", "Myocardium"),
    "aorta": ("15825003", "SCT", "Aorta"),
    "pulmonary_artery": ("81040000", "SCT", "Pulmonary artery"),
    "hippocampus": ("5366008", "SCT", "Hippocampus"),
}
"""SNOMED CT codes of whole structures, as DICOM PS3.16 uses them; finer parts are told by the segment's label."""
SYNONYMS: Final[dict[str, str]] = {
    "lv": "left_ventricle",
    "rv": "right_ventricle",
    "la": "left_atrium",
    "ra": "right_atrium",
    "myo": "myocardium",
    "lv_myocardium": "myocardium",
    "left_ventricular_myocardium": "myocardium",
    "ascending_aorta": "aorta",
    "aa": "aorta",
    "ao": "aorta",
    "pa": "pulmonary_artery",
    "anterior": "hippocampus",
    "posterior": "hippocampus",
    "hippocampus_anterior": "hippocampus",
    "hippocampus_posterior": "hippocampus",
    "anterior_hippocampus": "hippocampus",
    "posterior_hippocampus": "hippocampus",
}


def write_segmentation(
    labels: NDArray[np.uint8],
    sources: Sequence[Path],
    classes: Mapping[int, str],
    *,
    affine: Affine,
    model_sha256: str,
    algorithm_name: str,
) -> bytes:
    """A DICOM SEG of a label map on the grid of its series, deterministic down to the byte.

    The same series, model and voxels give the same object and the same UIDs; its dates are those of the series.

    Args:
        labels: `[X, Y, Z]`, 0 is background.
        sources: Files of the series in order of Z; every slice of the label map has one.
        classes: Names by label value, background left out.
        affine: Of the label map, voxel-centre index to RAS+ millimetres.
        model_sha256: Of the model; part of the UIDs.
        algorithm_name: What made the segmentation.

    Returns:
        A DICOM file. Slices without a structure are left out, unless all are empty.

    Raises:
        InputError: `E_PATIENT_MIX` if the sources belong to several patients or studies.
        GateError: `E_OUTPUT_CHECK` if the object does not read back as the same voxels at the same places.
    """
    images = [_read_without_pixels(path) for path in sources]
    return _write(labels, images, classes, affine=affine, model_sha256=model_sha256, algorithm_name=algorithm_name)


def _write(
    labels: NDArray[np.uint8],
    images: Sequence[Any],
    classes: Mapping[int, str],
    *,
    affine: Affine,
    model_sha256: str,
    algorithm_name: str,
) -> bytes:
    if len(images) != labels.shape[2]:
        raise ValueError(f"{len(images)} source slices for {labels.shape[2]} slices of labels")
    _require_one_patient(images)
    uids = _Uids(str(images[0].SeriesInstanceUID), model_sha256, labels)
    for image in images:
        _complete(image, uids, affine)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of the source that are none of the mask's business
            segmentation = _build(labels, images, classes, affine=affine, uids=uids, algorithm_name=algorithm_name)
            _make_deterministic(segmentation, images[0], uids)
            segmentation.save_as(buffer)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            "E_OUTPUT_CHECK",
            f"the headers of the series do not allow a DICOM SEG ({type(error).__name__})",
            hint="the NIfTI mask is written all the same",
        ) from error
    data = buffer.getvalue()
    _check(data, labels, affine)
    return data


def read_segmentation(data: bytes, affine: Affine, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Place the frames of a binary SEG on a grid by their own positions, without highdicom.

    Args:
        data: A DICOM file.
        affine: Of the wanted grid, to RAS+ millimetres.
        shape: Its size (X, Y, Z).

    Returns:
        `[X, Y, Z]` label map; the segment number is the label.

    Raises:
        GateError: `E_OUTPUT_CHECK` if a frame does not lie on voxels of the grid, or segments overlap.
    """
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data))
    frames = _unpacked_frames(dataset)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    to_index = np.linalg.inv(LPS_TO_RAS @ affine)
    labels = np.zeros(shape, dtype=np.uint8)
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if not frame.any():
            continue
        number = int(_macro("SegmentIdentificationSequence", shared, groups).ReferencedSegmentNumber)
        rows, columns = np.nonzero(frame)
        points = np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)]).astype(np.float64)
        indices = (to_index @ _frame_affine(shared, groups) @ points)[:3]
        voxels = np.rint(indices).astype(int)
        is_inside = ((voxels >= 0) & (voxels < np.array(shape)[:, None])).all()
        if not is_inside or np.abs(indices - voxels).max() > MAX_INDEX_ERROR or labels[tuple(voxels)].any():
            raise GateError("E_OUTPUT_CHECK", "a frame of the segmentation does not lie on the grid of the series")
        labels[tuple(voxels)] = number
    return labels


class _Uids:
    """UIDs as functions of the series, the model and, for the instance, the voxels."""

    def __init__(self, source_series: str, model_sha256: str, labels: NDArray[np.uint8]) -> None:
        content = hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()
        base = f"{source_series}|{model_sha256}"
        self.series = _uid("series", base)
        self.instance = _uid("instance", base, content)
        self.frame_of_reference = _uid("frame of reference", source_series)
        self.dimensions = _uid("dimensions", base)


def _uid(*parts: str) -> str:
    """A UID under 2.25, the arc of UUIDs (PS3.5 annex B.2)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '|'.join(parts)).int}"


PATIENT_AND_STUDY: Final = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Attributes of type 2: a source that lacks one gives an object that has it empty (PS3.5 section 7.4.3)."""


def _complete(image: Any, uids: "_Uids", affine: Affine) -> None:
    for keyword in PATIENT_AND_STUDY:
        if keyword not in image:
            setattr(image, keyword, "")
    if "FrameOfReferenceUID" not in image:
        image.FrameOfReferenceUID = uids.frame_of_reference
    if image.get("SliceThickness") is None:
        image.SliceThickness = round(spacing_mm(affine)[2], 6)


def _read_without_pixels(path: Path) -> Any:
    from pydicom import dcmread

    return dcmread(path, stop_before_pixels=True)


def _require_one_patient(images: Sequence[Any]) -> None:
    identities = {(str(image.get("PatientID", "")), str(image.get("StudyInstanceUID", ""))) for image in images}
    if len(identities) > 1:
        raise InputError("E_PATIENT_MIX", f"the slices of one series name {len(identities)} patients or studies")


def _build(
    labels: NDArray[np.uint8],
    images: Sequence[Any],
    classes: Mapping[int, str],
    *,
    affine: Affine,
    uids: _Uids,
    algorithm_name: str,
) -> Any:
    import highdicom as hd
    from highdicom.seg import Segmentation, SegmentationTypeValues

    volume = hd.Volume(
        np.ascontiguousarray(labels.transpose(2, 1, 0)),
        LPS_TO_RAS @ affine @ _ijk_from_kji(),
        coordinate_system="PATIENT",
        frame_of_reference_uid=str(images[0].FrameOfReferenceUID),
    )
    return Segmentation(
        source_images=images,
        pixel_array=volume,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(value, classes[value], algorithm_name) for value in sorted(classes)],
        series_instance_uid=uids.series,
        series_number=9000,
        sop_instance_uid=uids.instance,
        instance_number=1,
        manufacturer="medssl",
        manufacturer_model_name=algorithm_name[:64],
        software_versions=__version__,
        device_serial_number="0",
        omit_empty_frames=bool(labels.any()),
        series_description=f"{algorithm_name} segmentation"[:64],
    )


def _ijk_from_kji() -> Affine:
    """highdicom's arrays run slice, row, column; ours column, row, slice."""
    swap = np.eye(4)
    swap[:3, :3] = np.eye(3)[::-1]
    return swap


def _description(number: int, name: str, algorithm_name: str) -> Any:
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription

    return SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=hd.sr.CodedConcept(*ANATOMICAL_STRUCTURE),
        segmented_property_type=hd.sr.CodedConcept(*structure_code(name)),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm_name[:64],
            family=hd.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
            version=__version__,
        ),
    )


def structure_code(name: str) -> tuple[str, str, str]:
    """(value, scheme, meaning) of a structure's code; a general one if the name is not known."""
    key = name.lower().replace(" ", "_").replace("-", "_")
    return STRUCTURES.get(SYNONYMS.get(key, key), GENERIC)


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
        if source.get(f"{name}Date"):
            return str(source.get(f"{name}Date")), str(source.get(f"{name}Time") or "000000")
    return "19000101", "000000"


def _unpacked_frames(dataset: Any) -> NDArray[np.uint8]:
    """`[frames, rows, columns]` of 1-bit pixels, least significant bit first (PS3.5 section 8.1.1)."""
    count = int(dataset.NumberOfFrames) * int(dataset.Rows) * int(dataset.Columns)
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, dtype=np.uint8), bitorder="little")
    return bits[:count].reshape(int(dataset.NumberOfFrames), int(dataset.Rows), int(dataset.Columns))


def _frame_affine(shared: Any, groups: Any) -> Affine:
    """(column, row, 0, 1) of a frame to LPS millimetres: PS3.3 equation C.7.6.2.1-1."""
    measures = _macro("PixelMeasuresSequence", shared, groups)
    orientation = _macro("PlaneOrientationSequence", shared, groups)
    position = _macro("PlanePositionSequence", shared, groups)
    cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64)
    row_spacing, column_spacing = (float(value) for value in measures.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * column_spacing
    affine[:3, 1] = cosines[3:] * row_spacing
    affine[:3, 3] = np.array(position.ImagePositionPatient, dtype=np.float64)
    return affine


def _macro(name: str, shared: Any, groups: Any) -> Any:
    """What equals in all frames is stated once for all of them."""
    return (shared if name in shared else groups)[name][0]


def _check(data: bytes, labels: NDArray[np.uint8], affine: Affine) -> None:
    x, y, z = labels.shape
    if not np.array_equal(read_segmentation(data, affine, (x, y, z)), labels):
        raise GateError("E_OUTPUT_CHECK", "the segmentation object does not read back as the mask")
