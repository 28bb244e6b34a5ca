"""The NRRD reader, checked against files that SimpleITK writes and headers written by hand from the format's text."""

import gzip
import os
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest
import SimpleITK as sitk

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.formats.nrrd import is_nrrd, read_nrrd
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member
from tests.orientations import orientation_code
from tests.reference_images import SPACINGS, VOXELS, oblique, signed_permutations, write_with_simpleitk

BODY = VOXELS.tobytes(order="F")
FIELDS = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 4 3",
    "space directions": "(2,0,0) (0,3,0) (0,0,4)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}


def nrrd(body: bytes = BODY, *, lines: tuple[str, ...] = (), newline: str = "\n", **changes: str | None) -> bytes:
    """A sound file with some fields replaced (underscores are spaces) or, with None, left out."""
    fields = {**FIELDS, **{name.replace("_", " "): value for name, value in changes.items()}}
    header = ["NRRD0004", "# a comment", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return newline.join([*header, *lines, "", ""]).encode("latin-1") + body


def read(tmp_path, data: bytes, policy: Policy | None = None, *, name: str = "a.nrrd", is_label: bool = False):
    (tmp_path / name).write_bytes(data)
    return read_nrrd(tmp_path / name, modality="MR", policy=policy or Policy(), is_label=is_label)


def refusal(tmp_path, data: bytes, policy: Policy | None = None, *, is_label: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, data, policy, is_label=is_label)
    return caught.value.code


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "gzip"])
def test_what_simpleitk_writes_in_all_48_orientations_is_read_with_its_voxels_and_place(tmp_path, spacing, compressed):
    directions = list(signed_permutations())
    assert len(directions) == 48
    for direction in directions:
        affine = write_with_simpleitk(tmp_path / "a.nrrd", directions=direction, spacing=spacing, compressed=compressed)

        volume = read_nrrd(tmp_path / "a.nrrd").volume

        assert volume.voxels.dtype == np.int16
        assert np.array_equal(volume.voxels[0], VOXELS)
        assert np.abs(volume.affine - affine).max() <= 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_oblique_images_keep_their_place(tmp_path, seed):
    affine = write_with_simpleitk(tmp_path / "a.nrrd", directions=oblique(seed))

    assert np.abs(read_nrrd(tmp_path / "a.nrrd").volume.affine - affine).max() <= 1e-6


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_type_that_simpleitk_writes_is_kept(tmp_path, dtype):
    voxels = VOXELS.astype(dtype)
    write_with_simpleitk(tmp_path / "a.nrrd", voxels)

    read_back = read_nrrd(tmp_path / "a.nrrd").volume.voxels[0]

    assert read_back.dtype == np.dtype(dtype)
    assert np.array_equal(read_back, voxels)


@pytest.mark.parametrize(("space", "signs"), [("LPS", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("LAS", (-1, 1, 1))])
@pytest.mark.parametrize("is_long", [False, True], ids=["letters", "words"])
def test_the_three_spaces_of_patients_become_ras(tmp_path, space, signs, is_long):
    words = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "S": "superior"}
    name = "-".join(words[letter] for letter in space) if is_long else space

    affine = read(tmp_path, nrrd(space=name)).volume.affine

    assert np.array_equal(affine[:3], np.array(signs)[:, None] * [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30]])


@pytest.mark.parametrize("space", ["LPS", "RAS", "LAS"])
def test_simpleitk_puts_the_corners_of_all_48_orientations_of_every_space_at_the_same_place(tmp_path, space):
    for direction in signed_permutations():
        axes = " ".join("({},{},{})".format(*axis) for axis in (direction * SPACINGS[0]).T)
        volume = read(tmp_path, nrrd(space=space, space_directions=axes)).volume
        reference = sitk.ReadImage(str(tmp_path / "a.nrrd"))

        for index in ((0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2)):
            expected = np.array(reference.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1)
            assert np.abs((volume.affine @ [*index, 1])[:3] - expected).max() <= 1e-6


