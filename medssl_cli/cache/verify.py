"""Every stored byte against its recorded SHA-256, every file against the names that a cache knows."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from medssl_cli.base.errors import GateError, StorageError, UsageError
from medssl_cli.base.files import (
    TEMPORARY_PREFIX,
    read_regular,
    sha256_file,
    sha256_json,
    storage_errors,
    temporary_directory,
    write_json,
)
from medssl_cli.base.plain_json import parse_json
from medssl_cli.base.strict import Digest, Strict
from medssl_cli.cache.items import ItemRecord, Key
from medssl_cli.cache.marker import require_outside_caches
from medssl_cli.cache.publish import remove_quietly
from medssl_cli.cache.records import (
    ENTRY,
    IMAGE,
    ITEM,
    LABEL_ARRAY,
    SINGLE,
    is_sound,
    item_directories,
    label_file,
    read_record,
)

SOURCES: Final = "sources.sqlite"
CORRUPT: Final = "E_CACHE_CORRUPT"


@dataclass(frozen=True)
class Problem:
    """One fault that verification found.

    Args:
        item_id: Name of the item's folder.
        code: `E_CACHE_CORRUPT`, or `E_IO`.
        detail: What is wrong, for people.
        fault: Whether the image or its record is damaged, or only an entry, or there is something unknown.
        entry: Name of the damaged entry's file.
    """

    item_id: str
    code: str
    detail: str
    fault: Literal["item", "entry", "unknown"] = "item"
    entry: str | None = None


def verify_items(root: Path) -> Iterator[Problem | None]:
    """Check all items; for each its problems, or None where it is sound."""
    for directory in item_directories(root):
        problems: list[Problem | None] = list(verify_item(directory))
        yield from problems or [None]


def verify_item(directory: Path) -> Iterator[Problem]:
    """What is wrong with one item: damaged, missing and unknown files, and what cannot be read now."""
    try:
        yield from _faults_of(directory)
    except (StorageError, OSError):
        yield Problem(directory.name, "E_IO", "cannot be read now", "unknown")


def _faults_of(directory: Path) -> Iterator[Problem]:
    name = directory.name
    try:
        record = read_record(directory)
    except GateError as error:
        damaged = [path.name for path in sorted(directory.iterdir()) if _is_damaged_entry(path)]
        for entry in damaged:
            yield Problem(name, error.code, f"{entry} is damaged", "entry", entry)
        if not (damaged and is_sound(directory / ITEM)):
            yield Problem(name, error.code, f"{ITEM} is damaged or missing")
        return
    if not _has_digest(directory / IMAGE, record.image_sha256):
        yield Problem(name, CORRUPT, f"{IMAGE} is damaged or missing")
    for label_set, label in sorted(record.labels.items()):
        file = label_file(label_set, label.sha256)
        if not _has_digest(directory / file, label.sha256):
            yield Problem(name, CORRUPT, f"{file} is damaged or missing", "entry", f"label-{label_set}.json")
    num_unknown = sum(not is_known_file(path.name) or not path.is_file() for path in directory.iterdir())
    if num_unknown:
        yield Problem(name, CORRUPT, f"{num_unknown} files do not belong to the item", "unknown")


def _is_damaged_entry(path: Path) -> bool:
    return bool(path.name in SINGLE or ENTRY.fullmatch(path.name)) and not is_sound(path, path.parent.name)


def is_known_file(name: str) -> bool:
    """Whether a name is one that an item's folder may hold."""
    patterns = (ENTRY, LABEL_ARRAY)
    is_known = name in (ITEM, IMAGE, *SINGLE) or any(pattern.fullmatch(name) for pattern in patterns)
    return is_known or name.startswith(TEMPORARY_PREFIX)


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def repair_cache(root: Path) -> tuple[int, int]:
    """Remove what is damaged, so that the next ingest of the source stores it again; call inside `writing`.

    A damaged entry goes alone, a damaged image or record takes the whole item with it, and what is unknown stays. What
    is remembered about unchanged source files is forgotten. Rebuild the catalog afterwards.

    Returns:
        Number of items and of entries removed.
    """
    items: set[str] = set()
    entries: set[tuple[str, str]] = set()
    while faults := [problem for problem in verify_items(root) if problem and problem.fault != "unknown"]:
        with storage_errors("the cache"):
            for problem in faults:
                directory = root / "items" / problem.item_id[:2] / problem.item_id
                if problem.fault == "item":
                    remove_item(directory)
                    items.add(problem.item_id)
                elif directory.exists() and problem.entry is not None:
                    drop_entry(directory, problem.entry)
                    entries.add((problem.item_id, problem.entry))
            forget_sources(root)
    return len(items), len(entries)


