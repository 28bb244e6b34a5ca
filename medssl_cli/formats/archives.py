"""Zip archives read in place: the directory is parsed here, members are unpacked as a stream and never onto a disk.

The standard library's reader is not used: it holds an object per member before anyone could count them, and the one of
Python 3.11 serves members that overlap. Here every bound holds before memory is taken: what comes out of a member is
counted as it comes, and a member that gives more than its archive declares is refused, so that the sum of the declared
sizes, which is checked first, bounds the work. Layout of the records: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

import os
import re
import shutil
import stat
import struct
import weakref
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Final

from medssl_cli.base.errors import InputError

MAX_MEMBERS: Final = 200_000
MAX_DIRECTORY_BYTES: Final = 64 * 2**20
MAX_ARCHIVE_BYTES: Final = 64 * 2**30
MAX_NAME_PARTS: Final = 64
MAX_PART_LENGTH: Final = 255
CHUNK_BYTES: Final = 2**20
_OPEN_ARCHIVES: Final = 4
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _PATCH, _UTF8, _MASKED = 0x1, 0x20, 0x800, 0x2000
_UNIX: Final = 3
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_ENTRY, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_ENTRY_SIZE, _LOCAL_SIZE, _END_SIZE = 46, 30, 22
_ALL16, _ALL32 = 0xFFFF, 0xFFFFFFFF
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """What an archive's directory says of a member.

    Args:
        index: Position in the directory.
        inner: The name, made harmless.
        size: Bytes that it unpacks to, as declared; reading refuses to give more.
        packed: Bytes in the archive.
        offset: Offset of its local header, from the start of the file.
        crc: CRC-32 of the unpacked bytes.
        method: How it is packed.
        code: Why it cannot be read, "" if it can.
    """

    index: int
    inner: PurePosixPath
    size: int
    packed: int
    offset: int
    crc: int
    method: int
    code: str = ""


def default_budget(folder: Path) -> int:
    """Bytes that an archive may unpack to: 64 GiB, or half of what is free on the disk of a folder if that is less."""
    return min(MAX_ARCHIVE_BYTES, shutil.disk_usage(folder).free // 2)


class Archive:
    """An open zip archive whose directory was found to be sound: within the limits, no two members overlapping.

    Args:
        descriptor: Descriptor of the file; owned from now on, and closed when nobody uses the archive any more.

    Raises:
        InputError: `E_ARCHIVE`, `E_ARCHIVE_OVERLAP`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)
        self._file_size = os.fstat(descriptor).st_size
        self._directory, self._shift, self._directory_offset = self._read_directory()
        self._starts = self._walk_directory()
        numbers = [self._numbers(start) for start in self._starts]
        self.total_bytes = sum(size for size, _, _ in numbers)
        extents = sorted((offset, offset + _LOCAL_SIZE + packed) for _, packed, offset in numbers)
        if extents and max(end for _, end in extents) > self._directory_offset:
            raise InputError("E_ARCHIVE", "a member does not lie inside the file", hint=_HINT)
        if any(end > following for (_, end), (following, _) in pairwise(extents)):
            raise InputError("E_ARCHIVE_OVERLAP", f"some of the {len(extents)} members share their bytes")
        self._offsets = array("Q", (offset for offset, _ in extents))

    def __len__(self) -> int:
        return len(self._starts)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        """Members by their names in small letters; -1 where several have one name. As long as the directory at most."""
        found: dict[str, int] = {}
        for index in range(len(self)):
            name = str(self.entry(index).inner).lower()
            found[name] = -1 if name in found else index
        return found

    def only(self, inner: PurePosixPath) -> int | None:
        """The one member that has a name, whatever its case; None if there is none, or several."""
        index = self._by_name.get(str(inner).lower(), -1)
        return None if index < 0 or self.entry(index).inner != inner else index

    def entry(self, index: int) -> ArchiveEntry:
        """One member of the directory.

        Raises:
            InputError: `E_ARCHIVE`, its record is not valid.
        """
        if not 0 <= index < len(self._starts):
            raise InputError("E_ARCHIVE", f"the archive has no member {index}")
        start = self._starts[index]
        made_by, flags, method, crc, name_length = struct.unpack_from("<5xB2xHH4xI8xH", self._directory, start)
        mode = struct.unpack_from("<H", self._directory, start + 40)[0] if made_by == _UNIX else 0
        name = self._directory[start + _ENTRY_SIZE : start + _ENTRY_SIZE + name_length]
        size, packed, offset = self._numbers(start)
        code = _refusal(flags, method, size, packed, is_regular=_is_regular(name, mode))
        text = name.decode("utf-8", "surrogateescape") if flags & _UTF8 else name.decode("cp437")
        return ArchiveEntry(index, harmless_name(text, index), size, packed, offset, crc, method, code)

    def _numbers(self, start: int) -> tuple[int, int, int]:
        """Declared size, packed size and offset in the file, from the record at `start`."""
        packed, size, name_length, extra_length = struct.unpack_from("<20xIIHH", self._directory, start)
        offset = struct.unpack_from("<42xI", self._directory, start)[0]
        if _ALL32 in (size, packed, offset):
            at = start + _ENTRY_SIZE + name_length
            size, packed, offset = _long_numbers(self._directory[at : at + extra_length], [size, packed, offset])
        return size, packed, offset + self._shift

    def stream(self, entry: ArchiveEntry, *, piece_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Unpack a member piece by piece; all that was declared came out, and its checksum fits, if this ends.

        Args:
            entry: Entry of this archive.
            piece_bytes: Largest piece, and most bytes that are read from the archive for one.

        Raises:
            InputError: The entry's own code; `E_ARCHIVE_CRC`, `E_ARCHIVE_BOMB` (more than declared),
                `E_ARCHIVE_OVERLAP`, `E_ARCHIVE`.
        """
        if entry.code:
            raise InputError(entry.code, f"member {entry.index} cannot be read")
        crc = produced = 0
        for piece in self._unpacked(entry, piece_bytes):
            produced += len(piece)
            if produced > entry.size:
                raise InputError("E_ARCHIVE_BOMB", f"a member gives more than the {entry.size} bytes that it declares")
            crc = zlib.crc32(piece, crc)
            yield piece
        if produced != entry.size or crc != entry.crc:
            raise InputError("E_ARCHIVE_CRC", f"a member of {entry.size} bytes is damaged", hint=_HINT)

    def _unpacked(self, entry: ArchiveEntry, piece_bytes: int) -> Iterator[bytes]:
        start = self._data_start(entry)
        inflater = zlib.decompressobj(-15) if entry.method == _DEFLATED else None
        end = start + entry.packed
        for position in range(start, end, piece_bytes):
            data = self._read(position, min(piece_bytes, end - position))
            if inflater is None:
                yield data
                continue
            while data and not inflater.eof:
                piece = _inflate(inflater, data, piece_bytes)
                data = inflater.unconsumed_tail
                if piece:
                    yield piece
            if inflater.unused_data or (inflater.eof and position + piece_bytes < end):
                raise InputError("E_ARCHIVE_CRC", "a member is longer than its compressed stream", hint=_HINT)
        while inflater is not None and not inflater.eof:
            piece = _inflate(inflater, b"", piece_bytes)
            if not piece:
                raise InputError("E_ARCHIVE_CRC", "a member ends too early", hint=_HINT)
            yield piece

    def _data_start(self, entry: ArchiveEntry) -> int:
        """After the local header, whose lengths the directory does not know (APPNOTE 4.3.7)."""
        local = self._read(entry.offset, _LOCAL_SIZE)
        if not local.startswith(_LOCAL):
            raise InputError("E_ARCHIVE", "a member does not lie where the directory says", hint=_HINT)
        start = entry.offset + _LOCAL_SIZE + sum(struct.unpack_from("<HH", local, 26))
        following = bisect_right(self._offsets, entry.offset)
        end = self._offsets[following] if following < len(self._offsets) else self._directory_offset
        if start + entry.packed > end:
            raise InputError("E_ARCHIVE_OVERLAP", "a member reaches into the next one")
        return start

    def _read(self, offset: int, size: int) -> bytes:
        data = pread(self._descriptor, size, offset)
        if len(data) != size:
            raise InputError("E_ARCHIVE", "the archive ends before its members do", hint=_HINT)
        return data

    def _read_directory(self) -> tuple[bytes, int, int]:
        """The directory's bytes, how far everything is shifted by bytes before the archive, and where it begins."""
        tail_size = min(self._file_size, _END_SIZE + _ALL16)
        tail = self._read(self._file_size - tail_size, tail_size)
        at = tail.rfind(_END)
        while at >= 0 and tail[at + 20 : at + 22] != struct.pack("<H", max(0, len(tail) - at - _END_SIZE)):
            at = tail.rfind(_END, 0, at)
        if at < 0:
            raise InputError("E_ARCHIVE", "no directory: the archive is cut off or not a zip archive", hint=_HINT)
        end = self._file_size - tail_size + at
        disks, here, total, size, offset = struct.unpack_from("<4xIHHII", tail, at)
        end, disks, here, total, size, offset = self._end64(end, (disks, here, total, size, offset))
        if disks or here != total:
            raise InputError("E_ARCHIVE", "the archive is one part of several")
        if total > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
            raise InputError("E_ARCHIVE", f"the archive has {total} members, more than {MAX_MEMBERS} or too long names")
        shift = end - size - offset
        if shift < 0 or total * _ENTRY_SIZE > size:
            raise InputError("E_ARCHIVE", "the archive's directory does not lie inside the file", hint=_HINT)
        return self._read(end - size, size), shift, end - size

    def _end64(self, end: int, short: tuple[int, int, int, int, int]) -> tuple[int, int, int, int, int, int]:
        """The record of large archives, or the short one where there is none (APPNOTE 4.3.14 and 4.3.15)."""
        if end < 20 or not (locator := self._read(end - 20, 20)).startswith(_LOCATOR64):
            return end, *short
        where = struct.unpack_from("<Q", locator, 8)[0]
        if where + 56 > end or not (record := self._read(where, 56)).startswith(_END64):
            raise InputError("E_ARCHIVE", "the archive's directory is not where its end says", hint=_HINT)
        disk, first_disk, here, total, size, offset = struct.unpack_from("<IIQQQQ", record, 16)
        return where, disk | first_disk, here, total, size, offset

    def _walk_directory(self) -> "array[int]":
        """Where each record begins."""
        starts, position = array("Q"), 0
        while position < len(self._directory):
            if self._directory[position : position + 4] != _ENTRY or position + _ENTRY_SIZE > len(self._directory):
                raise InputError("E_ARCHIVE", f"the directory is damaged after {len(starts)} members", hint=_HINT)
            if len(starts) == MAX_MEMBERS:
                raise InputError("E_ARCHIVE", f"the archive has more than {MAX_MEMBERS} members")
            starts.append(position)
            position += _ENTRY_SIZE + sum(struct.unpack_from("<HHH", self._directory, position + 28))
        if position != len(self._directory):
            raise InputError("E_ARCHIVE", "the last record of the directory is cut off", hint=_HINT)
        return starts


_HINT: Final = "copy or download the archive again"


def open_archive(path: Path) -> Archive:
    """An archive, parsed once per process as long as the file does not change; a few stay open.

    Raises:
        InputError: `E_ARCHIVE`, `E_ARCHIVE_OVERLAP`, `S_SPECIAL_FILE`.
        OSError: The file cannot be read.
    """
    status = path.stat()
    # The process is part of the key: a descriptor inherited by a fork is the parent's.
    return _open(path, status.st_size, status.st_mtime_ns, status.st_ino, os.getpid())


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _open(path: Path, size: int, mtime_ns: int, inode: int, process: int) -> Archive:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("S_SPECIAL_FILE", "not a regular file")
    return Archive(descriptor)


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Bytes at a place of a file, as many as there are."""
    pieces = []
    while size > 0:
        if hasattr(os, "pread"):
            piece = os.pread(descriptor, size, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            piece = os.read(descriptor, size)
        if not piece:
            break
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    return b"".join(pieces)


def harmless_name(name: str, index: int) -> PurePosixPath:
    """A member's name as a relative path that stays where it is put, whatever system made it.

    Args:
        name: As stored.
        index: Index of the member; names those of which nothing is left.
    """
    parts = [_DRIVE.sub("", _CONTROL.sub("_", part)) for part in name.replace("\\", "/").split("/")]
    kept = [part[-MAX_PART_LENGTH:] for part in parts if part.strip(". ")]
    return PurePosixPath(*kept[-MAX_NAME_PARTS:] or [f"member-{index}"])


def _is_regular(name: bytes, mode: int) -> bool:
    return not name.endswith((b"/", b"\\")) and stat.S_IFMT(mode) in (0, stat.S_IFREG)


def _refusal(flags: int, method: int, size: int, packed: int, *, is_regular: bool) -> str:
    if not is_regular:
        return "S_SPECIAL_FILE"
    if flags & (_ENCRYPTED | _MASKED):
        return "E_ARCHIVE_ENCRYPTED"
    is_impossible = method == _STORED and size != packed
    return "E_ARCHIVE" if method not in (_STORED, _DEFLATED) or flags & _PATCH or is_impossible else ""


def _long_numbers(extra: bytes, numbers: list[int]) -> list[int]:
    """Numbers of four bytes that are all ones stand in the extra field 0x0001, in this order (APPNOTE 4.5.3)."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if kind != 1:
            continue
        values = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
        return [next(values, number) if number == _ALL32 else number for number in numbers]
    return numbers


def _inflate(inflater: "zlib._Decompress", data: bytes, max_bytes: int) -> bytes:
    try:
        return inflater.decompress(data, max_bytes)
    except zlib.error as error:
        raise InputError("E_ARCHIVE_CRC", "the compressed stream of a member is damaged", hint=_HINT) from error
