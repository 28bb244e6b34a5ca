"""The NIfTI reader and writer, checked against nibabel, which the product itself never imports."""

import gzip
import io
import itertools
import os
import struct
import zipfile
from pathlib import Path, PurePath, PurePosixPath
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from medssl_cli.base.errors import GateError, InputError, UsageError
from medssl_cli.formats import nifti
from medssl_cli.formats.gzip_strict import gunzip, gzip_bytes
from medssl_cli.formats.nifti import encode_nifti, read_nifti, read_nifti_series, write_nifti
from medssl_cli.formats.patients import patient_from_name, patients_from_places
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member
from medssl_cli.imaging.geometry import corner_displacement_mm, displacement_limit_mm
from tests.orientations import orientation_code

VOXELS = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]], dtype=np.float64)
DIM, DATATYPE, BITPIX, PIXDIM, OFFSET, SLOPE, INTERCEPT = 40, 70, 72, 76, 108, 112, 116
UNITS, QCODE, SCODE, QUATERNION, QOFFSET, SROW, MAGIC = 123, 252, 254, 256, 268, 280, 344


def patched(*changes: tuple[int, str, object], voxels=VOXELS, tail: bytes = b"") -> bytes:
    """A sound file with some header fields overwritten: (offset, struct format, value)."""
    data = bytearray(encode_nifti(voxels, AFFINE))
    for offset, code, value in changes:
        struct.pack_into("<" + code, data, offset, value)
    return bytes(data) + tail


def read_bytes(tmp_path: Path, data: bytes, name: str = "a.nii") -> nifti.NiftiImage:
    path = tmp_path / name
    path.write_bytes(data)
    return read_nifti(path)


