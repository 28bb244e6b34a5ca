"""Which files are annotations, told from their first bytes, their SOP class, their columns or their keys."""

import re
from collections.abc import Sequence
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import LABEL_MAP_SEGMENTATION, SEGMENTATION, STRUCTURE_SET, AnnotationKind
from medssl_cli.formats.labels.coco import MAX_FILE_BYTES as MAX_JSON_BYTES
from medssl_cli.formats.labels.columns import is_keyed
from medssl_cli.formats.labels.csv_rows import HEAD_BYTES, decoded, header_of
from medssl_cli.formats.labels.lidc import is_lidc
from medssl_cli.formats.labels.luna import is_luna
from medssl_cli.formats.source import Source, read_bytes, read_head

_OBJECTS: Final[dict[str, AnnotationKind]] = {
    SEGMENTATION: "seg",
    LABEL_MAP_SEGMENTATION: "seg",
    STRUCTURE_SET: "rtstruct",
}
_COCO_KEYS: Final = tuple(re.compile(rb'"%b"\s*:\s*\[' % key) for key in (b"images", b"annotations"))
_MEDIA_SOP_CLASS: Final = b"\x02\x00\x02\x00UI"


def kind_of_object(sop_class: str) -> AnnotationKind | None:
    """Which reader takes DICOM objects of a class; None for all others."""
    return _OBJECTS.get(sop_class)


def recognise_dicom(head: bytes) -> AnnotationKind | None:
    """Which reader takes a DICOM file that begins so, by its MediaStorageSOPClassUID (0002,0002)."""
    at = head.find(_MEDIA_SOP_CLASS, 128, 1024)
    if head[128:132] != b"DICM" or at < 0:
        return None
    start = at + len(_MEDIA_SOP_CLASS) + 2
    length = int.from_bytes(head[start - 2 : start], "little")
    return kind_of_object(head[start : start + min(length, 64)].decode("latin-1").strip(" \0"))


def recognise_xml(head: bytes) -> AnnotationKind | None:
    """Which reader takes an XML file that begins so."""
    return "lidc" if is_lidc(head) else None


def recognise_csv(header_row: Sequence[str]) -> AnnotationKind:
    """Which reader takes a table with these columns. Whether it is about images, its values may have to say."""
    return "luna" if is_luna(header_row) else "table"


def recognise_text(head: bytes) -> AnnotationKind | None:
    """Which reader takes a file whose name ends in `.csv`, `.tsv` or `.xml` and that begins so.

    Args:
        head: The first bytes; the header of a table must be complete.
    """
    if found := recognise_xml(head):
        return found
    try:
        return recognise_csv(header_of(decoded(head, is_whole=False)))
    except InputError:
        return None


def is_keyed_table(source: Source) -> bool:
    """Whether a file is a table of which a column has the name of a key, such as `file` or `PatientID`."""
    try:
        header = header_of(decoded(read_head(source, HEAD_BYTES), is_whole=False))
    except InputError:
        return False
    return is_luna(header) or is_keyed(header)


def annotation_kind(source: Source, kind: str) -> AnnotationKind | None:
    """Which reader takes a file; nothing of it is parsed here, so it may be called where nothing may go wrong.

    Args:
        source: The file.
        kind: As `discover` calls it: "dicom", "json", "csv" or "xml".

    Returns:
        None if the file is something else or cannot be read.
    """
    try:
        if kind == "json":
            data = read_bytes(source, max_bytes=MAX_JSON_BYTES)
            return "coco" if all(key.search(data) for key in _COCO_KEYS) else None
        head = read_head(source, HEAD_BYTES)
    except InputError:
        return None
    return recognise_dicom(head) if kind == "dicom" else recognise_text(head)
