"""Which items of a cache a training or an evaluation uses, said aloud."""

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.engine.talk import Talk
from medssl_cli.errors import NothingUsableError


def select(cache: Cache, *, modality: str | None, label_set: str | None = None, talk: Talk) -> list[ItemRecord]:
    """Volumes of a modality (and a label set). Images of unknown modality are taken, and counted aloud.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
    """
    found = cache.require_records(modality=modality, label_set=label_set)
    records = [record for record in found if record.is_volume]
    if not records:
        raise NothingUsableError("E_CACHE_EMPTY", f"{len(found)} images are projections or pictures, none is a volume")
    if len(records) < len(found):
        talk.note(f"{len(found) - len(records)} projections and pictures are left out")
    unknown = sum(record.modality == "unknown" for record in records)
    if modality is not None and unknown:
        talk.note(f"W_UNKNOWN_MODALITY: {unknown} of {len(records)} images are taken as {modality}; they do not say so")
    return records
