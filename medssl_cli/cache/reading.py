"""What can be asked of a cache without its key: its items, in any number, with or without a catalog."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medssl_cli.base.errors import GateError, NothingUsableError, StorageError, UsageError
from medssl_cli.cache.arrays import open_array, read_array
from medssl_cli.cache.catalog import Catalog, CatalogRow, row_of
from medssl_cli.cache.folder import CacheFolder
from medssl_cli.cache.items import Entry, ItemRecord, entry_of
from medssl_cli.cache.marker import CATALOG
from medssl_cli.cache.rebuilding import ITEM_ID, scan
from medssl_cli.cache.records import IMAGE, item_directories, label_file, read_record
from medssl_cli.cache.writers import catalog_is_behind
from medssl_cli.imaging.volume import Volume

NAMED_SETS: Final = 5


class ReadableCache(CacheFolder):
    """The items of a cache folder.

    The catalog is only an index: where it is behind, damaged, locked or not to be had on a file system, the items
    themselves are read.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.catalog = Catalog(root / CATALOG)

    def scan(self, on_damaged: Callable[[str], None] = lambda _: None) -> Iterator[ItemRecord]:
        """Items in order of their ids, read from the items themselves; see `rebuilding.scan`."""
        return scan(self.root, on_damaged)

    def damaged_items(self, known: Container[str]) -> list[str]:
        """Ids of items whose records cannot be read, in order.

        Args:
            known: Ids that need not be looked at.
        """
        found: list[str] = []
        for _ in scan(self.root, found.append, known):
            pass
        return found

    def missing_items(self) -> list[str]:
        """Ids of items that the catalog has and whose folders are gone, in order; none if it cannot be read."""
        try:
            known = self.catalog.item_ids()
        except sqlite3.Error:
            return []
        there = {directory.name for directory in item_directories(self.root)}
        return sorted(item for item in known - there if ITEM_ID.fullmatch(item))

    def rows(self) -> Iterator[CatalogRow]:
        """The light form of all items that are not superseded."""
        try:
            if catalog_is_behind(self.root):
                raise sqlite3.OperationalError("the catalog is behind")
            found = list(self.catalog.rows())
        except sqlite3.Error:
            found = [row_of(record) for record in self.scan()]
        yield from (row for row in found if row.superseded_by is None)

    def entries(self) -> list[Entry]:
        """What training needs of all items that are not superseded, in order of their ids."""
        try:
            if catalog_is_behind(self.root):
                raise sqlite3.OperationalError("the catalog is behind")
            return list(self.catalog.entries())
        except sqlite3.Error:
            return [entry_of(record) for record in self.scan() if record.superseded_by is None]

    def iterate(self, *, include_superseded: bool = False) -> Iterator[ItemRecord]:
        """Items in order of their ids, one at a time in memory; from the items where the catalog cannot be read."""
        last = ""
        try:
            if catalog_is_behind(self.root):
                raise sqlite3.OperationalError("the catalog is behind")
            for record in self.catalog.iterate():
                last = record.item_id
                if include_superseded or record.superseded_by is None:
                    yield record
            return
        except sqlite3.OperationalError:
            pass
        except (sqlite3.DatabaseError, ValidationError):
            with contextlib.suppress(StorageError):
                self.rebuild()
        for record in self.scan():
            if record.item_id > last and (include_superseded or record.superseded_by is None):
                yield record

    def records(
        self, *, modality: str | None = None, label_set: str | None = None, include_superseded: bool = False
    ) -> list[ItemRecord]:
        """Items in order of their ids.

        Args:
            modality: Keep these and items of unknown modality.
            label_set: Keep items that have a label map of this set.
            include_superseded: Keep items of which a larger version is in the cache.
        """
        found = self.iterate(include_superseded=include_superseded)
        if modality is not None:
            found = (record for record in found if record.modality in (modality, "unknown"))
        return [record for record in found if label_set is None or label_set in record.labels]

    def require_records(self, *, modality: str | None = None, label_set: str | None = None) -> list[ItemRecord]:
        """Like `records`, but an empty answer is `NothingUsableError`: `E_CACHE_EMPTY` or `E_NO_LABELS`."""
        records = self.records(modality=modality, label_set=label_set)
        if records:
            return records
        others = self.records(modality=modality) if label_set is not None else []
        if others:
            raise no_labels(str(label_set), {name for record in others for name in record.labels})
        raise no_images(modality, self.iterate())

    def find(self, prefix: str) -> ItemRecord:
        """The one item whose id begins so.

        Raises:
            UsageError: `E_NOT_FOUND` if there is none or several.
        """
        found = [record for record in self.iterate(include_superseded=True) if record.item_id.startswith(prefix)]
        if len(found) != 1:
            raise UsageError("E_NOT_FOUND", f"{len(found)} items begin with {prefix!r}", hint="see: medssl cache ls")
        return found[0]

    def record(self, item_id: str) -> ItemRecord:
        """All that is known about one item, or `GateError`: `E_CACHE_CORRUPT`."""
        return read_record(self.item_directory(item_id))

    def versions(self, record: ItemRecord) -> list[ItemRecord]:
        """Other items that came from the same series, superseded ones too."""
        try:
            found = list(self.catalog.iterate(record.series_key))
        except (sqlite3.Error, ValidationError):
            found = [other for other in self.scan() if other.series_key == record.series_key]
        return [other for other in found if other.item_id != record.item_id]

    def image_path(self, record: ItemRecord) -> Path:
        """File of an item's image."""
        return self.item_directory(record.item_id) / IMAGE

    def label_path(self, record: ItemRecord, label_set: str) -> Path:
        """File of one of an item's label maps."""
        return self.item_directory(record.item_id) / label_file(label_set, record.labels[label_set].sha256)

    def read_image(self, record: ItemRecord) -> Volume:
        """An item's whole image, or `GateError`: `E_CACHE_CORRUPT`."""
        voxels = self._checked(self.image_path(record), record)
        return Volume(voxels[None], record.affine_array, record.modality, record.units)

    def read_label(self, record: ItemRecord, label_set: str) -> Volume:
        """One of an item's label maps, uint8 or uint16 on the image's grid, or `GateError`: `E_CACHE_CORRUPT`."""
        voxels = self._checked(self.label_path(record, label_set), record)
        return Volume(voxels[None], record.affine_array, record.modality)

    def _checked(self, path: Path, record: ItemRecord) -> NDArray[np.generic]:
        array = open_array(path)
        if array.shape != record.shape:
            raise GateError("E_CACHE_CORRUPT", f"{path.name} of item {record.item_id} has another shape than recorded")
        return read_array(path)


