"""The reader of PNG, JPEG and TIFF X-rays. Truth: arrays that the test writes, and the bits of the formats."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from medssl_cli.base.errors import InputError
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.pictures import is_picture, read_picture
from medssl_cli.formats.policy import Policy

ACCEPT = Policy(burned_in="accept")
GREY = np.random.default_rng(3).integers(0, 256, (7, 11), dtype=np.uint8)  # [Y, X]: 7 rows, 11 columns
DEEP = np.random.default_rng(4).integers(0, 65536, (7, 11), dtype=np.uint16)
PHOTOMETRIC, ORIENTATION = 262, 274


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(rows: np.ndarray, *, colour: int = 0, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """A PNG with filter 0, written from ISO/IEC 15948 alone; `size` lies about (width, height)."""
    depth = 8 * rows.dtype.itemsize
    lines = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *(size or (rows.shape[1], rows.shape[0])), depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif.tobytes()


def read(tmp_path, data: bytes, policy: Policy = ACCEPT, name: str = "a.png") -> LoadedImage:
    (tmp_path / name).write_bytes(data)
    return read_picture(tmp_path / name, modality="DX", policy=policy)


def rows_of(image: LoadedImage) -> np.ndarray:
    """[Y, X] of a volume [1, X, Y, 1]."""
    assert image.volume.voxels.shape[0] == image.volume.voxels.shape[3] == 1
    return image.volume.voxels[0, :, :, 0].T


def refusal(tmp_path, data: bytes, policy: Policy = ACCEPT) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, data, policy)
    return caught.value.code


@pytest.mark.parametrize("rows", [GREY, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_values_and_their_type_are_kept(tmp_path, rows, kind):
    image = read(tmp_path, png(rows) if kind == "PNG" else saved(rows, "TIFF"))

    assert rows_of(image).dtype == rows.dtype
    assert np.array_equal(rows_of(image), rows)


def test_x_runs_to_the_right_of_the_picture_and_y_downwards(tmp_path):
    rows = np.zeros((7, 11), dtype=np.uint8)
    rows[6, 0] = 255  # bottom left

    volume = read(tmp_path, png(rows)).volume

    assert volume.shape == (11, 7, 1)
    assert np.argwhere(volume.voxels[0]).tolist() == [[0, 6, 0]]
    assert np.array_equal(volume.affine, np.eye(4))


def test_a_picture_knows_neither_its_spacing_nor_its_patient(tmp_path):
    image = read(tmp_path, saved(GREY, "PNG", dpi=(300, 300)), name="chest.v1.png")

    assert (image.spacing_kind, image.source_kind) == ("unknown", "picture")
    assert (image.identity.patient, image.identity.series) == (None, "chest.v1")
    assert (image.volume.modality, image.volume.units, image.volume.spacing_mm) == ("DX", "a.u.", (1, 1, 1))
    assert image.decoder.startswith("pillow ")


def test_a_jpeg_is_read_as_its_decoder_gives_it_and_called_lossy(tmp_path):
    data = saved(GREY, "JPEG")

    image = read(tmp_path, data)

    assert "W_LOSSY" in image.warnings
    assert image.acquisition.lossy_ratio == GREY.size / len(data)
    assert image.details == (f"W_LOSSY: ratio {GREY.size / len(data):.3g}",)
    assert np.array_equal(rows_of(image), np.asarray(Image.open(io.BytesIO(data))))
    assert "W_LOSSY" not in read(tmp_path, png(GREY)).warnings


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"])
def test_lossless_tiff_compressions_are_read(tmp_path, compression):
    image = read(tmp_path, saved(DEEP, "TIFF", compression=compression))

    assert np.array_equal(rows_of(image), DEEP)
    assert "W_LOSSY" not in image.warnings


def test_a_jpeg_inside_a_tiff_is_lossy_too(tmp_path):
    assert "W_LOSSY" in read(tmp_path, saved(GREY, "TIFF", compression="jpeg")).warnings


def test_big_endian_tiff_is_read(tmp_path):
    stream = io.BytesIO()
    Image.frombytes("I;16B", (11, 7), DEEP.astype(">u2").tobytes()).save(stream, "TIFF")
    assert stream.getvalue().startswith(b"MM")

    assert np.array_equal(rows_of(read(tmp_path, stream.getvalue())), DEEP)


def test_grey_stored_as_rgb_is_grey_and_colour_is_refused(tmp_path):
    colours = np.repeat(GREY[..., None], 3, axis=2)
    assert np.array_equal(rows_of(read(tmp_path, saved(colours, "PNG"))), GREY)
    assert np.array_equal(rows_of(read(tmp_path, saved(colours, "TIFF"))), GREY)

    colours[3, 4, 2] ^= 1
    assert refusal(tmp_path, saved(colours, "PNG")) == "E_PHOTOMETRIC"
    assert refusal(tmp_path, saved(colours, "TIFF")) == "E_PHOTOMETRIC"


def test_interlaced_png_is_read(tmp_path):
    """One pixel in the first of Adam7's seven pictures, one in the sixth; 2 x 1 pixels have no others."""
    header = struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\5\0\7")) + chunk(b"IEND", b"")

    assert rows_of(read(tmp_path, b"\x89PNG\r\n\x1a\n" + body)).tolist() == [[5, 7]]


