"""Clean series, whatever way they lie: this reader and four others put the same values at the same places.

A DICOM series says in which of 24 ways its pictures lie along the patient's axes (six directions for the columns, four
for the rows). Its slices are stacked along the normal of its pictures, and are numbered along it or against it: 48 in
all, every signed permutation of the axes. Two oblique ones stand for the rest.

Every reader's result is compared in the world, through its own affine, never array to array.
"""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import corner_displacement_mm, reorient_to_ras
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import SERIES_UID, analytic_phantom, edit, load, write_volume

LIMIT_MM = 1e-3
SHAPE = (14, 12, 7)
SPACING = np.array([0.9, 0.7, 2.5])
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Found = tuple[NDArray[np.generic], NDArray[np.float64]]


def directions() -> dict[str, NDArray[np.float64]]:
    """The 48 signed permutations, called after what column, row and slice numbers run towards, and two oblique ones."""
    found = {}
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        matrix = np.zeros((3, 3))
        matrix[list(order), range(3)] = signs
        found["".join(nibabel.aff2axcodes(matrix_to_affine(matrix)))] = matrix
    for number, start in enumerate(
        ([[2, 0.3, 0.1], [0.2, 1.7, -0.4], [0.3, 0.2, 1.9]], [[1, 2, 0], [-2, 1, 0.5], [0, -0.5, 2]])
    ):
        turn, _ = np.linalg.qr(np.array(start, dtype=np.float64))
        found[f"oblique-{number}"] = turn
    return found


def matrix_to_affine(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = matrix * SPACING
    affine[:3, 3] = (-17.0, 31.5, 120.25)
    return affine


def phantom_of(matrix: NDArray[np.float64]) -> Volume:
    return analytic_phantom(matrix_to_affine(matrix), SHAPE)


DIRECTIONS = directions()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each direction, whose slices are numbered in the order of the voxels."""
    root = tmp_path_factory.mktemp("series")
    for number, (name, matrix) in enumerate(DIRECTIONS.items()):
        files = write_volume(root / name, phantom_of(matrix), series_uid=f"{SERIES_UID}.{number}")
        for k, file in enumerate(files, start=1):
            edit(file, InstanceNumber=k)
    return root


def by_medssl(folder: Path) -> Found:
    volume = load(sorted(folder.iterdir())).volume
    return volume.voxels[0], volume.affine


def by_simpleitk(folder: Path) -> Found:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def by_highdicom(folder: Path) -> Found:
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    return volume.array, LPS_TO_RAS @ volume.affine


def by_dicom2nifti(folder: Path) -> Found:
    convert = pytest.importorskip("dicom2nifti.convert_dicom", reason="pip install --no-deps dicom2nifti")
    target = folder.parent.with_name(f"{folder.name}.nii.gz")
    convert.dicom_series_to_nifti(str(folder), str(target), reorient_nifti=False)
    return _nifti(target)


def by_dcm2niix(folder: Path) -> Found:
    uid = pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).SeriesInstanceUID
    return _nifti(_converted(folder.parent) / f"{uid}.nii")


@cache
def _converted(root: Path) -> Path:
    """All series in one call of dcm2niix, each under its UID."""
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcm2niix is not installed")
    target = root.with_name("dcm2niix")
    target.mkdir()
    subprocess.run([program, "-z", "n", "-b", "n", "-f", "%j", "-o", target, root], check=True, capture_output=True)
    return target


READERS: dict[str, Callable[[Path], Found]] = {
    "medssl": by_medssl,
    "SimpleITK": by_simpleitk,
    "highdicom": by_highdicom,
    "dicom2nifti": by_dicom2nifti,
    "dcm2niix": by_dcm2niix,
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_phantom_where_it_was_put(series, reader, direction):
    phantom = phantom_of(DIRECTIONS[direction])

    voxels, affine = READERS[reader](series / direction)

    found, found_affine = reorient_to_ras(voxels[np.newaxis], affine)
    truth, truth_affine = reorient_to_ras(phantom.voxels, phantom.affine)
    assert found.shape == truth.shape
    assert corner_displacement_mm(found_affine, truth_affine, found.shape[1:]) <= LIMIT_MM
    np.testing.assert_array_equal(found, truth)


def test_the_directions_are_as_many_as_dicom_can_say(series):
    headers = [pydicom.dcmread(next((series / name).iterdir()), stop_before_pixels=True) for name in DIRECTIONS]
    pictures = {tuple(np.rint(header.ImageOrientationPatient).astype(int)) for header in headers[:48]}

    assert len(DIRECTIONS) == 48 + 2
    assert len(pictures) == 24
    assert all(np.allclose(matrix.T @ matrix, np.eye(3)) for matrix in DIRECTIONS.values())
    assert sum(np.linalg.det(DIRECTIONS[name]) > 0 for name in list(DIRECTIONS)[:48]) == 24


def _nifti(path: Path) -> Found:
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)
