"""Real series of several vendors: in the place that the reference says, with its values, or refused with a name."""

import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom import Refusal, group_headers, is_dicom, read_headers, read_series
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.imaging.geometry import corner_displacement_mm, reorient_to_ras

pytestmark = pytest.mark.real_data

LIMIT_MM = 0.001


def test_philips_series_equal_their_reference(shared_data):
    images, _ = _read(shared_data / "dcm_qa" / "philips")

    assert len(images) == 3  # three time points in one series
    # The reference was scaled in 32-bit floats: values to 4e4 are rounded there by some 1e-7 of themselves.
    _assert_equal(images, shared_data / "dcm_qa" / "philips" / "Ref" / "EPI_asc_CLEAR_201.nii", relative=1e-6)


@pytest.mark.parametrize(
    ("name", "reference"), [("12bitUnsigned", "2"), ("12bitUnsigned_0x0F0F", "3"), ("12bitSigned_0x0F0F", "4")]
)
def test_mosaics_of_12_bits_equal_their_reference(shared_data, tmp_path, name, reference):
    # Each of the three files alone: all carry one SOPInstanceUID, so together they are a conflict.
    root = shared_data / "dcm_qa" / "12bit"
    images, _ = _read(root / "In", only=f"{name}.dcm")

    _assert_equal(images, root / "Ref" / f"{reference}.nii")
    assert images[0].volume.shape == (64, 64, 35)
    assert "W_HIGH_BITS" in images[0].warnings


def test_files_that_claim_to_be_one_instance_are_a_conflict(shared_data):
    images, refused = _read(shared_data / "dcm_qa" / "12bit" / "In")

    assert (images, refused["E_DUP_SOP_CONFLICT"]) == ([], 3)


def test_enhanced_files_of_two_archives_hold_the_same_images(shared_data):
    folder = shared_data / "dcm_qa" / "agfa"
    (first, second) = (_read(folder / name)[0] for name in ("Agfa", "Siemens"))

    assert len(first) == len(second) == 4
    for one, other in zip(first, second, strict=True):
        _assert_same(one, other.volume.voxels[0], other.volume.affine, relative=0)


