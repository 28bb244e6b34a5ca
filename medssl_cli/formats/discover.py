"""Walking folders and archives and recognising files by their content. Nothing is opened that could block or leave
the input, nothing is unpacked onto a disk, and memory does not grow with the number of files.

What counts: every directory entry that is not a folder is one object, with one exception. A zip archive that opens
stands for its members, and each record of its directory is one object: twice the same name is two, folders and links
among them are refused with a code like any other. The archive itself is then not counted. It is counted, once and
refused, when it cannot be opened, when it is refused as a whole, or when it has no members.
"""

import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from medssl_cli.errors import InputError, UsageError
from medssl_cli.formats.archives import MAX_ARCHIVE_BYTES, Entry, open_archive
from medssl_cli.formats.gzip_strict import MAGIC as GZIP_MAGIC
from medssl_cli.formats.gzip_strict import gzip_head
from medssl_cli.formats.metaimage import is_metaimage
from medssl_cli.formats.nifti_header import is_nifti
from medssl_cli.formats.nrrd import is_nrrd
from medssl_cli.formats.pictures import is_picture
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Member, Source, read_head

Kind = Literal["dicom", "nifti", "nrrd", "metaimage", "picture", "json", "csv", "xml", "zip", "known", "other"]
Peek = Callable[[Path, os.stat_result], bool]
HEAD_BYTES: Final = 4096
DICOM_MAGIC_OFFSET: Final = 128
_MEDIA_DIRECTORY: Final = b"1.2.840.10008.1.3.10"
_ZIP, _EMPTY_ZIP, _7Z, _RAR = b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"
_BZIP2, _XZ, _ZSTANDARD = b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ARCHIVES: Final = (GZIP_MAGIC, _7Z, _RAR, _BZIP2, _XZ, _ZSTANDARD)
_OFFICE_MEMBERS: Final = (b"[Content_Types].xml", b"_rels/", b"mimetype", b"META-INF/")
_APPLE_DOUBLE: Final = struct.pack(">I", 0x00051607)
_NAMED: Final[dict[str, Kind]] = {
    ".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "metaimage", ".mhd": "metaimage",
}  # fmt: skip
_TEXT_SIDECARS: Final = (".tsv", ".bval", ".bvec")
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_VRS: Final = (b"UI", b"UL", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"OB")


@dataclass(frozen=True, slots=True)
class Found:
    """One object of the input.

    Args:
        source: Where it is.
        root: The input that it was found under.
        kind: What it holds; "other" has a code; "known" was not opened.
        code: Why it is not read, "" if it is.
    """

    source: Source
    root: Path
    kind: Kind
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
    kind, code = sniff(head, path.name, allow_headerless=policy.allow_headerless)
    return Found(path, root, kind, code)


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


def _sniff_member(path: Path, entry: Entry, policy: Policy) -> tuple[Kind, str]:
    try:
        head = read_head(Member(path, entry.index, entry.inner), HEAD_BYTES)
    except InputError as error:
        return "other", error.code
    kind, code = sniff(head, entry.inner.name, allow_headerless=policy.allow_headerless)
    return ("other", "E_NESTED_ARCHIVE") if kind == "zip" or code == "S_ARCHIVE" else (kind, code)


def sniff(head: bytes, name: str, *, allow_headerless: bool = False) -> tuple[Kind, str]:
    """What a file's first bytes say it is. The name decides only between a damaged image and no image at all, and
    which texts are tables.

    Args:
        head: The first `HEAD_BYTES` bytes, or all of them.
        name: Of the file.
        allow_headerless: Whether a bare data set without the DICOM signature is DICOM.

    Returns:
        The kind, and for "other" the code that says why it is not read.
    """
    lower = name.lower()
    if head[DICOM_MAGIC_OFFSET : DICOM_MAGIC_OFFSET + 4] == b"DICM":
        is_directory = _MEDIA_DIRECTORY in head[: DICOM_MAGIC_OFFSET + 512] or lower == "dicomdir"
        return ("other", "S_SIDECAR") if is_directory else ("dicom", "")
    if not head or head.startswith(_APPLE_DOUBLE):
        return "other", "S_NOT_AN_IMAGE"
    if kind := _image_kind(head):
        return kind, ""
    for suffix, kind in _NAMED.items():
        if lower.endswith(suffix):
            return kind, ""
    if head.startswith(_ZIP) and head[30:].startswith(_OFFICE_MEMBERS):
        return "other", "S_NOT_AN_IMAGE"
    if head.startswith((_ZIP, _EMPTY_ZIP)):
        return "zip", ""
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return "other", "S_ARCHIVE"
    if allow_headerless and _is_bare_dicom(head):
        return "dicom", ""
    return _text_kind(head, lower)


def _image_kind(head: bytes) -> Kind | None:
    if is_nifti(head) or (head.startswith(GZIP_MAGIC) and is_nifti(gzip_head(head, 348))):
        return "nifti"
    if is_nrrd(head):
        return "nrrd"
    if is_metaimage(head):
        return "metaimage"
    return "picture" if is_picture(head) else None


def _text_kind(head: bytes, name: str) -> tuple[Kind, str]:
    is_wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if b"\0" in head and not is_wide:
        return "other", "S_NOT_AN_IMAGE"
    if text.startswith(b"<?xml") or (name.endswith(".xml") and (is_wide or text.startswith(b"<"))):
        return "xml", ""
    if name.endswith(".json") and text[:1] in (b"{", b"["):
        return "json", ""
    if name.endswith(".csv"):
        is_table = is_wide or any(mark in text.partition(b"\n")[0] for mark in (b",", b";", b"\t"))
        return ("csv", "") if is_table else ("other", "S_NOT_AN_IMAGE")
    return "other", "S_SIDECAR" if name.endswith(_TEXT_SIDECARS) else "S_NOT_AN_IMAGE"


def _is_bare_dicom(head: bytes) -> bool:
    """Whether bytes begin like a little-endian data set without preamble: an element of the group 0002 or 0008.

    DICOM PS3.5 section 7.1. Whether it is an image is for the reader to say.
    """
    if len(head) < 16:
        return False
    group, element, length = struct.unpack_from("<HHI", head)
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    return head[4:6] in _VRS or (length % 2 == 0 and length <= 1024)
