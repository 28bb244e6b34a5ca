"""What identities look like when they lie in clear: dates, UIDs, names of the form A^B, e-mail addresses.

Keys and digests are random letters and digits that match anything now and then, so they are recognised and left out.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

KEY_OR_DIGEST: Final = re.compile(r"([a-z2-7]{26}|[0-9a-f]{16}|[0-9a-f]{64})")
EMBEDDED: Final = re.compile(r"\b([a-z2-7]{26}|[0-9a-f]{16}|[0-9a-f]{64})\b")
OWN_CLOCK: Final = re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
PICTURE: Final = re.compile(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=\s]+")
UID: Final = re.compile(r"(?<![\d.])\d+(\.\d+){4,}(?![\d.])")
RAW_UID: Final = re.compile(rb"(?<![\d.])[0-2](\.(0|[1-9]\d*)){4,}(?![\d.])")
PATTERNS: Final = (
    ("UID", UID),
    ("date", re.compile(r"(?<!\d)(18|19|20)\d\d([-/.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")),
    ("date", re.compile(r"(?<!\d)(0[1-9]|[12]\d|3[01])[/.](0[1-9]|1[0-2])[/.](18|19|20)\d\d(?!\d)")),
    ("person's name", re.compile(r"[^\W\d_][\w' -]*\^[\w' -]*")),
    ("e-mail address", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")),
)
SHORTEST_RAW_UID: Final = 15


def kinds_of_identity(text: str) -> set[str]:
    """Which kinds of identity a text seems to hold."""
    if KEY_OR_DIGEST.fullmatch(text):
        return set()
    rest = EMBEDDED.sub("", text)
    return {name for name, pattern in PATTERNS if pattern.search(rest)}


def kinds_in_report(text: str) -> set[str]:
    """The same for a report or a page; our own clock and pictures are taken out first."""
    return kinds_of_identity(OWN_CLOCK.sub("", PICTURE.sub("", text)))


def kinds_in_json(text: str) -> set[str]:
    """The same for all names and texts of JSON, where numbers are only numbers; for each line of JSONL."""
    try:
        documents = [json.loads(text)]
    except (ValueError, RecursionError):
        try:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            return kinds_in_report(text)
    return {kind for document in documents for found in texts_of(document) for kind in kinds_in_report(found)}


def texts_of(document: Any) -> Iterator[str]:
    """All names and texts in a document."""
    pending = [document]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            yield from map(str, node)
            pending += node.values()
        elif isinstance(node, (list, tuple)):
            pending += node


def has_uid(data: bytes) -> bool:
    """Whether raw bytes hold a UID long enough not to be chance, in ASCII or UTF-16."""
    narrow = data.replace(b"\0", b"")
    return any(len(match[0]) >= SHORTEST_RAW_UID for match in RAW_UID.finditer(narrow))
