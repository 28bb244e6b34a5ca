"""RLE Lossless pictures (PS3.5 annex G), decoded exactly or refused.

A run-length stream does not say how large its picture is. Decoders cut what is too long and fill up what is too short,
so a header that lies about rows, columns or bits gives scrambled pixels without a word; here the count decides.
"""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.codestream import mismatch

_HEADER: Final = struct.Struct("<16I")
_NO_OPERATION: Final = 0x80


def decode_rle(frame: bytes, *, num_pixels: int, bytes_per_pixel: int) -> NDArray[Any]:
    """The words of one frame, in native order.

    Args:
        frame: The compressed frame: 64 bytes of offsets, then one segment for each byte of a word, highest first.
        num_pixels: That the header announces; every segment has to give exactly as many bytes.
        bytes_per_pixel: 1, 2 or 4.

    Returns:
        `[num_pixels]` unsigned words.

    Raises:
        InputError: `E_TRUNCATED` where the frame ends early, `E_CODESTREAM_MISMATCH` where it holds another number of
            segments or bytes than the header says.
    """
    if len(frame) < _HEADER.size:
        raise InputError("E_TRUNCATED", "a run-length frame ends in its header", hint="retrieve the file again")
    count, *offsets = _HEADER.unpack_from(frame)
    if count != bytes_per_pixel:
        raise mismatch(f"{count} segments of run lengths, {bytes_per_pixel} expected")
    starts = offsets[:count]
    ends = [*starts[1:], len(frame)]
    if starts[0] != _HEADER.size or any(start > end for start, end in zip(starts, ends, strict=True)):
        raise mismatch("the offsets of the run-length segments are impossible")
    planes = [decode_segment(frame[start:end], num_pixels) for start, end in zip(starts, ends, strict=True)]
    words = np.empty((num_pixels, count), np.uint8)
    for place, plane in enumerate(planes):
        words[:, place] = np.frombuffer(plane, np.uint8)
    return words.reshape(-1).view(f">u{count}").astype(f"u{count}")


def decode_segment(segment: bytes, num_bytes: int) -> bytes:
    """The bytes of one segment (PS3.5 G.3.2).

    Args:
        segment: Runs, padded to an even length by at most one zero (G.3.1).
        num_bytes: That it has to give.

    Raises:
        InputError: `E_TRUNCATED` for fewer bytes, `E_CODESTREAM_MISMATCH` for more.
    """
    decoded = bytearray()
    at, end = 0, len(segment)
    while at < end and len(decoded) < num_bytes:
        control = segment[at]
        at += 1
        if control < _NO_OPERATION:
            decoded += segment[at : at + control + 1]
            at += control + 1
        elif control > _NO_OPERATION:
            decoded += segment[at : at + 1] * (257 - control)
            at += 1
    if len(decoded) < num_bytes:
        raise InputError(
            "E_TRUNCATED", f"{len(decoded)} bytes in a run-length segment, {num_bytes} expected", hint="retrieve again"
        )
    rest = segment[at:].strip(b"\x80")
    if len(decoded) > num_bytes or rest not in (b"", b"\0"):
        raise mismatch(f"a run-length segment holds more than the {num_bytes} bytes that the header announces")
    return bytes(decoded)