def refusal(tmp_path: Path, data: bytes, name: str = "a.nii") -> str:
    with pytest.raises(InputError) as caught:
        read_bytes(tmp_path, data, name)
    return caught.value.code


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (0, 2), (0, 1)][axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_nibabel_writes_is_read_with_its_type_and_place(tmp_path, dtype, order, kind):
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    image = kind(VOXELS.astype(dtype), AFFINE, header)
    nib.save(image, tmp_path / "a.nii.gz")

    volume = read_nifti(tmp_path / "a.nii.gz").image.volume

    assert volume.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(volume.voxels[0], VOXELS)
    assert np.array_equal(volume.affine, AFFINE)


def test_ct_is_in_hounsfield_units(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", VOXELS, AFFINE)

    volume = read_nifti(tmp_path / "a.nii.gz", modality="CT").image.volume

    assert (volume.modality, volume.units) == ("CT", "HU")


@pytest.mark.parametrize("seed", range(20))
def test_nibabel_reads_what_is_written_from_either_affine(seed):
    generator = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = rotation(tuple(generator.uniform(-3, 3, 3))) * generator.uniform(0.5, 4, 3)
    affine[:3, 2] *= generator.choice([-1, 1])
    affine[:3, 3] = generator.uniform(-200, 200, 3)

    image = nib.Nifti1Image.from_bytes(encode_nifti(VOXELS, affine))

    assert np.array_equal(np.asanyarray(image.dataobj), VOXELS)
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = image.get_qform(coded=True)
    assert (sform_code, qform_code) == (1, 1)
    assert np.allclose(sform, affine, rtol=1e-6, atol=1e-4)
    assert np.allclose(qform, affine, rtol=1e-5, atol=0.01)


def test_all_48_axis_directions_survive_exactly(tmp_path):
    directions = [
        (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
    ]
    assert len(directions) == 48
    for order, signs in directions:
        affine = np.eye(4)
        affine[:3, :3] = 0
        for axis in range(3):
            affine[order[axis], axis] = signs[axis] * (1.0, 1.5, 2.5)[axis]
        affine[:3, 3] = (7, -8, 9)

        volume = read_bytes(tmp_path, encode_nifti(VOXELS, affine)).image.volume
        header = nib.Nifti1Image.from_bytes(encode_nifti(VOXELS, affine)).header

        assert np.array_equal(volume.affine, affine)
        assert np.allclose(header.get_qform(), affine, atol=1e-5)


def test_a_quaternion_alone_gives_the_affine_that_nibabel_finds(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.3, -0.5, 1.1)) * (1, 2, -3)
    image = nib.Nifti1Image(VOXELS, affine)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii")

    volume = read_nifti(tmp_path / "a.nii").image.volume

    assert np.allclose(volume.affine, nib.load(tmp_path / "a.nii").affine, atol=1e-9)
    assert np.allclose(volume.affine, affine, atol=1e-5)


def test_a_2d_image_is_a_volume_of_depth_1(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS[:, :, 0], AFFINE), tmp_path / "a.nii")

    assert read_nifti(tmp_path / "a.nii").image.volume.shape == (2, 3, 1)


def test_trailing_dimensions_of_one_are_dropped_and_others_refused(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS[..., None, None], AFFINE), tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").image.volume.shape == (2, 3, 4)

    nib.save(nib.Nifti1Image(np.stack([VOXELS, VOXELS], axis=3), AFFINE), tmp_path / "b.nii")
    assert refusal(tmp_path, (tmp_path / "b.nii").read_bytes()) == "E_4D_INPUT"


HEADER_FAULTS = {
    "sizeof_hdr": ("E_NIFTI_HEADER", [(0, "i", 349)]),
    "magic": ("E_NIFTI_HEADER", [(MAGIC, "4s", b"ni1\0")]),
    "bitpix": ("E_NIFTI_HEADER", [(BITPIX, "h", 8)]),
    "offset too small": ("E_NIFTI_HEADER", [(OFFSET, "f", 348)]),
    "offset not finite": ("E_NIFTI_HEADER", [(OFFSET, "f", float("nan"))]),
    "offset past the end": ("E_TRUNCATED", [(OFFSET, "f", 4096)]),
    "metres": ("E_NIFTI_HEADER", [(UNITS, "b", 1)]),
    "no dimensions": ("E_NIFTI_DIMS", [(DIM, "h", 0)]),
    "nine dimensions": ("E_NIFTI_DIMS", [(DIM, "h", 9)]),
    "size 0": ("E_NIFTI_DIMS", [(DIM + 4, "h", 0)]),
    "negative size": ("E_NIFTI_DIMS", [(DIM + 4, "h", -3)]),
    "allocation bomb": ("E_TOO_BIG", [(DIM + 2, "h", 32767), (DIM + 4, "h", 32767), (DIM + 6, "h", 32767)]),
    "larger than the file": ("E_TRUNCATED", [(DIM + 2, "h", 300)]),
    "smaller than the file": ("E_PIXEL_LENGTH", [(DIM + 2, "h", 1)]),
    "colour": ("E_DATATYPE", [(DATATYPE, "h", 128)]),
    "complex": ("E_DATATYPE", [(DATATYPE, "h", 32)]),
    "no orientation": ("E_NO_ORIENTATION", [(SCODE, "h", 0), (QCODE, "h", 0)]),
    "affine of an unknown kind": ("E_NIFTI_HEADER", [(SCODE, "h", 6)]),
    "NaN affine": ("E_AFFINE_INVALID", [(SROW, "f", float("nan"))]),
    "zero axis": ("E_AFFINE_INVALID", [(SROW, "f", 0.0)]),
    "negative pixdim in the qform": ("E_AFFINE_INVALID", [(PIXDIM + 4, "f", -1.5)]),
    "pixdim": ("E_PIXDIM_MISMATCH", [(PIXDIM + 4, "f", 1.503), (QCODE, "h", 0)]),
    "affines 30 mm apart": ("E_SFORM_QFORM_CONFLICT", [(QOFFSET, "f", 40.0)]),
    "slope 1e30": ("E_SCALE", [(SLOPE, "f", 1e30)]),
    "infinite intercept": ("E_SCALE", [(SLOPE, "f", 2.0), (INTERCEPT, "f", float("inf"))]),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_a_faulty_header_is_refused_with_its_code(tmp_path, fault):
    code, changes = HEADER_FAULTS[fault]

    assert refusal(tmp_path, patched(*changes)) == code


def test_a_pixdim_within_a_thousandth_is_accepted(tmp_path):
    read_bytes(tmp_path, patched((PIXDIM + 4, "f", 1.501), (QCODE, "h", 0)))


def test_a_shear_that_moves_voxels_is_refused(tmp_path):
    # 0.03 mm per row over 40 rows: straightening both axes moves a corner by about half of 39 * 0.03 = 1.2 mm
    data = patched((SROW + 4, "f", 0.03), (QCODE, "h", 0), voxels=np.zeros((2, 40, 4), dtype=np.uint8))

    assert refusal(tmp_path, data) == "E_AFFINE_SHEAR"


def test_a_negligible_shear_is_removed_and_recorded(tmp_path):
    image = read_bytes(tmp_path, patched((SROW + 4, "f", 0.03), (QCODE, "h", 0))).image

    axes = image.volume.affine[:3, :3]
    assert image.warnings == ("W_AFFINE_ORTHONORMALISED",)
    assert np.allclose(axes.T @ axes, np.diag([1.5**2, 2**2 + 0.03**2, 3**2]), atol=1e-9)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected_dtype"),
    [(1.0, -1024.0, "int16"), (2.0, 0.0, "int16"), (0.5, 0.0, "float32"), (1e5, 0.0, "int32")],
)
def test_scaled_voxels_stay_integers_where_they_are_whole_and_fit(tmp_path, slope, intercept, expected_dtype):
    voxels = read_bytes(tmp_path, patched((SLOPE, "f", slope), (INTERCEPT, "f", intercept))).image.volume.voxels

    assert voxels.dtype == expected_dtype
    assert np.array_equal(voxels[0], VOXELS.astype(np.float64) * slope + intercept)


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_an_intercept_without_a_slope_is_ignored_and_said(tmp_path, slope):
    image = read_bytes(tmp_path, patched((SLOPE, "f", slope), (INTERCEPT, "f", 5.0))).image

    assert image.warnings == ("W_SCL_IGNORED",)
    assert np.array_equal(image.volume.voxels[0], VOXELS)


def test_a_scale_that_32_bit_numbers_would_lose_is_refused(tmp_path):
    data = bytearray(nib.Nifti2Image(VOXELS, AFFINE).to_bytes())
    struct.pack_into("<d", data, 176, 1e-300)

    assert refusal(tmp_path, bytes(data)) == "E_SCALE"


def test_64_bit_integers_shrink_if_they_fit(tmp_path):
    assert read_bytes(tmp_path, encode_nifti(VOXELS.astype(np.int64), AFFINE)).image.volume.voxels.dtype == np.int16
    assert refusal(tmp_path, encode_nifti(VOXELS.astype(np.int64) * 2**40, AFFINE)) == "E_DATATYPE"


def test_voxels_that_are_not_finite_are_refused(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = np.inf

    assert refusal(tmp_path, encode_nifti(voxels, AFFINE)) == "E_NONFINITE_VOXELS"


def test_zero_padding_is_accepted_and_other_bytes_are_not(tmp_path):
    read_bytes(tmp_path, patched(tail=bytes(512)))

    assert refusal(tmp_path, patched(tail=b"\0\0x")) == "E_PIXEL_LENGTH"


def test_compression_is_decided_by_content(tmp_path):
    plain = encode_nifti(VOXELS, AFFINE)

    assert read_bytes(tmp_path, plain, "a.nii.gz").image.warnings == ("W_EXTENSION_MISMATCH",)
    assert read_bytes(tmp_path, gzip_bytes(plain), "a.nii").image.warnings == ("W_EXTENSION_MISMATCH",)
    assert read_bytes(tmp_path, gzip_bytes(plain), "a.nii.gz").image.warnings == ()


def test_every_shorter_stream_is_refused(tmp_path):
    whole = gzip_bytes(encode_nifti(VOXELS, AFFINE))

    codes = {refusal(tmp_path, whole[:length]) for length in range(2, len(whole))}

    assert codes == {"E_GZ_TRUNCATED"}


def test_bytes_after_the_stream_are_refused_and_further_members_are_read(tmp_path):
    plain = encode_nifti(VOXELS, AFFINE)
    two_members = gzip_bytes(plain[:400]) + gzip_bytes(plain[400:])

    assert refusal(tmp_path, gzip_bytes(plain) + b"junk") == "E_GZ_TRAILING"
    assert np.array_equal(read_bytes(tmp_path, two_members).image.volume.voxels[0], VOXELS)


def test_a_stream_that_unpacks_to_more_than_announced_is_stopped(tmp_path):
    bomb = gzip_bytes(encode_nifti(VOXELS, AFFINE) + bytes(10_000_000))

    assert refusal(tmp_path, bomb) == "E_GZ_BOMB"


def test_gunzip_never_produces_more_than_its_limit_and_one_byte():
    data = gzip_bytes(bytes(1000))

    assert gunzip(data, limit=1000) == bytes(1000)
    with pytest.raises(InputError, match="E_GZ_BOMB"):
        gunzip(data, limit=999)


def test_gzip_bytes_are_readable_by_the_standard_library_and_name_no_time():
    packed = gzip_bytes(b"abc" * 1000)

    assert gzip.GzipFile(fileobj=io.BytesIO(packed)).read() == b"abc" * 1000
    assert packed[4:8] == bytes(4)


def test_the_same_voxels_give_the_same_bytes(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", VOXELS, AFFINE)
    write_nifti(tmp_path / "b.nii.gz", VOXELS, AFFINE)

    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_mask_copies_its_images_geometry_bit_for_bit_and_nothing_else(tmp_path, order, kind):
    header = kind.header_class(endianness=order)
    header["descrip"], header["aux_file"], header["intent_name"] = b"DOE^JOHN", b"secret", b"canary"
    image = kind(VOXELS, AFFINE, header)
    image.set_sform(AFFINE, code=4)
    image.set_qform(AFFINE, code=2)
    image.header["pixdim"][4] = 2.5
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "image.nii")
    source = read_nifti(tmp_path / "image.nii")
    mask = (source.image.volume.voxels[0] > 5).astype(np.uint8)

    write_nifti(tmp_path / "mask.nii.gz", mask, source.image.volume.affine, like_header=source.header)

    before, after = nib.load(tmp_path / "image.nii").header, nib.load(tmp_path / "mask.nii.gz").header
    fields = ["pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"]
    fields += ["qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"]
    for name in fields:
        assert np.asarray(before[name]).tobytes() == np.asarray(after[name]).tobytes(), name
    assert type(after) is type(before)
    assert np.array_equal(np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj), mask)
    assert not any(word in gunzip((tmp_path / "mask.nii.gz").read_bytes(), limit=10_000) for word in (b"DOE", b"secr"))


def test_an_output_that_reads_back_differently_never_gets_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "encode_nifti", lambda voxels, affine, like_header: encode_nifti(voxels + 1, affine))

    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        write_nifti(tmp_path / "a.nii.gz", VOXELS, AFFINE)

    assert list(tmp_path.iterdir()) == []


