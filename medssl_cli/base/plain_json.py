"""JSON as plain data: bounded depth, finite numbers, text that can be written. What lies in a folder is untrusted."""

import json
import math
from typing import Any, Final

MAX_DEPTH: Final = 64


def parse_json(data: bytes | str, *, are_keys_unique: bool = False) -> Any:
    """Parse a JSON document of unknown origin.

    Args:
        data: UTF-8; whoever reads it bounds its size, see `files.read_regular`.
        are_keys_unique: Refuse an object that gives one key twice, of which the last would stay.

    Raises:
        ValueError: It is no JSON, nested deeper than 64 levels, or holds NaN, infinity, numbers of thousands of digits
            or halves of characters.
    """
    try:
        document = json.loads(
            data, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique if are_keys_unique else None
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    has_escapes = "\\u" in data if isinstance(data, str) else b"\\u" in data
    _check(document, has_escapes=has_escapes)
    return document


def without_nan(node: Any) -> Any:
    """A document with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(node, dict):
        return {key: without_nan(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_nan(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return None
    return node


def dump(document: dict[str, Any]) -> str:
    """JSON text without NaN."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse("infinity")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object gives one key twice")
    return found


def _check(document: Any, *, has_escapes: bool) -> None:
    """Level by level, so that depth costs no stack; half of a character cannot be printed or hashed."""
    level, depth = [document], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        if has_escapes:
            for text in (text for part in level for text in _texts(part)):
                text.encode()
        level = [child for part in level for child in _children(part)]


def _texts(part: Any) -> list[str]:
    return [part] if isinstance(part, str) else list(part) if isinstance(part, dict) else []


def _children(part: Any) -> list[Any]:
    return list(part.values()) if isinstance(part, dict) else part if isinstance(part, list) else []
