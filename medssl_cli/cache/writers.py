"""Who is writing into a cache, and what those who died have left there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from medssl_cli.base.files import is_alive, remove_temporaries, storage_errors

BEHIND: Final = "catalog-is-behind"
MARK: Final = "writing-"


@contextlib.contextmanager
def marked(root: Path) -> Iterator[None]:
    """Around every change: a writer that dies leaves its mark."""
    mark = root / f"{MARK}{os.getpid()}"
    with storage_errors("the cache"):
        mark.touch(mode=0o600)
    yield
    mark.unlink(missing_ok=True)


def dead_marks(root: Path) -> list[Path]:
    """Marks of writers that died."""
    marks = ((mark, mark.name.removeprefix(MARK)) for mark in root.glob(f"{MARK}*"))
    return [mark for mark, owner in marks if owner.isdigit() and not is_alive(int(owner))]


def say_catalog_is_behind(root: Path) -> None:
    """Note that an item could not be written into the catalog: nobody reads it before it is made anew."""
    with storage_errors("the cache"):
        (root / BEHIND).touch(mode=0o600)


def catalog_is_behind(root: Path) -> bool:
    """Whether an item is not in the catalog."""
    return (root / BEHIND).exists()


def remove_leftovers(root: Path) -> None:
    """Remove the temporary files of dead writers."""
    below = (path for pattern in ("reports", "items/*", "items/*/*") for path in root.glob(pattern))
    for directory in (root, *below):
        if directory.is_dir():
            remove_temporaries(directory)


def make_private(folder: Path, *, below: Path) -> None:
    """Make a folder and those between it and an existing one, all mode 0700 whatever the umask."""
    for path in reversed([folder, *(parent for parent in folder.parents if parent.is_relative_to(below))]):
        path.mkdir(mode=0o700, exist_ok=True)
