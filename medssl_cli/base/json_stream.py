"""A JSON object read piece by piece: an array in it may be larger than memory should hold."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

CHUNK: Final = 2**16
_IN_NUMBERS: Final = ("", ".", "e", "E")
"""What comes behind a number that is not complete yet."""


def pairs_of_object(stream: BinaryIO, streamed: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of the object that a file of unknown origin holds.

    Args:
        stream: UTF-8; whoever reads it bounds its size.
        streamed: Key of an array, whose items come one by one: first a pair of the key and None, then one for each
            item.

    Raises:
        ValueError: It is no such object.
        RecursionError: It is nested too deeply.
    """
    reader = _Reader(stream)
    reader.expect("{")
    is_first = True
    while not reader.takes("}"):
        if not is_first:
            reader.expect(",")
        is_first = False
        key = reader.value()
        if not isinstance(key, str):
            raise ValueError("a key that is no text")
        reader.expect(":")
        if key != streamed:
            yield key, reader.value()
            continue
        yield key, None
        reader.expect("[")
        yield from ((key, item) for item in reader.items())
    reader.expect("")


class _Reader:
    """As much of a text as the value at hand needs."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._text, self._at, self._is_whole = stream, "", 0, False
        self._characters, self._decoder = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder()

    def items(self) -> Iterator[Any]:
        """Values up to the end of an array that has begun."""
        is_first = True
        while not self.takes("]"):
            if not is_first:
                self.expect(",")
            is_first = False
            yield self.value()

    def takes(self, sign: str) -> bool:
        """Whether a sign comes next; it is passed then."""
        is_next = self._next() == sign
        self._at += is_next
        return is_next

    def expect(self, sign: str) -> None:
        """Pass a sign, or "" for the end.

        Raises:
            ValueError: Something else comes next.
        """
        if self._next() != sign:
            raise ValueError(f"{sign or 'the end'} is missing")
        self._at += len(sign)

    def value(self) -> Any:
        """The value that comes next."""
        self._next()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError:
                if self._is_whole:
                    raise
            else:
                if self._is_whole or self._text[end : end + 1] not in _IN_NUMBERS:
                    self._at = end
                    return found
            self._read()

    def _next(self) -> str:
        """The next sign that is no space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._is_whole:
                return self._text[self._at : self._at + 1]
            self._read()

    def _read(self) -> None:
        rest = self._text[self._at :]
        more = self._stream.read(max(CHUNK, len(rest)))
        self._text, self._at, self._is_whole = rest + self._characters.decode(more, final=not more), 0, not more
