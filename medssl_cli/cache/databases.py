"""SQLite files of a cache: each can be made anew from something else, so a damaged one is removed."""

import sqlite3
from pathlib import Path

from medssl_cli.base.files import storage_errors


def is_busy(error: sqlite3.Error) -> bool:
    """Whether a database may be sound, and others hold it now."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def remove_database(path: Path) -> None:
    """Remove a damaged database that can be made anew, and the files that SQLite keeps beside it.

    Raises:
        StorageError: `E_IO`, something of its name cannot be removed.
    """
    with storage_errors(path.name):
        for damaged in path.parent.glob(f"{path.name}*"):
            damaged.unlink(missing_ok=True)
