"""Pseudonyms: keyed, one-way, and different for each level of the DICOM hierarchy.

A bare hash of a patient identity can be reversed by trying all of them; an HMAC with a key that stays on site cannot.
"""

import base64
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Final, Literal

from medssl_cli.files import write_atomic

Level = Literal["patient", "study", "series", "frame_of_reference", "item", "source"]
KEY_BYTES: Final = 32
KEY_LENGTH: Final = 26


class Pseudonyms:
    """Turns identities into 26-character keys (130 bits).

    Args:
        key: The site's secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def key_id(self) -> str:
        """First eight hexadecimal digits of the key's SHA-256: tells keys apart, reveals nothing."""
        return hashlib.sha256(self._key).hexdigest()[:8]

    def of(self, level: Level, *parts: str | bytes) -> str:
        """Key of an identity; the same identity gives unrelated keys on different levels."""
        message = b"\0".join(part if isinstance(part, bytes) else part.encode() for part in (level, *parts))
        digest = hmac.new(self._key, message, hashlib.sha256).digest()
        return base64.b32encode(digest).decode().lower()[:KEY_LENGTH]


def load_or_create_key(path: Path) -> bytes:
    """The secret at a path; created with mode 0600 if there is none."""
    if not path.exists():
        write_atomic(path, secrets.token_bytes(KEY_BYTES))
    return path.read_bytes()