def remove_item(directory: Path) -> None:
    """Remove an item whole: first out of sight by one rename, then its files."""
    if directory.exists():
        grave = temporary_directory(directory.parent)
        directory.rename(grave / "item")
        shutil.rmtree(grave)


def drop_entry(directory: Path, entry: str) -> None:
    """Remove what was added to an item: first the entry, which makes it count, then the voxels of a label map."""
    remove_quietly(directory / entry)
    for name in os.listdir(directory):  # noqa: PTH208
        match = LABEL_ARRAY.fullmatch(name)
        if match and f"label-{match[1]}.json" == entry:
            remove_quietly(directory / name)


def forget_sources(root: Path) -> None:
    """Forget which source files are unchanged: they are read again."""
    remove_quietly(*root.glob(f"{SOURCES}*"))


class CacheManifest(Strict):
    """What a cache holds, for comparing a copy with it: digests of each item's image, record and labels."""

    format_version: int = 1
    items: dict[Key, dict[str, Digest]]
    sha256: Digest


def write_manifest(path: Path, records: Iterator[ItemRecord]) -> int:
    """Write the manifest of a cache; the number of items in it.

    Raises:
        UsageError: `E_USAGE`, the place lies in a cache.
    """
    require_outside_caches(path)
    items = {record.item_id: _digests(record) for record in records}
    body: dict[str, Any] = {"format_version": 1, "items": items}
    write_json(path, {**body, "sha256": sha256_json(body)})
    return len(items)


def read_manifest(path: Path) -> dict[str, dict[str, str]]:
    """Digests by item, of a manifest that is what it was.

    Raises:
        UsageError: `E_NOT_FOUND`.
        GateError: `E_CACHE_CORRUPT`.
    """
    if not path.is_file():
        raise UsageError("E_NOT_FOUND", "the manifest does not exist")
    try:
        document = parse_json(read_regular(path))
        manifest = CacheManifest.model_validate(document)
        if manifest.sha256 != sha256_json({key: value for key, value in document.items() if key != "sha256"}):
            raise ValueError("digest")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GateError("E_CACHE_CORRUPT", "the manifest is damaged", hint="medssl cache manifest FILE") from error
    return manifest.items


def compare_with_manifest(expected: dict[str, dict[str, str]], records: Iterator[ItemRecord]) -> Iterator[Problem]:
    """Items and label maps that are missing, extra or others than a manifest says."""
    missing = dict(expected)
    for record in records:
        known = missing.pop(record.item_id, None)
        if known is None:
            yield Problem(record.item_id, CORRUPT, "is not in the manifest")
        elif known != _digests(record):
            yield Problem(record.item_id, CORRUPT, "differs from the manifest")
    for item_id in missing:
        yield Problem(item_id, CORRUPT, "is in the manifest and not in the cache")


def _digests(record: ItemRecord) -> dict[str, str]:
    annotations = record.model_dump(mode="json", include={"boxes", "findings"})
    labels = {f"label-{name}": label.sha256 for name, label in record.labels.items()}
    digests = {"image": record.image_sha256, "annotations": sha256_json(annotations), **labels}
    if record.example_key is not None:
        digests["example"] = sha256_json([record.channel, record.example_key])
    return digests