def test_white_as_zero_is_inverted_and_recorded(tmp_path):
    image = read(tmp_path, saved(GREY, "TIFF", tiffinfo={PHOTOMETRIC: 0}))
    stored = saved(GREY, "TIFF", tiffinfo={PHOTOMETRIC: 0})
    raw = np.frombuffer(stored[-GREY.size :], np.uint8) if GREY.tobytes() not in stored else GREY

    assert image.inverted
    assert np.array_equal(rows_of(image).ravel(), 255 - raw.ravel())
    assert not read(tmp_path, png(GREY)).inverted


# Where row 0, column 0 of the stored picture belongs (EXIF 2.32, 4.6.4 A), as rows and columns of the upright one.
UPRIGHT = {
    1: lambda y, x: (y, x),
    2: lambda y, x: (y, 10 - x),
    3: lambda y, x: (6 - y, 10 - x),
    4: lambda y, x: (6 - y, x),
    5: lambda y, x: (x, y),
    6: lambda y, x: (x, 6 - y),
    7: lambda y, x: (10 - x, 6 - y),
    8: lambda y, x: (10 - x, y),
}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_exif_orientation_is_applied_once_and_recorded(tmp_path, orientation, kind):
    options = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": oriented(orientation)}
    data = saved(GREY, kind, **options)
    stored = np.asarray(Image.open(io.BytesIO(saved(GREY, kind))))
    expected = np.zeros(stored.shape if orientation < 5 else stored.T.shape, dtype=np.uint8)
    for (y, x), value in np.ndenumerate(stored):
        expected[UPRIGHT[orientation](y, x)] = value

    image = read(tmp_path, data)

    assert np.array_equal(rows_of(image), expected)
    assert image.repairs == (() if orientation == 1 else (f"exif-orientation={orientation}",))


def test_an_orientation_that_means_nothing_is_ignored(tmp_path):
    image = read(tmp_path, saved(GREY, "PNG", exif=oriented(9)))

    assert np.array_equal(rows_of(image), GREY)
    assert image.repairs == ()


def test_pictures_need_a_word_about_burned_in_writing(tmp_path):
    assert refusal(tmp_path, png(GREY), Policy()) == "E_BURNED_IN"
    assert refusal(tmp_path, png(GREY), Policy(burned_in="refuse")) == "E_BURNED_IN"

    accepted = read(tmp_path, png(GREY))
    assert (accepted.burned_in, accepted.warnings) == ("unknown", ("W_BURNED_IN_UNKNOWN",))
    assert read(tmp_path, png(GREY), Policy(burned_in="accept-risk")).burned_in == "accepted_risk"


def converted(mode: str, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).convert(mode).save(stream, kind)
    return stream.getvalue()


