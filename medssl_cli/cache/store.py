"""The cache: every image once, at native resolution, lossless, with pseudonymous keys.

An item is a directory that appears by one rename. Its identity is a keyed hash of its content, so the same image
twice is one item, whatever its files are called.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medssl_cli.cache.arrays import open_array, read_array, write_array
from medssl_cli.cache.catalog import Catalog
from medssl_cli.cache.items import FORMAT_VERSION, ItemRecord, LabelRecord
from medssl_cli.cache.keys import Pseudonyms, create_key, load_key
from medssl_cli.errors import GateError, InputError, NothingUsableError, StorageError, UsageError
from medssl_cli.files import (
    TEMPORARY_PREFIX,
    is_alive,
    publish_directory,
    remove_temporaries,
    sha256_file,
    sha256_json,
    storage_errors,
    temporary_directory,
    write_json,
)
from medssl_cli.imaging.volume import Volume

MARKER: Final = "cache.json"


@dataclass(frozen=True)
class Problem:
    """One fault that verification found."""

    item_id: str
    code: str
    detail: str


class Cache:
    """A cache folder.

    Args:
        root: The folder; use `Cache.open` or `Cache.open_or_create`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = Catalog(root / "catalog.sqlite")
        self.pseudonyms = Pseudonyms(load_key(root / "site.key"))

    @classmethod
    def open(cls, root: Path) -> "Cache":
        """Open an existing cache; the catalog is rebuilt first if a writer did not finish.

        Raises:
            UsageError: `E_NO_CACHE`, `E_CACHE_VERSION`.
        """
        marker = root / MARKER
        if not marker.is_file():
            raise UsageError("E_NO_CACHE", f"no medssl cache at {root}", hint="make one with: medssl ingest PATH")
        version = _format_version(marker)
        if version > FORMAT_VERSION:
            raise UsageError("E_CACHE_VERSION", f"cache format {version} is newer than this medssl ({FORMAT_VERSION})")
        cache = cls(root)
        if not (root / "catalog.sqlite").exists() or any(root.glob("writing-*")):
            cache.rebuild()
        return cache

    @classmethod
    def open_or_create(cls, root: Path) -> "Cache":
        """Open a cache, or make an empty one.

        Raises:
            UsageError: `E_NO_CACHE` if the folder exists and holds something else.
        """
        if not (root / MARKER).is_file():
            if root.exists() and not root.is_dir():
                raise UsageError("E_NO_CACHE", f"{root} is a file", hint="choose another --cache")
            if root.exists() and any(not _is_beginning(path.name) for path in root.iterdir()):
                raise UsageError(
                    "E_NO_CACHE", f"{root} exists and is not a medssl cache", hint="choose another --cache"
                )
            with storage_errors("the cache"):
                (root / "items").mkdir(parents=True, exist_ok=True, mode=0o700)
                remove_temporaries(root)
                create_key(root / "site.key")
                write_json(root / MARKER, {"format_version": FORMAT_VERSION})
        return cls.open(root)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around every change: a writer that dies leaves a mark, and the next reader rebuilds the catalog."""
        mark = self.root / f"writing-{os.getpid()}"
        if self._dead_marks():
            self.rebuild()
        with storage_errors("the cache"):
            mark.touch()
        yield
        mark.unlink(missing_ok=True)

    def _dead_marks(self) -> list[Path]:
        """Marks of writers that died."""
        marks = self.root.glob("writing-*")
        return [mark for mark in marks if not is_alive(int(mark.name.removeprefix("writing-")))]

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of dead writers."""
        below = (path for pattern in ("reports", "items/*", "items/*/*") for path in self.root.glob(pattern))
        for directory in (self.root, *below):
            if directory.is_dir():
                remove_temporaries(directory)

    def rebuild(self) -> int:
        """Make the catalog anew from the items, which are read while the catalog's write lock is held.

        Returns:
            Number of items.

        Raises:
            StorageError: `E_IO`, the catalog is locked or cannot be written.
        """
        marks = self._dead_marks()
        self._remove_leftovers()
        try:
            self.catalog.replace_all(self._scan())
        except sqlite3.OperationalError as error:
            raise StorageError("E_IO", "the catalog cannot be written", hint="try again when it is free") from error
        except sqlite3.DatabaseError:
            for damaged in self.root.glob("catalog.sqlite*"):
                damaged.unlink(missing_ok=True)
            self.catalog.replace_all(self._scan())
        for mark in marks:
            mark.unlink(missing_ok=True)
        return len(self.catalog.records())

    def _scan(self) -> Iterator[ItemRecord]:
        for path in sorted((self.root / "items").glob("*/*/item.json")):
            if path.parent.name.startswith("."):
                continue
            with contextlib.suppress(GateError):
                yield _read_record(path)

    def records(self, *, modality: str | None = None, label_set: str | None = None) -> list[ItemRecord]:
        """Items in order of their ids.

        Args:
            modality: Keep these and items of unknown modality.
            label_set: Keep items that have a label map of this set.
        """
        try:
            records = self.catalog.records()
        except (sqlite3.DatabaseError, ValidationError):
            self.rebuild()
            records = self.catalog.records()
        return [
            record
            for record in records
            if (modality is None or record.modality in (modality, "unknown"))
            and (label_set is None or label_set in record.labels)
        ]

    def require_records(self, *, modality: str | None = None, label_set: str | None = None) -> list[ItemRecord]:
        """Like `records`, but an empty answer is an error that says why.

        Raises:
            NothingUsableError: `E_CACHE_EMPTY` or `E_NO_LABELS`.
        """
        records = self.records(modality=modality, label_set=label_set)
        if records:
            return records
        if label_set is not None and self.records(modality=modality):
            raise NothingUsableError(
                "E_NO_LABELS",
                f"no item of the cache has labels of the set {label_set!r}",
                hint="ingest a folder with images/ and labels/, or name the set with --label-set",
            )
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            f"the cache holds no {modality or 'usable'} images",
            hint="medssl cache ls shows what it has",
        )

    def find(self, prefix: str) -> ItemRecord:
        """The one item whose id begins so.

        Raises:
            UsageError: `E_NOT_FOUND` if there is none or several.
        """
        found = [record for record in self.records() if record.item_id.startswith(prefix)]
        if len(found) != 1:
            raise UsageError("E_NOT_FOUND", f"{len(found)} items begin with {prefix!r}", hint="see: medssl cache ls")
        return found[0]

    def item_directory(self, item_id: str) -> Path:
        """Where an item lives."""
        return self.root / "items" / item_id[:2] / item_id

    def image_path(self, record: ItemRecord) -> Path:
        """File of an item's image."""
        return self.item_directory(record.item_id) / "image.b2nd"

    def label_path(self, record: ItemRecord, label_set: str) -> Path:
        """File of one of an item's label maps."""
        return self.item_directory(record.item_id) / f"label-{label_set}.b2nd"

    def read_image(self, record: ItemRecord) -> Volume:
        """An item's whole image.

        Raises:
            GateError: `E_CACHE_CORRUPT`.
        """
        voxels = self._checked(self.image_path(record), record)
        return Volume(voxels[None], record.affine_array, record.modality, record.units)

    def read_label(self, record: ItemRecord, label_set: str) -> Volume:
        """One of an item's label maps, uint8 on the image's grid.

        Raises:
            GateError: `E_CACHE_CORRUPT`.
        """
        voxels = self._checked(self.label_path(record, label_set), record)
        return Volume(voxels[None], record.affine_array, record.modality)

    def _checked(self, path: Path, record: ItemRecord) -> NDArray[np.generic]:
        array = open_array(path)
        if array.shape != record.shape:
            raise GateError("E_CACHE_CORRUPT", f"{path.name} of item {record.item_id} has another shape than recorded")
        return read_array(path)

    def item_id(self, volume: Volume) -> str:
        """Keyed hash of an image's content: voxels, place and modality."""
        digest = hashlib.sha256(np.ascontiguousarray(volume.voxels).view(np.uint8).data).digest()
        place = np.round(volume.affine, 6) + 0.0
        header = f"{volume.voxels.dtype}|{volume.voxels.shape}|{volume.modality}|{volume.units}|v{FORMAT_VERSION}"
        return self.pseudonyms.of("item", digest, header, place.tobytes())

    def add(self, volume: Volume, record: ItemRecord) -> bool:
        """Publish an image; call inside `writing`.

        Args:
            volume: One channel.
            record: Its record; `image_sha256` is filled in here.

        Returns:
            False if the item is there already; nothing is written then.

        Raises:
            StorageError: `E_IO`.
        """
        final = self.item_directory(record.item_id)
        if final.exists():
            if not self.catalog.has(record.item_id):
                self.catalog.put(_read_record(final / "item.json"))
            return False
        with storage_errors("an item"):
            final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = temporary_directory(final.parent)
        try:
            digest = write_array(temporary / "image.b2nd", volume.voxels[0])
            complete = record.model_copy(update={"image_sha256": digest})
            _write_record(temporary / "item.json", complete)
            with storage_errors("an item"):
                published = publish_directory(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if published:
            self.catalog.put(complete)
        return published

    def add_label(self, item_id: str, label_set: str, label: Volume, classes: dict[int, str]) -> bool:
        """Add a label map to an item; call inside `writing`.

        The new `item.json` is the commit point: before it, the label file is invisible.

        Args:
            item_id: An item of the cache.
            label_set: Name of the set.
            label: uint8, one channel, on the item's grid.
            classes: Names of the values, background left out.

        Returns:
            False if the identical label is there already.

        Raises:
            InputError: `E_LABEL_CONFLICT` if another label of the set is there.
        """
        directory = self.item_directory(item_id)
        with _alone_in(directory):
            return self._add_label(directory, label_set, label, classes)

    def _add_label(self, directory: Path, label_set: str, label: Volume, classes: dict[int, str]) -> bool:
        record = _read_record(directory / "item.json")
        voxels = label.voxels[0].astype(np.uint8)
        present = record.labels.get(label_set)
        if present is not None:
            if np.array_equal(self.read_label(record, label_set).voxels[0], voxels):
                return False
            raise InputError(
                "E_LABEL_CONFLICT",
                f"item {record.item_id} has another label of the set {label_set!r}",
                hint="use --label-set",
            )
        values, counts = np.unique(voxels, return_counts=True)
        digest = write_array(directory / f"label-{label_set}.b2nd", voxels)
        entry = LabelRecord(
            sha256=digest,
            classes=classes,
            voxels_per_class={int(v): int(n) for v, n in zip(values, counts, strict=True) if v},
        )
        updated = record.model_copy(update={"labels": {**record.labels, label_set: entry}})
        _write_record(directory / "item.json", updated)
        self.catalog.put(updated)
        return True

    def verify(self) -> Iterator[Problem | None]:
        """Check every stored byte against its recorded digest; yields one entry per item, None where it is sound."""
        for directory in sorted((self.root / "items").glob("*/*")):
            if not directory.name.startswith("."):
                yield self._verify_item(directory)

    def _verify_item(self, directory: Path) -> Problem | None:
        try:
            record = _read_record(directory / "item.json")
        except GateError as error:
            return Problem(directory.name, error.code, "item.json is damaged or missing")
        expected = {"image.b2nd": record.image_sha256}
        expected |= {f"label-{name}.b2nd": label.sha256 for name, label in record.labels.items()}
        for name, digest in expected.items():
            path = directory / name
            if not path.is_file() or sha256_file(path) != digest:
                return Problem(directory.name, "E_CACHE_CORRUPT", f"{name} is damaged or missing")
        return None


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """One process at a time changes an item; where the file system has no locks, the last writer wins."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _format_version(marker: Path) -> int:
    try:
        return int(json.loads(marker.read_bytes())["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise GateError("E_CACHE_CORRUPT", f"{MARKER} is damaged", hint="restore it from a backup") from error


def _is_beginning(name: str) -> bool:
    """Whether a name belongs to a cache whose making was cut short."""
    return name in ("items", "site.key") or name.startswith(TEMPORARY_PREFIX)


def _write_record(path: Path, record: ItemRecord) -> None:
    document = record.model_dump(mode="json")
    write_json(path, {**document, "record_sha256": sha256_json(document)})


def _read_record(path: Path) -> ItemRecord:
    try:
        document = json.loads(path.read_bytes())
        digest = document.pop("record_sha256")
        if digest != sha256_json(document):
            raise ValueError("digest")
        return ItemRecord.model_validate(document)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise GateError(
            "E_CACHE_CORRUPT", f"the record of item {path.parent.name} is damaged", hint="medssl cache verify"
        ) from error
