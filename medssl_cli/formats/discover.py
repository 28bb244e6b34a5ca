"""Walking folders and recognising files by their content. Nothing is opened that could block or leave the input."""

import os
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from medssl_cli.errors import UsageError
from medssl_cli.formats.gzip_strict import MAGIC as GZIP_MAGIC
from medssl_cli.formats.gzip_strict import gzip_head
from medssl_cli.formats.nifti_header import is_nifti

Kind = Literal["dicom", "nifti", "json", "other"]
HEAD_BYTES: Final = 4096
DICOM_MAGIC_OFFSET: Final = 128
_MEDIA_DIRECTORY: Final = b"1.2.840.10008.1.3.10"
_ZIP, _EMPTY_ZIP, _7Z, _RAR = b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"
_BZIP2, _XZ, _ZSTANDARD = b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ARCHIVES: Final = (_ZIP, _EMPTY_ZIP, _7Z, _RAR, _BZIP2, _XZ, _ZSTANDARD)
_APPLE_DOUBLE: Final = struct.pack(">I", 0x00051607)


@dataclass(frozen=True)
class Found:
    """One directory entry that is not a folder.

    Args:
        path: Where it is.
        root: The input that it was found under.
        kind: What it holds; "other" has a code.
        code: Why it is not read, "" if it is.
    """

    path: Path
    root: Path
    kind: Kind
    code: str = ""

    @property
    def place(self) -> bytes:
        """Bytes of the path under the input: for keyed hashes only."""
        return os.fsencode(self.path.relative_to(self.root)) if self.path != self.root else os.fsencode(self.path.name)


def discover(roots: Sequence[Path]) -> Iterator[Found]:
    """Everything under the inputs, each entry once, in a stable order.

    Folders behind symbolic links are not entered; linked files are read only if they lie inside their input.

    Raises:
        UsageError: `E_NOT_FOUND`, an input does not exist.
    """
    for root in roots:
        if not root.exists():
            raise UsageError("E_NOT_FOUND", f"no such file or folder: {root}")
    seen: set[str] = set()
    for root in dict.fromkeys(path.resolve() for path in roots):
        for found in _walk(root, root) if root.is_dir() else [_look(root, root)]:
            if str(found.path) not in seen:
                seen.add(str(found.path))
                yield found


def _walk(folder: Path, root: Path) -> Iterator[Found]:
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        yield Found(folder, root, "other", "E_PERMISSION")
        return
    for name, is_folder in names:
        path = folder / name
        if is_folder:
            yield from _walk(path, root)
        else:
            yield _look(path, root)


def _look(path: Path, root: Path) -> Found:
    """Classify one entry."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            target = Path(os.path.realpath(path))
            if target.is_symlink() or not target.exists() or not target.is_relative_to(root):
                return Found(path, root, "other", "S_LINK_OUTSIDE")
            status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            return Found(path, root, "other", "S_SPECIAL_FILE")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return Found(path, root, "other", "E_PERMISSION")
    kind, code = sniff(head, path.name)
    return Found(path, root, kind, code)


def sniff(head: bytes, name: str) -> tuple[Kind, str]:
    """What a file's first bytes say it is. The name decides only between a damaged NIfTI file and no image at all.

    Args:
        head: The first `HEAD_BYTES` bytes, or all of them.
        name: Of the file.

    Returns:
        The kind, and for "other" the code that says why it is not read.
    """
    lower = name.lower()
    if head[DICOM_MAGIC_OFFSET : DICOM_MAGIC_OFFSET + 4] == b"DICM":
        is_directory = _MEDIA_DIRECTORY in head[: DICOM_MAGIC_OFFSET + 512] or lower == "dicomdir"
        return ("other", "S_SIDECAR") if is_directory else ("dicom", "")
    if is_nifti(head):
        return "nifti", ""
    if head.startswith(GZIP_MAGIC) and is_nifti(gzip_head(head, 348)):
        return "nifti", ""
    if head and not head.startswith(_APPLE_DOUBLE) and lower.endswith((".nii", ".nii.gz")):
        return "nifti", ""
    if head.startswith((GZIP_MAGIC, *_ARCHIVES)) or head[257:262] == b"ustar":
        return "other", "S_ARCHIVE"
    if lower.endswith(".json") and head.lstrip()[:1] in (b"{", b"["):
        return "json", ""
    return "other", "S_NOT_AN_IMAGE"
