"""Whether a PNG, JPEG or TIFF file is whole, before a decoder sees it: decoders fill what is missing with black.

Sources: PNG ISO/IEC 15948, JPEG ITU-T T.81, TIFF 6.0. Only structure is looked at; text and other metadata stay unread.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from medssl_cli.base.errors import InputError

MAX_PIXELS: Final = 100_000_000
MAX_SIDE: Final = 32767
MAX_SCANS: Final = 100
PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
COPY_AGAIN: Final = "copy or export the picture again"
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE: Final = 2**20
_PNG_SAMPLES: Final = {0: 1, 2: 3, 4: 2, 6: 4}
"""Samples of a pixel by colour type: grey, RGB, and both with alpha (ISO/IEC 15948, 11.2.2)."""
_PNG_PIXELS: Final = ((8, 0), (16, 0), (8, 2), (8, 4), (8, 6))
_MAX_TAGS: Final = 512
_TYPE_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _SAMPLES, _ROWS, _COUNTS = (
    256, 257, 258, 259, 262, 273, 277, 278, 279,
)  # fmt: skip
_PLANAR, _SAMPLE_FORMAT = 284, 339
_LOOKED_AT: Final = (
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _OFFSETS, _SAMPLES, _ROWS, _COUNTS, _PLANAR, _SAMPLE_FORMAT,
)  # fmt: skip
_RAW, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS = 1, 5, 7, 8, 32946, 32773


@dataclass(frozen=True)
class TiffFacts:
    """What the reader must know of a sound TIFF.

    Args:
        is_white_zero: The stored values run from white to black.
        is_lossy: The pixels are compressed as JPEG.
    """

    is_white_zero: bool
    is_lossy: bool


def check_size(width: int, height: int) -> None:
    """Refuse pictures that are too large to decode.

    Raises:
        InputError: `E_TOO_BIG`.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            "E_TOO_BIG", f"{width} x {height} pixels, the limit is {MAX_PIXELS} and {MAX_SIDE} along a side"
        )


def check_jpeg(data: bytes) -> None:
    """The last scan must be ended, and decoding many scans must not take for ever (T.81, B.1.1.3).

    Nothing in a JPEG says whether its pixels are those that were stored.

    Raises:
        InputError: `E_TRUNCATED`, `E_TOO_BIG`.
    """
    if data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise InputError("E_TRUNCATED", "the picture has no end", hint=COPY_AGAIN)
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise InputError("E_TOO_BIG", f"more than {MAX_SCANS} scans")


def check_jpeg_size(width: int, height: int, num_bytes: int) -> None:
    """Every block of 8 x 8 pixels needs a bit at least, so a small file cannot hold a huge picture.

    Raises:
        InputError: `E_TRUNCATED`.
    """
    if width * height > 8 * 8 * 8 * num_bytes:
        raise InputError("E_TRUNCATED", f"{width} x {height} pixels in {num_bytes} bytes", hint=COPY_AGAIN)


def check_png(data: bytes, *, is_label: bool = False) -> None:
    """Every chunk must be whole and match its checksum, the pixels be grey or RGB of full bytes, and all be there.

    An alpha channel is let through: whether it hides anything, only the decoded pixels say.

    Args:
        data: The file.
        is_label: Pixels of one bit are allowed, too.

    Raises:
        InputError: `E_PICTURE_PARSE`, `E_PHOTOMETRIC`, `E_TRUNCATED`, `E_TOO_BIG`.
    """
    stored, expected = _Inflater(), 0
    for number, (name, body) in enumerate(_png_chunks(data)):
        if (number == 0) != (name == b"IHDR"):
            raise InputError("E_PICTURE_PARSE", "the PNG does not begin with its one header")
        if name == b"IHDR":
            expected = _png_data_size(body, is_label=is_label)
        if name in (b"tRNS", b"acTL"):
            raise InputError("E_PHOTOMETRIC", "transparency or several pictures in the file")
        if name == b"IDAT":
            stored.feed(body, expected)
    if stored.size < expected or not stored.is_finished:
        raise InputError("E_TRUNCATED", f"{stored.size} bytes of {expected} in the picture", hint=COPY_AGAIN)


