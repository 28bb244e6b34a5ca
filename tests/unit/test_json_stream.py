"""JSON read piece by piece says what the whole says, and refuses what is none."""

import io
import json
from typing import Any

import pytest

from medssl_cli.base import json_stream
from medssl_cli.base.json_stream import pairs_of_object

DOCUMENT = {"a": [1, {"b": None}], "items": [{"name": "ä" * 9, "n": 12345}, 7, "x", []], "z": -1.5e3, "é": "]}"}


def read(data: bytes) -> tuple[dict[str, Any], list[Any]]:
    pairs = list(pairs_of_object(io.BytesIO(data), "items"))
    return dict(pairs), [value for key, value in pairs if key == "items"]


@pytest.mark.parametrize("chunk", [1, 2, 7, 2**16])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_are_those_of_the_whole(chunk: int, indent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", chunk)

    told, items = read(json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode())

    assert items == [None, *DOCUMENT["items"]]  # type: ignore[misc]
    assert {key: told[key] for key in ("a", "z", "é")} == {key: DOCUMENT[key] for key in ("a", "z", "é")}


def test_empty_ones_are_read() -> None:
    assert read(b"{}") == ({}, [])
    assert read(b' {"items": [] } ') == ({"items": None}, [None])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a"}', '{"a": 1', '{"a": 1,}', '{"items": 1}', '{"items": [1,]}', '{"items": [1 2]}', "{} x",
     '{"items": [1', '{1: 2}', '{"a": 1 "b": 2}', '{"a": tru}'],
)  # fmt: skip
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text.encode())


def test_broken_text_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        read(b'{"a": "\xff"}')
