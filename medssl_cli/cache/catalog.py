"""The index of a cache in SQLite: derived from the items, rebuilt whenever it may not be true."""

import contextlib
import json
import operator
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from medssl_cli.cache.databases import is_busy, remove_database
from medssl_cli.cache.items import Entry, ItemRecord, annotation_names, grid_of
from medssl_cli.formats.name_words import same_channel
from medssl_cli.imaging.geometry import Shape

VERSION: Final = 2
LOCK_TIMEOUT_S: Final = 60.0
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY, patient_key TEXT NOT NULL, series_key TEXT NOT NULL, modality TEXT NOT NULL,
    x INTEGER NOT NULL, y INTEGER NOT NULL, z INTEGER NOT NULL, fingerprint TEXT, superseded_by TEXT,
    label_sets TEXT NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_series ON items (series_key);
CREATE INDEX IF NOT EXISTS by_patient ON items (patient_key);
PRAGMA user_version = {VERSION};
COMMIT;
"""
_LIGHT: Final = "item_id, patient_key, series_key, modality, x, y, z, fingerprint, superseded_by, label_sets"

# SQLite reads single values out of the documents far faster than Python reads whole ones.
_ENTRY: Final = """
    item_id, patient_key, modality, x, y, z, fingerprint, json_extract(document, '$.image_sha256'),
    json_extract(document, '$.spacing_kind') IS NULL,
    CASE label_sets WHEN '' THEN NULL ELSE json_extract(document, '$.labels') END,
    json_extract(document, '$.boxes', '$.findings'), json_extract(document, '$.channel'),
    json_extract(document, '$.example_key'), json_extract(document, '$.study_key'),
    json_extract(document, '$.frame_of_reference_key'), json_extract(document, '$.affine')
"""
_NO_ANNOTATIONS: Final = "[{},{}]"
_NO_LABELS: Final[dict[str, str]] = {}


class CatalogRow(NamedTuple):
    """The little of a record that lists, splits and searches need; a tenth of its memory."""

    item_id: str
    patient_key: str
    series_key: str
    modality: str
    shape: Shape
    fingerprint: str | None
    superseded_by: str | None
    label_sets: tuple[str, ...]


def row_of(record: ItemRecord) -> CatalogRow:
    """The light form of a record."""
    return CatalogRow(
        record.item_id,
        record.patient_key,
        record.series_key,
        record.modality,
        record.shape,
        record.fingerprint,
        record.superseded_by,
        tuple(sorted(record.labels)),
    )


class Catalog:
    """Records of all items of a cache, by id. Every method may raise `sqlite3.Error`; the items are the truth.

    Args:
        path: `catalog.sqlite`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600))
        if self._path.exists() and not self._path.is_file():  # opening a pipe may never end
            raise sqlite3.DatabaseError("not a file")
        connection = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S)
        try:
            with connection:
                if not connection.execute("PRAGMA schema_version").fetchone()[0]:
                    with contextlib.suppress(sqlite3.OperationalError):
                        connection.execute("PRAGMA journal_mode=WAL")
                    connection.executescript(_SCHEMA)
                elif connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                    raise sqlite3.DatabaseError("a catalog of another version")
                yield connection
        finally:
            connection.close()

    def replace_all(self, records: Callable[[], Iterable[ItemRecord]]) -> int:
        """Make the catalog hold exactly these records, in one transaction; a damaged file is replaced.

        Args:
            records: Called once the catalog's write lock is held.

        Returns:
            Number of records.
        """
        try:
            return self._replace_all(records)
        except sqlite3.DatabaseError as error:
            if is_busy(error):
                raise
            remove_database(self._path)
            return self._replace_all(records)

    def _replace_all(self, records: Callable[[], Iterable[ItemRecord]]) -> int:
        with self._connection() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("DELETE FROM items")
            return connection.executemany(_INSERT, map(_values, records())).rowcount

    def put(self, record: ItemRecord) -> None:
        """Add or replace one record."""
        with self._connection() as connection:
            connection.execute(_INSERT, _values(record))

    def remove(self, item_ids: Iterable[str]) -> None:
        """Remove records, and overwrite the space that they took."""
        with self._connection() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.executemany("DELETE FROM items WHERE item_id = ?", ((item_id,) for item_id in item_ids))
        with self._connection() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def item_ids(self) -> set[str]:
        """Ids of all items, superseded ones too."""
        with self._connection() as connection:
            return {str(item_id) for (item_id,) in connection.execute("SELECT item_id FROM items")}

    def has(self, item_id: str) -> bool:
        """Whether an item is in the catalog."""
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM items WHERE item_id = ?", (item_id,)).fetchone() is not None

    def records(self) -> list[ItemRecord]:
        """All records, ordered by item id."""
        return list(self.iterate())

    def iterate(self, series_key: str | None = None) -> Iterator[ItemRecord]:
        """Records in order of their ids, one at a time in memory; of one series only, if one is named."""
        where, values = ("", ()) if series_key is None else ("WHERE series_key = ?", (series_key,))
        with self._connection() as connection:
            rows = connection.execute(f"SELECT document FROM items {where} ORDER BY item_id", values)
            for (document,) in rows:
                with _known_rows():
                    record = ItemRecord.model_validate_json(document)
                yield record

    def rows(self) -> Iterator[CatalogRow]:
        """All items in order of their ids, without what is large."""
        with self._connection() as connection:
            for item, patient, series, modality, *shape, print_, successor, sets in connection.execute(
                f"SELECT {_LIGHT} FROM items ORDER BY item_id"
            ):
                with _known_rows():
                    x, y, z = map(operator.index, shape)
                    row = CatalogRow(item, patient, series, modality, (x, y, z), print_, successor, tuple(sets.split()))
                yield row

    def entries(self) -> Iterator[Entry]:
        """What training needs of the items that are not superseded, in order of their ids."""
        with self._connection() as connection:
            for row in connection.execute(f"SELECT {_ENTRY} FROM items WHERE superseded_by IS NULL ORDER BY item_id"):
                with _known_rows():
                    item, patient, modality, x, y, z, print_, image, is_volume, labels, others, *case, affine = row
                    shape = operator.index(x), operator.index(y), operator.index(z)
                    channel, example, study, frame = case
                    digests = (
                        {name: label["sha256"] for name, label in json.loads(labels).items()} if labels else _NO_LABELS
                    )
                    known = (item, patient, sys.intern(modality), shape, print_, image, bool(is_volume), digests)
                    annotations = () if others == _NO_ANNOTATIONS else annotation_names(*json.loads(others))
                    word = None if channel is None else sys.intern(same_channel(channel))
                    entry = Entry(*known, annotations, word, example, study, frame, grid_of(json.loads(affine)))
                yield entry


@contextlib.contextmanager
def _known_rows() -> Iterator[None]:
    """Around reading a row: what is in the file is not what is written here."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise sqlite3.DatabaseError("a row of another kind") from error


_INSERT: Final = f"INSERT OR REPLACE INTO items VALUES ({', '.join('?' * 11)})"


def _values(record: ItemRecord) -> tuple[str | int | None, ...]:
    row = row_of(record)
    return (
        *row[:4],
        *row.shape,
        row.fingerprint,
        row.superseded_by,
        " ".join(row.label_sets),
        record.model_dump_json(),
    )
