"""Damaged NIfTI, NRRD, MetaImage and picture files: refused with a code, or read as a second derivation reads them.

Every mutant is a function of the format and its number, so a failure is one integer. `MEDSSL_FUZZ` multiplies the
number of mutants, `MEDSSL_FUZZ_SEED` is the number of the first one.
"""

import gzip
import io
import os
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageOps

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import InputError
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.metaimage import read_metaimage
from medssl_cli.formats.nifti import encode_nifti, read_nifti
from medssl_cli.formats.nrrd import read_nrrd
from medssl_cli.formats.pictures import read_picture
from medssl_cli.formats.policy import Policy
from tests.mutants import FAULTS, damaged

COUNT = 300 * int(os.environ.get("MEDSSL_FUZZ", "1"))
FIRST = int(os.environ.get("MEDSSL_FUZZ_SEED", "0"))
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
BODY = VOXELS.tobytes(order="F")
GREY = np.random.default_rng(1).integers(0, 256, (9, 13), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(0, 65536, (9, 13), dtype=np.uint16)
HOSTILE_TOKENS = (
    b"", b"0", b"-1", b"1", b"2", b"3", b"4", b"32767", b"99999999999999999999", b"nan", b"inf", b"-0.0", b"1e-320",
    b"1e308", b"1e999", b"0x10", b"1_0", b"\xd9\xa1", b"none", b"(1,0,0)", b"True", b"MET_LONG", b"MET_DOUBLE",
    b"LOCAL", b"/etc/passwd", b"../x", b"RAS", b"LAS", b"double", b"block", b"gzip", b"raw", b"big", b":=", b"=",
    b"%s%n", b"A" * 5000, b"9" * 5000,
)  # fmt: skip


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(rows: np.ndarray, colour: int = 0) -> bytes:
    lines = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in rows)
    width = rows.shape[1] // (3 if colour == 2 else 1)
    header = struct.pack(">IIBBBBB", width, rows.shape[0], 8 * rows.dtype.itemsize, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    )


def saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def nrrd(encoding: str, body: bytes) -> bytes:
    fields = (
        "type: short", "dimension: 3", "space: left-posterior-superior", "sizes: 6 5 4",
        "space directions: (0.6,0.8,0) (-1.6,1.2,0) (0,0,2.5)", "kinds: domain domain domain", "endian: little",
        f"encoding: {encoding}", "space origin: (-10.5,20,30.25)", "key:=value",
    )  # fmt: skip
    return "\n".join(("NRRD0004", *fields, "", "")).encode() + body


def metaimage(body: bytes, *lines: str) -> bytes:
    fields = (
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        "TransformMatrix = 0.6 0.8 0 -0.8 0.6 0 0 0 1", "Offset = -10.5 20 30.25", "CenterOfRotation = 0 0 0",
        "ElementSpacing = 1 2 2.5", "DimSize = 6 5 4", "ElementType = MET_SHORT", *lines, "ElementDataFile = LOCAL",
    )  # fmt: skip
    return "\n".join((*fields, "")).encode() + body


