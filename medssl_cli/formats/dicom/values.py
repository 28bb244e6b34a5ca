"""Readers of raw values (PS3.5 6.2). Numbers are finite and plain; messages name elements, never values.

Two kinds: `decimals`, `integer`, `number` and their like refuse what is malformed, and are for elements that place or
scale a voxel. For all others `lenient` turns a refusal into None: no image is refused for what it can do without.
"""

import math
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.tags import PRIVATE, PRIVATE_BLOCKS, TAGS

_DECIMAL: Final = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_INTEGER: Final = re.compile(rb"[+-]?\d{1,12}(\.0*)?")
_BLANKS: Final = b" \0\t\r\n"
_MEMO: Final = 4096
MAX_TEXT_BYTES: Final = 4096
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Values:
    """Raw values of one picture or frame, by tag.

    Args:
        raw: Bytes of each element; sequences are ignored.
        is_little: Byte order.
    """

    raw: Mapping[int, Any]
    is_little: bool = True

    def bytes_of(self, tag: int) -> bytes:
        """The value as it is; empty where the element is missing."""
        found = self.raw.get(tag, b"")
        return found if isinstance(found, bytes) else b""

    def text(self, name: str) -> str:
        """One string; Latin-1 gives every byte a character: unequal bytes stay unequal whatever the character set."""
        return _text(self._short_bytes(name))

    def plain(self, tag: int) -> str:
        """One string of an element without a keyword here."""
        return _text(self.bytes_of(tag)[:MAX_TEXT_BYTES])

    def identity(self, name: str) -> str:
        """One string that says whose an image is.

        Raises:
            InputError: `E_VALUE_INVALID` for kilobytes, which are no identity.
        """
        return _text(_short(name, self.bytes_of(TAGS[name])))

    def texts(self, name: str) -> tuple[str, ...]:
        """Its parts in upper case; one empty part where the element is missing."""
        return _texts(self._short_bytes(name))

    def _short_bytes(self, name: str) -> bytes:
        """The value of an element of text; kilobytes are none (PS3.5 6.2 allows 64 characters in what is read)."""
        found = self.bytes_of(TAGS[name])
        return found if len(found) <= MAX_TEXT_BYTES else b""

    def decimals(self, name: str, count: int) -> tuple[float, ...] | None:
        """Exactly so many finite numbers (VR DS), or None where the element is missing or empty.

        Raises:
            InputError: `E_VALUE_INVALID`.
        """
        found = self.raw.get(TAGS[name])
        if not found:
            return None
        numbers = _decimals(_short(name, found))
        if numbers is None:
            raise invalid(name, "is not a plain number")
        if not numbers:
            return None
        if len(numbers) != count:
            raise invalid(name, f"is not {count} finite numbers")
        return numbers

    def decimal(self, name: str) -> float | None:
        """One finite number (VR DS), or None.

        Raises:
            InputError: `E_VALUE_INVALID`.
        """
        numbers = self.decimals(name, 1)
        return None if numbers is None else numbers[0]

    def integer(self, name: str) -> int | None:
        """One whole number (VR IS), or None.

        Raises:
            InputError: `E_VALUE_INVALID`.
        """
        raw = self.bytes_of(TAGS[name]).strip(_BLANKS)
        if not raw:
            return None
        if not _INTEGER.fullmatch(raw):
            raise invalid(name, "is not one whole number")
        return int(raw.partition(b".")[0])

    def number(self, name: str, size: int) -> int | None:
        """One unsigned binary number of so many bytes (VR US or UL), or None.

        Raises:
            InputError: `E_VALUE_INVALID`.
        """
        raw = self.bytes_of(TAGS[name])
        if not raw:
            return None
        if len(raw) != size:
            raise invalid(name, f"is not one {8 * size}-bit number")
        return int.from_bytes(raw, "little" if self.is_little else "big")

    def double(self, name: str) -> float | None:
        """One finite 64-bit float (VR FD), or None.

        Raises:
            InputError: `E_VALUE_INVALID`.
        """
        raw = self.bytes_of(TAGS[name])
        if not raw:
            return None
        if len(raw) != 8:
            raise invalid(name, "is not one 64-bit number")
        (number,) = struct.unpack("<d" if self.is_little else ">d", raw)
        if not math.isfinite(number):
            raise invalid(name, "is not finite")
        return float(number)

    def doubles(self, name: str, count: int) -> tuple[float, ...] | None:
        """Exactly so many finite 64-bit floats (VR FD), or None for anything else: they only tell images apart."""
        return self._floats(self.bytes_of(TAGS[name]), count)

    def _floats(self, raw: bytes, count: int) -> tuple[float, ...] | None:
        if len(raw) != 8 * count:
            return None
        numbers = struct.unpack(f"{'<' if self.is_little else '>'}{count}d", raw)
        return numbers if all(map(math.isfinite, numbers)) else None

    def indices(self, name: str) -> tuple[int, ...]:
        """Unsigned 32-bit numbers (VR UL); none where the element is malformed or has very many."""
        raw = self.bytes_of(TAGS[name])
        count = len(raw) // 4
        if len(raw) != 4 * count or len(raw) > MAX_TEXT_BYTES:
            return ()
        return struct.unpack(f"{'<' if self.is_little else '>'}{count}I", raw)

    def private_raw(self, name: str) -> Any:
        """A private element, found by its creator wherever its block was moved (PS3.5 7.8.1); empty without one."""
        creator, group, low = PRIVATE[name]
        raw, high = self.raw, group << 16
        for block in PRIVATE_BLOCKS:
            if high | block in raw and self.bytes_of(high | block).startswith(creator):
                return raw.get(high | block << 8 | low, b"")
        return b""

    def private(self, name: str) -> bytes:
        """The bytes of a private element; empty where it is missing or a sequence."""
        found = self.private_raw(name)
        return found if isinstance(found, bytes) else b""

    def private_doubles(self, name: str, count: int) -> tuple[float, ...] | None:
        """Exactly so many private 64-bit floats, or None."""
        return self._floats(self.private(name), count)

    def private_decimals(self, name: str) -> tuple[float, ...]:
        """Private numbers that are written as text; empty where missing or malformed."""
        raw = self.private(name)
        return _decimals(raw) or () if len(raw) <= MAX_TEXT_BYTES else ()

    def private_single(self, name: str) -> float | None:
        """A private 32-bit float; None unless finite."""
        raw = self.private(name)
        if len(raw) != 4:
            return None
        (number,) = struct.unpack("<f" if self.is_little else ">f", raw)
        return float(number) if math.isfinite(number) else None

    def private_number(self, name: str) -> int | None:
        """A private unsigned 16-bit number, or one written as text; None where missing or malformed."""
        raw = self.private(name)
        if len(raw) == 2:
            return int.from_bytes(raw, "little" if self.is_little else "big")
        text = raw.strip(_BLANKS)
        return int(text.partition(b".")[0]) if _INTEGER.fullmatch(text) else None


