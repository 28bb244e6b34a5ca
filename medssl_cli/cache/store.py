"""The cache: every image once, at native resolution, lossless, with pseudonymous keys.

An item is a directory that appears by one rename. Its identity is a keyed hash of its content, so the same image
twice is one item, whatever its files are called. Nothing here needs a file lock: see `cache/records.py`.
"""

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from medssl_cli.base.classes import MAX_VALUE
from medssl_cli.base.errors import InputError, StorageError
from medssl_cli.base.files import publish_directory, storage_errors, sync_directory, temporary_directory
from medssl_cli.cache.arrays import encode
from medssl_cli.cache.format import Modality
from medssl_cli.cache.items import ItemRecord, LabelRecord
from medssl_cli.cache.publish import publish_first, write_private
from medssl_cli.cache.reading import ReadableCache
from medssl_cli.cache.records import (
    ANOTHER_SET,
    IMAGE,
    ITEM,
    SUPERSEDED,
    label_file,
    new_entries,
    read_record,
    sealed_record,
)
from medssl_cli.cache.verify import CORRUPT, Problem, verify_items
from medssl_cli.cache.versions import find_successor
from medssl_cli.cache.writers import say_catalog_is_behind
from medssl_cli.imaging.volume import Volume

MAX_ATTEMPTS: Final = 100


