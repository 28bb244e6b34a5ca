"""Left is left, and every voxel stays where it was: along every route, judged by readers that are not ours.

World coordinates are RAS millimetres unless a name says LPS (DICOM's convention: two signs differ).
"""

import gzip
import itertools
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medssl_cli.cache.store import Cache
from medssl_cli.formats.dicom import group_headers, read_headers
from medssl_cli.formats.dicom_seg import write_segmentation
from medssl_cli.formats.seg_frames import read_segmentation
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from tests import command
from tests.dicom_factory import analytic_phantom, write_volume
from tests.toy_model import write_toy_model

Array = NDArray[Any]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CT = "1.2.840.10008.5.1.4.1.1.2"
LIMIT_MM = 1e-3


def only(folder: Path, pattern: str) -> Path:
    """The one file of a folder that is called so."""
    (path,) = folder.glob(pattern)
    return path


def medssl(*arguments: object) -> None:
    """Run a command that must succeed."""
    result = command.medssl(*arguments)
    assert result.exit_code == 0, result.stderr


def nifti(path: Path) -> tuple[Array, Array]:
    """Voxels and affine as nibabel reads them."""
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), np.asarray(image.affine)


def seg(path: Path) -> tuple[Array, Array]:
    """Label map and affine to RAS as highdicom reads them; empty slices at the ends may be left out."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    return volume.array, LPS_TO_RAS @ volume.affine


def world(affine: Array, indices: Array) -> Array:
    """Positions `[N, 3]` of voxel indices `[N, 3]`."""
    return indices @ affine[:3, :3].T + affine[:3, 3]


def marked(voxels: Array, affine: Array) -> Array:
    """Positions of all marked voxels."""
    return world(affine, np.argwhere(voxels))


def assert_same_places(first: Array, second: Array, what: object = "") -> None:
    """Two sets of positions are one, whatever their order."""
    assert len(first) == len(second), what
    distances = np.linalg.norm(first[:, None] - second, axis=2)
    assert distances.min(axis=0).max() <= LIMIT_MM, what
    assert distances.min(axis=1).max() <= LIMIT_MM, what


def raw_ct(folder: Path, voxels: Array, place_lps: Array) -> None:
    """A CT series written attribute by attribute after PS3.3 C.7.6.2, without the project's own writer.

    Args:
        folder: Made.
        voxels: Hounsfield units [column, row, slice].
        place_lps: 4x4, (column, row, slice) to LPS millimetres.
    """
    folder.mkdir(parents=True)
    spacing = np.linalg.norm(place_lps[:3, :3], axis=0)
    for number in range(voxels.shape[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CT
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = f"1.2.3.4.{number + 1}"
        slice_.Modality, slice_.PatientID, slice_.PatientName = "CT", "P1", "A^B"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.9"
        slice_.InstanceNumber = voxels.shape[2] - number  # against the geometry: it must not matter
        slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.ImagePositionPatient = (place_lps @ [0, 0, number, 1])[:3].tolist()
        slice_.ImageOrientationPatient = (place_lps[:3, :2] / spacing[:2]).T.ravel().tolist()
        slice_.PixelSpacing = [spacing[1], spacing[0]]  # between rows, then between columns
        slice_.SliceThickness = spacing[2]
        slice_.Columns, slice_.Rows = voxels.shape[:2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.RescaleType = 1, 0, "HU"
        slice_.BurnedInAnnotation = "NO"
        slice_.PixelData = voxels[:, :, number].T.astype("<i2").tobytes()
        slice_.save_as(folder / f"IM{number:03}", enforce_file_format=True)


def test_left_is_left(tmp_path: Path) -> None:
    """A marker at the patient's left, front and top (L > 0, P < 0, S > 0) stays there on every route."""
    voxels = np.full((20, 18, 12), -1000, np.int16)
    place_lps = np.diag([0.9, 0.7, 2.5, 1.0])
    place_lps[:3, 3] = -(np.array(voxels.shape) - 1) / 2 * (0.9, 0.7, 2.5)  # the origin is the middle
    voxels[16:19, 2:4, 9:11] = 200
    raw_ct(tmp_path / "ct", voxels, place_lps)
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    truth = marked(voxels > 50, LPS_TO_RAS @ place_lps)

    medssl("ingest", tmp_path / "ct", "--cache", tmp_path / "cache")
    medssl("cache", "export", tmp_path / "exported", "--cache", tmp_path / "cache")
    (exported,) = (tmp_path / "exported").iterdir()
    medssl("infer", tmp_path / "ct", "--task", model, "-o", tmp_path / "from-dicom", "--device", "cpu")
    medssl("infer", exported, "--task", model, "-o", tmp_path / "mask.nii.gz", "--device", "cpu")

    image, affine = nifti(exported)
    routes = {
        "cache": (image > 50, affine),
        "mask of the series": nifti(only(tmp_path / "from-dicom", "CT-*.nii.gz")),
        "SEG of the series": seg(only(tmp_path / "from-dicom", "CT-*.dcm")),
        "mask of the export": nifti(tmp_path / "mask.nii.gz"),
    }
    for route, (mask, place) in routes.items():
        found = marked(mask, place)
        right, anterior, superior = found.T
        assert len(found) == 3 * 2 * 2, route
        assert right.max() < 0, route
        assert anterior.min() > 0, route
        assert superior.min() > 0, route
        assert_same_places(found, truth, route)
    assert pydicom.dcmread(tmp_path / "ct" / "IM000").ImagePositionPatient[0] < 0  # the first column is at the right


