"""Multipart bodies of DICOMweb (PS3.18 section 8.6.1.2, RFC 2046 section 5.1), read part by part, strictly and bounded.

A part is handed out only when the delimiter behind it has arrived. Nothing that a length claims is believed or
allocated; a body without its closing delimiter is cut, whatever the connection says.
"""

from collections.abc import Iterable, Iterator
from email.message import Message
from typing import Final

from medssl_cli.base.errors import InputError

MAX_PART_HEADER_BYTES: Final = 16 * 2**10
_MAX_PADDING_BYTES: Final = 64
_LINE: Final = b"\r\n"
_BOUNDARY_CHARACTERS: Final = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? ")


class CutError(Exception):
    """The body ends before its closing delimiter."""


class MalformedError(Exception):
    """The answer is not a multipart body of DICOM instances, and asking again will not change that."""


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names.

    Raises:
        MalformedError: Not multipart/related, or a boundary that RFC 2046 does not allow.
    """
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() != "multipart/related":
        raise MalformedError("not multipart/related")
    boundary = (message.get_boundary() or "").encode(errors="replace")
    if not 1 <= len(boundary) <= 70 or not _BOUNDARY_CHARACTERS.issuperset(boundary) or boundary.endswith(b" "):
        raise MalformedError("no usable boundary")
    return boundary


def read_parts(chunks: Iterable[bytes], boundary: bytes, *, max_part_bytes: int) -> Iterator[bytes]:
    """Bodies of the parts, each as soon as it is complete.

    Args:
        chunks: The body of the answer in pieces of any size.
        boundary: Result of `boundary_of`.
        max_part_bytes: Refuse a larger part once more than this has arrived.

    Raises:
        CutError: The pieces end before the closing delimiter.
        MalformedError: Not the grammar of multipart; a part is not application/dicom, or not as long as it says.
        InputError: `E_TOO_BIG`.
    """
    reader = _Reader(chunks)
    reader.take(_LINE)
    if not reader.take(b"--" + boundary):
        raise MalformedError("the body does not begin with its boundary")
    while not reader.take(b"--"):
        if reader.until(_LINE, _MAX_PADDING_BYTES, is_data=False).strip(b" \t"):
            raise MalformedError("text behind a boundary")
        if reader.take(_LINE):
            raise MalformedError("a part without header")
        length = _length(reader.until(_LINE + _LINE, MAX_PART_HEADER_BYTES, is_data=False))
        part = reader.until(_LINE + b"--" + boundary, max_part_bytes, is_data=True)
        if length is not None and length != len(part):
            raise MalformedError("a part is not as long as it says")
        yield part


def _length(header: bytes) -> int | None:
    """What the header of a part says about its length; None if it does not."""
    fields: dict[bytes, bytes] = {}
    for line in header.split(_LINE):
        name, colon, value = line.partition(b":")
        if not colon or name.lower() in fields:
            raise MalformedError("the header of a part is damaged")
        fields[name.lower()] = value.strip()
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/dicom" or fields.get(b"content-encoding", b"identity").lower() != b"identity":
        raise MalformedError("a part is not application/dicom")
    length = fields.get(b"content-length")
    if length is None:
        return None
    if not length.isdigit() or len(length) > 18:
        raise MalformedError("the length of a part is not a number")
    return int(length)


class _Reader:
    """Takes pieces apart at marks, whatever the pieces' sizes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = bytearray()

    def _fill(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise CutError
        self._buffer += chunk

    def take(self, expected: bytes) -> bool:
        """Step over these bytes if they come next."""
        while len(self._buffer) < len(expected) and expected.startswith(self._buffer):
            self._fill()
        is_next = self._buffer.startswith(expected)
        if is_next:
            del self._buffer[: len(expected)]
        return is_next

    def until(self, mark: bytes, limit: int, *, is_data: bool) -> bytes:
        """Bytes up to a mark, which is stepped over."""
        start = 0
        while (at := self._buffer.find(mark, start)) < 0 and len(self._buffer) <= limit + len(mark):
            start = max(0, len(self._buffer) - len(mark) + 1)
            self._fill()
        if not 0 <= at <= limit:
            if is_data:
                raise InputError("E_TOO_BIG", f"the PACS sends an instance of more than {limit} bytes")
            raise MalformedError("a header without end")
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return found
