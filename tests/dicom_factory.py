"""Small DICOM series with known truth, for tests."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import (
    Header,
    Refusal,
    SeriesPart,
    group_headers,
    read_headers,
    read_series,
    write_ct_series,
)
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.volume import Volume

SERIES_UID = "1.2.826.0.1.3680043.8.498.1"
AXIAL_RAS = np.diag([-1.0, -1.0, 1.0])


def ct_series(
    folder: Path,
    *,
    positions_mm: Sequence[float] = (0, 5, 10, 15, 20),
    size: tuple[int, int] = (6, 5),
    spacing_mm: tuple[float, float] = (0.9, 0.7),
    series_uid: str = SERIES_UID,
    patient_id: str = "P1",
    study_uid: str = "1.2.826.0.1.3680043.8.498.2",
) -> list[Path]:
    """Axial slices at given heights, written in the given order; every voxel's value is its height in mm.

    Args:
        folder: Where to write.
        positions_mm: Whole millimetres along superior.
        size: Columns and rows.
        spacing_mm: Between columns and between rows.
        series_uid: SeriesInstanceUID.
        patient_id: PatientID.
        study_uid: StudyInstanceUID.

    Returns:
        Paths in the order of `positions_mm`; instance numbers follow that order too.
    """
    paths = []
    for number, height in enumerate(positions_mm, start=1):
        affine = np.eye(4)
        affine[:3, :3] = AXIAL_RAS * [*spacing_mm, 1.0]
        affine[:3, 3] = (40.0, 30.0, height)
        volume = Volume(np.full((1, *size, 1), int(height), np.int16), affine, modality="CT", units="HU")
        (path,) = write_ct_series(
            folder,
            volume,
            patient_id=patient_id,
            patient_name="Phantom^Test",
            study_uid=study_uid,
            series_uid=series_uid,
            frame_of_reference_uid="1.2.826.0.1.3680043.8.498.3",
            series_description="phantom",
            file_names=[f"{number:04d}.dcm"],
        )
        edit(path, InstanceNumber=number, SOPInstanceUID=f"{series_uid}.{number}")
        paths.append(path)
    return paths


def write_volume(folder: Path, volume: Volume, **options: Any) -> list[Path]:
    """Write a volume as a CT series with stand-in identifiers."""
    identifiers: dict[str, Any] = {
        "patient_id": "P1",
        "patient_name": "Phantom^Test",
        "study_uid": "1.2.826.0.1.3680043.8.498.2",
        "series_uid": SERIES_UID,
        "frame_of_reference_uid": "1.2.826.0.1.3680043.8.498.3",
        "series_description": "phantom",
    }
    return write_ct_series(folder, volume, **{**identifiers, **options})


def analytic_phantom(affine: Affine | None = None, shape: tuple[int, int, int] = (24, 20, 14)) -> Volume:
    """A volume whose value at (i, j, k) is i + 30 j + 700 k - 1000: unique, so a misplaced voxel cannot hide.

    Sizes differ in all axes and so do the default spacings (0.9, 0.7, 2.5 mm): symmetric phantoms hide transposes.
    """
    i, j, k = np.indices(shape)
    values = (i + 30 * j + 700 * k - 1000).astype(np.int16)
    if affine is None:
        affine = np.diag([-0.9, -0.7, 2.5, 1.0])
        affine[:3, 3] = (12.0, -31.0, 55.5)
    return Volume(values[np.newaxis], affine, modality="CT", units="HU")


def edit(path: Path, **attributes: Any) -> None:
    """Change attributes of a DICOM file in place; None deletes one. Values are not validated."""
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        for name, value in attributes.items():
            if value is None:
                delattr(dataset, name)
            elif name.startswith("PixelPadding"):
                dataset.add_new(name, "SS" if dataset.PixelRepresentation else "US", value)
            else:
                setattr(dataset, name, value)
        if "SOPInstanceUID" in attributes:
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(path)


def edit_raw(path: Path, name: str, text: str) -> None:
    """Set the bytes of one element as they are, whatever its value representation allows."""
    dataset = pydicom.dcmread(path)
    tag, value = Tag(name), text.encode()
    value += b" " * (len(value) % 2)
    dataset._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    dataset.save_as(path)


def group(paths: Iterable[Path], policy: Policy = STRICT) -> tuple[list[SeriesPart], list[Refusal]]:
    """Headers of all files, grouped; conservation is checked on the way."""
    headers: list[Header] = [header for path in paths for header in read_headers(path, policy)]
    parts, refusals = group_headers(headers, policy)
    placed = {header.source for part in parts for header in part.headers}
    placed |= {path for refusal in refusals for path in refusal.files}
    assert placed == {header.source for header in headers}
    return parts, refusals


def load(paths: Iterable[Path], policy: Policy = STRICT) -> LoadedImage:
    """The one image that files make; raises the refusal otherwise."""
    parts, refusals = group(paths, policy)
    for refusal in refusals:
        if refusal.code != "DUPLICATE":
            raise InputError(refusal.code, refusal.message, hint=refusal.hint)
    (part,) = parts
    return read_series(part, policy)


def refusal_code(paths: Iterable[Path], policy: Policy = STRICT) -> str:
    """The one reason for which nothing of these files is accepted."""
    parts, refusals = group(paths, policy)
    assert not parts
    (refusal,) = refusals
    return refusal.code


def fake_header(number: int, **values: Any) -> Header:
    """A plain CT header without a file behind it."""
    return Header(
        **{
            "source": Path(f"{number}.dcm"),
            "digest": f"{number:064x}",
            "pixel_offset": 0,
            "pixel_length": None,
            "TransferSyntaxUID": "1.2.840.10008.1.2.1",
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "SOPInstanceUID": f"1.2.{number}",
            "StudyInstanceUID": "1.2",
            "SeriesInstanceUID": "1.3",
            "FrameOfReferenceUID": "1.4",
            "PatientID": "P1",
            "IssuerOfPatientID": "",
            "Modality": "CT",
            "ImageType": ("ORIGINAL", "PRIMARY"),
            "ImagePositionPatient": (0.0, 0.0, 5.0 * number),
            "ImageOrientationPatient": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            "PixelSpacing": (0.7, 0.9),
            "Rows": 48,
            "Columns": 64,
            "BitsAllocated": 16,
            "BitsStored": 12,
            "HighBit": 11,
            "PixelRepresentation": 0,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "RescaleSlope": 1.0,
            "RescaleIntercept": 0.0,
            "RescaleType": "HU",
            "NumberOfFrames": 1,
            "InstanceNumber": number,
            "AcquisitionNumber": 1,
            "TemporalPositionIdentifier": None,
            "EchoNumbers": "",
            "EchoTime": None,
            "DiffusionBValue": None,
            "TriggerTime": None,
            "ConvolutionKernel": (),
            "AcquisitionTime": "",
            "LossyImageCompression": "",
            "BurnedInAnnotation": "NO",
            "PixelPaddingValue": None,
            **values,
        }
    )