def oblique() -> Array:
    """Columns, rows and slices of an oblique series in RAS: no axis is near one of the patient's."""
    a, b, c = np.radians([25, -35, 15])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


DIRECTIONS = {
    # Directions of increasing column, row and slice in RAS, as columns of a matrix
    "axial": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]).T,  # to L, to P, to S
    "coronal": np.array([[-1, 0, 0], [0, 0, -1], [0, 1, 0]]).T,  # to L, to I, to A
    "sagittal": np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]).T,  # to P, to I, to R
    "oblique": oblique(),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_analytic_phantom_survives_the_whole_way_and_back(tmp_path: Path, name: str) -> None:
    """DICOM to cache to NIfTI to SEG and back: the value of a voxel says where it started, so nothing can hide.

    Value = i + 30 j + 700 k - 1000 on 24 x 20 x 14 voxels: i < 30 and i + 30 j < 700, so it is invertible.
    """
    start = np.eye(4)
    start[:3, :3] = DIRECTIONS[name] * (0.9, 0.7, 2.5)
    start[:3, 3] = (12.5, -31.25, 55.5)
    write_volume(tmp_path / "ct", analytic_phantom(start))

    medssl("ingest", tmp_path / "ct", "--cache", tmp_path / "cache")
    medssl("cache", "export", tmp_path / "exported", "--cache", tmp_path / "cache")
    (exported,) = (tmp_path / "exported").iterdir()
    voxels, affine = nifti(exported)

    indices = np.argwhere(np.ones(voxels.shape, bool))
    origins = decode(voxels[tuple(indices.T)])
    assert sorted(map(tuple, origins)) == list(itertools.product(range(24), range(20), range(14)))
    assert np.linalg.norm(world(affine, indices) - world(start, origins), axis=1).max() <= LIMIT_MM

    labels = (voxels.astype(int) % 4).astype(np.uint8)
    (part,), _ = group_headers(
        [header for path in sorted((tmp_path / "ct").iterdir()) for header in read_headers(path)]
    )
    names = {value: f"remainder {value}" for value in (1, 2, 3)}
    made = write_segmentation(labels, part.headers, names, affine=affine, model_sha256="0" * 64, algorithm_name="test")
    data = made.data
    (tmp_path / "labels.dcm").write_bytes(data)
    again, place = seg(tmp_path / "labels.dcm")

    np.testing.assert_array_equal(read_segmentation(data, affine, labels.shape), labels)
    found = np.argwhere(again)
    back = world(np.linalg.inv(start), world(place, found))
    assert np.abs(back - np.rint(back)).max() <= LIMIT_MM / 0.7
    i, j, k = np.rint(back).astype(int).T
    np.testing.assert_array_equal(again[tuple(found.T)], (i + 30 * j + 700 * k - 1000) % 4)
    assert len(found) == np.count_nonzero(labels)