def _png_data_size(header: bytes, *, is_label: bool) -> int:
    """Bytes of all filtered rows (ISO/IEC 15948, 7.2; with Adam7 of all seven pictures, 8.2)."""
    if len(header) != 13:
        raise InputError("E_PICTURE_PARSE", f"a PNG header of {len(header)} bytes")
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    check_size(width, height)
    if (depth, colour) not in (*_PNG_PIXELS, *(((1, 0),) if is_label else ())):
        raise InputError(
            "E_PHOTOMETRIC",
            f"PNG colour type {colour} of {depth} bits is not 8 or 16 bit grey",
            hint="store the class of each pixel as 8 bit grey: 0 for none, 1, 2, ..." if is_label else "",
        )
    bits = depth * _PNG_SAMPLES[colour]
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0 and rows > 0)


class _Inflater:
    """Counts what a zlib stream in pieces unpacks to, and keeps none of it."""

    def __init__(self) -> None:
        self.size = 0
        self._stream = zlib.decompressobj()

    @property
    def is_finished(self) -> bool:
        """Whether the stream has ended and matched its checksum."""
        return self._stream.eof

    def feed(self, piece: bytes, limit: int) -> None:
        """Take the next piece; more output than `limit` is refused."""
        try:
            while True:
                produced = len(self._stream.decompress(piece, _PIECE))
                self.size += produced
                piece = self._stream.unconsumed_tail
                if self.size > limit or self._stream.unused_data:
                    raise InputError("E_PICTURE_PARSE", f"more than {limit} bytes in the picture")
                if not produced and not piece:
                    return
        except zlib.error as error:
            raise InputError("E_PICTURE_PARSE", "the compressed pixels are damaged", hint=COPY_AGAIN) from error


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names up to IEND, and the contents of header and pixels; all others stay unread."""
    start, name = len(PNG_MAGIC), b""
    while name != b"IEND":
        if len(data) < start + 12:
            raise InputError("E_TRUNCATED", "the picture ends before its last chunk", hint=COPY_AGAIN)
        length, name = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if len(data) < end + 4:
            raise InputError("E_TRUNCATED", "the picture ends within a chunk", hint=COPY_AGAIN)
        if zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise InputError("E_PICTURE_PARSE", "a checksum of the picture is wrong", hint=COPY_AGAIN)
        yield name, data[start + 8 : end] if name in (b"IHDR", b"IDAT") else b""
        start = end + 4


def check_tiff(data: bytes) -> TiffFacts:
    """One picture of whole strips, grey of 8 or 16 bits or grey stored as RGB (TIFF 6.0, sections 2 to 7).

    Raises:
        InputError: `E_PICTURE_PARSE`, `E_PHOTOMETRIC`, `E_TRUNCATED`, `E_TOO_BIG`.
    """
    tags = _tiff_tags(data)
    width, height, samples = _one(tags, _WIDTH), _one(tags, _HEIGHT), _one(tags, _SAMPLES, 1)
    check_size(width, height)
    bits, photometric = tags.get(_BITS, (1,)), _one(tags, _PHOTOMETRIC)
    is_grey = samples == 1 and bits in ((8,), (16,)) and photometric in (0, 1)
    is_colour = samples == 3 and bits == (8, 8, 8) and photometric == 2
    is_plain = _one(tags, _PLANAR, 1) == 1 and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    if not (is_grey or is_colour) or not is_plain or (photometric == 0 and bits == (16,)):
        raise InputError("E_PHOTOMETRIC", "neither grey values of 8 or 16 bits without sign, nor grey stored as RGB")
    compression = _one(tags, _COMPRESSION, 1)
    if compression not in (_RAW, _LZW, _JPEG, _DEFLATE, _OLD_DEFLATE, _PACKBITS):
        raise InputError("E_PICTURE_PARSE", f"TIFF compression {compression} is not supported")
    _check_strips(data, tags, width * samples * bits[0] // 8, height, compression)
    return TiffFacts(is_white_zero=photometric == 0, is_lossy=compression == _JPEG)


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Whole numbers of the first and only directory; other values are not decoded."""
    order: Literal["<", ">"] = "<" if data.startswith(b"II") else ">"
    start = _tiff_numbers(data, order, 4, "I", 1)[0]
    count = _tiff_numbers(data, order, start, "H", 1)[0]
    if not 1 <= count <= _MAX_TAGS:
        raise InputError("E_PICTURE_PARSE", f"a TIFF directory of {count} tags")
    tags: dict[int, tuple[int, ...]] = {}
    for place in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = _tiff_numbers(data, order, place, "H", 2)
        length = _tiff_numbers(data, order, place + 4, "I", 1)[0]
        if kind not in _TYPE_SIZES or length < 1 or tag in tags:
            raise InputError("E_PICTURE_PARSE", "a TIFF tag is of an unknown type, empty or there twice")
        is_inline = length * _TYPE_SIZES[kind] <= 4
        at = place + 8 if is_inline else _tiff_numbers(data, order, place + 8, "I", 1)[0]
        if at + length * _TYPE_SIZES[kind] > len(data):
            raise InputError("E_TRUNCATED", "a TIFF tag points behind the end of the file", hint=COPY_AGAIN)
        code = {3: "H", 4: "I"}.get(kind) if tag in _LOOKED_AT and length <= MAX_SIDE else None
        tags[tag] = _tiff_numbers(data, order, at, code, length) if code else ()
    if _tiff_numbers(data, order, start + 2 + 12 * count, "I", 1) != (0,):
        raise InputError("E_PHOTOMETRIC", "the file holds several pictures")
    return tags


