"""The MetaImage reader, checked against files that SimpleITK writes and headers written by hand."""

import gzip
import os
import zipfile
import zlib
from pathlib import PurePosixPath

import numpy as np
import pytest

from medssl_cli.base.errors import InputError
from medssl_cli.formats.metaimage import is_metaimage, read_metaimage
from medssl_cli.formats.open import files_of
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member
from tests.orientations import orientation_code
from tests.reference_images import SPACINGS, VOXELS, oblique, signed_permutations, write_with_simpleitk
from tests.zip_factory import LINK, Raw, zip_bytes

BODY = VOXELS.tobytes(order="F")
PACKED = zlib.compress(BODY)
FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "2 3 4",
    "DimSize": "5 4 3",
    "ElementType": "MET_SHORT",
}


def metaimage(body: bytes = BODY, *, lines: tuple[str, ...] = (), data_file: str = "LOCAL", **changes: str | None):
    """A sound file with some fields replaced or, with None, left out."""
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    header = [*(f"{name} = {value}" for name, value in fields.items()), *lines, f"ElementDataFile = {data_file}", ""]
    return "\n".join(header).encode("latin-1") + body


def read(tmp_path, data: bytes, policy: Policy | None = None, *, name: str = "a.mha"):
    (tmp_path / name).write_bytes(data)
    return read_metaimage(tmp_path / name, modality="CT", policy=policy or Policy())


def refusal(tmp_path, data: bytes, policy: Policy | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, data, policy)
    return caught.value.code


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zlib"])
def test_what_simpleitk_writes_in_all_48_orientations_is_read_with_its_voxels_and_place(tmp_path, spacing, compressed):
    directions = list(signed_permutations())
    assert len(directions) == 48
    for direction in directions:
        affine = write_with_simpleitk(tmp_path / "a.mha", directions=direction, spacing=spacing, compressed=compressed)

        volume = read_metaimage(tmp_path / "a.mha").volume

        assert volume.voxels.dtype == np.int16
        assert np.array_equal(volume.voxels[0], VOXELS)
        assert np.abs(volume.affine - affine).max() <= 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_oblique_images_keep_their_place(tmp_path, seed):
    affine = write_with_simpleitk(tmp_path / "a.mha", directions=oblique(seed))

    assert np.abs(read_metaimage(tmp_path / "a.mha").volume.affine - affine).max() <= 1e-6


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_type_that_simpleitk_writes_is_kept(tmp_path, dtype):
    voxels = VOXELS.astype(dtype)
    write_with_simpleitk(tmp_path / "a.mha", voxels)

    read_back = read_metaimage(tmp_path / "a.mha").volume.voxels[0]

    assert read_back.dtype == np.dtype(dtype)
    assert np.array_equal(read_back, voxels)


def test_left_is_left(tmp_path):
    affine = read(tmp_path, metaimage()).volume.affine  # +x of LPS runs towards the left: 10 + 4 * 2 mm

    assert (affine @ [4, 0, 0, 1])[0] == -18
    assert orientation_code(affine) == "LPS"


def test_ct_is_in_hounsfield_units_and_the_name_stands_for_the_series(tmp_path):
    image = read(tmp_path, metaimage(lines=("PatientName = DOE^JOHN",)), name="scan.v1.mha")

    assert (image.volume.modality, image.volume.units, image.source_kind) == ("CT", "HU", "metaimage")
    assert (image.identity.patient, image.identity.series) == (None, "scan.v1")
    assert "DOE" not in repr(image)


def test_big_endian_voxels_are_the_same_voxels(tmp_path):
    big = VOXELS.astype(">i2").tobytes(order="F")

    for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        data = metaimage(big, **{"BinaryDataByteOrderMSB": None, name: "True"})
        assert np.array_equal(read(tmp_path, data).volume.voxels[0], VOXELS)


