"""Write a volume as a CT series of single-frame DICOM files, deterministically."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.base.files import storage_errors
from medssl_cli.formats.dicom.headers import CT_IMAGE
from medssl_cli.formats.loaded import LPS_TO_RAS
from medssl_cli.imaging.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

INTERCEPT_HU: Final = -1024
_MAX_SHEAR: Final = 1e-4
_IMPLEMENTATION: Final = "2.25.177293837365124096461437216817212446721"


def write_ct_series(
    folder: Path,
    volume: Volume,
    *,
    patient_id: str,
    patient_name: str,
    study_uid: str,
    series_uid: str,
    frame_of_reference_uid: str,
    series_description: str,
    file_names: Sequence[str] | None = None,
) -> list[Path]:
    """Write one file per slice: CT Image Storage, explicit VR little endian, uncompressed.

    Args:
        folder: Created if needed.
        volume: Whole Hounsfield units `[1, X, Y, Z]`; axes of the affine orthogonal, in any orientation and handedness.
        patient_id: PatientID.
        patient_name: PatientName.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID; the instances' identifiers are this, a dot and their number.
        frame_of_reference_uid: FrameOfReferenceUID.
        series_description: SeriesDescription.
        file_names: One per slice k; "ct-0001.dcm", ... by default.

    Returns:
        Paths in the order of k. Instance numbers ascend along the normal of the slices.

    Raises:
        InputError: `E_AFFINE_SHEAR` if the axes are not orthogonal, `E_DATATYPE` if the voxels are not one channel
            of integers in [-32768, 31743].
        StorageError: `E_IO`.
    """
    axes, spacing = _axes_lps(volume)
    _check_voxels(volume)
    depth = volume.shape[2]
    names = file_names or [f"ct-{k + 1:04d}.dcm" for k in range(depth)]
    if len(names) != depth or len(set(names)) != depth:
        raise ValueError(f"{depth} different file names are needed")
    is_ascending = np.linalg.det(axes) > 0
    common = _common(volume, axes, spacing, spacing[2])
    common.PatientID, common.PatientName = patient_id, patient_name
    common.StudyInstanceUID, common.SeriesInstanceUID = study_uid, series_uid
    common.FrameOfReferenceUID, common.SeriesDescription = frame_of_reference_uid, series_description
    paths = []
    with storage_errors("a DICOM series"):
        folder.mkdir(parents=True, exist_ok=True)
        for k, name in enumerate(names):
            number = k + 1 if is_ascending else depth - k
            path = folder / name
            _write_slice(path, common, volume, k, number)
            paths.append(path)
    return paths


def _axes_lps(volume: Volume) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], tuple[float, float, float]]:
    lps = LPS_TO_RAS @ volume.affine
    axes = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if not shear <= _MAX_SHEAR:
        raise InputError("E_AFFINE_SHEAR", f"axes deviate from right angles by {shear:.4f}; slices cannot express that")
    return axes, volume.spacing_mm


def _check_voxels(volume: Volume) -> None:
    voxels = volume.voxels
    if voxels.shape[0] != 1 or voxels.dtype.kind not in "iu":
        raise InputError("E_DATATYPE", f"CT is one channel of integers, not {voxels.shape[0]} of {voxels.dtype}")
    if int(voxels.min()) < -32768 or int(voxels.max()) > 32767 + INTERCEPT_HU:
        raise InputError("E_DATATYPE", "Hounsfield units exceed what 16 bits hold")


def _common(
    volume: Volume, axes: np.ndarray[tuple[int, int], np.dtype[np.float64]], spacing: Sequence[float], thickness: float
) -> "Dataset":
    """What all slices share; the mandatory elements of the CT image IOD (PS3.3 A.3) that nobody knows stay empty."""
    from pydicom.dataset import Dataset

    low, high = int(volume.voxels.min()) - INTERCEPT_HU, int(volume.voxels.max()) - INTERCEPT_HU
    is_12_bit = low >= 0 and high < 4096
    is_signed = low < 0
    dataset = Dataset()
    dataset.SOPClassUID = CT_IMAGE
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = "CT"
    for empty in (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex",
        "StudyID", "KVP", "AcquisitionNumber", "PositionReferenceIndicator", "Manufacturer", "ContentDate",
        "ContentTime", "Laterality",
    ):  # fmt: skip
        setattr(dataset, empty, "")
    dataset.SeriesNumber = 1
    dataset.PatientPosition = "HFS"
    dataset.Manufacturer = "medssl"
    dataset.SliceThickness = _decimal(thickness)
    dataset.ImageOrientationPatient = [_decimal(value) for value in (*axes[:, 0], *axes[:, 1])]
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Columns, dataset.Rows = volume.shape[:2]
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12 if is_12_bit else 16
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(is_signed)
    dataset.RescaleIntercept = str(INTERCEPT_HU)
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "HU"
    dataset.BurnedInAnnotation = "NO"
    return dataset


def _write_slice(path: Path, common: "Dataset", volume: Volume, k: int, number: int) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.update(common)
    dataset.SOPInstanceUID = f"{common.SeriesInstanceUID}.{number}"
    dataset.InstanceNumber = number
    position = (LPS_TO_RAS @ volume.affine)[:3] @ np.array([0, 0, k, 1])
    dataset.ImagePositionPatient = [_decimal(value) for value in position]
    stored = volume.voxels[0, :, :, k].T.astype(np.int32) - INTERCEPT_HU
    kind = "<i2" if common.PixelRepresentation else "<u2"
    dataset.PixelData = np.ascontiguousarray(stored.astype(kind)).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CT_IMAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = _IMPLEMENTATION
    dcmwrite(path, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)


def _decimal(value: float) -> str:
    """The best decimal string of at most 16 characters (VR DS)."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) + 0.0)