def _tiff_numbers(data: bytes, order: str, start: int, code: str, count: int) -> tuple[int, ...]:
    if start + count * struct.calcsize(code) > len(data):
        raise InputError("E_TRUNCATED", "the picture ends within its directory", hint=COPY_AGAIN)
    return struct.unpack_from(f"{order}{count}{code}", data, start)


def _one(tags: dict[int, tuple[int, ...]], tag: int, default: int | None = None) -> int:
    values = tags.get(tag, () if default is None else (default,))
    if len(values) != 1:
        raise InputError("E_PICTURE_PARSE", f"TIFF tag {tag} is missing or not one number")
    return values[0]


def _check_strips(data: bytes, tags: dict[int, tuple[int, ...]], row_bytes: int, height: int, compression: int) -> None:
    """Strips must lie within the file and, where that can be seen without decoding, hold exactly their rows."""
    rows = min(_one(tags, _ROWS, height), height)
    offsets, counts = tags.get(_OFFSETS, ()), tags.get(_COUNTS, ())
    if rows < 1 or row_bytes < 1 or not len(offsets) == len(counts) == -(-height // rows):
        raise InputError("E_PICTURE_PARSE", "the picture is not made of strips that fit its height")
    for number, (offset, count) in enumerate(zip(offsets, counts, strict=True)):
        expected = row_bytes * min(rows, height - number * rows)
        size = _inflated_size(data[offset : offset + count], expected) if compression in _ZLIB else count
        if offset + count > len(data) or (size < expected and compression in (_RAW, *_ZLIB)):
            raise InputError("E_TRUNCATED", f"strip {number} ends too early", hint=COPY_AGAIN)
        if size > expected and compression == _RAW:
            raise InputError("E_PICTURE_PARSE", f"strip {number} is longer than its rows")


_ZLIB: Final = (_DEFLATE, _OLD_DEFLATE)


def _inflated_size(piece: bytes, limit: int) -> int:
    inflater = _Inflater()
    inflater.feed(piece, limit)
    return inflater.size if inflater.is_finished else 0
