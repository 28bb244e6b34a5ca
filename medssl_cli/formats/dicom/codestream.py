"""Compare a compressed picture's own header with the DICOM header before any decoder sees it.

Decoders trust the codestream, readers the DICOM header; where they disagree, pixels silently change sign or size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from medssl_cli.base.errors import InputError

MAX_MARKERS: Final = 10_000
MAX_BOXES: Final = 1_000
# Decoders hold up to 27 bytes per pixel that a codestream announces, however few bytes it has.
MAX_PIXELS: Final = 2**26

_JPEG_START: Final = b"\xff\xd8"
_J2K_START: Final = b"\xff\x4f\xff\x51"
_JP2_START: Final = b"\x00\x00\x00\x0cjP  "
_JP2_CODESTREAM: Final = b"jp2c"
_RLE: Final = "1.2.840.10008.1.2.5"
_JPEG_END: Final = b"\xff\xd9"
_TAIL_BYTES: Final = 64
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


class CodedPicture(Protocol):
    """What a header says about the coding of its pictures (PS3.3 C.7.6.3); of one slice or of a segmentation."""

    @property
    def TransferSyntaxUID(self) -> str: ...  # noqa: N802 - keywords of DICOM

    @property
    def Rows(self) -> int: ...  # noqa: N802

    @property
    def Columns(self) -> int: ...  # noqa: N802

    @property
    def SamplesPerPixel(self) -> int: ...  # noqa: N802

    @property
    def BitsAllocated(self) -> int: ...  # noqa: N802

    @property
    def BitsStored(self) -> int: ...  # noqa: N802

    @property
    def PixelRepresentation(self) -> int: ...  # noqa: N802

    @property
    def PhotometricInterpretation(self) -> str: ...  # noqa: N802

    @property
    def NumberOfFrames(self) -> int: ...  # noqa: N802

    @property
    def pixel_offset(self) -> int: ...


@dataclass(frozen=True)
class _Picture:
    columns: int
    rows: int
    precisions: tuple[int, ...]
    signs: tuple[bool, ...] | None  # JPEG and JPEG-LS have no sign
    least_bytes: int = 0
    has_end: bool | None = None  # None: the decoder looks itself


def check_codestream(header: CodedPicture, frames: Sequence[bytes]) -> int:
    """Refuse a picture whose size, precision, sign or number of components is not what the DICOM header says.

    JPEG, JPEG-LS, JPEG 2000 and HTJ2K are looked at, the latter two also inside of JP2 boxes; run lengths have no such
    header and are counted while they are decoded (`rle`).

    Args:
        header: Header of the picture.
        frames: The compressed data of one picture; exactly one is expected.

    Returns:
        Bits of the decoded values that carry meaning: the precision of the codestream, of run lengths BitsStored.

    Raises:
        InputError: `E_TRUNCATED` without exactly one frame, with fewer bytes than any picture of its size has or
            without the marker that ends a JPEG stream, of which decoders make up the rest; `E_TOO_BIG` above
            `MAX_PIXELS`, else `E_CODESTREAM_MISMATCH`.
    """
    if len(frames) != 1:
        raise InputError("E_TRUNCATED", f"{len(frames)} compressed frames, 1 expected", hint="retrieve the file again")
    if header.Rows * header.Columns > MAX_PIXELS:
        raise InputError("E_TOO_BIG", f"a compressed picture of more than {MAX_PIXELS} pixels")
    if header.TransferSyntaxUID == _RLE:
        return header.BitsStored
    picture = _picture(frames[0])
    if len(frames[0]) < picture.least_bytes:
        # The decoder would make up the rest.
        raise InputError("E_TRUNCATED", "the codestream is too short for its size", hint="retrieve the file again")
    if picture.has_end is False:
        raise InputError("E_TRUNCATED", "the codestream has no end marker", hint="retrieve the file again")
    components = len(picture.precisions)
    if (picture.columns, picture.rows, components) != (header.Columns, header.Rows, header.SamplesPerPixel):
        raise mismatch("codestream and header disagree on the size")
    if picture.signs is not None and set(picture.signs) != {header.PixelRepresentation == 1}:
        raise mismatch("codestream and header disagree on the sign")
    for precision in picture.precisions:
        if not header.BitsStored <= precision <= header.BitsAllocated:
            raise mismatch(f"{precision} bits in the codestream, {header.BitsStored} in the header")
    return max(picture.precisions)


def _picture(frame: bytes) -> _Picture:
    if frame.startswith(_JPEG_START):
        return _jpeg_size(frame)
    start = _codestream_start(frame) if frame.startswith(_JP2_START) else 0
    if frame[start : start + 4] != _J2K_START:
        raise mismatch("not a JPEG or JPEG 2000 codestream")
    return _j2k_size(frame, start)


def _codestream_start(frame: bytes) -> int:
    """Where the codestream begins in a JP2 file (ISO/IEC 15444-1 I.4); lengths that promise no progress are refused."""
    at = 0
    for _ in range(MAX_BOXES):
        length, kind = int.from_bytes(frame[at : at + 4], "big"), frame[at + 4 : at + 8]
        if length < 8 or at + length > len(frame):
            raise mismatch("the boxes around the codestream are damaged")
        if kind == _JP2_CODESTREAM:
            return at + 8
        at += length
    raise mismatch(f"no codestream within {MAX_BOXES} boxes")


def _j2k_size(frame: bytes, start: int) -> _Picture:
    """Size, precision, sign and components of a SIZ marker segment (ISO/IEC 15444-1 A.5.1; the same in HTJ2K)."""
    end = start + 4 + int.from_bytes(frame[start + 4 : start + 6], "big")
    if end > len(frame) or end < start + 45:
        raise mismatch("the codestream ends in its header")
    x1, y1, x0, y0 = (int.from_bytes(frame[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    components = int.from_bytes(frame[start + 40 : start + 42], "big")
    if end != start + 42 + 3 * components or not components:
        raise mismatch("the codestream's number of components is impossible")
    depths = [frame[start + 42 + 3 * component] for component in range(components)]
    precisions = tuple((depth & 0x7F) + 1 for depth in depths)
    return _Picture(x1 - x0, y1 - y0, precisions, tuple(bool(depth & 0x80) for depth in depths))


def _jpeg_size(frame: bytes) -> _Picture:
    """Size, precision and components of the frame header (ITU T.81 B.2.2, T.87 C.2.2)."""
    at = 2
    for _ in range(MAX_MARKERS):
        if at + 10 > len(frame) or frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            rows, columns = (int.from_bytes(frame[start : start + 2], "big") for start in (at + 5, at + 7))
            precisions = (frame[at + 4],) * frame[at + 9]
            # Within coded pixels no 0xFF is followed by so large a byte (T.81 B.1.1.5, T.87 A.1); padding may follow.
            has_end = _JPEG_END in frame[-_TAIL_BYTES:]
            return _Picture(columns, rows, precisions, None, _least_bytes(marker, rows, columns), has_end)
        if length < 2:
            break
        at += 2 + length
    raise mismatch("the JPEG stream has no frame header")


def _least_bytes(marker: int, rows: int, columns: int) -> int:
    """Bytes that the shortest codes give.

    A bit per pixel of lossless JPEG, two per 8 x 8 block of sequential and one of progressive JPEG (T.81 F.1.2, G.1.2,
    H.1.2), one per line of JPEG-LS (T.87 A.7).
    """
    bits = {0xC0: rows * columns // 32, 0xC1: rows * columns // 32, 0xC2: rows * columns // 64, 0xC3: rows * columns}
    return (rows if marker == 0xF7 else bits.get(marker, 0)) // 8


def mismatch(message: str) -> InputError:
    """`E_CODESTREAM_MISMATCH`: compressed pixels and what the header says of them disagree."""
    return InputError("E_CODESTREAM_MISMATCH", message, hint="retrieve the file again")
