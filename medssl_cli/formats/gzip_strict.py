"""Gzip that notices everything: checksum, length, early end, trailing bytes, and more output than announced.

The usual readers stop as soon as they have the voxels that they want and never reach the checksum. RFC 1952.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from medssl_cli.base.errors import InputError

MAGIC: Final = b"\x1f\x8b"
LEVEL: Final = 6
LEVEL_OF_RUNS: Final = 1
_HEADER: Final = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
_GZIP_WINDOW: Final = 31


def gzip_head(data: bytes, size: int) -> bytes:
    """The first bytes of the unpacked stream, as many as there are up to `size`; unchecked, for looking only."""
    try:
        return zlib.decompressobj(_GZIP_WINDOW).decompress(data, size)
    except zlib.error:
        return b""


def gunzip(data: bytes, *, limit: int) -> bytearray:
    """Unpack a whole stream of one or more members. Zeros that pad the stream to a tape block are ignored.

    Args:
        data: The compressed bytes.
        limit: Bytes that may come out at most; counted as they are produced, never as they are declared.

    Raises:
        InputError: `E_GZ_CRC`, `E_GZ_TRUNCATED`, `E_GZ_TRAILING`, `E_GZ_BOMB`.
    """
    unpacked = bytearray()
    view, position = memoryview(data), 0
    while True:
        position = _gunzip_member(view, position, unpacked, limit)
        if position == len(view):
            return unpacked
        if not data.startswith(MAGIC, position):
            rest = len(view) - position
            if data.count(0, position) == rest:
                return unpacked
            raise InputError("E_GZ_TRAILING", f"{rest} bytes follow the gzip stream", hint=_HINT)


_HINT: Final = "copy or download the file again"
_FEED_BYTES: Final = 2**18
_PIECE_BYTES: Final = 2**24


def _gunzip_member(view: memoryview, position: int, unpacked: bytearray, limit: int) -> int:
    """Append the content of the member at `position` to `unpacked`; returns where the next one would begin.

    The stream is fed in small pieces, so no more than one of them is ever copied, however long the whole is.
    """
    stream = zlib.decompressobj(_GZIP_WINDOW)
    rest: bytes | memoryview = b""
    try:
        while not stream.eof:
            if not rest:
                rest = view[position : position + _FEED_BYTES]
                position += len(rest)
            produced = stream.decompress(rest, min(_PIECE_BYTES, limit + 1 - len(unpacked)))
            unpacked += produced
            if len(unpacked) > limit:
                raise InputError("E_GZ_BOMB", f"the stream unpacks to more than the announced {limit} bytes")
            if not produced and not rest and not stream.eof:
                raise InputError("E_GZ_TRUNCATED", f"the stream ends after {len(unpacked)} bytes", hint=_HINT)
            rest = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError("E_GZ_CRC", f"the stream is damaged after {len(unpacked)} bytes", hint=_HINT) from error
    return position - len(stream.unused_data)


def gzip_bytes(data: bytes, *, has_runs: bool = False) -> bytes:
    """Pack bytes into one gzip member that depends on nothing but them: no time, no name, no system, fixed level.

    Args:
        data: Any.
        has_runs: Long runs of one value, as label maps have: only these are looked for. A label map is packed in a
            third of the time, a noisy one in a twentieth, and is no larger.
    """
    return b"".join(gzip_pieces([data], has_runs=has_runs))


def gzip_pieces(pieces: Iterable[bytes], *, has_runs: bool = False) -> Iterator[bytes]:
    """The same for bytes that come in pieces: the packed ones, in pieces."""
    strategy = zlib.Z_RLE if has_runs else zlib.Z_DEFAULT_STRATEGY
    deflater = zlib.compressobj(LEVEL_OF_RUNS if has_runs else LEVEL, zlib.DEFLATED, -15, zlib.DEF_MEM_LEVEL, strategy)
    yield _HEADER
    checksum = length = 0
    for piece in pieces:
        yield deflater.compress(piece)
        checksum, length = zlib.crc32(piece, checksum), length + len(piece)
    yield deflater.flush()
    yield struct.pack("<II", checksum, length & 0xFFFFFFFF)
