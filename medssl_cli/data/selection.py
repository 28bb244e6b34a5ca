"""Which items of a cache a training or an evaluation uses, said aloud."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

from medssl_cli.base.classes import joined
from medssl_cli.base.errors import NothingUsableError
from medssl_cli.base.files import sha256_json
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.reading import NAMED_SETS, no_images
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import Example, annotated_examples, examples_about, examples_with
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import Data, MixturePart

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
    _say_unknown(volumes, modality, talk)
    return volumes


def images_of(found: Sequence[Item], *, modality: str | None) -> list[Item]:
    """Items of a modality, volumes or not.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    wanted = [item for item in found if modality is None or item.modality in (modality, "unknown")]
    if not wanted:
        raise no_images(modality, found)
    return wanted


def training_examples(
    everything: Sequence[Entry], data: Data | MixturePart, *, takes_pictures: bool, talk: Talk
) -> list[Example]:
    """What a pre-training can see of a cache, in the order of their ids.

    Without names of channels every image of the modality is an example by itself, whatever its channel. With names an
    example is a case with an image of each, of which one has the modality.

    Args:
        everything: Items of the cache.
        data: Section `data` of the recipe, or one part of its mixture.
        takes_pictures: Projections and pictures count beside volumes.
        talk: Told what is left out.

    Raises:
        UsageError: `E_RECIPE`, two names mean one channel.
        NothingUsableError: `E_CACHE_EMPTY`, `E_CHANNEL_MISSING`.
    """
    if takes_pictures:
        found = images_of(everything, modality=data.modality)
    else:
        found = volumes_of(everything, modality=data.modality, talk=talk)
        everything = [entry for entry in everything if entry.is_volume]
    return examples_about(everything, found, data.channel_names, note=talk.note)


def known_of(cache: Cache, example: Example) -> ItemRecord:
    """The record of an example's first image, with the annotations of the others beside its own."""
    first, *beside = (cache.record(item.item_id) for item in example.items)
    merged = {
        kind: {name: each for record in (*reversed(beside), first) for name, each in getattr(record, kind).items()}
        for kind in ("labels", "boxes", "findings")
    }
    return first.model_copy(update=merged) if beside else first


def with_annotations(
    cache: Cache,
    kind: Literal["findings", "boxes"],
    label_set: str,
    *,
    modality: str | None,
    is_flat: bool,
    talk: Talk,
) -> list[ItemRecord]:
    """Items of a modality that have findings or boxes of a set, said aloud.

    Args:
        cache: Where they are.
        kind: Findings, or boxes.
        label_set: Set of labels of these.
        modality: Images of this one and of unknown modality; None for all.
        is_flat: Single 2D images instead of volumes.
        talk: Told what is left out.

    Raises:
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`.
    """
    found = cache.require_records(modality=modality)
    labelled = [record for record in found if label_set in getattr(record, kind)]
    if not labelled:
        raise no_annotations(kind, label_set, {name for record in found for name in getattr(record, kind)})
    wanted = [record for record in labelled if (record.shape[2] == 1) == is_flat]
    if not wanted:
        wish, size = ("a single 2D image", "1") if is_flat else ("a volume", "more than 1")
        raise NothingUsableError(
            "E_CACHE_EMPTY",
            f"none of the {len(labelled)} images with {kind} is {wish}",
            hint=f"the third number of data.crop_size is {size}: take the other kind of network, or another cache",
        )
    if len(wanted) < len(labelled):
        talk.note(f"{len(labelled) - len(wanted)} {'volumes' if is_flat else 'single 2D images'} are left out")
    _say_unknown(wanted, modality, talk)
    return wanted


def of_examples(
    cache: Cache, annotated: Sequence[ItemRecord], preprocessing: Preprocessing, talk: Talk
) -> list[ItemRecord]:
    """Annotated images whose examples have every channel of a recipe; where a recipe names none, all of them.

    An example of several images goes by the first of them that is annotated: in splits, manifests and results.

    Args:
        cache: Where they are.
        annotated: Images that something is known of.
        preprocessing: The recipe's.
        talk: Told how many cases are left out and why.

    Raises:
        UsageError: `E_RECIPE`, two names mean one channel.
        NothingUsableError: `E_CHANNEL_MISSING`, `E_NO_LABELS`.
    """
    names = preprocessing.channel_names
    everything = cache.records() if names else []
    return [home for _, home in annotated_examples(everything, annotated, names, note=talk.note)]


