"""Whether there is any hope that what an ingest is about to store has room, asked before the first image is written."""

import shutil
from collections.abc import Sequence
from typing import Final

from medssl_cli.base.errors import InputError, StorageError
from medssl_cli.cache.store import Cache
from medssl_cli.formats.source import size_of
from medssl_cli.ingest.tasks import ImageTask

MIB: Final = 2**20
AT_BEST: Final = 10
"""Scans shrink to a half or a third without loss, those that are mostly empty to a seventh: more is not to be had."""


def require_space(tasks: Sequence[ImageTask], cache: Cache) -> None:
    """Refuse an ingest whose images would not fit even if they shrank to a tenth.

    Args:
        tasks: All images that are about to be read; series that the cache holds already need nothing.
        cache: Where they go.

    Raises:
        StorageError: `E_NO_SPACE`.
    """
    free = shutil.disk_usage(cache.root).free
    if _least_bytes(tasks) <= free:
        return
    held = {row.series_key for row in cache.rows()}
    needed = _least_bytes([task for task in tasks if _series_key(task, cache) not in held])
    if needed > free:
        raise StorageError(
            "E_NO_SPACE",
            f"the images need {needed // MIB} MiB at the very least, and {free // MIB} MiB are free",
            hint="free space, choose another --cache, or name only what is not in the cache yet",
        )


def _least_bytes(tasks: Sequence[ImageTask]) -> int:
    return sum(map(_num_bytes, tasks)) // AT_BEST


def _num_bytes(task: ImageTask) -> int:
    """Bytes of the pixels as they came from the scanner, or of the file."""
    if task.part is not None:
        return task.part.stored_bytes
    try:
        return sum(map(size_of, task.files))
    except InputError:
        return 0


def _series_key(task: ImageTask, cache: Cache) -> str:
    return "" if task.part is None else cache.pseudonyms.of("series", task.part.identity.series)