@pytest.fixture(scope="module")
def nih(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nih")
    with tarfile.open(shared_data / "dcm_qa" / "nih.tar.gz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4
        archive.extractall(folder)
    return folder / "nih"


@pytest.mark.parametrize(
    ("folder", "reference"),
    [
        ("20180918GE/mr_0004", "DCM2NIIX_regression_test_4"),
        ("20180918GE/mr_0005", "DCM2NIIX_regression_test_5"),
        ("20180918GE/mr_0006", "DCM2NIIX_regression_test_6"),
        ("20180918GE/mr_0007", "DCM2NIIX_regression_test_7"),
        ("20180918Si/mr_0003", "EPI_PE=AP_3"),
        ("20180918Si/mr_0004", "EPI_PE=PA_4"),
        ("20180918Si/mr_0005", "EPI_PE=RL_5"),
        ("20180918Si/mr_0006", "EPI_PE=LR_6"),
    ],
)
def test_time_series_of_two_vendors_equal_their_reference(nih, folder, reference):
    images, refused = _read(nih / "In" / folder)

    assert set(refused) <= {"S_NOT_AN_IMAGE"}
    _assert_equal(images, nih / "Ref" / f"{reference}.nii")


@pytest.mark.parametrize(
    "folder",
    [
        "anatomical/001",
        "anatomical/001_implicit",
        "ge/anatomical/001",
        "ge/anatomical/001_implicit",
        "ge/dti/001",
        "ge/dti/001_implicit",
        "ge/dti/002",
        "ge/fmri/001",
        "ge/fmri/001_implicit",
        "hitachi/anatomical/001",
        "hitachi/anatomical/001_implicit",
    ],
)
def test_dicom2nifti_series_equal_their_reference(shared_data, folder):
    root = shared_data / "dicom2nifti"
    images, _ = _read(root / folder)

    _assert_equal(images, root / f"{folder}_ground_truth.nii.gz")


def test_a_single_slice_without_a_thickness_is_not_given_one(shared_data):
    images, refused = _read(shared_data / "dicom2nifti/ge/anatomical/001_single_slice", policy=Policy(min_slices=1))

    # The reference says 1 mm, which no element of the file does.
    assert (images, refused["E_GEOM_MISSING"]) == ([], 1)


@pytest.mark.parametrize("name", ["implicit", "bigendian", "expb", "RLE", "jp2klossless", "jpeg_ls_lossless"])
def test_one_picture_in_seven_encodings_has_the_same_voxels(shared_data, name):
    (plain,), _ = _read(shared_data / "pydicom_test", only="MR_small.dcm", policy=Policy(min_slices=1))
    (other,), _ = _read(shared_data / "pydicom_test", only=f"MR_small_{name}.dcm", policy=Policy(min_slices=1))

    _assert_same(other, plain.volume.voxels[0], plain.volume.affine, relative=0)


def test_pixel_data_with_more_than_their_length_are_refused(shared_data):
    images, refused = _read(shared_data / "pydicom_test", only="MR_small_padded.dcm", policy=Policy(min_slices=1))

    assert (images, dict(refused)) == ([], {"E_PIXEL_LENGTH": 1})


def test_a_codestream_of_another_sign_than_its_header_is_refused(shared_data):
    images, refused = _read(shared_data / "pydicom_test", only="J2K_pixelrep_mismatch.dcm", policy=Policy(min_slices=1))

    assert (images, dict(refused)) == ([], {"E_CODESTREAM_MISMATCH": 1})


def test_chest_ct_is_stored_in_hounsfield_units(shared_data):
    (image,), refused = _read(shared_data / "lidc_small")

    assert (image.volume.shape, image.volume.units) == ((512, 512, 16), "HU")
    assert set(refused) <= {"S_NOT_AN_IMAGE", "DUPLICATE"}
    # Cut from a longer series, and saved again by others with Hounsfield units as stored values and the intercept kept.
    assert image.warnings == ("W_INSTANCE_GAP", "W_HU_IMPLAUSIBLE")


def test_screenshots_of_chest_x_rays_are_named(shared_data):
    images, refused = _read(shared_data / "cxr_dicom_udacity")

    # Saved by others as Secondary Capture objects, whatever their Modality says.
    assert (images, refused["S_SECONDARY_CAPTURE"]) == ([], 3)


@pytest.mark.parametrize(
    "folder", ["pydicom_test", "rt_utils", "torchio_dicom", "cxr_dicom_udacity", "dicom2nifti", "dcm_qa"]
)
def test_every_file_is_accounted_for(shared_data, folder):
    files = {path for path in (shared_data / folder).rglob("*") if path.is_file()}
    placed: set[Path] = set()
    refused: Counter[str] = Counter()
    _read(shared_data / folder, refused=refused, placed=placed)

    assert len(files) >= 3
    assert placed == files
    assert set(refused) - {"DUPLICATE"} <= set(CODES)


def _read(
    folder: Path,
    *,
    only: str = "*",
    policy: Policy = STRICT,
    refused: Counter[str] | None = None,
    placed: set[Path] | None = None,
) -> tuple[list[LoadedImage], Counter[str]]:
    """Images, in the order of the parts, and how many files each code refused."""
    headers = []
    refused = Counter() if refused is None else refused
    placed = set() if placed is None else placed
    for path in sorted(path for path in folder.rglob(only) if path.is_file()):
        try:
            if not is_dicom(path.read_bytes()[:132]):
                raise InputError("S_NOT_AN_IMAGE", "no signature")
            headers += read_headers(path, policy)
        except InputError as error:
            refused[error.code] += 1
            placed.add(path)
    images = []
    parts, refusals = group_headers(headers, policy)
    for part in parts:
        files = [header.source for header in part.headers]
        try:
            images.append(read_series(part, policy))
            placed |= set(files)
        except InputError as error:
            refusals.append(Refusal(error.code, error.message, error.hint, files))
    for refusal in refusals:
        refused[refusal.code] += len(set(refusal.files))
        placed |= set(refusal.files)
    return images, refused


def _assert_equal(images: Sequence[LoadedImage], reference: Path, *, relative: float = 0.0) -> None:
    """One image for each 3D volume of a NIfTI file, in its order."""
    found = nibabel.load(reference)
    voxels = np.asanyarray(found.dataobj).reshape(*found.shape[:3], -1)
    assert len(images) == voxels.shape[3]
    for point, image in enumerate(images):
        _assert_same(image, voxels[..., point], found.affine, relative=relative)


def _assert_same(image: LoadedImage, voxels: np.ndarray, affine: np.ndarray, *, relative: float) -> None:
    """Equal in the world: both are brought to RAS axes through their own affines."""
    own, own_affine = reorient_to_ras(image.volume.voxels, image.volume.affine)
    other, other_affine = reorient_to_ras(voxels[np.newaxis], np.asarray(affine, np.float64))
    assert own.shape == other.shape
    assert corner_displacement_mm(own_affine, other_affine, own.shape[1:]) <= LIMIT_MM
    np.testing.assert_allclose(own, other, rtol=relative)
