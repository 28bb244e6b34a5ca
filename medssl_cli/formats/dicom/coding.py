"""How elements are laid out in the codings of PS3.5 section 7, as numbers that a loop can compare."""

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from medssl_cli.formats.dicom.tags import INNER_TAGS, PRIVATE_SEQUENCES, SEQUENCES

_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
LONG: Final = frozenset(
    kind.encode() for kind in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
)
SHORT: Final = frozenset(
    kind.encode()
    for kind in (
        "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM",
        "UI", "UL", "US",
    )
)  # fmt: skip
_WORDS: Final = frozenset((b"OB", b"OW"))


@dataclass(frozen=True, slots=True)
class Coding:
    """How elements are laid out. Keys are tags, and kinds value representations, as one number in that byte order."""

    is_implicit: bool
    is_little: bool
    head: struct.Struct
    number: struct.Struct
    short: frozenset[int]
    long: frozenset[int]
    fragmented: frozenset[int]
    sequence: int
    unknown: int
    item: int
    item_end: int
    sequence_end: int
    pixel_data: int
    sequences: frozenset[int]
    private_sequences: frozenset[int]
    special: frozenset[int]
    stops: frozenset[int]
    wanted: dict[int, int]
    inner: dict[int, int]


@lru_cache(maxsize=32)
def coding_of(*, is_implicit: bool, is_little: bool, wanted: frozenset[int] = frozenset()) -> Coding:
    """The layout of a coding.

    Args:
        is_implicit: No value representations are written.
        is_little: Byte order.
        wanted: Tags whose values will be kept.
    """
    order = "<" if is_little else ">"
    short, long, fragmented = (frozenset(_kind(name, is_little) for name in names) for names in (SHORT, LONG, _WORDS))
    return Coding(
        is_implicit=is_implicit,
        is_little=is_little,
        head=struct.Struct(f"{order}II" if is_implicit else f"{order}IHH"),
        number=struct.Struct(f"{order}I"),
        short=frozenset((0,)) if is_implicit else short,
        long=long,
        fragmented=fragmented,
        sequence=_kind(b"SQ", is_little),
        unknown=_kind(b"UN", is_little),
        item=_key(_ITEM, is_little),
        item_end=_key(_ITEM_END, is_little),
        sequence_end=_key(_SEQUENCE_END, is_little),
        pixel_data=_key(_PIXEL_DATA, is_little),
        sequences=frozenset(_key(tag, is_little) for tag in SEQUENCES),
        private_sequences=frozenset(_key(tag, is_little) for tag in PRIVATE_SEQUENCES),
        special=frozenset(_key(tag, is_little) for tag in SEQUENCES | {_ITEM_END}),
        stops=frozenset(_key(tag, is_little) for tag in SEQUENCES | {_PIXEL_DATA}),
        wanted={_key(tag, is_little): tag for tag in wanted},
        inner={_key(tag, is_little): tag for tag in INNER_TAGS},
    )


def _key(tag: int, is_little: bool) -> int:
    return (tag >> 16 | (tag & 0xFFFF) << 16) if is_little else tag


def _kind(name: bytes, is_little: bool) -> int:
    return int.from_bytes(name, "little" if is_little else "big")
