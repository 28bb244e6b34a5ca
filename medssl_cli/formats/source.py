"""One input file: on disk, or a member of a zip archive that is read in place and never unpacked."""

import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from medssl_cli.errors import InputError

MAX_FILE_BYTES: Final = 16 * 2**30


@dataclass(frozen=True, order=True)
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


def size_of(source: Source) -> int:
    """Bytes that a file has, or that a member claims to have."""
    if isinstance(source, Path):
        return source.stat().st_size
    with zipfile.ZipFile(source.archive) as archive:
        return archive.infolist()[source.index].file_size


def read_bytes(source: Source, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """All bytes of a source.

    Args:
        source: A file or a member.
        max_bytes: Refuse more than this, by what is really read and never by what an archive claims.

    Raises:
        InputError: `E_PERMISSION`, `E_IO`, `E_TOO_BIG`, `S_SPECIAL_FILE`, or `E_ARCHIVE_CRC` for a damaged member.
    """
    try:
        return _file_bytes(source, max_bytes) if isinstance(source, Path) else _member_bytes(source, max_bytes)
    except PermissionError as error:
        raise InputError("E_PERMISSION", "the file cannot be read") from error
    except OSError as error:
        raise InputError("E_IO", f"the file cannot be read ({type(error).__name__})") from error


def _file_bytes(path: Path, max_bytes: int) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError("S_SPECIAL_FILE", "not a regular file")
    if status.st_size > max_bytes:
        raise InputError("E_TOO_BIG", f"the file is larger than {max_bytes} bytes")
    return path.read_bytes()


def _member_bytes(member: Member, max_bytes: int) -> bytes:
    try:
        with zipfile.ZipFile(member.archive) as archive, archive.open(archive.infolist()[member.index]) as stream:
            data = stream.read(max_bytes + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, IndexError, NotImplementedError, RuntimeError) as error:
        raise InputError("E_ARCHIVE_CRC", f"the archive's member is damaged ({type(error).__name__})") from error
    if len(data) > max_bytes:
        raise InputError("E_TOO_BIG", f"the archive's member is larger than {max_bytes} bytes")
    return data