def decode(values: Array) -> Array:
    """The index (i, j, k) that a voxel of the analytic phantom had at first."""
    rest = values.astype(int) + 1000
    return np.stack([rest % 700 % 30, rest % 700 // 30, rest // 700], axis=1)


@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.1, 1.2)], ids=["native", "resampled"])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_series_and_its_nifti_twin_get_the_same_mask(tmp_path: Path, name: str, spacing_mm: Any) -> None:
    """On the native grid exactly. Resampled, an affine in float32 (NIfTI's) may tip a voxel on the threshold."""
    start = np.eye(4)
    start[:3, :3] = DIRECTIONS[name] * (0.9, 0.7, 2.5)
    start[:3, 3] = (12.5, -31.25, 55.5)
    phantom = blob()
    write_volume(tmp_path / "ct", Volume(phantom[None], start, "CT", "HU"))
    twin = nibabel.as_closest_canonical(nibabel.Nifti1Image(phantom, start))
    nibabel.save(twin, tmp_path / "twin.nii.gz")
    rule = Preprocessing(window_hu=(0.0, 100.0), spacing_mm=spacing_mm)
    model = write_toy_model(tmp_path / "model.onnx", modality="CT", preprocessing=rule)

    for scan in ("ct", "twin.nii.gz"):
        medssl("infer", tmp_path / scan, "--task", model, "-o", tmp_path / "out", "--device", "cpu")

    first, second = (nifti(only(tmp_path / "out", pattern)) for pattern in ("CT-*.nii.gz", "twin*.nii.gz"))
    points = marked(*first)
    assert 100 < len(points) < phantom.size / 4
    if spacing_mm is None:
        assert_same_places(points, marked(*second))
    else:
        nearest = np.linalg.norm(points[:, None] - marked(*second), axis=2).min(axis=1)
        assert np.count_nonzero(nearest > LIMIT_MM) <= 2
        assert abs(len(points) - np.count_nonzero(second[0])) <= 2
    assert_same_places(points, marked(*seg(only(tmp_path / "out", "CT-*.dcm"))))


def blob() -> Array:
    """A smooth spot (up to 1500 HU) in air, off the centre and different along each axis."""
    i, j, k = np.indices((24, 20, 14))
    squared = ((i - 8.3) / 5) ** 2 + ((j - 11.6) / 4) ** 2 + ((k - 5.2) / 3) ** 2
    return np.rint(-1000 + 2500 * np.exp(-squared / 2)).astype(np.int16)


TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def turned(voxels: Array, affine: Array, order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[Array, Array]:
    """The same image in the world with its axes permuted and reversed: axis n runs along old axis order[n]."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[source, axis] = sign
        matrix[source, 3] = 0 if sign == 1 else voxels.shape[source] - 1
    flips = tuple(axis for axis in range(3) if signs[axis] == -1)
    return np.flip(voxels.transpose(order), flips), affine @ matrix


@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.1, 1.2)], ids=["native", "resampled"])
def test_48_orientations_of_one_scan_are_one_mask_in_the_world(tmp_path: Path, spacing_mm: Any) -> None:
    """Also: the mask's header places it exactly as the scan's does, byte for byte."""
    affine = np.diag([0.9, 0.7, 2.5, 1.0])
    affine[:3, 3] = (-12.5, 7.25, -31)
    scans = tmp_path / "scans"
    scans.mkdir()
    for number, (order, signs) in enumerate(TURNS):
        image = nibabel.Nifti1Image(*turned(blob(), affine, order, signs))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, scans / f"turn{number:02}.nii.gz")
    rule = Preprocessing(window_hu=(0.0, 100.0), spacing_mm=spacing_mm)
    model = write_toy_model(tmp_path / "model.onnx", modality="CT", preprocessing=rule)

    medssl("infer", scans, "--task", model, "-o", tmp_path / "out", "--device", "cpu", "--no-preview")

    masks = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(masks) == 48
    truth = marked(*nifti(masks[0]))
    assert 100 < len(truth) < blob().size / 4
    if spacing_mm is None:
        assert_same_places(truth, marked(blob() > 50, affine))
    for number, mask in enumerate(masks):
        assert_same_places(marked(*nifti(mask)), truth, TURNS[number])
        before = gzip.decompress((scans / f"turn{number:02}.nii.gz").read_bytes())
        after = gzip.decompress(mask.read_bytes())
        # NIfTI-1: dim at 40..56, pixdim 76..108, xyzt_units 123, form codes, quaternion, offsets and rows 252..328.
        for first, last in ((40, 56), (76, 108), (123, 124), (252, 328)):
            assert before[first:last] == after[first:last]


def test_48_orientations_are_48_items_that_nibabel_places_alike(tmp_path: Path) -> None:
    phantom = analytic_phantom()
    scans = tmp_path / "scans"
    scans.mkdir()
    for number, (order, signs) in enumerate(TURNS):
        image = nibabel.Nifti1Image(*turned(phantom.voxels[0], phantom.affine, order, signs))
        nibabel.save(image, scans / f"turn{number:02}.nii.gz")

    medssl("ingest", scans, "--cache", tmp_path / "cache", "--modality", "CT")

    cache = Cache.open(tmp_path / "cache")
    records = cache.records()
    assert len(records) == 48
    for record in records:
        volume = cache.read_image(record)
        indices = np.argwhere(np.ones(volume.shape, bool))
        origins = decode(volume.voxels[0][tuple(indices.T)])
        misplaced = world(volume.affine, indices) - world(phantom.affine, origins)
        assert np.linalg.norm(misplaced, axis=1).max() <= LIMIT_MM
