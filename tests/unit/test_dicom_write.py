"""The CT writer: what is written reads back, from any orientation, the same bytes every time."""

import itertools

import numpy as np
import pydicom
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.imaging.geometry import reorient_to_ras
from medssl_cli.imaging.volume import Volume
from tests.dicom_factory import analytic_phantom, load, write_volume


def _signed_permutations():
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[world, axis] = sign
            yield matrix


ORIENTATIONS = list(_signed_permutations())


@pytest.mark.parametrize("number", range(48))
def test_all_48_orientations_read_back_in_place(tmp_path, number):
    assert len(ORIENTATIONS) == 48
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[number] * [0.9, 0.7, 2.5]
    affine[:3, 3] = (-17.0, 31.5, 120.25)
    phantom = analytic_phantom(affine, shape=(5, 4, 6))

    image = load(write_volume(tmp_path, phantom))

    expected, expected_affine = reorient_to_ras(phantom.voxels, affine)
    found, found_affine = reorient_to_ras(image.volume.voxels, image.volume.affine)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found_affine, expected_affine, atol=1e-6)


def test_an_oblique_volume_reads_back_in_place(tmp_path):
    rotation, _ = np.linalg.qr(np.array([[2.0, 0.3, 0.1], [0.2, 1.7, -0.4], [0.3, 0.2, 1.9]]))
    affine = np.eye(4)
    affine[:3, :3] = rotation * [0.9, 0.7, 2.5]
    affine[:3, 3] = (-17.123, 31.5, 120.25)
    phantom = analytic_phantom(affine)

    image = load(write_volume(tmp_path, phantom))

    index = np.linalg.inv(image.volume.affine) @ affine
    np.testing.assert_allclose(np.abs(index[:3, :3]), np.eye(3), atol=1e-6)
    voxels = phantom.voxels if index[2, 2] > 0 else phantom.voxels[..., ::-1]
    np.testing.assert_array_equal(image.volume.voxels, voxels)


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    first = write_volume(tmp_path / "a", analytic_phantom())
    second = write_volume(tmp_path / "b", analytic_phantom())

    assert len(first) == 14
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_instance_numbers_ascend_along_the_normal(tmp_path):
    affine = np.diag([-0.9, -0.7, -2.5, 1.0])
    paths = write_volume(tmp_path, analytic_phantom(affine))

    # Slices run towards inferior: the first one is the highest, so it comes last.
    assert [pydicom.dcmread(path).InstanceNumber for path in paths] == list(range(14, 0, -1))


@pytest.mark.parametrize(("low", "bits", "is_signed"), [(-1024, 12, 0), (-1025, 16, 1)])
def test_twelve_bits_where_they_suffice(tmp_path, low, bits, is_signed):
    volume = analytic_phantom(shape=(4, 3, 4))
    volume.voxels[0, 0, 0, 0] = low

    path = write_volume(tmp_path, volume)[0]

    dataset = pydicom.dcmread(path)
    assert (dataset.BitsStored, dataset.PixelRepresentation, dataset.RescaleIntercept) == (bits, is_signed, -1024)
    assert (dataset.pixel_array[0, 0] - 1024.0) == low


def test_file_names_are_the_callers(tmp_path):
    names = [f"IM{number}" for number in range(14)]

    assert [path.name for path in write_volume(tmp_path, analytic_phantom(), file_names=names)] == names


def test_shear_and_fractions_are_refused(tmp_path):
    sheared = analytic_phantom().affine.copy()
    sheared[0, 2] = 0.1
    with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
        write_volume(tmp_path, analytic_phantom(sheared))
    with pytest.raises(InputError, match="E_DATATYPE"):
        write_volume(tmp_path, Volume(np.zeros((1, 4, 4, 4), np.float32), np.eye(4)))
    with pytest.raises(InputError, match="E_DATATYPE"):
        write_volume(tmp_path, Volume(np.full((1, 4, 4, 4), 31_744, np.int16), np.eye(4)))
