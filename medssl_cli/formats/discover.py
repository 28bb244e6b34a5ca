"""Walking folders and archives and recognising files by their content. Nothing is opened that could block or leave
the input, nothing is unpacked onto a disk, and memory does not grow with the number of files.

What counts: every directory entry that is not a folder is one object, with one exception. A zip archive that opens
stands for its members, and each record of its directory is one object: twice the same name is two, folders and links
among them are refused with a code like any other. The archive itself is then not counted. It is counted, once and
refused, when it cannot be opened, when it is refused as a whole, or when it has no members.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.formats.archives import MAX_ARCHIVE_BYTES, ArchiveEntry, open_archive
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Member, Source, read_head

Peek = Callable[[Path, os.stat_result], bool]
HEAD_BYTES: Final = 4096
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Found:
    """One object of the input.

    Args:
        source: Where it is.
        root: The input that it was found under.
        kind: What it holds, as `sniff` says; "other" has a code; "known" was not opened.
        code: Why it is not read, "" if it is.
    """

    source: Source
    root: Path
    kind: str
    code: str = ""

    @property
    def place(self) -> bytes:
        """Bytes of the path under the input, and the member's index and name: for keyed hashes only."""
        path = self.source if isinstance(self.source, Path) else self.source.archive
        place = os.fsencode(path.relative_to(self.root)) if path != self.root else os.fsencode(path.name)
        if isinstance(self.source, Path):
            return place
        return b"%b!%d/%b" % (place, self.source.index, str(self.source.inner).encode("utf-8", "surrogatepass"))


def discover(
    roots: Sequence[Path],
    policy: Policy = STRICT,
    *,
    peek: Peek | None = None,
    max_archive_bytes: int = MAX_ARCHIVE_BYTES,
    leave_out: Path | None = None,
) -> Iterator[Found]:
    """Everything under the inputs, each object once, in a stable order.

    Folders behind symbolic links are not entered; linked files are read only if they lie inside their input.

    Args:
        roots: Files and folders.
        policy: What is tried.
        peek: Called with a regular file and its status before it is opened; where it says that the file is known, it
            is not opened and its kind is "known". A known archive is one object, not its members.
        max_archive_bytes: What all members of one archive may unpack to; see `archives.default_budget`.
        leave_out: A folder that is not part of the input, wherever it lies.

    Raises:
        UsageError: `E_NOT_FOUND`, an input does not exist; `E_PERMISSION`, an input folder cannot be listed.
    """
    for root in roots:
        _check_root(root)
    folders: set[str] = set() if leave_out is None else {str(leave_out.resolve())}
    files: set[Path] = set()
    for root in dict.fromkeys(path.resolve() for path in roots):
        if not root.is_dir() and str(root.parent) in folders:
            continue
        for path, code in _walk(root, folders) if root.is_dir() else [(root, "")]:
            if files and path in files:
                continue
            if code:
                yield Found(path, root, "other", code)
            else:
                yield from classify(path, root, policy, peek=peek, max_archive_bytes=max_archive_bytes)
        if not root.is_dir():
            files.add(root)


def _check_root(root: Path) -> None:
    shown = os.fsencode(root).decode("ascii", "backslashreplace")
    try:
        if stat.S_ISDIR(root.stat().st_mode):
            os.scandir(root).close()
    except PermissionError as error:
        raise UsageError("E_PERMISSION", f"no permission to read {shown}") from error
    except (OSError, ValueError) as error:
        raise UsageError("E_NOT_FOUND", f"no such file or folder: {shown}") from error


def _walk(root: Path, seen: set[str]) -> Iterator[tuple[Path, str]]:
    """Entries that are not folders, with a code where they cannot be looked at; folders in `seen` are left out."""
    stack, chain = [iter([(root, True)])], [(-1, -1)]
    while stack:
        path, is_folder = next(stack[-1], (None, False))
        if path is None:
            stack.pop()
            chain.pop()
        elif not is_folder:
            yield path, ""
        elif str(path) not in seen:
            seen.add(str(path))
            try:
                status = path.stat()
                with os.scandir(path) as entries:
                    names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
            except OSError as error:
                yield path, _code_of(error)
                continue
            identity = (status.st_dev, status.st_ino)
            if identity[1] and identity in chain:
                yield path, "S_LINK_OUTSIDE"
                continue
            stack.append(_children(path, names))
            chain.append(identity)


