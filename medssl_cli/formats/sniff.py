"""What a file is, told by its first bytes."""

import struct
from typing import Final

from medssl_cli.formats.gzip_strict import MAGIC as GZIP_MAGIC
from medssl_cli.formats.images.dicom import MAGIC_OFFSET, has_signature
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.table import image_formats

_MEDIA_DIRECTORY: Final = b"1.2.840.10008.1.3.10"
_ZIP, _EMPTY_ZIP, _7Z, _RAR = b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"
_BZIP2, _XZ, _ZSTANDARD = b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ARCHIVES: Final = (GZIP_MAGIC, _7Z, _RAR, _BZIP2, _XZ, _ZSTANDARD)
_OFFICE_MEMBERS: Final = (b"[Content_Types].xml", b"_rels/", b"mimetype", b"META-INF/")
_APPLE_DOUBLE: Final = struct.pack(">I", 0x00051607)
_TEXT_SIDECARS: Final = (".tsv", ".bval", ".bvec")


def sniff(head: bytes, name: str, policy: Policy = STRICT) -> tuple[str, str]:
    """What a file's first bytes say it is. The name decides only between a damaged image and no image at all, and
    which texts are tables.

    Args:
        head: The first `discover.HEAD_BYTES` bytes, or all of them.
        name: Name of the file.
        policy: `allow_headerless`.

    Returns:
        The kind: the name of a format of images, "json", "csv", "xml", "zip" or "other"; for "other" also the code
        that says why it is not read.
    """
    lower = name.lower()
    if has_signature(head) and (_MEDIA_DIRECTORY in head[: MAGIC_OFFSET + 512] or lower == "dicomdir"):
        return "other", "S_SIDECAR"
    for kind, one in image_formats().items():
        if one.recognises(head, policy):
            return kind, ""
    if not head or head.startswith(_APPLE_DOUBLE):
        return "other", "S_NOT_AN_IMAGE"
    for kind, one in image_formats().items():
        if one.is_told_by_name and lower.endswith(one.suffixes):
            return kind, ""
    if head.startswith(_ZIP) and head[30:].startswith(_OFFICE_MEMBERS):
        return "other", "S_NOT_AN_IMAGE"
    if head.startswith((_ZIP, _EMPTY_ZIP)):
        return "zip", ""
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return "other", "S_ARCHIVE"
    return _text_kind(head, lower)


def _text_kind(head: bytes, name: str) -> tuple[str, str]:
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