def with_orientation(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def nifti(kind: type[nib.Nifti1Image], order: str, *, sform: int = 1, qform: int = 1) -> bytes:
    affine = np.array([[0.6, -1.6, 0, -10], [0.8, 1.2, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    image = kind(VOXELS, affine, kind.header_class(endianness=order))
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    return image.to_bytes()


SOUND = {
    "nifti": [
        nifti(nib.Nifti1Image, "<"), nifti(nib.Nifti2Image, ">"), nifti(nib.Nifti1Image, ">", sform=0),
        nifti(nib.Nifti1Image, "<", qform=0), gzip.compress(nifti(nib.Nifti1Image, "<"), mtime=0),
        encode_nifti(VOXELS, np.diag([0.75, 0.5, 2.5, 1.0])),
    ],
    "nrrd": [nrrd("raw", BODY), nrrd("gzip", gzip.compress(BODY, mtime=0))],
    "metaimage": [
        metaimage(BODY, "CompressedData = False", "AnatomicalOrientation = RAI"),
        metaimage(zlib.compress(BODY), "CompressedData = True", f"CompressedDataSize = {len(zlib.compress(BODY))}"),
    ],
    "picture": [
        png(GREY), png(DEEP), png(np.repeat(GREY, 3, axis=1), 2), saved(GREY, "PNG", exif=with_orientation(8)),
        saved(GREY, "JPEG"), saved(GREY, "JPEG", exif=with_orientation(6), progressive=True),
        saved(np.repeat(GREY[..., None], 3, axis=2), "JPEG"), saved(GREY, "TIFF"), saved(DEEP, "TIFF"),
        saved(DEEP, "TIFF", compression="tiff_deflate"), saved(GREY, "TIFF", compression="tiff_lzw"),
        saved(GREY, "TIFF", compression="packbits", tiffinfo={274: 5}), saved(GREY, "TIFF", compression="jpeg"),
    ],
}  # fmt: skip


def mutant_of(kind: str, number: int) -> bytes:
    """A sound file with one to three faults; most of them in its header."""
    generator = np.random.default_rng([number, list(SOUND).index(kind)])
    data = damaged(SOUND[kind][number % len(SOUND[kind])], generator, faults=_FAULTS)
    return with_checksums(data) if generator.random() < 0.5 else data


def _set_token(data: bytearray, at: int, generator: np.random.Generator) -> None:
    """Another value where a number or word of a text header stands."""
    tokens = list(re.finditer(rb"[^\s(),=:]+", bytes(data[:400])))
    if tokens:
        start, end = tokens[int(generator.integers(len(tokens)))].span()
        data[start:end] = HOSTILE_TOKENS[int(generator.integers(len(HOSTILE_TOKENS)))]


_FAULTS = (*FAULTS, _set_token, _set_token, _set_token)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that faults reach what lies behind them; other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    pieces, start = [data[:8]], 8
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        if start + 12 + length > len(data):
            break
        pieces.append(chunk(data[start + 4 : start + 8], data[start + 8 : start + 8 + length]))
        start += 12 + length
    return b"".join(pieces) + data[start:]


def nifti_again(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `[X, Y, Z]` and RAS affine by nibabel, told which version it is."""
    plain = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    kind = nib.Nifti2Image if plain[4:7] == b"n+2" else nib.Nifti1Image
    image = kind.from_bytes(plain)
    voxels = np.asanyarray(image.dataobj)
    return voxels.reshape((*voxels.shape, 1, 1)[:3]), image.affine


def nrrd_again(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `[X, Y, Z]` and RAS affine by a second, trusting reading of the header."""
    header, body = re.split(rb"\r?\n\r?\n", data, maxsplit=1)
    fields = dict(re.findall(r"^([^#:\n]+): ?(.*?)\r?$", header.decode("latin-1"), flags=re.MULTILINE))
    fields = {name.strip().lower(): value.strip().lower() for name, value in fields.items()}
    numbers = [float(word) for word in re.findall(r"[^\s(),]+", fields["space directions"])]
    origin = [float(word) for word in re.findall(r"[^\s(),]+", fields["space origin"])]
    to_ras = {"l": (-1, -1, 1), "r": (1, 1, 1)}[fields["space"][0]]
    if fields["space"] in ("las", "left-anterior-superior"):
        to_ras = (-1, 1, 1)
    content = body if fields["encoding"] == "raw" else gzip.decompress(body)
    kind = {"short": "i2", "ushort": "u2", "double": "f8"}[fields["type"]]
    voxels = np.frombuffer(content, ("<" if fields["endian"] == "little" else ">") + kind)
    affine = np.vstack([np.column_stack([np.reshape(numbers, (3, 3)).T, origin]), [0, 0, 0, 1]])
    return voxels.reshape([int(size) for size in fields["sizes"].split()], order="F"), np.diag([*to_ras, 1]) @ affine


def metaimage_again(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `[X, Y, Z]` and RAS affine by a second, trusting reading of the header."""
    head, name, rest = re.split(rb"(ElementDataFile[^\n]*\n)", data, maxsplit=1)
    assert b"local" in name.lower()
    fields = {
        line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in head.decode("latin-1").split("\n")
    }
    body = zlib.decompress(rest, 47) if fields.get("CompressedData", "").lower() in ("true", "1") else rest
    kind = {"MET_SHORT": "i2", "MET_USHORT": "u2", "MET_DOUBLE": "f8"}[fields["ElementType"]]
    is_big = fields["BinaryDataByteOrderMSB"].lower() in ("true", "1")
    voxels = np.frombuffer(body, (">" if is_big else "<") + kind)
    sizes = [int(size) for size in fields["DimSize"].split()]
    axes = np.reshape([float(word) for word in fields["TransformMatrix"].split()], (3, 3)).T
    axes = axes @ np.diag([float(word) for word in fields["ElementSpacing"].split()])
    origin = [float(word) for word in fields["Offset"].split()]
    affine = np.vstack([np.column_stack([axes, origin]), [0, 0, 0, 1]])
    return voxels.reshape(sizes, order="F"), np.diag([-1, -1, 1, 1]) @ affine


def picture_again(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels `[X, Y, 1]` by the library's own way of turning pictures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    return (rows if rows.ndim == 2 else rows[..., 1]).T[..., None], np.eye(4)


def picture(path: Path) -> LoadedImage:
    return read_picture(path, policy=Policy(burned_in="accept"))


READERS: dict[str, tuple[Callable[[Path], LoadedImage], Callable[[bytes], tuple[np.ndarray, np.ndarray]]]] = {
    "nifti": (lambda path: read_nifti(path).image, nifti_again),
    "nrrd": (read_nrrd, nrrd_again),
    "metaimage": (read_metaimage, metaimage_again),
    "picture": (picture, picture_again),
}


@pytest.mark.parametrize("kind", READERS)
def test_sound_files_are_read_as_they_are_derived_again(tmp_path, kind):
    for data in SOUND[kind]:
        assert outcome(kind, tmp_path / "a", data) == "read"


def outcome(kind: str, path: Path, data: bytes) -> str:
    """The code of the refusal, or "read" if image and place are those of the second derivation."""
    read, again = READERS[kind]
    path.write_bytes(data)
    try:
        image = read(path)
    except InputError as error:
        refusal = error
    else:
        check_image(image, again(data))
        return "read"
    assert refusal.code in CODES
    assert len(refusal.message) <= 300
    assert str(path) not in f"{refusal.message} {refusal.hint}"
    return refusal.code


def check_image(image: LoadedImage, derived: tuple[np.ndarray, np.ndarray]) -> None:
    voxels, affine = derived
    limit_mm = 0.1 if "W_AFFINE_ORTHONORMALISED" in image.warnings else 0.011
    ends = np.array(np.meshgrid(*[(0, size - 1) for size in voxels.shape], [1])).reshape(4, -1)
    assert np.linalg.norm((image.volume.affine - affine) @ ends, axis=0).max() <= limit_mm
    assert image.volume.shape == voxels.shape
    tolerance = 0 if voxels.dtype == image.volume.voxels.dtype else 1e-6
    assert np.allclose(image.volume.voxels[0], voxels, rtol=tolerance, atol=0)
    assert np.isfinite(image.volume.voxels).all()


@pytest.mark.parametrize("kind", READERS)
def test_damage_is_refused_with_a_code_or_read_as_it_is(tmp_path, kind):
    outcomes: Counter[str] = Counter()
    for number in range(FIRST, FIRST + COUNT):
        data = mutant_of(kind, number)
        try:
            outcomes[outcome(kind, tmp_path / "a", data)] += 1
        except Exception as error:
            raise AssertionError(f"{kind} mutant {number} ({len(data)} bytes)") from error

    assert outcomes["read"] < COUNT // 2
    assert len(outcomes) >= 5, outcomes
