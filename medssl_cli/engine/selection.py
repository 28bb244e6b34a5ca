"""Which items of a cache a training or an evaluation uses, said aloud."""

from collections.abc import Sequence
from typing import TypeVar

from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.reading import no_images
from medssl_cli.cache.store import Cache
from medssl_cli.engine.talk import Talk
from medssl_cli.errors import NothingUsableError

Item = TypeVar("Item", ItemRecord, Entry)


def select(cache: Cache, *, modality: str | None, label_set: str | None = None, talk: Talk) -> list[ItemRecord]:
    """Volumes of a modality (and a label set). Images of unknown modality are taken, and counted aloud.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
    """
    return volumes_of(cache.require_records(modality=modality, label_set=label_set), modality=modality, talk=talk)


def volumes_of(found: Sequence[Item], *, modality: str | None, talk: Talk) -> list[Item]:
    """The volumes among items of a modality, said aloud.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    wanted = images_of(found, modality=modality)
    volumes = [item for item in wanted if item.is_volume]
    if not volumes:
        raise NothingUsableError("E_CACHE_EMPTY", f"{len(wanted)} images are projections or pictures, none is a volume")
    if len(volumes) < len(wanted):
        talk.note(f"{len(wanted) - len(volumes)} projections and pictures are left out")
    unknown = sum(item.modality == "unknown" for item in volumes)
    if modality is not None and unknown:
        talk.note(f"W_UNKNOWN_MODALITY: {unknown} of {len(volumes)} images are taken as {modality}; they do not say so")
    return volumes


def images_of(found: Sequence[Item], *, modality: str | None) -> list[Item]:
    """Items of a modality, volumes or not.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    wanted = [item for item in found if modality is None or item.modality in (modality, "unknown")]
    if not wanted:
        raise no_images(modality)
    return wanted