def test_a_strongly_sheared_affine_is_not_written():
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5

    with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
        encode_nifti(VOXELS, sheared)


@pytest.mark.parametrize(("lean_mm", "has_qform"), [(0.0, True), (0.04, True), (0.09, False)])
def test_slices_that_lean_a_little_are_written_where_they_are(tmp_path, lean_mm, has_qform):
    """A wide stack 30 mm high: a rotation misses its corners by half the lean times 118 / 30."""
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[0, 2] = lean_mm / 6
    voxels = np.zeros((60, 50, 7), np.uint8)

    write_nifti(tmp_path / "a.nii.gz", voxels, affine)

    header = nib.load(tmp_path / "a.nii.gz").header
    assert np.allclose(header.get_sform(), affine, atol=1e-6)
    assert bool(header["qform_code"]) == has_qform
    place = read_nifti(tmp_path / "a.nii.gz").image.volume.affine
    assert corner_displacement_mm(place, affine, voxels.shape) <= displacement_limit_mm(affine)


def test_a_lean_that_gets_lost_on_the_way_is_noticed(tmp_path, monkeypatch):
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    upright = affine.copy()
    affine[0, 2] = 0.01
    monkeypatch.setattr(nifti, "encode_nifti", lambda voxels, affine, like_header: encode_nifti(voxels, upright))

    with pytest.raises(GateError, match="E_OUTPUT_CHECK"):
        write_nifti(tmp_path / "a.nii.gz", np.zeros((9, 8, 7), np.uint8), affine)


