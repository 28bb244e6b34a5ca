"""A cache before anything in it is read: its folder, its key, and who writes into it.

A second ingest of unchanged files needs no more than this, so nothing here imports numpy or pydantic.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Self

from medssl_cli.base.errors import StorageError, UsageError
from medssl_cli.base.files import remove_temporaries
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.marker import CATALOG, MARKER, Marker, make_cache, read_marker, use_key_file
from medssl_cli.cache.writers import catalog_is_behind, dead_marks, marked


class CacheFolder:
    """A cache folder.

    Args:
        root: The folder; use `open` or `open_or_create`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def marker(self) -> Marker:
        """What the cache says about itself.

        Raises:
            GateError: `E_CACHE_CORRUPT`.
            UsageError: `E_CACHE_VERSION`.
        """
        return read_marker(self.root)

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """The site's pseudonyms; the key is not read before they are asked for.

        Raises:
            GateError: `E_KEY`.
        """
        return self.marker.load(self.root)

    @property
    def key_is_ephemeral(self) -> bool:
        """Whether the key lies in the cache, so that its patients cannot be linked with those of other caches."""
        return self.marker.is_ephemeral

    @classmethod
    def open(cls, root: Path, key_file: Path | None = None) -> Self:
        """Open an existing cache; the catalog is rebuilt first if a writer did not finish.

        Args:
            root: The folder.
            key_file: Where the cache's key is now. Without it the key is looked for when a pseudonym is asked for.

        Raises:
            UsageError: `E_NO_CACHE`, `E_CACHE_VERSION`.
            GateError: `E_CACHE_CORRUPT`; `E_KEY` if that is not the key that the cache was made with.
        """
        if not (root / MARKER).is_file():
            raise UsageError("E_NO_CACHE", f"no medssl cache at {root}", hint="make one with: medssl ingest PATH")
        read_marker(root)
        if key_file is not None:
            use_key_file(root, key_file)
        cache = cls(root)
        if not (root / CATALOG).exists() or catalog_is_behind(root) or dead_marks(root):
            with contextlib.suppress(StorageError):
                cache.rebuild()
        return cache

    @classmethod
    def open_or_create(cls, root: Path, key_file: Path | None = None) -> Self:
        """Open a cache, or make an empty one.

        Args:
            root: The folder.
            key_file: The site's key. By default an existing cache has its own, and a new one takes the key at
                `site_key_path()` or, if there is none, an ephemeral key that lies in the cache.

        Raises:
            UsageError: `E_NO_CACHE` if the folder exists and holds something else.
            GateError: `E_KEY` if the key is missing or another one than the cache was made with.
        """
        if not (root / MARKER).is_file():
            make_cache(root, key_file)
        return cls.open(root, key_file)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around every change: a writer that dies leaves a mark, and the next reader rebuilds the catalog."""
        if dead_marks(self.root):
            with contextlib.suppress(StorageError):
                self.rebuild()
        remove_temporaries(self.root)
        with marked(self.root):
            yield

    def item_directory(self, item_id: str) -> Path:
        """Where an item is, or would be."""
        return self.root / "items" / item_id[:2] / item_id

    def rebuild(self, on_damaged: Callable[[str], None] = lambda _: None) -> int:
        """Make the catalog anew from the items; see `rebuild_catalog`, which needs what this module does without."""
        from medssl_cli.cache.rebuilding import rebuild_catalog

        return rebuild_catalog(self.root, on_damaged)