def several(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, kind, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    return stream.getvalue()


def with_alpha(samples: int, least: int) -> np.ndarray:
    """Grey in so many samples, opaque but for one pixel."""
    alpha = np.full_like(GREY, 255)
    alpha[2, 3] = least
    return np.stack([GREY] * samples + [alpha], axis=2)


def test_grey_with_an_alpha_channel_that_hides_nothing_is_grey(tmp_path):
    for samples in (1, 3):
        assert np.array_equal(rows_of(read(tmp_path, saved(with_alpha(samples, 255), "PNG"))), GREY)


FAULTS = {
    "palette": ("E_PHOTOMETRIC", converted("P")),
    "alpha": ("E_PHOTOMETRIC", saved(with_alpha(1, 254), "PNG")),
    "RGBA": ("E_PHOTOMETRIC", saved(with_alpha(3, 0), "PNG")),
    "black and white": ("E_PHOTOMETRIC", converted("1")),
    "transparent grey": ("E_PHOTOMETRIC", png(GREY, extra=chunk(b"tRNS", b"\0\7"))),
    "RGB of 16 bits": ("E_PHOTOMETRIC", png(np.zeros((7, 33), np.uint16), colour=2, size=(11, 7))),
    "CMYK": ("E_PHOTOMETRIC", converted("CMYK", "JPEG")),
    "CMYK TIFF": ("E_PHOTOMETRIC", converted("CMYK", "TIFF")),
    "32 bits": ("E_PHOTOMETRIC", converted("I", "TIFF")),
    "floats": ("E_PHOTOMETRIC", converted("F", "TIFF")),
    "16 bits, white is zero": ("E_PHOTOMETRIC", saved(DEEP, "TIFF", tiffinfo={PHOTOMETRIC: 0})),
    "animated": ("E_PHOTOMETRIC", several("PNG")),
    "pages": ("E_PHOTOMETRIC", several("TIFF")),
    "pictures in a JPEG": ("E_PHOTOMETRIC", several("MPO")),
    "30,000 x 30,000": ("E_TOO_BIG", png(GREY, size=(30_000, 30_000))),
    "too wide": ("E_TOO_BIG", png(GREY, size=(40_000, 1))),
    "no pixels": ("E_PICTURE_PARSE", png(GREY, size=(0, 7))),
    "fewer pixels": ("E_TRUNCATED", png(GREY, size=(11, 8))),
    "more pixels": ("E_PICTURE_PARSE", png(GREY, size=(11, 6))),
    "checksum": ("E_PICTURE_PARSE", png(GREY).replace(b"IEND\xae", b"IEND\xaf")),
    "two headers": ("E_PICTURE_PARSE", png(GREY, extra=chunk(b"IHDR", bytes(13)))),
    "another format": ("E_PICTURE_PARSE", b"GIF89a" + bytes(100)),
    "nothing": ("E_PICTURE_PARSE", b""),
    "many scans": ("E_TOO_BIG", saved(GREY, "JPEG")[:-2] + b"\xff\xda" * 200 + b"\xff\xd9"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_or_unsuitable_picture_is_refused_with_its_code(tmp_path, fault):
    code, data = FAULTS[fault]

    assert refusal(tmp_path, data) == code


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_picture_of_more_pixels_than_the_limit_is_refused_before_it_is_decoded(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("medssl_cli.formats.picture_checks.MAX_PIXELS", 76)  # 7 x 11 = 77

    assert refusal(tmp_path, saved(GREY, kind)) == "E_TOO_BIG"


def test_no_shortened_picture_is_accepted(tmp_path):
    for data in (png(GREY), saved(GREY, "JPEG"), saved(DEEP, "TIFF"), saved(DEEP, "TIFF", compression="tiff_deflate")):
        codes = {refusal(tmp_path, data[:length]) for length in range(len(data))}
        assert codes <= {"E_TRUNCATED", "E_PICTURE_PARSE"}


def test_no_flipped_bit_of_a_png_changes_a_pixel(tmp_path):
    data = png(GREY)
    for bit in range(8 * len(data)):
        mutant = bytearray(data)
        mutant[bit // 8] ^= 1 << (bit % 8)
        assert refusal(tmp_path, bytes(mutant)) in ("E_PICTURE_PARSE", "E_TRUNCATED", "E_PHOTOMETRIC", "E_TOO_BIG")


def test_metadata_leave_no_trace(tmp_path):
    text = chunk(b"tEXt", b"Comment\0DOE^JOHN") + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0DOE^JOHN")
    commented = saved(GREY, "JPEG", comment=b"DOE^JOHN")

    for data in (png(GREY, extra=text), commented):
        image = read(tmp_path, data)
        assert b"DOE" in data
        assert "DOE" not in repr(image)
        assert b"DOE" not in image.volume.voxels.tobytes()


def test_recognition_takes_the_first_bytes():
    assert is_picture(png(GREY))
    assert is_picture(saved(GREY, "JPEG"))
    assert is_picture(saved(GREY, "TIFF"))
    assert not is_picture(b"\xff\xd8")
    assert not is_picture(b"")


def test_real_x_rays_are_read_as_the_library_reads_them(shared_data):
    paths = sorted((shared_data / "nih_cxr_1000").rglob("*.png"))[:10]
    assert len(paths) == 10
    for path in paths:
        with Image.open(path) as opened:
            expected = np.asarray(opened)
        if expected.ndim == 3:
            assert (expected == expected[..., :1]).all()
            expected = expected[..., 0]
        assert np.array_equal(rows_of(read_picture(path, modality="DX", policy=ACCEPT)), expected)
