"""`cache.json`: what makes a folder a cache, and which key its pseudonyms were made with."""

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.base.files import (
    TEMPORARY_PREFIX,
    read_regular,
    remove_temporaries,
    storage_errors,
    sync_directory,
    write_json,
)
from medssl_cli.base.plain_json import parse_json
from medssl_cli.cache.format import FORMAT_VERSION
from medssl_cli.cache.keys import KEY_FILE, Pseudonyms, create_key, load_key, site_key_path
from medssl_cli.cache.publish import publish_first, unreadable

MARKER: Final = "cache.json"
CATALOG: Final = "catalog.sqlite"
MAX_BYTES: Final = 2**16
Place = Literal["cache", "site", "file"]


@dataclass(frozen=True)
class Marker:
    """What `cache.json` says.

    Args:
        format_version: Version of the format of the cache.
        key_id: Id of the key that the pseudonyms are made with; empty if nobody has written it down.
        key_place: The key lies in the cache (ephemeral), at `site_key_path()`, or in the file `key_path`.
        key_path: Absolute.

    Raises:
        ValueError: It says something else.
    """

    format_version: int
    key_id: str = ""
    key_place: Place = "cache"
    key_path: str | None = None

    def __post_init__(self) -> None:
        is_text = isinstance(self.key_id, str) and isinstance(self.key_path, str | None)
        if type(self.format_version) is not int or self.format_version < 1 or self.key_place not in get_args(Place):
            raise ValueError("format or place of the key")
        if not is_text or not re.fullmatch("([0-9a-f]{8})?", self.key_id):
            raise ValueError("key")

    @property
    def is_ephemeral(self) -> bool:
        """Whether the key lies in the cache."""
        return self.key_place == "cache"

    def key_file(self, root: Path) -> Path:
        """Where the key is."""
        if self.key_place == "file" and self.key_path:
            return Path(self.key_path)
        return root / KEY_FILE if self.key_place == "cache" else site_key_path()

    def load(self, root: Path) -> Pseudonyms:
        """The pseudonyms of the cache.

        Raises:
            GateError: `E_KEY`.
        """
        return self._checked(Pseudonyms(load_key(self.key_file(root))))

    def _checked(self, pseudonyms: Pseudonyms) -> Pseudonyms:
        if self.key_id and pseudonyms.key_id != self.key_id:
            raise GateError(
                "E_KEY",
                f"the cache was made with key {self.key_id}, this is {pseudonyms.key_id}",
                hint="name the right one with medssl ingest --key-file, or choose another --cache",
            )
        return pseudonyms


def require_outside_caches(path: Path, *, may_be_one: bool = False) -> None:
    """Refuse a place for other things than images and labels in a cache: an audit would find strange files in it.

    Args:
        path: The place.
        may_be_one: It may be a cache itself, which another process may make at this moment.

    Raises:
        UsageError: `E_USAGE`.
    """
    place = path.resolve()
    for folder in place.parents if may_be_one else (place, *place.parents):
        if os.path.isfile(folder / MARKER) and os.path.isdir(folder / "items"):  # noqa: PTH112, PTH113 - never raise
            message = f"{path} would lie in the cache {folder.name}"
            raise UsageError("E_USAGE", message, hint="choose a place outside of the cache")


def read_marker(root: Path) -> Marker:
    """What a cache says about itself.

    Raises:
        GateError: `E_CACHE_CORRUPT`.
        UsageError: `E_CACHE_VERSION`.
        StorageError: `E_IO`.
    """
    try:
        document = parse_json(read_regular(root / MARKER, max_bytes=MAX_BYTES))
        version = int(document["format_version"])
        if version > FORMAT_VERSION:
            raise UsageError("E_CACHE_VERSION", f"cache format {version} is newer than this medssl ({FORMAT_VERSION})")
        return Marker(**document)
    except OSError as error:
        raise unreadable(MARKER, error) from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise GateError("E_CACHE_CORRUPT", f"{MARKER} is damaged", hint="restore it from a backup") from error


def make_cache(root: Path, key_file: Path | None) -> None:
    """Make an empty cache; of several processes that try at once, the first decides about the key.

    Another process may finish between a caller's look for the marker and this one's: then nothing is made.

    Raises:
        UsageError: `E_NO_CACHE` if the folder exists and holds something else, `E_USAGE` if it lies in a cache.
        GateError: `E_KEY`.
    """
    if root.exists() and not root.is_dir():
        raise UsageError("E_NO_CACHE", f"{root} is a file", hint="choose another --cache")
    if root.exists() and not all(map(_is_beginning, os.listdir(root))):  # noqa: PTH208
        if (root / MARKER).is_file():
            return
        raise UsageError("E_NO_CACHE", f"{root} exists and is not a medssl cache", hint="choose another --cache")
    require_outside_caches(root, may_be_one=True)
    with storage_errors("the cache"):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_directory(root.parent)
        (root / "items").mkdir(exist_ok=True, mode=0o700)
        remove_temporaries(root)
    marker = _new_marker(root, key_file)
    publish_first(root / MARKER, (json.dumps(asdict(marker), indent=2, sort_keys=True) + "\n").encode())


def use_key_file(root: Path, key_file: Path) -> None:
    """Check that a key is the one a cache was made with, and remember where it is now.

    Raises:
        GateError: `E_KEY`.
    """
    marker = read_marker(root)
    marker._checked(Pseudonyms(load_key(key_file)))
    if not marker.is_ephemeral and marker.key_file(root) != key_file.absolute():
        moved = replace(marker, **_place_of(key_file))
        write_json(root / MARKER, asdict(moved))


def _new_marker(root: Path, key_file: Path | None) -> Marker:
    chosen = key_file or (None if (root / KEY_FILE).exists() else _site_key())
    if chosen is None:
        create_key(root / KEY_FILE)
        marker = Marker(FORMAT_VERSION)
    else:
        marker = Marker(FORMAT_VERSION, **_place_of(chosen))
    return replace(marker, key_id=marker.load(root).key_id)


def _site_key() -> Path | None:
    """The site's key, if it has been made."""
    with contextlib.suppress(UsageError):
        path = site_key_path()
        return path if path.is_file() else None
    return None


def _place_of(key_file: Path) -> dict[str, Any]:
    if key_file.absolute() == _site_key():
        return {"key_place": "site", "key_path": None}
    return {"key_place": "file", "key_path": str(key_file.absolute())}


def _is_beginning(name: str) -> bool:
    """Whether a name belongs to a cache whose making was cut short."""
    return name in ("items", KEY_FILE) or name.startswith(TEMPORARY_PREFIX)