def test_64_bit_integers_shrink_if_they_fit(tmp_path):
    wide = VOXELS.astype(np.int64).tobytes(order="F")

    assert read(tmp_path, metaimage(wide, ElementType="MET_LONG_LONG")).volume.voxels.dtype == np.int16


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_compressed_voxels_are_read_with_and_without_their_length(tmp_path, pack):
    packed = pack(BODY)
    for size in (None, str(len(packed))):
        image = read(tmp_path, metaimage(packed, CompressedData="True", CompressedDataSize=size))
        assert np.array_equal(image.volume.voxels[0], VOXELS)


FAULTS = {
    "no magic": ("E_METAIMAGE_HEADER", b"PK" + metaimage()),
    "endless header": ("E_METAIMAGE_HEADER", metaimage(lines=("Comment = " + "x" * 70_000,))),
    "no end of the header": ("E_METAIMAGE_HEADER", metaimage(b"").partition(b"ElementData")[0]),
    "field twice": ("E_METAIMAGE_HEADER", metaimage(lines=("NDims = 3",))),
    "alias twice": ("E_METAIMAGE_HEADER", metaimage(lines=("Position = 0 0 0",))),
    "no field": ("E_METAIMAGE_HEADER", metaimage(lines=("nonsense",))),
    "a tube": ("E_METAIMAGE_HEADER", metaimage(ObjectType="Tube")),
    "text": ("E_METAIMAGE_HEADER", metaimage(BinaryData="False")),
    "neither": ("E_METAIMAGE_HEADER", metaimage(CompressedData="Maybe")),
    "no byte order": ("E_METAIMAGE_HEADER", metaimage(BinaryDataByteOrderMSB=None)),
    "no type": ("E_DATATYPE", metaimage(ElementType=None)),
    "type of no certain size": ("E_DATATYPE", metaimage(ElementType="MET_LONG")),
    "channels": ("E_DATATYPE", metaimage(ElementNumberOfChannels="3")),
    "scale": ("E_SCALE", metaimage(ElementToIntensityFunctionSlope="2")),
    "4D": ("E_4D_INPUT", metaimage(NDims="4", DimSize="5 4 3 1")),
    "2D": ("E_METAIMAGE_HEADER", metaimage(NDims="2", DimSize="5 4")),
    "size 0": ("E_METAIMAGE_HEADER", metaimage(DimSize="5 0 3")),
    "allocation bomb": ("E_TOO_BIG", metaimage(DimSize="32767 32767 32767")),
    "sizes and dimensions": ("E_METAIMAGE_HEADER", metaimage(DimSize="5 4")),
    "no spacing": ("E_GEOM_MISSING", metaimage(ElementSpacing=None)),
    "spacing 0": ("E_SPACING_INVALID", metaimage(ElementSpacing="2 0 4")),
    "negative spacing": ("E_SPACING_INVALID", metaimage(ElementSpacing="2 -3 4")),
    "no matrix": ("E_NO_ORIENTATION", metaimage(TransformMatrix=None)),
    "no offset": ("E_GEOM_MISSING", metaimage(Offset=None)),
    "NaN": ("E_VALUE_INVALID", metaimage(Offset="nan 0 0")),
    "matrix of 8": ("E_VALUE_INVALID", metaimage(TransformMatrix="1 0 0 0 1 0 0 0")),
    "longer axes": ("E_PIXDIM_MISMATCH", metaimage(TransformMatrix="2 0 0 0 1 0 0 0 1")),
    "singular": ("E_AFFINE_INVALID", metaimage(TransformMatrix="1 0 0 1 0 0 0 0 1", AnatomicalOrientation=None)),
    "shear": ("E_AFFINE_SHEAR", metaimage(TransformMatrix="1 0 0 0.6 0.8 0 0 0 1")),
    "centre": ("E_METAIMAGE_HEADER", metaimage(CenterOfRotation="1 0 0")),
    "letters": ("E_METAIMAGE_HEADER", metaimage(AnatomicalOrientation="LPS")),
    "no letters": ("E_METAIMAGE_HEADER", metaimage(AnatomicalOrientation="XYZ")),
    "HeaderSize": ("E_METAIMAGE_HEADER", metaimage(HeaderSize="4")),
    "short": ("E_TRUNCATED", metaimage(BODY[:-1])),
    "nothing": ("E_TRUNCATED", metaimage(b"")),
    "long": ("E_PIXEL_LENGTH", metaimage(BODY + b"\0")),
    "zlib short": ("E_TRUNCATED", metaimage(PACKED[:-1], CompressedData="True")),
    "zlib damaged": ("E_PIXEL_DECODE", metaimage(PACKED[:-1] + b"\xff", CompressedData="True")),
    "zlib of less": ("E_TRUNCATED", metaimage(zlib.compress(BODY[:-1]), CompressedData="True")),
    "zlib of more": ("E_PIXEL_LENGTH", metaimage(zlib.compress(BODY + b"\0"), CompressedData="True")),
    "zlib bomb": ("E_PIXEL_LENGTH", metaimage(zlib.compress(bytes(10_000_000)), CompressedData="True")),
    "zlib and more": ("E_PIXEL_LENGTH", metaimage(PACKED + b"x", CompressedData="True")),
    "another length": ("E_PIXEL_LENGTH", metaimage(PACKED, CompressedData="True", CompressedDataSize="9")),
    "not finite": ("E_NONFINITE_VOXELS", metaimage(np.full(60, np.inf, "f4").tobytes(), ElementType="MET_FLOAT")),
    "detached": ("E_DETACHED_DATA", metaimage(b"", data_file="a.raw")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_with_its_code(tmp_path, fault):
    code, data = FAULTS[fault]

    assert refusal(tmp_path, data) == code


def test_a_site_may_say_how_an_image_lies(tmp_path):
    image = read(tmp_path, metaimage(TransformMatrix=None, Offset=None), Policy(assume_orientation="LPS"))

    assert orientation_code(image.volume.affine) == "LPS"
    assert image.volume.spacing_mm == (2, 3, 4)
    assert image.repairs == ("assume-orientation=LPS",)


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zraw"])
def test_detached_data_are_read_on_request_from_the_same_folder(tmp_path, compressed):
    affine = write_with_simpleitk(tmp_path / "a.mhd", compressed=compressed)

    image = read_metaimage(tmp_path / "a.mhd", policy=Policy(allow_detached=True))

    assert np.array_equal(image.volume.voxels[0], VOXELS)
    assert np.abs(image.volume.affine - affine).max() <= 1e-6
    assert image.num_files == 2
    with pytest.raises(InputError, match="E_DETACHED_DATA"):
        read_metaimage(tmp_path / "a.mhd")


@pytest.mark.parametrize("size", ["7", "-1"])
def test_a_data_file_may_have_a_header_of_its_own_that_is_skipped(tmp_path, size):
    (tmp_path / "a.raw").write_bytes(b"HEADER!" + BODY)

    image = read(tmp_path, metaimage(b"", data_file="a.raw", HeaderSize=size), Policy(allow_detached=True))

    assert np.array_equal(image.volume.voxels[0], VOXELS)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.raw", "LIST", "x%03d.raw 1 3 1", "link.raw", "twin.raw"])
def test_a_data_file_that_is_not_one_plain_file_beside_the_header_is_refused(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in (tmp_path / "x.raw", folder / "first.raw"):
        path.write_bytes(BODY)
    (folder / "link.raw").symlink_to(tmp_path / "x.raw")
    os.link(folder / "first.raw", folder / "twin.raw")

    assert refusal(folder, metaimage(b"", data_file=name), Policy(allow_detached=True)) == "E_DETACHED_DATA"


def zipped(path, **members: bytes | str) -> dict[str, Member]:
    """Members of an archive by their names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        names = [info.filename for info in archive.infolist()]
    return {name: Member(path, index, PurePosixPath(name)) for index, name in enumerate(names)}


def test_a_pair_in_an_archive_is_read_as_it_is_from_a_folder(tmp_path):
    """The archives of LUNA16: `subset0/UID.mhd` and `subset0/UID.raw`, and the same names in another subset."""
    header, packed = (
        metaimage(b"", data_file="1.2.3.raw"),
        metaimage(b"", data_file="1.2.4.zraw", CompressedData="True"),
    )
    members = zipped(
        tmp_path / "a.zip",
        **{"s0/1.2.3.mhd": header, "s1/1.2.3.raw": bytes(len(BODY)), "s0/1.2.3.raw": BODY},
        **{"s1/1.2.3.mhd": header, "s0/1.2.4.mhd": packed, "s0/1.2.4.zraw": PACKED},
    )
    policy = Policy(allow_detached=True)

    for name, voxels in (("s0/1.2.3.mhd", VOXELS), ("s1/1.2.3.mhd", VOXELS * 0), ("s0/1.2.4.mhd", VOXELS)):
        image = read_metaimage(members[name], policy=policy)
        assert np.array_equal(image.volume.voxels[0], voxels)
        assert (image.num_files, image.identity.series) == (2, PurePosixPath(name).stem)
        data_file = PurePosixPath(name).with_suffix(".zraw" if "2.4" in name else ".raw")
        assert files_of(members[name], "metaimage", policy) == (members[name], members[str(data_file)])
    with pytest.raises(InputError, match="E_DETACHED_DATA"):
        read_metaimage(members["s0/1.2.3.mhd"])


@pytest.mark.parametrize(
    ("data_file", "members"),
    [
        ("a.raw", {"other/a.raw": BODY}),
        ("b.raw", {"x/b.raw": BODY}),
        ("../a.raw", {"a.raw": BODY}),
        ("x/a.raw", {"x/x/a.raw": BODY}),
        ("a.mhd", {}),
        ("a.raw", {"x/A.raw": BODY}),
        ("a.raw", {"x/a.raw": BODY, "x/A.RAW": BODY}),
        ("a.raw", {"x/a.raw": BODY, "x/A.mhd": metaimage(b"", data_file="a.raw")}),
        ("a.raw", {"x/a.raw": b"", "./x/a.raw": BODY}),
        ("LIST", {"x/LIST": BODY}),
    ],
    ids=["folder", "name", "up", "down", "itself", "case", "twice", "two-headers", "dots", "list"],
)
def test_a_pair_in_an_archive_is_one_header_and_one_data_file_of_its_name(tmp_path, data_file, members):
    """Data of another folder or archive are refused, and data that many headers could unpack again and again."""
    found = zipped(tmp_path / "a.zip", **{"x/a.mhd": metaimage(b"", data_file=data_file)}, **members)
    (tmp_path / "a.raw").write_bytes(BODY)

    with pytest.raises(InputError, match="E_DETACHED_DATA"):
        read_metaimage(found["x/a.mhd"], policy=Policy(allow_detached=True))


def test_a_data_file_in_an_archive_has_the_limits_of_every_member(tmp_path):
    header = Raw(b"a.mhd", metaimage(b"", data_file="a.raw"))
    for name, raw, code in (
        ("bomb", Raw(b"a.raw", BODY, size=10), "E_ARCHIVE_BOMB"),
        ("crc", Raw(b"a.raw", BODY, crc=1), "E_ARCHIVE_CRC"),
        ("locked", Raw(b"a.raw", BODY, flags=1), "E_ARCHIVE_ENCRYPTED"),
        ("link", Raw(b"a.raw", BODY, attributes=LINK), "S_SPECIAL_FILE"),
        ("short", Raw(b"a.raw", BODY[:-2]), "E_TRUNCATED"),
    ):
        (tmp_path / f"{name}.zip").write_bytes(zip_bytes(header, raw))
        with pytest.raises(InputError) as caught:
            read_metaimage(
                Member(tmp_path / f"{name}.zip", 0, PurePosixPath("a.mhd")), policy=Policy(allow_detached=True)
            )
        assert caught.value.code == code, name


def test_recognition_needs_a_known_first_line():
    assert is_metaimage(metaimage())
    assert is_metaimage(metaimage(ObjectType=None))
    assert not is_metaimage(b"ObjectType: Image\n")
    assert not is_metaimage(b"")
