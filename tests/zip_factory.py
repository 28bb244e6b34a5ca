"""Zip archives byte by byte, so that every field can lie. PKWARE APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.16."""

import struct
import zlib
from dataclasses import dataclass

STORED, DEFLATED = 0, 8
LINK, REGULAR = 0o120777 << 16, 0o100644 << 16


@dataclass(frozen=True)
class Raw:
    """One member; what is None follows from the data."""

    name: bytes
    data: bytes = b""
    method: int = DEFLATED
    packed: bytes | None = None
    size: int | None = None
    crc: int | None = None
    flags: int = 0
    attributes: int = REGULAR
    offset: int | None = None


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(6, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def zip_bytes(*members: Raw, comment: bytes = b"", prefix: bytes = b"", count: int | None = None) -> bytes:
    """An archive; a member with an offset has no local header of its own."""
    body, directory = bytearray(prefix), bytearray()
    for member in members:
        packed = member.packed
        if packed is None:
            packed = member.data if member.method != DEFLATED else deflated(member.data)
        size = len(member.data) if member.size is None else member.size
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        common = (member.flags, member.method, 0, 0x21, crc, len(packed), size, len(member.name), 0)
        offset = len(body) - len(prefix) if member.offset is None else member.offset
        if member.offset is None:
            body += struct.pack("<4s5H3I2H", b"PK\3\4", 20, *common) + member.name + packed
        directory += struct.pack("<4sBB5H3I2H", b"PK\1\2", 20, 3, 20, *common)
        directory += struct.pack("<HHHII", 0, 0, 0, member.attributes, offset) + member.name
    total = len(members) if count is None else count
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, total, total, len(directory), len(body) - len(prefix), len(comment))
    return bytes(body + directory + end + comment)


def zeros(size: int) -> tuple[bytes, int]:
    """The deflate stream of many zero bytes, by repetition of the stream of a MiB, and their CRC-32."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflater.compress(bytes(2**20))
    deflater.flush(zlib.Z_FULL_FLUSH)
    block = deflater.compress(bytes(2**20)) + deflater.flush(zlib.Z_FULL_FLUSH)
    crc, piece = 0, bytes(2**20)
    for _ in range(size // 2**20):
        crc = zlib.crc32(piece, crc)
    return block * (size // 2**20) + deflater.flush(), crc
