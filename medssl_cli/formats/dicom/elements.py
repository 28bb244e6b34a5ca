"""Walk over the elements of a DICOM data set (PS3.5 section 7) without decoding any, bounded and never recursive.

Only values that are asked for are copied out; everything else is stepped over by its length. The walk ends where the
pixel data begin; the file is loaded in blocks up to there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.coding import LONG, SHORT, Coding, coding_of
from medssl_cli.formats.dicom.tags import META_TAGS, SOP_CLASS, TRANSFER_SYNTAX, WANTED_TAGS
from medssl_cli.formats.dicom.window import DEFLATED, Window, truncated

MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 200_000

Item = dict[int, "bytes | list[Item]"]

_UNDEFINED: Final = 0xFFFFFFFF
_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
_IMPLICIT: Final = "1.2.840.10008.1.2"


@dataclass(frozen=True, slots=True)
class Elements:
    """What a walk found.

    Args:
        values: Raw value of each wanted element that is there; of wanted sequences, their items.
        transfer_syntax: (0002,0010); empty in a file without meta information.
        is_little: Byte order of the values.
        is_implicit: No value representations are written.
        start: Byte at which the data set begins.
        pixel_tag: Byte at which the element PixelData begins; of a deflated file, after inflating; None without one.
        pixel_offset: Byte at which its value begins.
        pixel_length: Bytes of its value; None where it is encapsulated.
        has_preamble: The 128 bytes before the signature are not all zero.
    """

    values: Mapping[int, "bytes | list[Item]"]
    transfer_syntax: str
    is_little: bool
    is_implicit: bool
    start: int
    pixel_tag: int | None
    pixel_offset: int
    pixel_length: int | None
    has_preamble: bool


@dataclass(slots=True)
class _Level:
    """One open sequence or item: where it must end at the latest, and where it does if it says so."""

    is_sequence: bool
    limit: int
    end: int | None
    coding: Coding
    items: "list[Item] | None"
    item: "Item | None"
    is_fragmented: bool = False


@dataclass(slots=True)
class _Budget:
    used: int = 0
    limit: int = MAX_ELEMENTS


def walk(
    window: Window,
    *,
    allow_headerless: bool = False,
    wanted: frozenset[int] = WANTED_TAGS,
    on_sop_class: Callable[[bytes], None] | None = None,
    values: dict[int, "bytes | list[Item]"] | None = None,
) -> Elements:
    """Walk from the start of a file to its pixel data.

    Args:
        window: The file.
        allow_headerless: Read a bare data set, too: the coding is told from its first element.
        wanted: Tags whose values are kept.
        on_sop_class: Called with the value of (0008,0016) once it is known; may raise.
        values: Filled with what is found, so that it is known of a damaged file, too.

    Raises:
        InputError: `E_DICOM_PARSE`, `E_TRUNCATED`, `E_DICOM_LENGTH`, `E_DICOM_DEPTH`, `E_DICOM_TOO_BIG` or
            `E_DEFLATE_BOMB`.
    """
    head = window.need(min(132, window.size))
    has_signature = head[128:132] == b"DICM"
    if not has_signature and not (allow_headerless and is_bare_data_set(head)):
        raise InputError("E_DICOM_PARSE", "no DICOM signature")
    values = {} if values is None else values
    start = _meta(window, 132 if has_signature else 0, values)
    found = values.get(TRANSFER_SYNTAX, b"")
    syntax = found.decode("latin-1").strip(" \0") if isinstance(found, bytes) else ""
    if syntax == DEFLATED:
        window.inflate_from(start)
    coding = _coding_at(window, start, syntax, wanted)
    pixel_tag, value, length = _data_set(window, start, coding, values, on_sop_class)
    return Elements(
        values, syntax, coding.is_little, coding.is_implicit, start, pixel_tag, value, length,
        has_signature and head.count(0, 0, 128) != 128,
    )  # fmt: skip


def is_bare_data_set(head: bytes) -> bool:
    """Whether bytes that lack the signature begin like a DICOM data set: group 0002 or 0008 and a plausible element."""
    if len(head) < 8:
        return False
    group, element = head[:2], head[2:4]
    if group in (b"\x02\x00", b"\x08\x00"):
        length = int.from_bytes(head[4:8], "little")
    elif group == b"\x00\x08":
        length = int.from_bytes(head[4:8], "big")
    else:
        return False
    is_low = element[0] == 0 or element[1] == 0
    return is_low and (head[4:6] in SHORT or head[4:6] in LONG or length <= 1024)


def _meta(window: Window, at: int, values: dict[int, bytes | list[Item]]) -> int:
    """Read the meta information (group 0002, always explicit little endian); return where the data set begins."""
    coding = coding_of(is_implicit=False, is_little=True, wanted=META_TAGS)
    while at + 8 <= window.size:
        buffer = window.need(min(at + 12, window.size))
        key, kind, length = coding.head.unpack_from(buffer, at)
        if key & 0xFFFF != 0x0002:
            break
        value = at + 8
        if kind not in coding.short:
            value, length = _long_value(buffer, at, kind, coding)
        if length > window.size:
            raise _too_long()
        at = value + length
        buffer = window.need(at)
        if key in coding.wanted:
            values[coding.wanted[key]] = buffer[value:at]
    return at


def _coding_at(window: Window, start: int, syntax: str, wanted: frozenset[int]) -> Coding:
    """The coding of a data set: by its transfer syntax, corrected by its first element."""
    head = window.reach(start + 8)[0][start : start + 8]
    if len(head) < 8:
        return coding_of(is_implicit=syntax == _IMPLICIT, is_little=syntax != _BIG_ENDIAN, wanted=wanted)
    is_big = syntax == _BIG_ENDIAN or (not syntax and head[0] == 0 and head[1] != 0)
    is_implicit = head[4:6] not in SHORT and head[4:6] not in LONG
    return coding_of(is_implicit=is_implicit, is_little=not is_big, wanted=wanted)


def _data_set(
    window: Window,
    at: int,
    coding: Coding,
    values: dict[int, bytes | list[Item]],
    on_sop_class: Callable[[bytes], None] | None,
) -> tuple[int | None, int, int | None]:
    """Walk the top level; return where PixelData, its value and how long the latter is.

    This loop is most of what reading a header costs: the usual element, short and loaded, has few steps.
    """
    unpack, is_implicit = coding.head.unpack_from, coding.is_implicit
    wanted, short, stops = coding.wanted, coding.short, coding.stops
    buffer, loaded, size = window.reach(at + 12)
    kind, inner = 0, _Budget()
    for count in range(MAX_ELEMENTS):
        if at + 12 > loaded:
            buffer, loaded, size = window.reach(at + 12)
            if at == size:
                return None, at, None
            if at + 8 > loaded:
                raise truncated()
        value = at + 8
        if is_implicit:
            key, length = unpack(buffer, at)
        else:
            key, kind, length = unpack(buffer, at)
        if kind not in short or length == _UNDEFINED or key in stops:
            if kind not in short:
                value, length = _long_value(buffer, at, kind, coding)
            if key == coding.pixel_data:
                return at, value, None if length == _UNDEFINED else length
            if length == _UNDEFINED or kind == coding.sequence or key in stops:
                items: list[Item] | None = [] if key in stops and key in wanted else None
                inner.limit = MAX_ELEMENTS - count
                at = _step_over(window, value, length, kind, coding, items, inner)
                if items is not None:
                    values[wanted[key]] = items
                buffer, loaded, size = window.reach(at)
                continue
        at = value + length
        if at > loaded:
            if length > size:
                raise _too_long()
            window.need(at)
            buffer, loaded, size = window.reach(at)
        if key in wanted:
            values[wanted[key]] = buffer[value:at]
            if on_sop_class is not None and wanted[key] == SOP_CLASS:
                on_sop_class(buffer[value:at])
    raise _too_many()


def _long_value(buffer: bytes, at: int, kind: int, coding: Coding) -> tuple[int, int]:
    """Where the value of an element with a 32-bit length begins, and that length."""
    if kind not in coding.long:
        raise InputError("E_DICOM_PARSE", "an element has no known value representation")
    if at + 12 > len(buffer):
        raise truncated()
    return at + 12, coding.number.unpack_from(buffer, at + 8)[0]


def _step_over(
    window: Window, at: int, length: int, kind: int, coding: Coding, items: list[Item] | None, budget: _Budget
) -> int:
    """As `_nested`, but forgives damage within a sequence of stated length that nobody asked for.

    Old devices wrote private sequences in another coding than the data set around them.
    """
    try:
        return _nested(window, at, length, kind, coding, items, budget)
    except InputError as error:
        if error.code != "E_DICOM_PARSE" or length == _UNDEFINED or items is not None:
            raise
        return at + length


def _nested(
    window: Window, at: int, length: int, kind: int, coding: Coding, items: list[Item] | None, budget: _Budget
) -> int:
    """Step over one sequence and everything in it.

    Args:
        window: The file.
        at: Where the sequence's value begins.
        length: Length of its value; possibly undefined.
        kind: Value representation as written.
        coding: Coding of the data set around it.
        items: Filled with its items, if anyone wants them.
        budget: Elements that all sequences together may have.

    Returns:
        Where it ends.
    """
    levels = [_Level(False, window.size, None, coding, None, None)]
    at = _open_sequence(at, length, kind, levels, items)
    while True:
        while levels[-1].end is not None and at >= levels[-1].end:
            levels.pop()
        if len(levels) == 1:
            return at
        budget.used += 1
        if budget.used > budget.limit:
            raise _too_many()
        level = levels[-1]
        if at + 8 > level.limit:
            raise truncated() if level.limit >= window.size else _bad_nesting()
        buffer = window.need(at + 8)
        if level.is_sequence:
            at = _open_item(buffer, at, levels)
        elif level.item is not None or (skipped := _skip(buffer, at, level, budget)) == at:
            at = _element(window, buffer, at, levels)
        else:
            at = skipped


def _skip(buffer: bytes, at: int, level: _Level, budget: _Budget) -> int:
    """Step over plain elements of an item that nobody asked for: `_element` for the usual case, without its cost."""
    coding, end, kind = level.coding, min(len(buffer), level.limit), 0
    unpack, is_implicit, short, special = coding.head.unpack_from, coding.is_implicit, coding.short, coding.special
    while at + 8 <= end and budget.used < budget.limit:
        if is_implicit:
            key, length = unpack(buffer, at)
        else:
            key, kind, length = unpack(buffer, at)
        if kind not in short or key in special or at + 8 + length > end:
            break
        at += 8 + length
        budget.used += 1
    return at


def _open_item(buffer: bytes, at: int, levels: list[_Level]) -> int:
    level = levels[-1]
    coding = level.coding
    (key,) = coding.number.unpack_from(buffer, at)
    (length,) = coding.number.unpack_from(buffer, at + 4)
    at += 8
    if key == coding.sequence_end and level.end is None:
        levels.pop()
        return at
    if key != coding.item:
        raise _bad_nesting()
    end = None if length == _UNDEFINED else at + length
    if end is not None and end > level.limit:
        raise _beyond(level.limit, length)
    if level.is_fragmented:
        if end is None:
            raise _bad_nesting()
        return end
    item: Item | None = None
    if level.items is not None:
        item = {}
        level.items.append(item)
    levels.append(_Level(False, level.limit if end is None else end, end, coding, None, item))
    return at


def _element(window: Window, buffer: bytes, at: int, levels: list[_Level]) -> int:
    level = levels[-1]
    coding = level.coding
    if coding.is_implicit:
        (key, length), kind = coding.head.unpack_from(buffer, at), 0
    else:
        key, kind, length = coding.head.unpack_from(buffer, at)
    if key == coding.item_end:
        if level.end is None:
            levels.pop()
        return at + 8
    value = at + 8
    if kind not in coding.short:
        value, length = _long_value(window.need(min(at + 12, level.limit)), at, kind, coding)
    tag = coding.inner.get(key)
    is_known = key in coding.sequences or (
        level.item is not None and key in coding.private_sequences and _has_items(window, value, length, kind, level)
    )
    if length == _UNDEFINED or kind == coding.sequence or is_known:
        items: list[Item] | None = None
        if level.item is not None and tag is not None and is_known:
            items = []
            level.item[tag] = items
        return _open_sequence(value, length, kind, levels, items)
    end = value + length
    if end > level.limit:
        raise _beyond(level.limit, length)
    if level.item is not None and tag is not None:
        level.item[tag] = window.need(end)[value:end]
    return end


def _has_items(window: Window, at: int, length: int, kind: int, level: _Level) -> bool:
    """Whether a private value is a sequence; without a value representation its first bytes tell (PS3.5 7.5)."""
    coding = level.coding
    if length == _UNDEFINED or kind == coding.sequence:
        return True
    if not (coding.is_implicit or kind == coding.unknown) or length < 8 or at + 4 > level.limit:
        return False
    return bool(coding.number.unpack_from(window.need(at + 4), at)[0] == coding.item)


def _open_sequence(at: int, length: int, kind: int, levels: list[_Level], items: list[Item] | None) -> int:
    if sum(level.is_sequence for level in levels) >= MAX_DEPTH:
        raise InputError("E_DICOM_DEPTH", f"sequences are nested more than {MAX_DEPTH} deep")
    level = levels[-1]
    end = None if length == _UNDEFINED else at + length
    if end is not None and end > level.limit:
        raise _beyond(level.limit, length)
    coding = level.coding
    is_fragmented = kind in coding.fragmented
    if kind == coding.unknown and (end is None or items is not None):
        coding = coding_of(
            is_implicit=True, is_little=True
        )  # PS3.5 6.2.2: what has no known representation is coded implicitly
    levels.append(_Level(True, level.limit if end is None else end, end, coding, items, None, is_fragmented))
    return at


def _beyond(limit: int, length: int) -> InputError:
    return _too_long() if length > limit else truncated()


def _too_long() -> InputError:
    return InputError("E_DICOM_LENGTH", "an element claims to be longer than the file", hint="retrieve the file again")


def _too_many() -> InputError:
    return InputError("E_DICOM_TOO_BIG", f"more than {MAX_ELEMENTS} elements before the pixel data")


def _bad_nesting() -> InputError:
    return InputError("E_DICOM_PARSE", "the items of a sequence are damaged")
