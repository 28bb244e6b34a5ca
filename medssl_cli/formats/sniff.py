"""What a file is, told by its first bytes."""

import struct
from typing import Final, Literal

from medssl_cli.formats.gzip_strict import MAGIC as GZIP_MAGIC
from medssl_cli.formats.gzip_strict import gzip_head
from medssl_cli.formats.metaimage import is_metaimage
from medssl_cli.formats.nifti_header import is_nifti
from medssl_cli.formats.nrrd import is_nrrd
from medssl_cli.formats.pictures import is_picture

Kind = Literal["dicom", "nifti", "nrrd", "metaimage", "picture", "json", "csv", "xml", "zip", "known", "other"]
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
_VRS: Final = (b"UI", b"UL", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"OB")


def sniff(head: bytes, name: str, *, allow_headerless: bool = False) -> tuple[Kind, str]:
    """What a file's first bytes say it is. The name decides only between a damaged image and no image at all, and
    which texts are tables.

    Args:
        head: The first `discover.HEAD_BYTES` bytes, or all of them.
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
    if name.endswith(".csv") and (is_wide or _is_wide_without_mark(head)):
        return "csv", ""
    if b"\0" in head and not is_wide:
        return "other", "S_NOT_AN_IMAGE"
    if text.startswith(b"<?xml") or (name.endswith(".xml") and (is_wide or text.startswith(b"<"))):
        return "xml", ""
    if name.endswith(".json") and text[:1] in (b"{", b"["):
        return "json", ""
    if name.endswith(".csv"):
        is_table = any(mark in text.partition(b"\n")[0] for mark in (b",", b";", b"\t"))
        return ("csv", "") if is_table else ("other", "S_NOT_AN_IMAGE")
    return "other", "S_SIDECAR" if name.endswith(_TEXT_SIDECARS) else "S_NOT_AN_IMAGE"


def _is_wide_without_mark(head: bytes) -> bool:
    """Whether text begins with two ASCII characters in UTF-16 without a byte order mark."""
    return len(head) >= 4 and b"\0\0" in (head[1:4:2], head[0:3:2]) and head[:2] != b"\0\0"


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
