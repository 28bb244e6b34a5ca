"""The bytes of a medssl `model.onnx`, without a protobuf library.

An ONNX file is one protobuf message, whose fields may stand in any order and whose repeated fields may be scattered.
So a medssl model is an ordinary ONNX file with our metadata at its two ends:

    metadata "medssl.contract" = "2"   first bytes of the file: tells a damaged model from a foreign one
    metadata "medssl.bundle"   = JSON  readable without reading the weights
    graph, opset imports, ...          as the exporter wrote them
    metadata "medssl.sha256"   = hex   last 83 bytes: SHA-256 of everything before them

Every byte of the file is either covered by the digest or part of it, so one flipped bit anywhere is found when the
file is loaded. The digest finds damage; it is no signature.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Final

from medssl_cli.base.errors import GateError, UsageError

CONTRACT_VERSION: Final = 2
CONTRACT_KEY: Final = "medssl.contract"
BUNDLE_KEY: Final = "medssl.bundle"
DIGEST_KEY: Final = "medssl.sha256"
MAX_BYTES: Final = 2**31 - 1
HEAD_BYTES: Final = 64
"""Enough of a file to see that it has a contract."""

_METADATA_FIELD: Final = 14
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Where tensors can hide: fields of each message that lead to other messages (onnx.proto3)."""
_EXTERNAL_DATA, _DATA_LOCATION, _NODE_DOMAIN = 13, 14, 7
_STANDARD_DOMAINS: Final = (b"", b"ai.onnx")


def seal(model: bytes, bundle_json: str) -> bytes:
    """Put contract, bundle and digest around a serialised ONNX model."""
    head = _entry(CONTRACT_KEY, str(CONTRACT_VERSION)) + _entry(BUNDLE_KEY, bundle_json)
    payload = head + model
    return payload + _entry(DIGEST_KEY, hashlib.sha256(payload).hexdigest())


def unseal(data: bytes | memoryview, *, name: str) -> tuple[str, str]:
    """Check a model's bytes and read what they say about themselves.

    Args:
        data: The whole file.
        name: How to call the model in messages.

    Returns:
        The bundle's JSON and the model's SHA-256.

    Raises:
        UsageError: `E_MODEL_INVALID`: not ours, a newer contract, or tensors outside of the file.
        GateError: `E_MODEL_CORRUPT`: ours, and changed after it was written.
    """
    trailer_size = len(_entry(DIGEST_KEY, "0" * 64))
    view = memoryview(data)
    payload, trailer = view[:-trailer_size], bytes(view[-trailer_size:])
    has_head = has_contract(bytes(view[:HEAD_BYTES]))
    has_trailer = trailer.startswith(_entry(DIGEST_KEY, "0" * 64)[:-64])
    if not has_head and not has_trailer and re.search(re.escape(CONTRACT_KEY).encode(), view) is None:
        raise UsageError(
            "E_MODEL_INVALID", f"{name} is not a medssl model", hint="write one with: medssl export RUN model.onnx"
        )
    digest = hashlib.sha256(payload).hexdigest()
    if not has_head or trailer != _entry(DIGEST_KEY, digest):
        raise GateError(
            "E_MODEL_CORRUPT",
            f"{name} was damaged or changed after its export: its SHA-256 does not match",
            hint="copy the file again, or export it again",
        )
    bundle_json = read_head(payload, name=name)
    _refuse_foreign_parts(payload, name)
    return bundle_json, digest


def read_head(data: bytes | memoryview, *, name: str) -> str:
    """The bundle's JSON from the first bytes of a model, unchecked.

    Raises:
        UsageError: `E_MODEL_INVALID`.
    """
    try:
        found = dict(_pair(value) for _, value in zip(range(2), _metadata(data), strict=False))
        version, bundle_json = int(found[CONTRACT_KEY]), found[BUNDLE_KEY]
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError("E_MODEL_INVALID", f"{name} carries no medssl contract") from error
    if version > CONTRACT_VERSION:
        raise UsageError(
            "E_MODEL_INVALID",
            f"{name} follows contract {version}, this medssl knows {CONTRACT_VERSION}",
            hint="install a newer medssl",
        )
    return bundle_json


def graph_of(data: bytes, *, name: str) -> bytes:
    """What lies between bundle and digest of a sealed model, as the exporter wrote it: `seal` takes it again.

    Raises:
        UsageError: `E_MODEL_INVALID`.
    """
    head = _entry(CONTRACT_KEY, str(CONTRACT_VERSION)) + _entry(BUNDLE_KEY, read_head(data, name=name))
    return data[len(head) : -len(_entry(DIGEST_KEY, "0" * 64))]


def has_contract(data: bytes) -> bool:
    """Whether data begin like a medssl model; nothing is checked."""
    return data.startswith(_contract_start())


def _contract_start() -> bytes:
    """First bytes of every contract, whatever its version."""
    return _entry(CONTRACT_KEY, "1")[: -len("1")]


def _metadata(data: bytes | memoryview) -> Iterator[bytes]:
    for number, _, value in _fields(data):
        if number != _METADATA_FIELD or not isinstance(value, memoryview):
            return
        yield bytes(value)


def _pair(entry: bytes) -> tuple[str, str]:
    values = [bytes(value).decode() for _, _, value in _fields(entry) if isinstance(value, memoryview)]
    key, value = values
    return key, value


def _refuse_foreign_parts(payload: memoryview, name: str) -> None:
    """Refuse what medssl never exports: weights in other files, and operators that need foreign code."""
    try:
        problem = next(_foreign_parts(payload, "model"), None)
    except (ValueError, IndexError, RecursionError):
        problem = "a structure that is not ONNX"
    if problem is not None:
        raise UsageError("E_MODEL_INVALID", f"{name} has {problem}", hint="medssl export writes self-contained models")


def _foreign_parts(message: memoryview | bytes, kind: str) -> Iterator[str]:
    children = _MESSAGES[kind]
    for number, _, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            yield "weights in another file"
        if (
            kind == "node"
            and number == _NODE_DOMAIN
            and (isinstance(value, int) or bytes(value) not in _STANDARD_DOMAINS)
        ):
            yield "operators that are not standard ONNX"
        if number in children and isinstance(value, memoryview):
            yield from _foreign_parts(value, children[number])


def _entry(key: str, value: str) -> bytes:
    """One `metadata_props` field: StringStringEntryProto{1: key, 2: value}."""
    inner = _length_field(1, key.encode()) + _length_field(2, value.encode())
    return _length_field(_METADATA_FIELD, inner)


def _length_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Fields of a protobuf message: (number, wire type, value); lengths are checked against the data.

    Raises:
        ValueError: Not a protobuf message.
    """
    view, position = memoryview(data), 0
    while position < len(view):
        tag, position = _read_varint(view, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _read_varint(view, position)
            yield number, wire, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
        if size is None:
            if wire != _LENGTH:
                raise ValueError(f"wire type {wire}")
            size, position = _read_varint(view, position)
        if position + size > len(view):
            raise ValueError("a field ends behind its message")
        yield number, wire, view[position : position + size]
        position += size


def _read_varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")
