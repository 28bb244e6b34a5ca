"""The items of a cache as they lie on disk, and the catalog made anew from them."""

import re
import sqlite3
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import GateError, StorageError
from medssl_cli.cache.catalog import Catalog
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.marker import CATALOG
from medssl_cli.cache.records import item_directories, read_record
from medssl_cli.cache.writers import BEHIND, dead_marks, remove_leftovers

ITEM_ID: Final = re.compile(r"[a-z2-7]{26}")


def rebuild_catalog(root: Path, on_damaged: Callable[[str], None] = lambda _: None) -> int:
    """Make the catalog anew from the items, which are read while the catalog's write lock is held.

    Args:
        root: The cache.
        on_damaged: Told the id of each item that is left out; perhaps more than once.

    Returns:
        Number of items.

    Raises:
        StorageError: `E_IO`, the catalog is locked or cannot be written.
    """
    marks = [*dead_marks(root), root / BEHIND]
    remove_leftovers(root)
    try:
        num_items = Catalog(root / CATALOG).replace_all(lambda: scan(root, on_damaged))
    except sqlite3.Error as error:
        raise StorageError("E_IO", "the catalog cannot be written", hint="try again when it is free") from error
    for mark in marks:
        mark.unlink(missing_ok=True)
    return num_items


def scan(
    root: Path, on_damaged: Callable[[str], None] = lambda _: None, known: Container[str] = ()
) -> Iterator[ItemRecord]:
    """Items in order of their ids, read from the items themselves; damaged ones are left out.

    Args:
        root: The cache.
        on_damaged: Told the id of each of those.
        known: Ids of items to pass over.
    """
    for directory in item_directories(root):
        if directory.name in known:
            continue
        try:
            record = read_record(directory)
        except GateError:
            on_damaged(directory.name if ITEM_ID.fullmatch(directory.name) else "of a name that is no id")
            continue
        yield record
