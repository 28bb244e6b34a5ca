"""The commit protocol: what is visible under its final name is complete and on disk.

Same-directory temporary file, write, fsync, rename, fsync of the directory. A kill at any moment leaves either the
old state or the new one, and temporary names that the next writer removes.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Final

from medssl_cli.base.errors import StorageError, UsageError

TEMPORARY_PREFIX: Final = ".tmp-"
_TEMPORARY: Final = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9]{{1,10}})-[0-9a-f]{{12}}")
PRIVATE: Final = 0o600
MAX_DOCUMENT_BYTES: Final = 2**30
PIECE_BYTES: Final = 2**20
_UMASK_OF_USER: ContextVar[int | None] = ContextVar("umask of the user", default=None)


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Inside the block, what is made belongs to its user alone; outputs still follow the umask from before it."""
    before = os.umask(0o077)
    token = _UMASK_OF_USER.set(before)
    try:
        yield
    finally:
        _UMASK_OF_USER.reset(token)
        os.umask(before)


def _umask() -> int:
    """The umask that outputs follow: that of the user, even inside `private_files`."""
    known = _UMASK_OF_USER.get()
    if known is None:
        known = os.umask(0o077)
        os.umask(known)
    return known


def make_output_folder(path: Path) -> None:
    """Make a folder for outputs, and those between it and an existing one; their modes follow the umask.

    Raises:
        StorageError: `E_IO`.
    """
    with storage_errors("the output folder"):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                folder.chmod(0o777 & ~_umask())
        path.mkdir(exist_ok=True)


def require_place_for_file(path: Path) -> None:
    """Refuse a path where something else than a regular file is: a rename would replace a device, a pipe or a link.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise UsageError("E_OUTPUT_SPECIAL", f"{path.name} is {_kind_of(mode)} and is not replaced by a file")


def _kind_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe or socket" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "a device"


def replace_file(temporary: Path, path: Path) -> None:
    """Give a finished file its final name, durably.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
        OSError: The system refused.
    """
    require_place_for_file(path)
    temporary.replace(path)
    sync_directory(path.parent)


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals into `E_IO`; `what` names the artefact, never a path of the source."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        is_taken = error.errno in (errno.EEXIST, errno.ENOTDIR)
        hint = "a file lies where a folder is needed: choose another place" if is_taken else ""
        raise StorageError("E_IO", f"cannot write {what} ({name})", hint=hint) from error


def is_full(error: Exception) -> bool:
    """Whether a failure says that nothing more can be written there: a full disk, a used-up quota, a read-only one."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def write_atomic(path: Path, data: bytes, *, is_output: bool = False) -> None:
    """Write a whole file durably under its final name, mode 0600.

    Args:
        path: Its name; a regular file there is replaced.
        data: Its content.
        is_output: Whether it is for others to read: the mode follows the umask.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`, there is a device, a pipe, a link or a folder of that name.
        StorageError: `E_IO`; nothing is left behind.
    """
    write_pieces(path, (data,), is_output=is_output)


def write_pieces(path: Path, pieces: Iterable[bytes], *, is_output: bool = False) -> None:
    """Write a file of which memory holds one piece at a time; see `write_atomic`."""
    with candidate_for(path) as temporary, storage_errors(path.name):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
        with os.fdopen(descriptor, "wb") as stream:
            if is_output:
                os.fchmod(stream.fileno(), 0o666 & ~_umask())
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())


def finish_output(path: Path) -> None:
    """Flush a file that was written piece by piece to the disk, and give it the mode of outputs.

    Raises:
        StorageError: `E_IO`.
    """
    with storage_errors(path.name):
        path.chmod(0o666 & ~_umask())
        sync_file(path)


def append_durably(path: Path, data: bytes, *, start: bytes = b"") -> None:
    """Add lines to the end of a file for others to read; a line that a kill has cut stays by itself.

    Args:
        path: The file; it is made if it does not exist.
        data: Whole lines.
        start: What a new file begins with.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
        StorageError: `E_IO`.
    """
    require_place_for_file(path)
    with storage_errors(path.name):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            length = os.fstat(descriptor).st_size
            if not length:
                os.fchmod(descriptor, 0o666 & ~_umask())
            is_cut = length and os.pread(descriptor, 1, length - 1) != b"\n"
            _write_whole(stream, (b"\n" if is_cut else b"" if length else start) + data)
            os.fsync(descriptor)
        if not length:
            sync_directory(path.parent)


def _write_whole(stream: Any, data: bytes) -> None:
    while data:
        data = data[stream.write(data) :]


@contextlib.contextmanager
def candidate_for(path: Path) -> Iterator[Path]:
    """A temporary name beside a file's own; what lies there when the block ends without an error gets the real name.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
        StorageError: `E_IO`.
    """
    require_place_for_file(path)
    candidate = temporary_in(path.parent)
    try:
        yield candidate
        with storage_errors(path.name):
            replace_file(candidate, path)
    except BaseException:
        candidate.unlink(missing_ok=True)
        raise


def temporary_in(folder: Path) -> Path:
    """A new name in a folder, of the kind that `remove_temporaries` knows."""
    return folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"


def write_json(path: Path, document: Any, *, is_output: bool = False) -> None:
    """Write canonical, human-readable JSON atomically; NaN is refused. See `write_atomic`."""
    write_atomic(path, json_bytes(document), is_output=is_output)


def json_bytes(document: Any) -> bytes:
    """Canonical, human-readable JSON; NaN is refused."""
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_regular(path: Path, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """A file of unknown origin, whole. A pipe or a device is refused at once: reading one may never end.

    Raises:
        ValueError: It is no regular file, or larger than that.
        OSError: It cannot be read.
    """
    pieces, left = [], max_bytes + 1
    with open_regular(path) as stream:
        # A single read would set the largest size aside, which a limit of memory may not allow.
        while piece := stream.read(min(left, PIECE_BYTES)):
            pieces.append(piece)
            left -= len(piece)
    if not left:
        raise ValueError(f"larger than {max_bytes} bytes")
    return b"".join(pieces)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A file of unknown origin, opened for reading without waiting for anybody.

    Raises:
        ValueError: It is no regular file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def sync_file(path: Path) -> None:
    """Flush a file that a library wrote to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable; file systems that cannot are left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def temporary_directory(parent: Path) -> Path:
    """A new, private directory beside its later final name; remove it or publish it with `publish_directory`."""
    path = temporary_in(parent)
    path.mkdir(mode=0o700)
    return path


def publish_directory(temporary: Path, final: Path) -> bool:
    """Rename a complete directory to its final name, durably; the first writer wins.

    Returns:
        False if the final name exists already; the temporary directory is removed then.
    """
    for file in sorted(temporary.iterdir()):
        sync_file(file)
    sync_directory(temporary)
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        return False
    sync_directory(final.parent)
    return True


def remove_temporaries(directory: Path) -> int:
    """Remove what dead processes left behind directly in a directory; temporaries of living processes stay.

    So does whatever has not exactly such a name: users choose folders for outputs where files of others may be.
    """
    removed = 0
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or is_alive(int(match[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed += 1
    return removed


def is_alive(process: int) -> bool:
    """Whether a process of that number runs; one that has died and not been waited for does not."""
    if process == os.getpid():
        return True
    state = Path(f"/proc/{process}/stat")
    if state.is_file():
        with contextlib.suppress(OSError):
            return state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(document: Any) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