# Near a half turn the 32 bits of b, c and d leave nothing of a: nifti1_io.c takes a = 0 below a * a = 1e-7.
@pytest.mark.parametrize("angle", [np.pi, np.pi - 2e-4, np.pi - 6e-4, np.pi - 1e-3, np.pi - 0.01, 1.0])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, -1, 1), (0.3, 0.2, 0.9)])
def test_both_affines_of_one_rotation_agree_at_every_angle(tmp_path, axis, angle):
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) * [0.7, 0.8, 1.5]
    voxels = np.zeros((300, 280, 90), np.uint8)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "a.nii")

    assert np.allclose(read_nifti(tmp_path / "a.nii").image.volume.affine, affine, atol=1e-5)


def test_a_half_turn_alone_is_that_of_the_reference_implementation(tmp_path):
    """b = c = sqrt(1/2) in 32 bits leave a * a = 6e-8: taken as 0, the axes are exchanged exactly."""
    half = np.float32(np.sqrt(0.5))
    quaternion = [(QUATERNION + 4 * place, "f", value) for place, value in enumerate((half, half, 0.0))]
    data = patched((SCODE, "h", 0), (PIXDIM, "f", 1.0), *quaternion)

    axes = read_bytes(tmp_path, data).image.volume.affine[:3, :3] / [1.5, 2, 3]

    assert np.allclose(axes, [[0, 1, 0], [1, 0, 0], [0, 0, -1]], atol=1e-9)


