"""Compare a compressed picture's own header with the DICOM header before any decoder sees it.

Decoders trust the codestream, readers the DICOM header; where they disagree, pixels silently change sign or size.
"""

from collections.abc import Sequence
from typing import Final

from medssl_cli.errors import InputError
from medssl_cli.formats.dicom.headers import Header

_JPEG_START: Final = b"\xff\xd8"
_J2K_START: Final = b"\xff\x4f\xff\x51"
_RLE: Final = "1.2.840.10008.1.2.5"
_FRAME_MARKERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


def check_codestream(header: Header, frames: Sequence[bytes]) -> None:
    """Refuse a picture whose size, precision, sign or number of components is not what the DICOM header says.

    Args:
        header: Of the file.
        frames: Encapsulated frames; one is expected.

    Raises:
        InputError: `E_TRUNCATED` without exactly one frame, else `E_CODESTREAM_MISMATCH`.
    """
    if len(frames) != 1:
        raise InputError("E_TRUNCATED", f"{len(frames)} compressed frames, 1 expected")
    if header.TransferSyntaxUID == _RLE:
        return
    frame = frames[0]
    if frame.startswith(_J2K_START):
        columns, rows, precision, is_signed, components = _j2k_size(frame)
        if is_signed != (header.PixelRepresentation == 1):
            raise InputError("E_CODESTREAM_MISMATCH", "codestream and header disagree on the sign")
    elif frame.startswith(_JPEG_START):
        columns, rows, precision, components = _jpeg_size(frame)
    else:
        raise InputError("E_CODESTREAM_MISMATCH", "not a bare JPEG or JPEG 2000 codestream")
    if (columns, rows, components) != (header.Columns, header.Rows, 1):
        raise InputError("E_CODESTREAM_MISMATCH", "codestream and header disagree on the size")
    if not header.BitsStored <= precision <= header.BitsAllocated:
        raise InputError(
            "E_CODESTREAM_MISMATCH", f"{precision} bits in the codestream, {header.BitsStored} in the header"
        )


def _j2k_size(frame: bytes) -> tuple[int, int, int, bool, int]:
    """Columns, rows, precision, sign and components of a SIZ marker segment (ISO/IEC 15444-1 A.5.1)."""
    if len(frame) < 43:
        raise InputError("E_TRUNCATED", "the codestream ends in its header")
    x1, y1, x0, y0 = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    components = int.from_bytes(frame[40:42], "big")
    return x1 - x0, y1 - y0, (frame[42] & 0x7F) + 1, bool(frame[42] & 0x80), components


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int]:
    """Columns, rows, precision and components of the frame header (ITU T.81 B.2.2, T.87 C.2.2)."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in _FRAME_MARKERS:
            rows, columns = (int.from_bytes(frame[start : start + 2], "big") for start in (at + 5, at + 7))
            return columns, rows, frame[at + 4], frame[at + 9]
        if length < 2:
            break
        at += 2 + length
    raise InputError("E_CODESTREAM_MISMATCH", "the JPEG stream has no frame header")
