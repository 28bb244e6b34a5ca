"""Clean series, whatever way they lie: this reader and five others put the same values at the same places.

Every reader's result is compared in the world, through its own affine, never array to array.
"""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import corner_displacement_mm, reorient_to_ras
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import analytic_phantom, load, write_volume

LIMIT_MM = 1e-3
SHAPE = (14, 12, 7)
SPACING = np.array([0.9, 0.7, 2.5])
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Found = tuple[NDArray[np.generic], NDArray[np.float64]]


def directions() -> dict[str, NDArray[np.float64]]:
    """Every third of the 48 signed permutations, so that each axis leads and each sign occurs, and two oblique ones."""
    found = {}
    for number, (order, signs) in enumerate(
        itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    ):
        if number % 3 == 0:
            matrix = np.zeros((3, 3))
            matrix[list(order), range(3)] = signs
            found[f"permutation-{number}"] = matrix
    for number, start in enumerate(
        ([[2, 0.3, 0.1], [0.2, 1.7, -0.4], [0.3, 0.2, 1.9]], [[1, 2, 0], [-2, 1, 0.5], [0, -0.5, 2]])
    ):
        turn, _ = np.linalg.qr(np.array(start, dtype=np.float64))
        found[f"oblique-{number}"] = turn
    return found


DIRECTIONS = directions()


def by_medssl(folder: Path) -> Found:
    volume = load(sorted(folder.iterdir())).volume
    return volume.voxels[0], volume.affine


def by_simpleitk(folder: Path) -> Found:
    sitk = pytest.importorskip("SimpleITK")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def by_highdicom(folder: Path) -> Found:
    highdicom = pytest.importorskip("highdicom")
    volume = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    return volume.array, LPS_TO_RAS @ volume.affine


def by_dicom2nifti(folder: Path) -> Found:
    convert = pytest.importorskip("dicom2nifti.convert_dicom")
    target = folder.parent / "dicom2nifti.nii.gz"
    convert.dicom_series_to_nifti(str(folder), str(target), reorient_nifti=False)
    return _nifti(target)


def by_dcm2niix(folder: Path) -> Found:
    program = shutil.which("dcm2niix") or shutil.which("dcm2niix", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("dcm2niix is not installed")
    target = folder.parent / "dcm2niix"
    target.mkdir()
    subprocess.run([program, "-z", "n", "-b", "n", "-o", target, "-f", "out", folder], check=True, capture_output=True)
    (written,) = target.glob("*.nii")
    return _nifti(written)


READERS: dict[str, Callable[[Path], Found]] = {
    "medssl": by_medssl,
    "SimpleITK": by_simpleitk,
    "highdicom": by_highdicom,
    "dicom2nifti": by_dicom2nifti,
    "dcm2niix": by_dcm2niix,
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_the_phantom_where_it_was_put(tmp_path, reader, direction):
    phantom = phantom_of(DIRECTIONS[direction])
    write_volume(tmp_path / "series", phantom)

    voxels, affine = READERS[reader](tmp_path / "series")

    found, found_affine = reorient_to_ras(voxels[np.newaxis], affine)
    truth, truth_affine = reorient_to_ras(phantom.voxels, phantom.affine)
    assert found.shape == truth.shape
    assert corner_displacement_mm(found_affine, truth_affine, found.shape[1:]) <= LIMIT_MM
    np.testing.assert_array_equal(found, truth)


def test_the_directions_are_as_many_as_they_should_be():
    assert len(DIRECTIONS) == 18
    assert all(np.allclose(matrix.T @ matrix, np.eye(3)) for matrix in DIRECTIONS.values())


def phantom_of(matrix: NDArray[np.float64]) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = matrix * SPACING
    affine[:3, 3] = (-17.0, 31.5, 120.25)
    return analytic_phantom(affine, SHAPE)


def _nifti(path: Path) -> Found:
    image = nibabel.load(path)
    return np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=np.float64)