def test_left_is_left(tmp_path):
    voxels = np.zeros((5, 4, 3), dtype=np.int16)
    voxels[4, 1, 1] = 1  # the last one along +x of LPS, which runs towards the left: 10 + 4 * 2 mm
    affine = read(tmp_path, nrrd(voxels.tobytes(order="F"))).volume.affine

    assert (affine @ [4, 1, 1, 1])[0] == -18


def test_big_endian_voxels_are_the_same_voxels(tmp_path):
    big = VOXELS.astype(">i2").tobytes(order="F")

    assert np.array_equal(read(tmp_path, nrrd(big, endian="big")).volume.voxels[0], VOXELS)


def test_64_bit_integers_shrink_if_they_fit(tmp_path):
    wide = VOXELS.astype(np.int64).tobytes(order="F")

    assert read(tmp_path, nrrd(wide, type="long long int")).volume.voxels.dtype == np.int16


def test_lines_may_end_as_on_windows_and_comments_and_keys_are_passed_over(tmp_path):
    data = nrrd(newline="\r\n", lines=("PatientName:=DOE^JOHN", "key: with colon:=x", "content: DOE^JOHN"))

    image = read(tmp_path, data.replace(b"key: with", b"key with"))

    assert np.array_equal(image.volume.voxels[0], VOXELS)
    assert "DOE" not in repr(image)


def test_the_file_name_stands_for_study_and_series_and_says_nothing_of_the_patient(tmp_path):
    image = read(tmp_path, nrrd(), name="scan.v1.nrrd")

    assert (image.identity.patient, image.identity.series, image.source_kind) == (None, "scan.v1", "nrrd")
    assert (image.volume.modality, image.volume.units) == ("MR", "a.u.")