def test_a_file_that_is_written_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    path.write_bytes(patched())
    fstat, clock = os.fstat, itertools.count()

    def ticking(descriptor):
        status = fstat(descriptor)
        return SimpleNamespace(st_mode=status.st_mode, st_size=status.st_size, st_mtime_ns=next(clock))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", ticking)
        with pytest.raises(InputError, match="E_CHANGED_DURING_READ"):
            read_nifti(path)


def under(tmp_path: Path, data: bytes, **policy: object):
    """What a site with another policy reads."""
    (tmp_path / "a.nii").write_bytes(data)
    return read_nifti(tmp_path / "a.nii", policy=Policy(**policy)).image


CONFLICT = patched((QOFFSET, "f", 40.0))  # the sform says 10 mm, the qform 40 mm


@pytest.mark.parametrize(("choice", "x_mm"), [("sform", 10.0), ("qform", 40.0)])
def test_a_site_may_choose_between_two_affines_that_disagree(tmp_path, choice, x_mm):
    image = under(tmp_path, CONFLICT, nifti_affine=choice)

    assert image.volume.affine[0, 3] == x_mm
    assert image.repairs == (f"nifti-affine={choice}",)


@pytest.mark.parametrize("choice", ["sform", "qform"])
def test_a_choice_that_was_not_needed_is_no_repair(tmp_path, choice):
    image = under(tmp_path, patched(), nifti_affine=choice)

    assert image.repairs == ()
    assert np.array_equal(image.volume.affine, AFFINE)


