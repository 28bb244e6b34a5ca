"""The mark of what `medssl infer` writes, by which it is known wherever it lies and whatever it is called.

A mask says so in its NIfTI header (`descrip` and `intent_name`), a DICOM object in its equipment module, a preview in a
text chunk of PNG, a page in its head; findings and boxes do at the start of their JSON files and tables. Masks of other
programs do not bear it, nor do files that `medssl cache export` wrote.
"""

import re
import struct
import zlib
from typing import Final

from medssl_cli import __version__
from medssl_cli.formats.gzip_strict import MAGIC, gzip_head
from medssl_cli.formats.nifti_header import LARGEST_HEADER, is_nifti
from medssl_cli.formats.seg_storage import DEFLATED

MASK_DESCRIPTION: Final = f"medssl {__version__} mask"
MASK_INTENT: Final = "medssl mask"
MANUFACTURER: Final = "medssl"
PREVIEW_SOFTWARE: Final = "medssl preview"
PAGE_GENERATOR: Final = "medssl infer"
ANSWER_KEY: Final = "_medssl"
"""First key of a JSON file of findings or boxes: it comes before all letters."""
ANSWER: Final = "answer"
TABLE_START: Final = ("name", "path", "medssl_task")
"""First columns of a table of findings or boxes."""
CANDIDATES_START: Final = ("seriesuid", "coordX", "coordY", "coordZ", "probability", "medssl_task")
"""First columns of a table of boxes in volumes: those of LUNA16, and the mark."""
_DESCRIPTION: Final = re.compile(rb"medssl \S+ mask\0")
_DERIVED: Final = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(?:66\.[47]|481\.3|88\.34)(?![0-9.])")
"""SOP classes of what inference writes: segmentations, structure sets, comprehensive 3D reports."""
_DEFLATED_SYNTAX: Final = DEFLATED.encode()
_META_START, _INFLATED_BYTES = 144, 4096
_ANSWER_START: Final = f'{{\n  "{ANSWER_KEY}": "{ANSWER}"'.encode()
_TABLE_STARTS: Final = tuple(
    ",".join(columns).encode() + end for columns in (TABLE_START, CANDIDATES_START) for end in (b",", b"\n")
)
"""A table without rows names no classes: its header ends behind the mark."""
_PAGE_START: Final = b"<!doctype html>"
_PAGE_MARK: Final = f'<meta name="generator" content="{PAGE_GENERATOR}">'.encode()
_PNG: Final = b"\x89PNG\r\n\x1a\n"
# Manufacturer (0008,0070) in little endian, explicit and implicit: PS3.5 section 7.1.
_MADE_HERE: Final = re.compile(rb"\x08\x00\x70\x00(?:LO\x06\x00|\x06\x00\x00\x00)" + MANUFACTURER.encode())
# Offsets of the two texts in headers of version 1 and 2: nifti1.h, nifti2.h.
_NIFTI_TEXTS: Final = {348: ((148, 80), (328, 16)), 540: ((240, 80), (508, 16))}


def is_prediction(head: bytes) -> bool:
    """Whether a file bears the mark.

    Args:
        head: Its first bytes, 4096 or all of them; of a compressed NIfTI file as they are stored.
    """
    if head.startswith(_PNG):
        return b"tEXtSoftware\0" + PREVIEW_SOFTWARE.encode() in head
    if head.startswith(_PAGE_START):
        return _PAGE_MARK in head
    if head.startswith((_ANSWER_START, *_TABLE_STARTS)):
        return True
    if head[128:132] == b"DICM":
        return bool(_DERIVED.search(head) and _MADE_HERE.search(_inflated(head)))
    plain = gzip_head(head, LARGEST_HEADER) if head.startswith(MAGIC) else head[:LARGEST_HEADER]
    return is_nifti(plain) and _is_marked_nifti(plain)


def _inflated(head: bytes) -> bytes:
    """First bytes of a DICOM file as they are, or of its data set where that is deflated behind the file meta."""
    start = _META_START + int.from_bytes(head[_META_START - 4 : _META_START], "little")
    if _DEFLATED_SYNTAX not in head[:start]:
        return head
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(head[start:], _INFLATED_BYTES)
    except zlib.error:
        return b""


def _is_marked_nifti(header: bytes) -> bool:
    size = 348 if 348 in struct.unpack("<i", header[:4]) + struct.unpack(">i", header[:4]) else 540
    (start, length), (name_start, name_length) = _NIFTI_TEXTS[size]
    name = header[name_start : name_start + name_length].rstrip(b"\0")
    return name == MASK_INTENT.encode() or _DESCRIPTION.match(header[start : start + length]) is not None