def _children(folder: Path, names: list[tuple[str, bool]]) -> Iterator[tuple[Path, bool]]:
    return ((folder / name, is_folder) for name, is_folder in names)


def classify(
    path: Path,
    root: Path,
    policy: Policy = STRICT,
    *,
    peek: Peek | None = None,
    max_archive_bytes: int = MAX_ARCHIVE_BYTES,
) -> Iterator[Found]:
    """What one directory entry that is not a folder stands for: itself, or the members of an archive.

    Args:
        path: The entry.
        root: The input that it lies under.
        policy: See `discover`.
        peek: See `discover`.
        max_archive_bytes: See `discover`.
    """
    found = look(path, root, policy, peek=peek)
    if found.kind == "zip":
        yield from members(path, root, policy, max_archive_bytes=max_archive_bytes)
    else:
        yield found


def look(path: Path, root: Path, policy: Policy = STRICT, *, peek: Peek | None = None) -> Found:
    """What one directory entry that is not a folder is; an archive is not opened, its kind is "zip".

    Args:
        path: The entry.
        root: The input that it lies under.
        policy: See `discover`.
        peek: See `discover`.
    """
    try:
        target, status = path, path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(path))
            if target.is_symlink() or not target.exists() or not target.is_relative_to(root):
                return Found(path, root, "other", "S_LINK_OUTSIDE")
            status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            return Found(path, root, "other", "S_SPECIAL_FILE")
        if peek is not None and peek(path, status):
            return Found(path, root, "known")
        descriptor = os.open(target, _FLAGS)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Found(path, root, "other", "S_SPECIAL_FILE")
            head = os.read(descriptor, HEAD_BYTES)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        return Found(path, root, "other", _code_of(error))
    return Found(path, root, *_recognised(head, path.name, policy))


def members(
    path: Path, root: Path, policy: Policy = STRICT, *, max_archive_bytes: int = MAX_ARCHIVE_BYTES
) -> Iterator[Found]:
    """The members of a zip archive in the order of its directory, or the archive itself, refused.

    Args:
        path: The archive.
        root: The input that it lies under.
        policy: See `discover`.
        max_archive_bytes: Refuse archives that declare more; a member that gives more than it declares is refused too.
    """
    try:
        archive = open_archive(path)
    except InputError as error:
        yield Found(path, root, "other", error.code)
        return
    except OSError as error:
        yield Found(path, root, "other", _code_of(error))
        return
    if not len(archive) or archive.total_bytes > max_archive_bytes:
        yield Found(path, root, "other", "E_ARCHIVE_BOMB" if len(archive) else "S_NOT_AN_IMAGE")
        return
    for index in range(len(archive)):
        entry = archive.entry(index)
        kind, code = _sniff_member(path, entry, policy)
        yield Found(Member(path, index, entry.inner), root, kind, code)


def _code_of(error: Exception) -> str:
    return "E_PERMISSION" if isinstance(error, PermissionError) else "E_IO"


def _sniff_member(path: Path, entry: ArchiveEntry, policy: Policy) -> tuple[str, str]:
    try:
        head = read_head(Member(path, entry.index, entry.inner), HEAD_BYTES)
    except InputError as error:
        return "other", error.code
    kind, code = _recognised(head, entry.inner.name, policy)
    return ("other", "E_NESTED_ARCHIVE") if kind == "zip" or code == "S_ARCHIVE" else (kind, code)


def _recognised(head: bytes, name: str, policy: Policy) -> tuple[str, str]:
    """Kind and code of a file by its first bytes; what inference wrote is known by its mark, wherever it lies."""
    from medssl_cli.formats.predictions import is_prediction  # all readers, which known files do not need
    from medssl_cli.formats.sniff import sniff

    if not policy.predictions and is_prediction(head):
        return "other", "S_PREDICTION"
    return sniff(head, name, policy)