class Cache(ReadableCache):
    """A cache folder.

    Args:
        root: The folder; use `Cache.open` or `Cache.open_or_create`.
    """

    def item_id(self, volume: Volume) -> str:
        """Keyed hash of an image's content: voxels, place and modality.

        Voxels are digested by BLAKE3, in caches of format 1 by SHA-256 (docs/decisions/0018-voxel-digest.md).
        """
        return self._item_ids(volume, ((volume.modality, volume.units),))[0]

    def twins(self, volume: Volume) -> list[str]:
        """Items with the same voxels in the same place that are held under other modalities."""
        others = [name for name in get_args(Modality) if name != volume.modality]
        meanings = [(name, "a.u.") for name in others] + [("CT", "HU")] * ("CT" in others)
        return [one for one in self._item_ids(volume, meanings) if self.item_directory(one).exists()]

    def _item_ids(self, volume: Volume, meanings: Sequence[tuple[str, str]]) -> list[str]:
        """Ids of the same voxels, one for each modality and units."""
        data = np.ascontiguousarray(volume.voxels).view(np.uint8).data
        version = self.marker.format_version
        digest = hashlib.sha256(data).digest() if version == 1 else blake3(data).digest()
        place = (np.round(volume.affine, 6) + 0.0).tobytes()
        what = f"{volume.voxels.dtype}|{volume.voxels.shape}"
        headers = [f"{what}|{modality}|{units}|v{version}" for modality, units in meanings]
        return [self.pseudonyms.of("item", digest, header, place) for header in headers]

    def is_forgotten(self, patient_key: str) -> bool:
        """Whether the patient was removed from this cache on request."""
        return (self.root / "forgotten" / patient_key).exists()

    def add(self, volume: Volume, record: ItemRecord) -> bool:
        """Publish an image; call inside `writing`. A smaller version of the same series is marked as superseded.

        Args:
            volume: One channel.
            record: Its record; `image_sha256` is filled in here.

        Returns:
            False if the item is there already; nothing is written then.

        Raises:
            InputError: `E_FORGOTTEN`.
            StorageError: `E_IO`.
        """
        if self.is_forgotten(record.patient_key):
            raise InputError("E_FORGOTTEN", "the patient was removed from this cache on request")
        final = self.item_directory(record.item_id)
        is_new = not final.exists() and self._publish(final, volume, record)
        if is_new or not self._is_indexed(record.item_id):
            self._index(record.item_id)
        self._supersede(record, volume)
        return is_new

    def _publish(self, final: Path, volume: Volume, record: ItemRecord) -> bool:
        with storage_errors("an item"):
            if not final.parent.is_dir():
                final.parent.mkdir(mode=0o700, exist_ok=True)
                sync_directory(final.parent.parent)
            temporary = temporary_directory(final.parent)
            try:
                data = encode(volume.voxels[0])
                complete = record.model_copy(update={"image_sha256": hashlib.sha256(data).hexdigest()})
                write_private(temporary / IMAGE, data)
                write_private(temporary / ITEM, sealed_record(complete))
                return publish_directory(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def _supersede(self, record: ItemRecord, volume: Volume) -> None:
        """Mark the smaller of two versions of a series, whichever came first."""
        for other in self.versions(record):
            pair = find_successor(record, volume, other, self.image_path(other))
            if pair is not None:
                smaller, larger = pair
                self._count_instead(smaller, larger)

    def correct(self, item_id: str, successor: str) -> None:
        """Let a twin count instead of an item, also one that the item had replaced; call inside `writing`."""
        if self.record(successor).superseded_by == item_id:
            with storage_errors("an item"):
                (self.item_directory(successor) / SUPERSEDED).unlink(missing_ok=True)
                sync_directory(self.item_directory(successor))
            self._index(successor)
        if self.record(item_id).superseded_by is None:
            self._count_instead(item_id, successor)

    def _count_instead(self, item_id: str, successor: str) -> None:
        self.update_record(item_id, partial(ItemRecord.model_copy, update={"superseded_by": successor}))

    def update_record(self, item_id: str, change: Callable[[ItemRecord], ItemRecord]) -> bool:
        """Add labels, boxes, findings or a successor to an item; call inside `writing`.

        Args:
            item_id: An item of the cache.
            change: Gets the record as it is and returns it as it should be. It may be called again if another process
                adds something at the same time, and decides then what that means.

        Returns:
            False if there was nothing to add.

        Raises:
            InputError: `E_LABEL_CONFLICT` if an entry would be replaced or removed.
            GateError: `E_CACHE_CORRUPT`.
        """
        directory = self.item_directory(item_id)
        is_changed = False
        for _ in range(MAX_ATTEMPTS):
            record = read_record(directory)
            published = [publish_first(directory / name, d) for name, d in new_entries(record, change(record)).items()]
            is_changed |= any(published)
            if all(published):
                break
        else:
            raise StorageError("E_IO", f"the record of item {item_id} cannot be added to")
        if is_changed or not self._is_indexed(item_id):
            self._index(item_id)
        return is_changed

    def _is_indexed(self, item_id: str) -> bool:
        try:
            return self.catalog.has(item_id)
        except sqlite3.Error:
            return False

    def _index(self, item_id: str) -> None:
        """Bring the catalog up to what is on disk; read again after writing, for another process may add meanwhile."""
        indexed: ItemRecord | None = None
        try:
            while (record := read_record(self.item_directory(item_id))) != indexed:
                self.catalog.put(record)
                indexed = record
        except sqlite3.Error:
            say_catalog_is_behind(self.root)

    def add_label(
        self,
        item_id: str,
        label_set: str,
        label: Volume,
        classes: dict[int, str],
        *,
        ignore: int | None = None,
        regions: Mapping[str, tuple[int, ...]] | None = None,
        dry_run: bool = False,
    ) -> bool:
        """Add a label map to an item; call inside `writing`.

        The entry is the commit point: before it, the label's file is invisible.

        Args:
            item_id: An item of the cache.
            label_set: Name of the set of classes.
            label: Whole numbers from 0 to 65,535, one channel, on the item's grid; stored as uint8 where they fit.
            classes: Names of the values, background left out.
            ignore: Value of voxels that nobody judged; it is no class.
            regions: Values of each region, by its name. A label that was stored before regions were is the same label.
            dry_run: Only say what would be; the item need not exist then.

        Returns:
            False if the identical label is there already.

        Raises:
            InputError: `E_LABEL_CONFLICT` if another label of the set is there; `E_LABEL_VALUES`.
        """
        directory = self.item_directory(item_id)
        voxels = _smallest(label.voxels[0])
        if dry_run and not directory.exists():
            return True
        meaning = {"classes": classes, "ignore": ignore, "regions": dict(regions or {})}
        if self._has_label(read_record(directory), label_set, voxels, meaning):
            return False
        if dry_run:
            return True
        data = encode(voxels)
        digest = hashlib.sha256(data).hexdigest()
        counts = enumerate(np.bincount(voxels.ravel()))
        found = {value: int(count) for value, count in counts if count and value not in (0, ignore)}
        entry = LabelRecord.model_validate({"sha256": digest, "voxels_per_class": found, **meaning})
        publish_first(directory / label_file(label_set, digest), data)

        def with_label(record: ItemRecord) -> ItemRecord:
            if self._has_label(record, label_set, voxels, meaning):
                return record
            return record.model_copy(update={"labels": {**record.labels, label_set: entry}})

        return self.update_record(item_id, with_label)

    def _has_label(
        self, record: ItemRecord, label_set: str, voxels: NDArray[np.integer], meaning: Mapping[str, Any]
    ) -> bool:
        if label_set not in record.labels:
            return False
        is_same = np.array_equal(self.read_label(record, label_set).voxels[0], voxels)
        known = record.labels[label_set]
        has_same_names = (known.classes, known.ignore) == (meaning["classes"], meaning["ignore"])
        if is_same and has_same_names and known.regions in ({}, meaning["regions"]):
            return True
        what = "this label with other class names in" if is_same else "another label of"
        raise InputError(
            "E_LABEL_CONFLICT",
            f"item {record.item_id} has {what} the set {label_set!r}",
            hint=ANOTHER_SET,
        )

    def verify(self) -> Iterator[Problem | None]:
        """Check every stored byte; for each item its problems, or None where it is sound.

        An item that the catalog has and that is gone is a problem too.
        """
        missing = self.missing_items()
        yield from verify_items(self.root)
        yield from (Problem(item, CORRUPT, "its folder is gone", "unknown") for item in missing)


def _smallest(voxels: NDArray[np.generic]) -> NDArray[np.integer]:
    """Label values in the smallest dtype that holds them."""
    low, high = (int(voxels.min()), int(voxels.max())) if voxels.size else (0, 0)
    if low < 0 or high > MAX_VALUE:
        raise InputError("E_LABEL_VALUES", f"values from {low} to {high} are not within 0 to {MAX_VALUE}")
    return voxels.astype(np.uint8 if high <= np.iinfo(np.uint8).max else np.uint16)
