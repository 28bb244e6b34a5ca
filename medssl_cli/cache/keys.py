"""Pseudonyms: keyed, one-way, and different for each level of the DICOM hierarchy.

A bare hash of a patient identity can be reversed by trying all of them; an HMAC with a key that stays on site cannot.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.files import open_regular, storage_errors
from medssl_cli.cache.publish import publish_first, unreadable

Level = Literal["patient", "study", "series", "frame_of_reference", "example", "item", "source"]
KEY_BYTES: Final = 32
KEY_LENGTH: Final = 26
KEY_FILE: Final = "site.key"


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
        digest = hmac.digest(self._key, message, "sha256")
        return base64.b32encode(digest[:20]).decode().lower()[:KEY_LENGTH]

    def hasher(self, purpose: str) -> Callable[[bytes], str]:
        """A keyed hash of 160 bits for one purpose, several times as fast as `of`: BLAKE2b with a derived key."""
        key = hmac.digest(self._key, b"hasher\0" + purpose.encode(), "sha256")
        return lambda data: hashlib.blake2b(data, key=key, digest_size=20).hexdigest()


def site_key_path() -> Path:
    """Where a site's key lives unless told otherwise: the user's configuration folder, outside of every cache.

    Raises:
        UsageError: `E_NO_HOME`, the user has no such folder.
    """
    from platformdirs import user_config_path

    try:
        return user_config_path("medssl", appauthor=False) / KEY_FILE
    except RuntimeError as error:
        raise UsageError(
            "E_NO_HOME",
            "this user has no home folder, so there is no place for the key of a site",
            hint="name a file with medssl key init --key-file, or set HOME or XDG_CONFIG_HOME",
        ) from error


def create_key(path: Path) -> bool:
    """Make a secret, mode 0600, unless there is one; of several processes that try at once, the first wins.

    Returns:
        Whether it was made.
    """
    with storage_errors(path.name):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return publish_first(path, secrets.token_bytes(KEY_BYTES))


def load_key(path: Path) -> bytes:
    """The secret.

    Raises:
        GateError: `E_KEY`, it is gone or damaged: another one would give every patient another key.
        StorageError: `E_IO`.
    """
    try:
        with open_regular(path) as stream:
            key = stream.read(KEY_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise GateError(
            "E_KEY", "the site key is gone", hint="restore it, or name it with medssl ingest --key-file"
        ) from error
    except OSError as error:
        raise unreadable("the site key", error) from error
    if len(key) != KEY_BYTES:
        raise GateError("E_KEY", f"the site key is not {KEY_BYTES} bytes long", hint="restore it from a backup")
    return key