def test_the_chosen_affine_must_be_sound_whatever_the_other_is(tmp_path):
    no_sform, no_qform = patched((SROW, "f", np.nan)), patched((PIXDIM + 4, "f", -1.5))

    assert under(tmp_path, no_sform, nifti_affine="qform").repairs == ("nifti-affine=qform",)
    assert refusal(tmp_path, no_sform) == "E_AFFINE_INVALID"
    with pytest.raises(InputError, match="E_AFFINE_INVALID"):
        under(tmp_path, no_sform, nifti_affine="sform")
    with pytest.raises(InputError, match="E_AFFINE_INVALID"):
        under(tmp_path, no_qform, nifti_affine="qform")


def test_a_site_may_say_how_an_image_without_affine_lies(tmp_path):
    image = under(tmp_path, patched((SCODE, "h", 0), (QCODE, "h", 0)), assume_orientation="LPS")

    assert orientation_code(image.volume.affine) == "LPS"
    assert image.volume.spacing_mm == (1.5, 2, 3)
    assert image.repairs == ("assume-orientation=LPS",)


def test_a_shear_is_resampled_on_request_but_never_in_labels(tmp_path):
    # 0.3 mm along x per step along y: 39 steps lean 11.7 mm, 7.8 voxels of 1.5 mm; 12 columns hold every row.
    voxels = np.ones((4, 40, 2), dtype=np.uint8)
    data = patched((SROW + 4, "f", 0.3), (QCODE, "h", 0), (PIXDIM + 8, "f", np.hypot(2, 0.3)), voxels=voxels)

    image = under(tmp_path, data, shear="resample")

    assert image.repairs == ("shear=resample",)
    assert image.volume.shape == (12, 40, 2)
    assert image.volume.spacing_mm == pytest.approx((1.5, 2, 3))
    with pytest.raises(InputError, match="E_AFFINE_SHEAR"):
        read_nifti(tmp_path / "a.nii", policy=Policy(shear="resample"), is_label=True)


def test_voxels_that_are_not_finite_take_the_minimum_on_request_but_never_in_labels(tmp_path):
    voxels = VOXELS.astype(np.float32) - 5
    voxels[1, 2, 3], voxels[0, 0, 2] = np.inf, np.nan
    data = encode_nifti(voxels, AFFINE)

    image = under(tmp_path, data, nonfinite="background")

    assert image.repairs == ("nonfinite=background",)
    assert image.volume.voxels[0, 1, 2, 3] == image.volume.voxels[0, 0, 0, 2] == -5
    with pytest.raises(InputError, match="2 of 24 voxels"):
        read_nifti(tmp_path / "a.nii")
    with pytest.raises(InputError, match="E_NONFINITE_VOXELS"):
        read_nifti(tmp_path / "a.nii", policy=Policy(nonfinite="background"), is_label=True)


def test_an_image_of_nothing_finite_has_no_background(tmp_path):
    with pytest.raises(InputError, match="E_NONFINITE_VOXELS"):
        under(tmp_path, encode_nifti(np.full((2, 2, 2), np.nan, np.float32), AFFINE), nonfinite="background")


def test_the_size_limit_is_the_policys(tmp_path):
    assert under(tmp_path, patched(), max_volume_bytes=48).volume.shape == (2, 3, 4)
    with pytest.raises(InputError, match="E_TOO_BIG"):
        under(tmp_path, patched(), max_volume_bytes=47)


FOUR = np.stack([VOXELS, VOXELS + 100, VOXELS - 7], axis=3)
SPLIT = Policy(split_4d=True)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_each_image_of_a_4d_file_is_read_on_request(tmp_path, name, kind):
    nib.save(kind(FOUR, AFFINE), tmp_path / name)

    images = read_nifti_series(tmp_path / name, modality="MR", policy=SPLIT)

    assert [image.identity.series for image in images] == ["a#t0", "a#t1", "a#t2"]
    assert {image.identity.study for image in images} == {"a"}
    assert all(image.repairs == ("split-4d",) for image in images)
    for index, image in enumerate(images):
        assert np.array_equal(image.volume.voxels[0], FOUR[..., index])
        assert np.array_equal(image.volume.affine, AFFINE)


