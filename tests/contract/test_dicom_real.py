"""Real series of several vendors: in the place that the reference says, or refused with a name."""

import tarfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medssl_cli.errors import CODES, InputError
from medssl_cli.formats import LoadedImage
from medssl_cli.formats.dicom import Refusal, group_headers, is_dicom, read_header, read_series
from medssl_cli.imaging.geometry import corner_displacement_mm, reorient_to_ras

pytestmark = pytest.mark.real_data


def test_philips_series_equal_their_reference(shared_data):
    images, _ = _read(shared_data / "dcm_qa" / "philips")
    reference = nibabel.load(shared_data / "dcm_qa" / "philips" / "Ref" / "EPI_asc_CLEAR_201.nii")

    assert len(images) == reference.shape[3] == 3  # three time points in one series
    for point, image in enumerate(images):
        _assert_same(image, reference.get_fdata()[..., point], reference.affine, limit_mm=0.001)


def test_mosaics_and_enhanced_files_are_refused_by_name(shared_data):
    for folder, code, count in (("12bit", "E_MOSAIC_UNSUPPORTED", 3), ("agfa", "E_ENHANCED_UNSUPPORTED", 8)):
        images, refused = _read(shared_data / "dcm_qa" / folder)

        assert images == []
        assert refused[code] == count


def test_nih_time_series_without_public_time_points_are_refused_by_name(shared_data, tmp_path):
    with tarfile.open(shared_data / "dcm_qa" / "nih.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")

    images, refused = _read(tmp_path)

    # Four GE series of 150 files carry their time points in private elements only; four Siemens series are mosaics.
    assert images == []
    assert (refused["E_DUP_POSITION"], refused["E_MOSAIC_UNSUPPORTED"]) == (600, 8)


@pytest.mark.parametrize(
    "folder", ["anatomical/001", "anatomical/001_implicit", "ge/anatomical/001", "hitachi/anatomical/001"]
)
def test_dicom2nifti_series_equal_their_reference(shared_data, folder):
    root = shared_data / "dicom2nifti"
    (image,), _ = _read(root / folder)
    reference = nibabel.load(root / f"{folder}_ground_truth.nii.gz")

    _assert_same(image, reference.get_fdata(), reference.affine, limit_mm=0.001)


def test_chest_ct_is_stored_in_hounsfield_units(shared_data):
    (image,), refused = _read(shared_data / "lidc_small")

    assert (image.volume.shape, image.volume.units) == ((512, 512, 16), "HU")
    assert set(refused) <= {"S_NOT_AN_IMAGE", "DUPLICATE"}
    # These files were saved again by others with Hounsfield units as stored values and the intercept kept.
    assert image.warnings == ("W_HU_IMPLAUSIBLE",)


@pytest.mark.parametrize("folder", ["pydicom_test", "rt_utils", "torchio_dicom", "cxr_dicom_udacity", "dicom2nifti"])
def test_every_file_is_accounted_for(shared_data, folder):
    files = [path for path in (shared_data / folder).rglob("*") if path.is_file()]
    images, refused = _read(shared_data / folder)

    assert len(files) >= 3
    assert len(files) == sum(image.num_files for image in images) + sum(refused.values())
    assert set(refused) - {"DUPLICATE"} <= set(CODES)


def _read(folder: Path) -> tuple[list[LoadedImage], Counter[str]]:
    """Images, in the order of the parts, and how many files each code refused."""
    headers = []
    refused: Counter[str] = Counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not is_dicom(path.read_bytes()[:132]):
            refused["S_NOT_AN_IMAGE"] += 1
            continue
        try:
            headers.append(read_header(path))
        except InputError as error:
            refused[error.code] += 1
    images = []
    parts, refusals = group_headers(headers)
    for part in parts:
        try:
            images.append(read_series(part))
        except InputError as error:
            refusals.append(Refusal(error.code, error.message, error.hint, [header.source for header in part.headers]))
    for refusal in refusals:
        refused[refusal.code] += len(refusal.files)
    return images, refused


def _assert_same(image: LoadedImage, voxels: np.ndarray, affine: np.ndarray, *, limit_mm: float) -> None:
    """Equal in the world: both are brought to RAS axes through their own affines."""
    own, own_affine = reorient_to_ras(image.volume.voxels, image.volume.affine)
    other, other_affine = reorient_to_ras(voxels[np.newaxis], np.asarray(affine, np.float64))
    assert own.shape == other.shape
    assert corner_displacement_mm(own_affine, other_affine, own.shape[1:]) <= limit_mm
    np.testing.assert_allclose(own, other, rtol=1e-6)
