"""Which channels and which modality somebody's own labelled images have."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

from medssl_cli.cache.items import ItemRecord
from medssl_cli.data.examples import channel_of

NEARLY_ALL: Final = 0.9
"""Share of the labelled cases that must have a channel; those that lack it are left out."""


def own_data(everything: Sequence[ItemRecord], labelled: Sequence[ItemRecord]) -> dict[str, Any]:
    """The part of a recipe's data section that says which images it takes.

    Args:
        everything: Images of the cache; a label map belongs to one of the images of its case.
        labelled: Those that have labels.
    """
    modalities = Counter(record.modality for record in labelled if record.modality != "unknown")
    modality = next(iter(modalities)) if len(modalities) == 1 else None
    names = _channels(everything, labelled)
    return {"modality": modality, **({"channels": [{"name": name} for name in names]} if len(names) > 1 else {})}


def _channels(everything: Sequence[ItemRecord], labelled: Sequence[ItemRecord]) -> list[str]:
    """Channels that nearly all labelled cases have, by name; none where cases are single images."""
    cases: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in everything:
        channel = channel_of(record)
        if record.example_key is not None and channel is not None:
            cases[record.patient_key, record.example_key].add(channel)
    own = {(record.patient_key, record.example_key) for record in labelled}
    found = [cases[patient, case] for patient, case in own if case is not None and (patient, case) in cases]
    counts = Counter(channel for channels in found for channel in channels)
    return sorted(name for name, number in counts.items() if number >= NEARLY_ALL * len(own))
