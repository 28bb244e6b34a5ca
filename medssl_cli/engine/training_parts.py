"""Which examples a pre-training learns from: all of a cache, or a mixture of parts, each prepared in its own way."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import joined
from medssl_cli.base.errors import NothingUsableError, UsageError
from medssl_cli.base.files import sha256_json
from medssl_cli.base.plugins import suggest
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import CachedImage, Entry
from medssl_cli.cache.named_splits import GivenSplit, held_out_by_names
from medssl_cli.cache.prepared import PreparedItem, prepare
from medssl_cli.cache.splits import held_out_patients, same_people
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import Table, tables_of
from medssl_cli.data.examples import Example
from medssl_cli.data.selection import images_digest, say_misfits, training_examples
from medssl_cli.engine.labelled import labelled_examples, labelled_record
from medssl_cli.methods import LabelRequest, ViewRequest
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import MixturePart, PretrainData, PretrainRecipe

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TrainingPart:
    """Examples that are prepared alike.

    Args:
        cache: They are in.
        declared: Part as it is in the recipe.
        examples: Examples to train on.
        labelled: Those of them whose labels the method sees.
    """

    cache: Cache
    declared: MixturePart
    examples: list[Example]
    labelled: list[Example] = field(default_factory=list)

    def prepared(self, preprocessing: Preprocessing, progress: Progress) -> Sequence[PreparedItem]:
        """All examples, prepared."""
        return prepare(self.cache, self.examples, preprocessing, progress=progress)

    def prepared_labels(self, request: LabelRequest, progress: Progress) -> Sequence[PreparedItem]:
        """The labelled examples, prepared with their label maps of a set."""
        name, preprocessing = request.label_set, self.declared.preprocessing
        labels = [labelled_record(self.cache, example, name).labels[name] for example in self.labelled]
        tables = tables_of(labels, request.wanted)
        return prepare(self.cache, self.labelled, preprocessing, label_set=name, tables=tables, progress=progress)


@dataclass(frozen=True)
class TrainingParts:
    """All parts of a training.

    Args:
        parts: Parts in the order of the recipe.
        data: Section `data` of the recipe.
        label_set: That the method sees, if it sees labels.
    """

    parts: tuple[TrainingPart, ...]
    data: PretrainData
    label_set: str | None = None

    def __iter__(self) -> Iterator[TrainingPart]:
        return iter(self.parts)

    def __len__(self) -> int:
        """Number of examples."""
        return sum(len(part.examples) for part in self.parts)

    @property
    def examples(self) -> list[Example]:
        """Examples of all parts, one part after the other."""
        return [example for part in self.parts for example in part.examples]

    @property
    def weights(self) -> list[int]:
        """How often an epoch shows the examples of each part."""
        return [part.declared.weight for part in self.parts]

    @property
    def item_weights(self) -> NDArray[np.int64]:
        """The same of each example, `[N]`."""
        return np.repeat(self.weights, [len(part.examples) for part in self.parts])

    def find(self, place: int) -> tuple[TrainingPart, Example]:
        """An example by its place among all of them, and its part."""
        for part in self.parts:
            if place < len(part.examples):
                return part, part.examples[place]
            place -= len(part.examples)
        raise IndexError(place)

    def some(
        self,
        places: Iterable[int],
        preprocessing: Callable[[MixturePart], Preprocessing],
        progress: Progress,
        *,
        label_set: str | None = None,
        tables: Mapping[int, Table] | None = None,
    ) -> dict[int, PreparedItem]:
        """Some examples by their places, prepared.

        Args:
            places: Among all examples.
            preprocessing: Preprocessing from a part to what the network sees of it.
            progress: Told (done, total) of each part.
            label_set: Prepare these label maps too, which all of the examples have.
            tables: Tables from their values to classes, of each place.
        """
        found: dict[int, PreparedItem] = {}
        wanted = sorted(set(places))
        for part in self.parts:
            own = [place for place in wanted if self.find(place)[0] is part]
            if own:
                items = prepare(
                    part.cache,
                    [self.find(place)[1] for place in own],
                    preprocessing(part.declared),
                    label_set=label_set,
                    tables=None if tables is None else [tables[place] for place in own],
                    progress=progress,
                )
                found |= dict(zip(own, items, strict=True))
        return found

    def splits(self) -> dict[str, Sequence[CachedImage]]:
        """For a manifest: the image that stands for each example."""
        found: dict[str, Sequence[CachedImage]] = {
            "train": list({example.item_id: example.first for example in self.examples}.values())
        }
        if self.label_set is not None:
            homes = [each.labelled(self.label_set) for part in self.parts for each in part.labelled]
            found["labelled"] = list({home.item_id: home for home in homes if home is not None}.values())
        return found

    def arguments(self) -> dict[str, Any]:
        """For a manifest: which images belong together, and to which part."""
        shown, found = self.examples, dict[str, Any]()
        if self.data.channels is not None:
            found = images_digest([each.item_id for each in shown], shown)
        if self.data.mixture is not None:
            found["mixture_sha256"] = sha256_json([[each.item_id for each in part.examples] for part in self.parts])
        return found


def training_parts(
    recipe: PretrainRecipe,
    cache: Cache,
    others: Mapping[str, Cache],
    views: ViewRequest,
    talk: Talk,
    split: GivenSplit | None = None,
) -> TrainingParts:
    """What a pre-training sees, without the labelled test patients of any of its caches.

    Args:
        recipe: How to train.
        cache: Cache of parts that name none.
        others: Caches that parts name.
        views: Views of the method.
        talk: Told what is left out.
        split: Files that say who tests in `cache`, instead of the rule.

    Raises:
        UsageError: `E_NO_CACHE`, `E_USAGE`, `E_RECIPE`, `E_LABEL_CLASSES`, `E_SPLIT_FILE`, `E_SPLIT_NAMES`,
            `E_SPLIT_PATIENT`.
        NothingUsableError: `E_CACHE_EMPTY`, `E_CHANNEL_MISSING`, `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
    """
    data = recipe.data
    caches = [_cache_of(part, cache, others) for part in data.parts]
    _refuse_unused(data, others)
    entries = {own.root: own.entries() for own in caches}
    named = None if split is None else held_out_by_names(cache.records(), split, cache.pseudonyms)
    by_rule = [own for root, own in entries.items() if named is None or root != cache.root]
    held_out = _held_out(by_rule, list(entries.values()), recipe.split_seed, named or set())
    usable = [
        _examples(part, own, entries[own.root], views, talk) for part, own in zip(data.parts, caches, strict=True)
    ]
    shown = [[example for example in part if example.patient_key not in held_out] for part in usable]
    _say(data, [len(part) for part in shown], [len(part) for part in usable], talk)
    for part, own in zip(data.parts, shown, strict=True):
        say_misfits([item for example in own for item in example.items], part.preprocessing, talk)
    if views.labelled is None:
        return TrainingParts(tuple(map(TrainingPart, caches, data.parts, shown)), data)
    labelled = labelled_examples(list(zip(caches, usable, strict=True)), views.labelled, held_out, talk)
    return TrainingParts(
        tuple(map(TrainingPart, caches, data.parts, shown, labelled)), data, label_set=views.labelled.label_set
    )


def _examples(
    part: MixturePart, cache: Cache, entries: Sequence[Entry], views: ViewRequest, talk: Talk
) -> list[Example]:
    """Usable examples of a part, test patients included."""
    if part.body_parts:
        known = {record.item_id: record.acquisition.body_part for record in cache.iterate()}
        entries = [entry for entry in entries if known.get(entry.item_id) in part.body_parts]
        if not entries:
            there = sorted(set(known.values()))
            raise NothingUsableError(
                "E_CACHE_EMPTY",
                f"no image is of {joined(part.body_parts)}; there are {joined(there) or 'no images'}",
                hint="images from DICOM say their part of the body; put others into a cache of their own",
            )
    return training_examples(entries, part, takes_pictures=views.takes_pictures, talk=talk)


def _cache_of(part: MixturePart, cache: Cache, others: Mapping[str, Cache]) -> Cache:
    """The cache that a part names, or the one of the command."""
    if part.cache is None:
        return cache
    if part.cache not in others:
        raise UsageError(
            "E_NO_CACHE",
            f"the mixture takes images from a cache called {part.cache!r}, and nothing says where it is",
            hint=f"medssl pretrain --cache-of {part.cache}=FOLDER",
        )
    return others[part.cache]


def _refuse_unused(data: PretrainData, others: Mapping[str, Cache]) -> None:
    """Refuse caches that no part takes images from."""
    known = [part.cache for part in data.parts if part.cache is not None]
    for name in others:
        if name not in known:
            raise UsageError("E_USAGE", f"no part of the mixture names the cache {name!r}", hint=suggest(name, known))


def _held_out(
    by_rule: Sequence[Sequence[Entry]], caches: Sequence[Sequence[Entry]], seed: int, named: set[str]
) -> set[str]:
    """Test patients of each cache, by the rule or as a file names them, in whichever cache they are found again."""
    held_out = named | {patient for entries in by_rule for patient in held_out_patients(entries, seed)}
    if len(caches) == 1:
        return held_out
    people = same_people([entry for entries in caches for entry in entries])
    persons = {people[patient] for patient in held_out if patient in people}
    return {patient for patient, person in people.items() if person in persons}


def _say(data: PretrainData, shown: Sequence[int], usable: Sequence[int], talk: Talk) -> None:
    """Tell how many examples each part shows of those that are usable, and its share of an epoch."""
    what = "images" if data.channels is None else f"examples of {joined(data.channel_names)}"
    in_epoch = [number * part.weight for number, part in zip(shown, data.parts, strict=True)]
    for place, (number, all_of_it) in enumerate(zip(shown, usable, strict=True)):
        if not number:
            which = "every image" if data.mixture is None else f"every image of part {place + 1} of the mixture"
            raise NothingUsableError("E_CACHE_EMPTY", f"{which} belongs to a labelled test patient")
        share = f"part {place + 1}, {in_epoch[place] / sum(in_epoch):.0%} of an epoch: " if data.mixture else ""
        talk.note(f"{share}{number} {what} ({all_of_it - number} of labelled test patients left out)")
