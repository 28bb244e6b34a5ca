"""One folder as a hospital hands it over: every kind of image and of label that is taken, small and of known truth.

Everything belongs to one of seven patients; labels lie apart from their images and know them only by UID or name.
"""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydicom
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medssl_cli.formats.dicom import read_headers
from medssl_cli.formats.dicom_seg import write_segmentation
from medssl_cli.formats.labels import STRUCTURE_SET
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import SERIES_UID, analytic_phantom, ct_series, edit, write_volume
from tests.reference_images import write_with_simpleitk

SHAPE: Final = (24, 20, 14)
CT: Final = analytic_phantom()
STRUCTURES: Final = {1: "liver", 2: "spleen"}
NODULE_INDEX: Final = (11.0, 9.0, 6.0)
MR_AFFINE: Final = np.diag([-1.0, 1.0, 2.0, 1.0])
XRAY_SIZE: Final = (40, 32)
DX_CLASS, US_CLASS, CAPTURE_CLASS = (f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("1.1", "6.1", "7"))


def blocks() -> np.ndarray:
    """Two boxes in the grid of the CT series."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:9, 3:12, 2:6] = 1
    labels[12:20, 5:9, 7:12] = 2
    return labels


def noise(seed: int, shape: tuple[int, ...] = (8, 7, 6)) -> np.ndarray:
    """Voxels of a scan that looks like no other."""
    return np.random.default_rng(seed).integers(-500, 1000, shape).astype(np.int16)


ENHANCED: Final = Volume(noise(2, SHAPE)[np.newaxis], CT.affine, modality="CT", units="HU")


def two_classes(voxels: np.ndarray) -> np.ndarray:
    """A label map that is a function of its image, so that any mix-up shows."""
    return ((voxels > 200).astype(np.uint8) + (voxels > 700)).astype(np.uint8)


def build_images(root: Path) -> None:
    """All images and the labels that lie beside them: see `IMAGE_FILES`."""
    sources = write_volume(root / "ct", CT)
    with zipfile.ZipFile(root / "again.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sources:
            archive.write(path, f"export/{path.name}")
    enhanced(root / "enhanced" / "e.dcm")
    picture(root / "dx" / "1.dcm", seed=1, patient="P3", BurnedInAnnotation="NO")
    picture(root / "us" / "1.dcm", seed=2, patient="P4", kind=US_CLASS, Modality="US", ImagerPixelSpacing=None)
    pair(root / "pairs", "case_5", seed=5)
    for name, seed in (("scan_8.nrrd", 8), ("scan_9.mha", 9)):
        write_with_simpleitk(_made(root / "formats" / name), noise(seed))
    for number in (1, 2, 3):
        pixels = np.random.default_rng(100 + number).integers(0, 255, XRAY_SIZE[::-1]).astype(np.uint8)
        Image.fromarray(pixels).save(_made(root / "xrays" / f"x{number}.png"))
    subject = noise(11)
    write_nifti(_made(root / "bids/sub-01/anat/sub-01_T1w.nii.gz"), subject, MR_AFFINE)
    write_nifti(_made(root / "bids/derivatives/manual/sub-01/anat/sub-01_dseg.nii.gz"), two_classes(subject), MR_AFFINE)
    nnunet(root / "nnunet")
    organs(root / "organs" / "s0001")


IMAGE_FILES: Final = {
    "ct": 14, "again.zip": 14, "enhanced": 1, "dx": 1, "us": 1, "pairs": 2, "formats": 2, "xrays": 3, "bids": 2,
    "nnunet": 4, "organs": 3,
}  # fmt: skip
NUM_IMAGES: Final = 14


def build_labels(root: Path, images: Path) -> None:
    """Labels that lie apart: a SEG and nodules of the CT series, findings and boxes of the pictures."""
    slices = [header for path in sorted((images / "ct").iterdir()) for header in read_headers(path)]
    seg = write_segmentation(
        blocks(), slices, STRUCTURES, affine=CT.affine, model_sha256="0" * 64, algorithm_name="reader"
    )
    _made(root / "seg.dcm").write_bytes(seg.data)
    edit(root / "seg.dcm", Manufacturer="a reader")
    x, y, z = world(NODULE_INDEX)
    table(root / "annotations.csv", "seriesuid coordX coordY coordZ diameter_mm", [SERIES_UID, -x, -y, z, 6.3])
    table(
        root / "findings.csv", "Image Index|Finding Labels|Patient Age",
        ["x1.png", "Nodule|Mass", 61], ["x2.png", "No Finding", 61], ["x3.png", "Mass", 61],
    )  # fmt: skip
    width, height = XRAY_SIZE
    document = {
        "images": [{"id": n, "file_name": f"x{n}.png", "width": width, "height": height} for n in (1, 2)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 4, "bbox": [3, 5, 10, 8], "iscrowd": 0}],
        "categories": [{"id": 4, "name": "opacity"}],
    }
    (root / "boxes.json").write_text(json.dumps(document))


LABEL_FILES: Final = 4


def world(index: tuple[float, float, float]) -> tuple[float, float, float]:
    """RAS+ millimetres of a voxel index of the CT series."""
    x, y, z = (CT.affine[:3, :3] @ index + CT.affine[:3, 3]).tolist()
    return x, y, z


def table(path: Path, header: str, *rows: list[Any]) -> None:
    """A CSV file; the names of its columns are separated by spaces, or by | if they hold spaces."""
    with _made(path).open("w", newline="") as stream:
        csv.writer(stream).writerows([header.split("|" if "|" in header else " "), *rows])


def pair(root: Path, name: str, *, seed: int) -> None:
    """An image and its label map, by folder."""
    voxels = noise(seed)
    write_nifti(_made(root / "images" / f"{name}.nii.gz"), voxels, MR_AFFINE)
    write_nifti(_made(root / "labels" / f"{name}.nii.gz"), two_classes(voxels), MR_AFFINE)


def nnunet(root: Path) -> None:
    """Two channels of one patient with one label map and a `dataset.json` of version 2."""
    description = {
        "channel_names": {"0": "T2", "1": "FLAIR"},
        "labels": {"background": 0, "edema": 1, "core": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    _made(root / "dataset.json").write_text(json.dumps(description))
    for channel in (0, 1):
        write_nifti(_made(root / f"imagesTr/brain_21_{channel:04d}.nii.gz"), noise(21 + channel), MR_AFFINE)
    write_nifti(_made(root / "labelsTr/brain_21.nii.gz"), two_classes(noise(21)), MR_AFFINE)


def organs(root: Path) -> None:
    """One file for each structure beside the only image."""
    voxels = noise(31)
    write_nifti(_made(root / "ct.nii.gz"), voxels, MR_AFFINE)
    for value, name in ((1, "heart"), (2, "aorta")):
        mask = (two_classes(voxels) == value).astype(np.uint8)
        write_nifti(_made(root / "segmentations" / f"{name}.nii.gz"), mask, MR_AFFINE)


def enhanced(path: Path) -> None:
    """A CT series of another patient on the grid of the first, as one multi-frame object."""
    slices = write_volume(path.parent / "parts", ENHANCED, patient_id="P2", series_uid="1.2.7.1", study_uid="1.2.7")
    converted = LegacyConvertedEnhancedCTImage([pydicom.dcmread(one) for one in slices], "1.2.7.2", 1, "1.2.7.3", 1)
    converted.save_as(_made(path))
    for one in slices:
        one.unlink()
    (path.parent / "parts").rmdir()


def picture(path: Path, *, seed: int, patient: str, kind: str = DX_CLASS, **attributes: Any) -> np.ndarray:
    """A DICOM picture of 12 bits that lies nowhere in a patient; returns its pixels [rows, columns]."""
    (source,) = ct_series(path.parent, positions_mm=[0], patient_id=patient, series_uid=f"1.2.8.{seed}")
    dataset = pydicom.dcmread(source)
    source.unlink()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.8.{seed}.1"
    dataset.Modality, dataset.StudyInstanceUID = "DX", f"1.2.8.{seed}.2"
    names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID", "RescaleType")
    for name in filter(dataset.__contains__, names):
        delattr(dataset, name)
    pixels = np.random.default_rng(seed).integers(0, 4096, (16, 20))
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.ImagerPixelSpacing = ["0.15", "0.2"]
    dataset.save_as(path)
    edit(path, **attributes)
    return pixels


def structure_set(path: Path, corners: tuple[float, float, float, float], slices: list[int]) -> None:
    """An RTSTRUCT with one rectangle (left, top, right, bottom in voxel indices) on some slices of the CT series."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = STRUCTURE_SET
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.6.1"
    left, top, right, bottom = corners
    contours = []
    for k in slices:
        points = [world((x, y, k)) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
        contours.append(
            _item(
                ContourGeometricType="CLOSED_PLANAR",
                NumberOfContourPoints=4,
                ContourData=[f"{value:.8g}" for x, y, z in points for value in (-x, -y, z)],
            )
        )
    dataset.StructureSetROISequence = [_item(ROINumber=1, ROIName="Liver")]
    dataset.ROIContourSequence = [_item(ReferencedROINumber=1, ContourSequence=contours)]
    series = _item(SeriesInstanceUID=SERIES_UID)
    study = _item(RTReferencedSeriesSequence=[series])
    frame = _item(FrameOfReferenceUID="1.2.826.0.1.3680043.8.498.3", RTReferencedStudySequence=[study])
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.save_as(_made(path), enforce_file_format=True)


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
