"""Pseudonyms: keyed, one-way, and different for each level of the DICOM hierarchy.

A bare hash of a patient identity can be reversed by trying all of them; an HMAC with a key that stays on site cannot.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final, Literal

from medssl_cli.errors import GateError
from medssl_cli.files import TEMPORARY_PREFIX, write_atomic

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


def create_key(path: Path) -> None:
    """Make a secret, mode 0600, unless there is one; of several processes that try at once, the first wins."""
    if path.exists():
        return
    mine = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
    write_atomic(mine, secrets.token_bytes(KEY_BYTES))
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(mine)
    mine.unlink(missing_ok=True)


def load_key(path: Path) -> bytes:
    """The secret.

    Raises:
        GateError: `E_CACHE_CORRUPT`, it is gone: a new one would give every patient another key.
    """
    if not path.is_file():
        raise GateError("E_CACHE_CORRUPT", f"{path.name} is missing", hint="restore it from a backup")
    return path.read_bytes()
