"""Whether a DICOM object is whole: the parser reads a file that ends within a sequence as one with fewer items.

Every element, item and sequence is stepped over by its length; none may be longer than what it lies in (PS3.5 section
7). This also bounds how many objects the parser makes and how deep it goes.
"""

import struct
from dataclasses import dataclass
from typing import Final

from medssl_cli.base.errors import InputError

MAX_ELEMENTS: Final = 5_000_000
MAX_DEPTH: Final = 64
IMPLICIT: Final = "1.2.840.10008.1.2"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
META_START: Final = 132
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM: Final = (0xFFFE, 0xE000)
_ENDS: Final = ((0xFFFE, 0xE00D), (0xFFFE, 0xE0DD))
_PIXEL_DATA: Final = (0x7FE0, 0x0010)
_LONG: Final = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_TAG: Final = struct.Struct("<HH")
_SHORT: Final = struct.Struct("<H")
_WORD: Final = struct.Struct("<I")


@dataclass(slots=True)
class _Level:
    """An open sequence or item: where it ends, if it says so, and where it must end at the latest."""

    end: int | None
    limit: int
    is_implicit: bool


def read_meta(data: bytes) -> tuple[str, int]:
    """Transfer syntax of a file and the byte at which its data set begins.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TRUNCATED`.
    """
    at, syntax = META_START, ""
    while data[at : at + 2] == b"\x02\x00":
        tag, kind, value, length = _element(data, at, is_implicit=False)
        if tag == (0x0002, 0x0010):
            syntax = data[value : value + length].decode("latin-1").strip(" \0")
        if kind == b"SQ" or length == _UNDEFINED or value + length > len(data):
            raise _truncated()
        at = value + length
    if not syntax:
        raise InputError("E_LABEL_FORMAT", "element (0002,0010) is missing: how are the data encoded?")
    return syntax, at


def check_whole(data: bytes, start: int, *, is_implicit: bool) -> None:
    """Step over a little-endian data set from its first byte to the end of the file.

    Args:
        data: The file.
        start: Where the data set begins.
        is_implicit: No value representations are written.

    Raises:
        InputError: `E_TRUNCATED`, `E_LABEL_FORMAT`, `E_DICOM_DEPTH` or `E_DICOM_TOO_BIG`.
    """
    levels = [_Level(len(data), len(data), is_implicit)]
    at = start
    for _ in range(MAX_ELEMENTS):
        while len(levels) > 1 and at == levels[-1].end:
            levels.pop()
        if at == len(data) and len(levels) == 1:
            return
        at = _step(data, at, levels)
        if len(levels) > MAX_DEPTH:
            raise InputError("E_DICOM_DEPTH", f"sequences are nested more than {MAX_DEPTH // 2} deep")
    raise InputError("E_DICOM_TOO_BIG", f"more than {MAX_ELEMENTS} elements")


def _step(data: bytes, at: int, levels: list[_Level]) -> int:
    """Step over one element, or into one sequence or item, or out of one that a delimiter ends."""
    level = levels[-1]
    if at + 8 > level.limit:
        raise _truncated()
    tag = _TAG.unpack_from(data, at)
    if tag in _ENDS:
        if level.end is not None:
            raise InputError("E_LABEL_FORMAT", "a delimiter ends what it did not begin")
        levels.pop()
        return at + 8
    tag, kind, value, length = _element(data, at, is_implicit=level.is_implicit)
    is_open = length == _UNDEFINED
    if not is_open and value + length > level.limit:
        raise _truncated()
    if tag == _PIXEL_DATA and is_open:
        return _after_fragments(data, value, level.limit)
    if tag == _ITEM or kind == b"SQ" or is_open:
        # PS3.5 6.2.2: a sequence of unknown representation and undefined length is coded implicitly.
        is_implicit = level.is_implicit or (kind == b"UN" and is_open)
        end = None if is_open else value + length
        levels.append(_Level(end, level.limit if end is None else end, is_implicit))
        return value
    return value + length


def _after_fragments(data: bytes, at: int, limit: int) -> int:
    """Where compressed pixels end: fragments of known length and a delimiter (PS3.5 A.4)."""
    for _ in range(MAX_ELEMENTS):
        if at + 8 > limit:
            raise _truncated()
        tag, length = _TAG.unpack_from(data, at), _WORD.unpack_from(data, at + 4)[0]
        at += 8
        if tag == _ENDS[1]:
            return at
        if tag != _ITEM:
            raise InputError("E_LABEL_FORMAT", "the compressed pixels are not a sequence of fragments")
        if at + length > limit:
            raise _truncated()
        at += length
    raise InputError("E_DICOM_TOO_BIG", f"more than {MAX_ELEMENTS} fragments")


def _element(data: bytes, at: int, *, is_implicit: bool) -> tuple[tuple[int, int], bytes, int, int]:
    """Tag, value representation ("" where none is written), offset and length of the value of an element."""
    if at + 8 > len(data):
        raise _truncated()
    tag = _TAG.unpack_from(data, at)
    if is_implicit or tag[0] == _ITEM[0]:
        return tag, b"", at + 8, _WORD.unpack_from(data, at + 4)[0]
    kind = data[at + 4 : at + 6]
    if kind in _LONG:
        if at + 12 > len(data):
            raise _truncated()
        return tag, kind, at + 12, _WORD.unpack_from(data, at + 8)[0]
    if not (kind.isalpha() and kind.isupper()):
        raise InputError("E_LABEL_FORMAT", "an element has no known value representation")
    return tag, kind, at + 8, _SHORT.unpack_from(data, at + 6)[0]


def _truncated() -> InputError:
    return InputError("E_TRUNCATED", "the object ends before its data do", hint="retrieve the file again")
