"""The index of a cache in SQLite: derived from the items, rebuilt whenever it may not be true."""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from medssl_cli.cache.items import ItemRecord

_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY, patient_key TEXT NOT NULL, modality TEXT NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID
"""


class Catalog:
    """Records of all items of a cache, by id.

    Args:
        path: `catalog.sqlite`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=60)
        try:
            with connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(_SCHEMA)
                yield connection
        finally:
            connection.close()

    def replace_all(self, records: Iterable[ItemRecord]) -> None:
        """Make the catalog hold exactly these records, in one transaction."""
        with self._connection() as connection:
            connection.execute("DELETE FROM items")
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", map(_row, records))

    def put(self, record: ItemRecord) -> None:
        """Add or replace one record."""
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", _row(record))

    def has(self, item_id: str) -> bool:
        """Whether an item is in the catalog."""
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM items WHERE item_id = ?", (item_id,)).fetchone() is not None

    def records(self) -> list[ItemRecord]:
        """All records, ordered by item id.

        Raises:
            sqlite3.DatabaseError: The file is damaged; rebuild it.
        """
        with self._connection() as connection:
            rows = connection.execute("SELECT document FROM items ORDER BY item_id").fetchall()
        return [ItemRecord.model_validate_json(document) for (document,) in rows]


def _row(record: ItemRecord) -> tuple[str, str, str, str]:
    return record.item_id, record.patient_key, record.modality, record.model_dump_json()
