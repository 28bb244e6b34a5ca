"""DICOM: a slice or a picture a file, or many. `formats/dicom` reads them, `formats/series.py` puts them together.

Source: DICOM PS3.10 section 7.1 (preamble), PS3.5 section 7.1 (elements).
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member
from medssl_cli.formats.table import Announced, ImageFormat

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart
    from medssl_cli.formats.source import Source

MAGIC: Final = b"DICM"
MAGIC_OFFSET: Final = 128
_VRS: Final = (b"UI", b"UL", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"OB")


def has_signature(head: bytes) -> bool:
    """Whether bytes begin with the preamble of a DICOM file."""
    return head[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


def _is_bare(head: bytes) -> bool:
    """Whether bytes begin like a little-endian data set without preamble: an element of the group 0002 or 0008."""
    if len(head) < 16:
        return False
    group, element, length = struct.unpack_from("<HHI", head)
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    return head[4:6] in _VRS or (length % 2 == 0 and length <= 1024)


def _recognises(head: bytes, policy: Policy) -> bool:
    return has_signature(head) or (policy.allow_headerless and _is_bare(head))


def _announced(source: "Source | SeriesPart", policy: Policy) -> Announced | None:
    """The grid that was proven for the slices, repaired where the policy allowed it."""
    if isinstance(source, Path | Member):
        return None
    first = source.headers[0]
    shape = source.repair.shape((first.Columns, first.Rows, len(source.headers)))
    return Announced(shape, source.affine, first.BitsAllocated / 8)


FORMAT: Final = ImageFormat(suffixes=(".dcm", ".dicom"), recognises=_recognises, announced=_announced)
