"""Bytes of one DICOM file from its start, read or inflated no further than asked for."""

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.source import Member, Source, read_bytes, read_head, size_of

MAX_HEADER_BYTES: Final = 64 * 2**20
MAX_INFLATED_BYTES: Final = 2**30
BLOCK_BYTES: Final = 64 * 2**10
DEFLATED: Final = "1.2.840.10008.1.2.1.99"


@dataclass(slots=True)
class Window:
    """What is loaded of a file; `need` loads more.

    Args:
        buffer: The bytes from the start.
        size: Bytes that the whole has; for a deflated data set the most that it may have.
        size_bytes: Size of the file on disk.
        mtime_ns: When it was last changed; 0 for a member of an archive.
    """

    buffer: bytes
    size: int
    size_bytes: int = 0
    mtime_ns: int = 0
    _descriptor: int | None = None
    _member: Member | None = None
    _inflater: "zlib._Decompress | None" = field(default=None)
    _compressed: bytes = b""

    def need(self, upto: int) -> bytes:
        """The buffer, with at least so many bytes.

        Raises:
            InputError: `E_TRUNCATED`, `E_DICOM_TOO_BIG`, `E_DEFLATE_BOMB`, `E_DICOM_PARSE` or `E_IO`.
        """
        if upto > len(self.buffer):
            self.reach(upto)
            if upto > len(self.buffer):
                raise truncated()
        return self.buffer

    def reach(self, upto: int) -> tuple[bytes, int, int]:
        """Load so many bytes if there are so many; return the buffer, its length, and the size of the whole.

        The size of a deflated data set shows when its end is reached.

        Raises:
            InputError: As `need`, without `E_TRUNCATED`.
        """
        if upto > len(self.buffer) < self.size:
            self._extend(min(upto, self.size))
        return self.buffer, len(self.buffer), self.size

    def _extend(self, upto: int) -> None:
        if upto > MAX_HEADER_BYTES:
            code = "E_DICOM_TOO_BIG" if self._inflater is None else "E_DEFLATE_BOMB"
            raise InputError(code, f"more than {MAX_HEADER_BYTES} bytes before the pixel data")
        goal = min(max(upto, 2 * len(self.buffer)), self.size, MAX_HEADER_BYTES)
        if self._inflater is not None:
            self._inflate(goal)
        else:
            self.buffer += self._read(goal - len(self.buffer))

    def inflate_from(self, at: int) -> None:
        """Replace the deflated data set that begins at a byte by its inflated bytes (PS3.5 A.5)."""
        rest = self._read(self.size - len(self.buffer)) if self.size > len(self.buffer) else b""
        self._compressed = self.buffer[at:] + rest
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self.buffer = self.buffer[:at]
        self.size = MAX_INFLATED_BYTES
        self._inflate(at + BLOCK_BYTES)

    def _inflate(self, goal: int) -> None:
        inflater = self._inflater
        if inflater is None:
            raise AssertionError("not a deflated data set")
        try:
            more = inflater.decompress(self._compressed, goal - len(self.buffer))
        except zlib.error as error:
            raise damaged_stream() from error
        self._compressed = inflater.unconsumed_tail
        self.buffer += more
        if inflater.eof:
            self.size = len(self.buffer)

    def _read(self, count: int) -> bytes:
        if self._member is not None:
            return read_bytes(self._member)[len(self.buffer) :]
        if self._descriptor is None:
            return b""
        parts = []
        while count > 0 and (part := os.read(self._descriptor, count)):
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


@contextmanager
def open_window(source: Source) -> Iterator[Window]:
    """The first bytes of a source.

    Raises:
        InputError: `E_PERMISSION`, `E_IO`, `S_SPECIAL_FILE`, or what an archive's member gives.
    """
    if not isinstance(source, Path):
        size = size_of(source)
        yield Window(read_head(source, BLOCK_BYTES), size, size, _member=source)
        return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise InputError("E_PERMISSION", "the file cannot be read") from error
    except OSError as error:
        raise InputError("E_IO", f"the file cannot be read ({type(error).__name__})") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("S_SPECIAL_FILE", "not a regular file")
        first = os.read(descriptor, BLOCK_BYTES)
        yield Window(first, status.st_size, status.st_size, status.st_mtime_ns, descriptor)
    except OSError as error:
        raise InputError("E_IO", f"the file cannot be read ({type(error).__name__})") from error
    finally:
        os.close(descriptor)


def inflate(data: bytes, *, start: int, max_bytes: int) -> bytes:
    """A file whose data set is deflated, with the data set inflated in its place.

    Args:
        data: The whole file.
        start: Where the deflated data set begins.
        max_bytes: Largest size of the result.

    Raises:
        InputError: `E_DEFLATE_BOMB`, `E_TRUNCATED`, or `E_DICOM_PARSE` for a damaged stream.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    limit = min(max_bytes, MAX_INFLATED_BYTES) - start
    try:
        inflated = inflater.decompress(memoryview(data)[start:], max(1, limit + 1))
    except zlib.error as error:
        raise damaged_stream() from error
    if len(inflated) > limit:
        raise InputError("E_DEFLATE_BOMB", f"the data set inflates to more than {limit} bytes")
    if not inflater.eof:
        raise truncated()
    return data[:start] + inflated


def truncated() -> InputError:
    """The refusal of a file that ends too early."""
    return InputError("E_TRUNCATED", "the file ends within its header", hint="retrieve the file again")


def damaged_stream() -> InputError:
    """The refusal of a deflated data set that cannot be inflated."""
    return InputError("E_DICOM_PARSE", "the deflated data set is damaged", hint="retrieve the file again")
