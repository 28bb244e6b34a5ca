"""How a small file of a cache appears: whole, durable, and never in the place of another."""

import contextlib
import errno
import fcntl
import mmap
import os
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import StorageError
from medssl_cli.base.files import storage_errors, sync_directory, sync_file, temporary_in

PIECE_BYTES: Final = 2**22
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def publish_first(path: Path, data: bytes) -> bool:
    """Write a whole file durably under a name that nobody has taken; of several processes, the first wins.

    Where the file system knows no links, a rename takes their place, and the check before it is not atomic.

    Returns:
        False if the name is taken; nothing is changed then.

    Raises:
        StorageError: `E_IO`.
    """
    if path.exists():
        return False
    mine = temporary_in(path.parent)
    with storage_errors(path.name):
        try:
            write_private(mine, data)
            sync_file(mine)
            _link(mine, path)
        except FileExistsError:
            return False
        finally:
            mine.unlink(missing_ok=True)
        sync_directory(path.parent)
    return True


def _link(mine: Path, path: Path) -> None:
    try:
        path.hardlink_to(mine)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        mine.rename(path)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file, mode 0600, whoever may make it durable and visible later.

    Large files go past the page cache: they are synced before anyone sees them, so a copy in memory would only cost
    time, and what lies there already stays.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        done = _write_directly(stream.fileno(), data) if len(data) >= PIECE_BYTES else 0
        stream.write(memoryview(data)[done:])


def _write_directly(descriptor: int, data: bytes) -> int:
    """Write whole pages past the page cache where system and file system can (open(2), O_DIRECT).

    Returns:
        Bytes that are written.
    """
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    whole, done = len(data) // mmap.PAGESIZE * mmap.PAGESIZE, 0
    aligned = memoryview(mmap.mmap(-1, PIECE_BYTES))
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | getattr(os, "O_DIRECT", 0))
        while done < whole:
            size = min(PIECE_BYTES, whole - done)
            aligned[:size] = memoryview(data)[done : done + size]
            done += os.write(descriptor, aligned[:size])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return done


def unreadable(what: str, error: OSError) -> StorageError:
    """`E_IO` for something that is there and cannot be read now, which does not make it damaged."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return StorageError("E_IO", f"cannot read {what} ({name})", hint="fix the disk or the permissions, and try again")


def remove_quietly(*paths: Path) -> None:
    """Remove files that may be gone already."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