def test_a_4d_file_is_refused_without_the_request_and_where_one_image_is_needed(tmp_path):
    nib.save(nib.Nifti1Image(FOUR, AFFINE), tmp_path / "a.nii")

    with pytest.raises(InputError, match="E_4D_INPUT") as caught:
        read_nifti_series(tmp_path / "a.nii")
    assert "--split-4d" in caught.value.hint
    with pytest.raises(InputError, match="E_4D_INPUT"):
        read_nifti(tmp_path / "a.nii", policy=SPLIT)


def test_five_dimensions_are_refused_whatever_the_policy(tmp_path):
    nib.save(nib.Nifti1Image(FOUR[..., None, :], AFFINE), tmp_path / "a.nii")

    with pytest.raises(InputError, match="E_4D_INPUT"):
        read_nifti_series(tmp_path / "a.nii", policy=SPLIT)


def test_a_3d_file_is_a_series_of_one_under_its_own_name(tmp_path):
    (tmp_path / "a.nii").write_bytes(patched())

    (image,) = read_nifti_series(tmp_path / "a.nii", policy=SPLIT)

    assert (image.identity.series, image.repairs) == ("a", ())


def test_a_member_of_an_archive_is_read_in_place(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/scan.nii.gz", gzip_bytes(patched()))

    image = read_nifti(Member(tmp_path / "a.zip", 0, PurePosixPath("x/scan.nii.gz"))).image

    assert np.array_equal(image.volume.voxels[0], VOXELS)
    assert image.identity.series == "scan"


@pytest.mark.parametrize(
    ("stem", "patient"),
    [
        ("hippocampus_001", "hippocampus_001"),
        ("patient001_frame01", "patient001"),
        ("sub-01_ses-2_T1w", "sub-01"),
        ("ct_train_1001_image", "ct_train_1001"),
        ("0042", "0042"),
        ("brain", None),
    ],
)
def test_the_patient_is_the_name_up_to_its_first_number(stem, patient):
    assert patient_from_name(stem) == patient


def test_a_long_name_without_a_number_is_judged_at_once():
    assert patient_from_name("a" * 50_000) is None
    assert patient_from_name("a_" * 50_000) is None


def test_a_pattern_gives_its_first_group_or_the_whole_match():
    assert patient_from_name("scan_A17_T2", r"_([A-Z]\d+)_") == "A17"
    assert patient_from_name("scan_A17_T2", r"[A-Z]\d+") == "A17"
    assert patient_from_name("scan", r"\d+") is None
    with pytest.raises(UsageError, match="E_USAGE"):
        patient_from_name("scan", "(")


def patients(*places, pattern=None):
    return list(patients_from_places([PurePath(place) for place in places], pattern).values())


def test_a_rule_that_makes_one_patient_of_all_files_has_failed():
    stems = ("1.3.6.1.4.100", "1.3.6.1.4.200")

    assert patients(*stems) == [None, None]
    assert patients(*stems, pattern=r"^\d") == ["1", "1"]
    assert patients("p1_a", "p2_a") == ["p1", "p2"]


def test_where_one_name_lies_in_several_folders_the_folders_are_the_patients():
    assert patients("STS_001/PET", "STS_004/PET", "STS_004/MR_T1") == ["STS_001", "STS_004", "STS_004"]
    assert patients("alice/anat/T1", "bob/anat/T1") == ["alice", "bob"]
    assert patients("images/case_1", "images/case_2") == ["case_1", "case_2"]


def test_a_pattern_may_name_a_folder():
    assert patients("P7/scan", "P8/scan", pattern=r"P\d") == ["P7", "P8"]


@pytest.mark.parametrize("value", [1e300, -1e39])
def test_64_bit_floats_that_32_bits_make_infinite_are_refused(tmp_path, value):
    voxels = np.zeros((4, 3, 2))
    voxels[1, 2, 1] = value
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")

    with pytest.raises(InputError, match="E_SCALE"):
        read_nifti(tmp_path / "a.nii")