def examples_of(cache: Cache, records: Sequence[ItemRecord], preprocessing: Preprocessing) -> list[Example]:
    """The example that each of some annotated images stands for, in their order; see `of_examples`.

    Raises:
        InputError: `E_CHANNEL_MISSING`, `E_CHANNEL_AMBIGUOUS`, `E_CHANNEL_GRID`, the cache has changed since.
    """
    names = preprocessing.channel_names
    return examples_with(cache.records() if names else [], records, names)


def companions(cache: Cache, records: Sequence[ItemRecord], preprocessing: Preprocessing) -> dict[str, Any]:
    """What a run's manifest should remember of the images of its examples; nothing where a recipe names no channels."""
    if preprocessing.channels is None:
        return {}
    return images_digest([record.item_id for record in records], examples_of(cache, records, preprocessing))


def images_digest(names: Sequence[str], found: Sequence[Example]) -> dict[str, Any]:
    """For a manifest: which images belong together, by the item that stands for each example."""
    images = {name: [item.item_id for item in example.items] for name, example in zip(names, found, strict=True)}
    return {"examples_sha256": sha256_json(images)}


def read_images(cache: Cache, example: Example) -> list[Volume]:
    """The images of an example, one per channel."""
    return [cache.read_image(cache.record(item.item_id)) for item in example.items]


def images_of_examples(
    cache: Cache, records: Sequence[ItemRecord], preprocessing: Preprocessing
) -> Iterator[list[Volume]]:
    """The images, one per channel, of the example that each of some annotated images stands for; see `of_examples`."""
    for example in examples_of(cache, records, preprocessing):
        yield read_images(cache, example)


def no_annotations(kind: Literal["findings", "boxes"], label_set: str, known: set[str]) -> NothingUsableError:
    """`E_NO_LABELS`, with the names of the sets of findings or boxes that are there."""
    others = ", ".join(sorted(known)[:NAMED_SETS]) or "none at all"
    return NothingUsableError(
        "E_NO_LABELS",
        f"no image has {kind} of the set {label_set!r}; the cache has {others}",
        hint=f"ingest a table of {kind} beside the images; medssl ingest --label-set gives it a name",
    )


def _say_unknown(items: Sequence[Item], modality: str | None, talk: Talk) -> None:
    unknown = sum(item.modality == "unknown" for item in items)
    if modality is not None and unknown:
        talk.note(f"W_UNKNOWN_MODALITY: {unknown} of {len(items)} images are taken as {modality}; they do not say so")


def say_misfits(items: Sequence[ItemRecord | Entry], preprocessing: Preprocessing, talk: Talk) -> None:
    """Tell of how many images a recipe takes the values or the pixels for what they are not known to be.

    Rules of named channels are about the image of that name, and are taken at their word.

    Args:
        items: Images to learn from.
        preprocessing: Geometry and intensity rule of the recipe.
        talk: Told in one line of each kind.
    """
    others = Counter(item.modality for item in items if item.modality not in ("CT", "unknown"))
    if preprocessing.window_hu is not None and others:
        counts = joined([f"{count} {modality}" for modality, count in sorted(others.items())])
        low, high = preprocessing.window_hu
        talk.note(
            f"W_NOT_HU: {counts} of {len(items)} images have no Hounsfield units, and all that is outside of "
            f"{low:g} to {high:g} is cut off"
        )
    unknown = sum(not item.is_volume and spacing_mm(item.affine_array)[:2] == (1, 1) for item in items)
    if preprocessing.spacing_mm is not None and unknown:
        talk.note(
            f"W_NO_SPACING: {unknown} of {len(items)} images are pictures without a spacing; their pixels count as 1 mm"
        )