FAULTS = {
    "no magic": ("E_NRRD_HEADER", nrrd().replace(b"NRRD0004", b"NRRD0009")),
    "endless header": ("E_NRRD_HEADER", nrrd(lines=("#" * 70_000,))),
    "no end of the header": ("E_TRUNCATED", nrrd(b"").rstrip()),
    "field twice": ("E_NRRD_HEADER", nrrd(lines=("type: short",))),
    "unknown field": ("E_NRRD_HEADER", nrrd(lines=("tpye: short",))),
    "no type": ("E_DATATYPE", nrrd(type=None)),
    "block": ("E_DATATYPE", nrrd(type="block")),
    "no encoding": ("E_NRRD_HEADER", nrrd(encoding=None)),
    "text": ("E_NRRD_HEADER", nrrd(encoding="ascii")),
    "bzip2": ("E_NRRD_HEADER", nrrd(encoding="bzip2")),
    "no byte order": ("E_NRRD_HEADER", nrrd(endian=None)),
    "byte skip": ("E_NRRD_HEADER", nrrd(byte_skip="-1")),
    "quantised": ("E_SCALE", nrrd(old_min="0", old_max="1")),
    "size 0": ("E_NRRD_HEADER", nrrd(sizes="5 0 3")),
    "negative size": ("E_NRRD_HEADER", nrrd(sizes="5 -4 3")),
    "size in other digits": ("E_NRRD_HEADER", nrrd(sizes="5 4 3_0")),
    "allocation bomb": ("E_TOO_BIG", nrrd(sizes="32767 32767 32767")),
    "sizes and dimension": ("E_NRRD_HEADER", nrrd(dimension="4")),
    "2D": ("E_NRRD_HEADER", nrrd(sizes="5 4", dimension="2", kinds=None)),
    "4D": ("E_4D_INPUT", nrrd(sizes="5 4 3 2", dimension="4", kinds="domain domain domain list")),
    "4D without kinds": ("E_4D_INPUT", nrrd(sizes="5 4 3 2", dimension="4", kinds=None)),
    "time": ("E_4D_INPUT", nrrd(kinds="domain domain time")),
    "2D time": ("E_4D_INPUT", nrrd(space_directions="(1,0,0) (0,1,0) none")),
    "space with time": ("E_4D_INPUT", nrrd(space="left-posterior-superior-time")),
    "colour": ("E_DATATYPE", nrrd(sizes="3 5 4 3", dimension="4", kinds="RGB-color domain domain domain")),
    "vector": ("E_DATATYPE", nrrd(kinds="vector domain domain")),
    "no space": ("E_NO_ORIENTATION", nrrd(space=None)),
    "scanner": ("E_NO_ORIENTATION", nrrd(space="scanner-xyz")),
    "space of 3": ("E_NO_ORIENTATION", nrrd(space=None, space_dimension="3")),
    "no directions": ("E_NO_ORIENTATION", nrrd(space_directions=None)),
    "no origin": ("E_GEOM_MISSING", nrrd(space_origin=None)),
    "NaN": ("E_VALUE_INVALID", nrrd(space_origin="(nan,0,0)")),
    "infinite": ("E_VALUE_INVALID", nrrd(space_origin="(1e999,0,0)")),
    "two directions": ("E_VALUE_INVALID", nrrd(space_directions="(1,0,0) (0,1,0)")),
    "vector of two": ("E_VALUE_INVALID", nrrd(space_directions="(1,0) (0,1,0) (0,0,1)")),
    "words between": ("E_VALUE_INVALID", nrrd(space_directions="(1,0,0) (0,1,0) x (0,0,1)")),
    "singular": ("E_AFFINE_INVALID", nrrd(space_directions="(1,0,0) (1,0,0) (0,0,1)")),
    "shear": ("E_AFFINE_SHEAR", nrrd(space_directions="(1,0,0) (0.3,1,0) (0,0,1)")),
    "metres": ("E_NRRD_HEADER", nrrd(space_units='"m" "m" "m"')),
    "short": ("E_TRUNCATED", nrrd(BODY[:-1])),
    "long": ("E_PIXEL_LENGTH", nrrd(BODY + b"\0")),
    "gzip short": ("E_GZ_TRUNCATED", nrrd(gzip.compress(BODY)[:-1], encoding="gzip")),
    "gzip of less": ("E_TRUNCATED", nrrd(gzip.compress(BODY[:-1]), encoding="gzip")),
    "gzip of more": ("E_PIXEL_LENGTH", nrrd(gzip.compress(BODY + b"\0"), encoding="gzip")),
    "gzip bomb": ("E_GZ_BOMB", nrrd(gzip.compress(bytes(10_000_000)), encoding="gzip")),
    "not finite": ("E_NONFINITE_VOXELS", nrrd(np.full(60, np.nan, "f4").tobytes(), type="float")),
    "detached": ("E_DETACHED_DATA", nrrd(b"", data_file="a.raw")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_its_code(tmp_path, fault):
    code, data = FAULTS[fault]

    assert refusal(tmp_path, data) == code


def test_a_number_of_many_digits_is_refused_at_once(tmp_path):
    assert refusal(tmp_path, nrrd(space_origin=f"({'1' * 60_000}x,0,0)")) == "E_VALUE_INVALID"


@pytest.mark.parametrize("letters", ["RAS", "LPI", "SAR"])
def test_a_site_may_say_how_an_image_lies(tmp_path, letters):
    data = nrrd(space=None, space_directions=None, space_origin=None, spacings="2 3 4")

    image = read(tmp_path, data, Policy(assume_orientation=letters))

    assert orientation_code(image.volume.affine) == letters
    assert image.volume.spacing_mm == (2, 3, 4)
    assert image.repairs == (f"assume-orientation={letters}",)


def test_an_orientation_that_names_no_three_axes_is_a_wrong_option(tmp_path):
    for letters in ("RAR", "RA", "XYZ", "RASL"):
        with pytest.raises(UsageError, match="E_USAGE"):
            read(tmp_path, nrrd(space=None), Policy(assume_orientation=letters))


def test_an_orientation_is_not_assumed_where_the_file_states_one(tmp_path):
    image = read(tmp_path, nrrd(), Policy(assume_orientation="RAS"))

    assert image.repairs == ()
    assert orientation_code(image.volume.affine) == "LPS"


def test_detached_data_are_read_on_request_from_the_same_folder(tmp_path):
    affine = write_with_simpleitk(tmp_path / "a.nhdr")

    image = read_nrrd(tmp_path / "a.nhdr", policy=Policy(allow_detached=True))

    assert np.array_equal(image.volume.voxels[0], VOXELS)
    assert np.abs(image.volume.affine - affine).max() <= 1e-6
    assert image.num_files == 2
    with pytest.raises(InputError, match="E_DETACHED_DATA"):
        read_nrrd(tmp_path / "a.nhdr")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.raw", "sub/x.raw", ".", "..", "LIST", "x%03d.raw 1 3 1", "link.raw", "twin.raw",
             "pipe", "missing.raw", "sub"],
)  # fmt: skip
def test_a_data_file_that_is_not_one_plain_file_beside_the_header_is_refused(tmp_path, name):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "x.raw", folder / "sub" / "x.raw", folder / "first.raw"):
        path.write_bytes(BODY)
    (folder / "link.raw").symlink_to(tmp_path / "x.raw")
    os.link(folder / "first.raw", folder / "twin.raw")
    os.mkfifo(folder / "pipe")

    assert refusal(folder, nrrd(b"", data_file=name), Policy(allow_detached=True)) == "E_DETACHED_DATA"


