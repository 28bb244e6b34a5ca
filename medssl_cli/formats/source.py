"""One input file: on disk, or a member of a zip archive that is read in place and never unpacked."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from medssl_cli.base.errors import InputError
from medssl_cli.formats.archives import CHUNK_BYTES, open_archive

MAX_FILE_BYTES: Final = 16 * 2**30
_TRANSIENT: Final = (errno.EIO, getattr(errno, "ESTALE", errno.EIO))
_NUM_TRIES: Final = 4
Result = TypeVar("Result")


@dataclass(frozen=True, order=True, slots=True)
class Member:
    """A member of a zip archive, addressed by its place in the archive's directory: names may repeat or lie.

    Args:
        archive: The archive.
        index: Position in the archive's central directory.
        inner: The member's name, made harmless: relative, without `..`. Layouts look at it; nothing is ever written
            under it.
    """

    archive: Path
    index: int
    inner: PurePosixPath

    @property
    def name(self) -> str:
        """Last part of the member's name."""
        return self.inner.name


Source = Path | Member


def place_of(source: Source) -> Path:
    """Where a source lies among folders; an archive counts as a folder."""
    return source if isinstance(source, Path) else source.archive / source.inner


def member_beside(member: Member, name: str) -> Member | None:
    """The member of the same archive and folder that has a name; None if it, or the first one, is not the only one.

    Args:
        member: A member.
        name: Last part of the name of another one.

    Raises:
        InputError: See `read_bytes`.
    """
    inner = member.inner.parent / name
    archive = _with_codes(lambda: open_archive(member.archive))
    index = archive.only(inner)
    return None if index is None or archive.only(member.inner) != member.index else Member(member.archive, index, inner)


def size_of(source: Source) -> int:
    """Bytes that a file has, or that a member claims to have; reading never gives more than that.

    Raises:
        InputError: See `read_bytes`.
    """
    if isinstance(source, Path):
        return _with_codes(lambda: source.stat().st_size)
    return _with_codes(lambda: open_archive(source.archive).entry(source.index).size)


def read_bytes(source: Source, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a source.

    A stale or failing network drive is asked a few times before the file is refused.

    Args:
        source: A file or a member.
        max_bytes: Refuse more than this, by what is really read and never by what an archive claims.

    Raises:
        InputError: `E_PERMISSION`, `E_IO`, `E_TOO_BIG`, `S_SPECIAL_FILE`, `E_CHANGED_DURING_READ`; for a member
            `E_ARCHIVE`, `E_ARCHIVE_CRC`, `E_ARCHIVE_BOMB`, `E_ARCHIVE_OVERLAP`, `E_ARCHIVE_ENCRYPTED`.
    """
    if isinstance(source, Path):
        return _with_codes(lambda: _file_bytes(source, max_bytes))
    return _with_codes(lambda: _member_bytes(source, max_bytes))


def read_head(source: Source, size: int) -> bytes:
    """The first bytes of a source, as many as there are up to `size`; of a member unchecked, for looking only.

    Raises:
        InputError: See `read_bytes`.
    """
    if isinstance(source, Path):
        return _with_codes(lambda: _file_head(source, size))
    return _with_codes(lambda: _member_head(source, size))


def _with_codes(read: Callable[[], Result]) -> Result:
    for attempt in range(_NUM_TRIES):
        try:
            return read()
        except PermissionError as error:
            raise InputError("E_PERMISSION", "the file cannot be read") from error
        except OSError as error:
            if error.errno not in _TRANSIENT or attempt == _NUM_TRIES - 1:
                raise InputError("E_IO", f"the file cannot be read ({type(error).__name__})") from error
    raise AssertionError("the last attempt returns or raises")


def _open_regular(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError("S_SPECIAL_FILE", "not a regular file")
    return descriptor


def _file_bytes(path: Path, max_bytes: int) -> bytes:
    with os.fdopen(_open_regular(path), "rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        if before.st_size > max_bytes:
            raise InputError("E_TOO_BIG", f"the file is larger than {max_bytes} bytes")
        pieces, missing = [], before.st_size
        while missing and (piece := stream.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        after = os.fstat(stream.fileno())
    has_changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
    if has_changed or missing:
        raise InputError(
            "E_CHANGED_DURING_READ",
            f"the file had {before.st_size} bytes and then {after.st_size}",
            hint="run the same command again when nothing writes to the input any more",
        )
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _file_head(path: Path, size: int) -> bytes:
    with os.fdopen(_open_regular(path), "rb", buffering=0) as stream:
        return stream.read(size)


def _pieces(member: Member, piece_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    archive = open_archive(member.archive)
    return archive.stream(archive.entry(member.index), piece_bytes=piece_bytes)


def _member_bytes(member: Member, max_bytes: int) -> bytes:
    data = bytearray()
    for piece in _pieces(member):
        data += piece
        if len(data) > max_bytes:
            raise InputError("E_TOO_BIG", f"the archive's member is larger than {max_bytes} bytes")
    return bytes(data)


def _member_head(member: Member, size: int) -> bytes:
    data = bytearray()
    for piece in _pieces(member, min(max(size, 1), CHUNK_BYTES)):
        data += piece
        if len(data) >= size:
            break
    return bytes(data[:size])