def no_images(modality: str | None, others: Iterable[ItemRecord | Entry] = ()) -> NothingUsableError:
    """`E_CACHE_EMPTY`, of a modality if one is named, with what a recipe needs for the most frequent one there is."""
    items = list(others)
    counts = Counter(item.modality for item in items if item.is_volume) or Counter(item.modality for item in items)
    if modality is None or not counts:
        return NothingUsableError(
            "E_CACHE_EMPTY",
            f"the cache holds no {modality or 'usable'} images",
            hint="medssl cache ls shows what it has",
        )
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    there = ", ".join(f"{counts[name]} {name}" for name in ordered)
    rule = "data.zscore=false", "data.window_hu=[-175,250]"
    needed = (
        f"data.modality={ordered[0]}",
        *(rule if ordered[0] == "CT" else ("data.window_hu=null", "data.zscore=true")),
    )
    return NothingUsableError(
        "E_CACHE_EMPTY",
        f"the cache holds no {modality} images; it holds {there}",
        hint=f"take another cache, or a recipe with {', '.join(needed)}, whose sizes and spacing suit those",
    )


def no_labels(label_set: str, known: set[str]) -> NothingUsableError:
    """`E_NO_LABELS`, with the names of the label sets that are there."""
    names = sorted(known)
    shown = ", ".join(names[:NAMED_SETS]) + (" ..." if len(names) > NAMED_SETS else "")
    return NothingUsableError(
        "E_NO_LABELS",
        f"no item of the cache has labels of the set {label_set!r}; it has {shown or 'no label maps at all'}",
        hint="ingest images/ beside labels/; medssl ingest --label-set gives labels the set that the task asks for",
    )