def test_a_member_of_an_archive_is_read_in_place_and_with_data_of_its_own_name_only(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x/whole.nrrd", nrrd())
        archive.writestr("x/half.nhdr", nrrd(b"", data_file="a.raw"))
        archive.writestr("x/a.raw", BODY)
        archive.writestr("x/a.nhdr", nrrd(b"", data_file="a.raw"))

    image = read_nrrd(Member(tmp_path / "a.zip", 0, PurePosixPath("x/whole.nrrd")))

    assert np.array_equal(image.volume.voxels[0], VOXELS)
    assert image.identity.series == "whole"
    with pytest.raises(InputError, match="E_DETACHED_DATA"):
        read_nrrd(Member(tmp_path / "a.zip", 1, PurePosixPath("x/half.nhdr")), policy=Policy(allow_detached=True))
    pair = read_nrrd(Member(tmp_path / "a.zip", 3, PurePosixPath("x/a.nhdr")), policy=Policy(allow_detached=True))
    assert np.array_equal(pair.volume.voxels[0], VOXELS)


def test_voxels_that_are_not_finite_take_the_minimum_on_request_and_not_in_labels(tmp_path):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 0], voxels[0, 0, 1] = np.nan, np.inf
    data = nrrd(voxels.tobytes(order="F"), type="float")
    policy = Policy(nonfinite="background")

    image = read(tmp_path, data, policy)

    assert image.repairs == ("nonfinite=background",)
    assert image.volume.voxels[0, 1, 2, 0] == image.volume.voxels[0, 0, 0, 1] == VOXELS.min()
    assert refusal(tmp_path, data, policy, is_label=True) == "E_NONFINITE_VOXELS"


def test_the_size_limit_is_the_policys(tmp_path):
    assert refusal(tmp_path, nrrd(), Policy(max_volume_bytes=119)) == "E_TOO_BIG"
    read(tmp_path, nrrd(), Policy(max_volume_bytes=120))


def test_recognition_needs_the_whole_first_line():
    assert is_nrrd(nrrd())
    assert not is_nrrd(b"NRRD0004 ")
    assert not is_nrrd(b"")


def test_a_real_image_agrees_with_simpleitk(shared_data):
    path = shared_data / "pyradiomics" / "brain1_image.nrrd"
    reference = sitk.ReadImage(str(path))

    volume = read_nrrd(path).volume

    assert np.array_equal(volume.voxels[0], sitk.GetArrayFromImage(reference).transpose(2, 1, 0))
    last = tuple(size - 1 for size in volume.shape)
    expected = np.array(reference.TransformIndexToPhysicalPoint(last)) * (-1, -1, 1)
    assert np.abs((volume.affine @ [*last, 1])[:3] - expected).max() <= 1e-6
