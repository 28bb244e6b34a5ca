"""Channels and cases of images: the pseudonym of a case, and what an image that is held already learns later."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.store import Cache
from medssl_cli.formats.layouts import ImageFile
from medssl_cli.formats.patients import patients_of
from medssl_cli.formats.source import Source


def example_key(pseudonyms: Pseudonyms, patient: str | None, example: str | None) -> str | None:
    """Pseudonym of what a layout calls a case of one patient; None where it calls it nothing."""
    return None if example is None else pseudonyms.of("example", patient or "", example)


def add_channel(cache: Cache, item_id: str, channel: str | None, example: str | None) -> bool:
    """Tell an image of the cache its channel and case, if it has none yet; call inside `writing`.

    An image that was stored before its channel was known, by an earlier version or alone, learns it so.

    Returns:
        False if the image is held as another channel or of another case: it stays what it was first called.
    """
    held = cache.record(item_id)
    learnt = {
        name: value
        for name, value in (("channel", channel), ("example_key", example))
        if value is not None and getattr(held, name) is None
    }
    if learnt:
        cache.update_record(item_id, partial(_with_unknown, learnt=learnt))
        held = cache.record(item_id)
    return channel in (None, held.channel) and example in (None, held.example_key)


def _with_unknown(record: ItemRecord, learnt: dict[str, str]) -> ItemRecord:
    """The record with what it does not know yet: another process may have been faster."""
    return record.model_copy(update={name: value for name, value in learnt.items() if getattr(record, name) is None})


def learn_channels(
    images: Sequence[ImageFile],
    known: Mapping[Source, Sequence[str]],
    roots: Sequence[Path],
    pattern: str | None,
    cache: Cache,
) -> None:
    """Tell images that were stored alone what files beside them now say: that they are channels of one case.

    Args:
        images: All of the input.
        known: Items that files of the input were stored as before.
        roots: The inputs.
        pattern: See `patients_of`.
        cache: Cache of the images; call inside `writing`.
    """
    unknown = [
        (image, item_id)
        for image in images
        if image.channel is not None and not image.parts
        for item_id in known.get(image.source, ())
        if cache.record(item_id).channel is None
    ]
    patients = patients_of(images, roots, pattern) if unknown else {}
    for image, item_id in unknown:
        example = example_key(cache.pseudonyms, patients[image.source], image.example)
        add_channel(cache, item_id, image.channel, example)