def is_same_value(first: bytes, second: bytes) -> bool:
    """Whether two raw values are the same but for blanks around them and the spelling of decimal numbers (VR DS)."""
    if first.strip(_BLANKS) == second.strip(_BLANKS):
        return True
    numbers = _decimals(first)
    return bool(numbers) and numbers == _decimals(second)


def first_known(*numbers: Any) -> Any:
    """The first that is not None; None if there is none."""
    return next((number for number in numbers if number is not None), None)


def lenient(read: Callable[..., Value], *arguments: Any) -> Value | None:
    """What a strict reader gives, or None where it refuses: for elements that neither place nor scale a voxel."""
    try:
        return read(*arguments)
    except InputError:
        return None


def invalid(name: str, why: str) -> InputError:
    """The refusal of an element."""
    tag = TAGS[name]
    return InputError("E_VALUE_INVALID", f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) {why}")


def required(name: str, value: Any) -> Any:
    """The value, which must be there.

    Raises:
        InputError: `E_VALUE_INVALID`.
    """
    if value is None or value == "":
        raise invalid(name, "is missing or empty")
    return value


def _short(name: str, raw: Any) -> bytes:
    if not isinstance(raw, bytes) or len(raw) > MAX_TEXT_BYTES:
        raise invalid(name, "is not a short text")
    return raw


# Most values repeat from slice to slice: parsed once, they also share memory.
@lru_cache(maxsize=_MEMO)
def _text(raw: bytes) -> str:
    return sys.intern(raw.decode("latin-1").strip(" \0"))


@lru_cache(maxsize=_MEMO)
def _texts(raw: bytes) -> tuple[str, ...]:
    return tuple(sys.intern(part.strip().upper()) for part in raw.decode("latin-1").strip(" \0").split("\\"))


@lru_cache(maxsize=_MEMO)
def _decimals(raw: bytes) -> tuple[float, ...] | None:
    """Finite numbers; None if any is not plain."""
    stripped = raw.strip(_BLANKS)
    parts = [part.strip(_BLANKS) for part in stripped.split(b"\\")] if stripped else []
    if any(not _DECIMAL.fullmatch(part) for part in parts):
        return None
    numbers = tuple(map(float, parts))
    return numbers if all(map(math.isfinite, numbers)) else None
