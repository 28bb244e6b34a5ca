"""Which images a file name in a table or a COCO file means, where images of several folders have the same name.

A file of labels speaks of the pictures beside and below it before those elsewhere, and the folders in front of a name
must be those of the picture. What is left is one image, or the images of one file; several pictures are a refusal.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePath

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import file_name, folders_of, name_key
from medssl_cli.ingest.known_images import KnownImage

Tail = tuple[str, ...]


@dataclass(frozen=True)
class Hints:
    """What else is known about the image that a name means.

    Args:
        near: Folder of the file of labels.
        size: Columns and rows that the image must have.
        items: Items that each further word of the same row means.
        num_shared: Leading folders of the name that all names of the file have in common.
    """

    near: PurePath | None = None
    size: tuple[int, int] | None = None
    items: Sequence[Set[str]] = ()
    num_shared: int = 0

    def narrowed(self, found: Sequence[KnownImage]) -> list[KnownImage]:
        """Images that further words of the row mean too; where no image is meant by both, all."""
        left = list(found)
        for items in self.items:
            left = [known for known in left if known.image.item_id in items] or left
        return left


@dataclass
class NamedImages:
    """Images that are files of their own, by the ends of their paths.

    Args:
        images: Those that have a place.
    """

    images: Sequence[KnownImage]
    _by_tail: dict[int, dict[Tail, list[KnownImage]]] = field(default_factory=dict)
    _most_parts: int = 0

    def __post_init__(self) -> None:
        self._most_parts = max((len(known.place.parts) for known in self.images if known.place is not None), default=0)

    def find(self, name: str, hints: Hints) -> list[KnownImage]:
        """Images of the one file that a name means; none if no image is called so.

        In turn: the path from the folder of the labels; below it, with all folders of the name, then without those
        that all names share; and the same elsewhere.

        Args:
            name: Name with folders or without.
            hints: What tells images of one name apart.

        Raises:
            InputError: `E_LABEL_AMBIGUOUS`.
        """
        folders = folders_of(name)
        ends = tuple(dict.fromkeys((folders, folders[hints.num_shared :])))
        groups = [hints.narrowed(self._ending_in((*folders, name_key(name)))) for folders in ends]
        tiers: list[list[KnownImage]] = []
        if hints.near is not None:
            near = _lower(hints.near.parts)
            beside, named = (*near, *folders), groups[0]
            if ".." in name:
                beside = _lower(PurePath(os.path.normpath(hints.near / name.replace("\\", "/"))).parts[:-1])
                named = hints.narrowed(self._ending_in((name_key(name),)))
            tiers.append([known for known in named if _folder(known) == beside])
            tiers += [[known for known in group if _folder(known)[: len(near)] == near] for group in groups]
        found: list[KnownImage] = next(filter(None, [*tiers, *groups]), [])
        return the_one(found, name, hints)

    def _ending_in(self, tail: Tail) -> list[KnownImage]:
        length = len(tail)
        if length > self._most_parts:
            return []
        if length not in self._by_tail:
            index: dict[Tail, list[KnownImage]] = defaultdict(list)
            for known in self.images:
                if known.place is not None and len(known.place.parts) >= length:
                    index[*_lower(known.place.parts[-length:-1]), name_key(known.place.name)].append(known)
            self._by_tail[length] = dict(index)
        return self._by_tail[length].get(tail, [])


def the_one(found: Sequence[KnownImage], name: str, hints: Hints) -> list[KnownImage]:
    """Images of one file, or one image that lies in several places, out of all that are called the same.

    Args:
        found: All that have the name.
        name: As it is written: an equal suffix counts.
        hints: What tells them apart.

    Raises:
        InputError: `E_LABEL_AMBIGUOUS`, several are left.
    """
    last = file_name(name).lower()
    left = hints.narrowed(found)
    left = [known for known in left if known.place is not None and known.place.name.lower() == last] or left
    left = [known for known in left if known.image.shape[:2] == hints.size] or left
    num_items = len({known.image.item_id for known in left})
    places = {known.place for known in left}
    if num_items > 1 and (len(places) > 1 or None in places):
        raise InputError("E_LABEL_AMBIGUOUS", f"{num_items} images have the name of the row, and nothing tells which")
    return left


def _folder(known: KnownImage) -> Tail:
    return () if known.place is None else _lower(known.place.parts[:-1])


def _lower(parts: Sequence[str]) -> Tail:
    return tuple(unicodedata.normalize("NFC", part).lower() for part in parts)
