"""From the names of a split file to items of a cache, which knows names as pseudonyms only.

A name means the image whose file is called so, with or without its suffix and the word of its channel; else the study,
the patient, or the folder of that name. It is looked up by the pseudonym that `ingest` gave to the same word.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from medssl_cli.base.errors import UsageError
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.keys import Level, Pseudonyms
from medssl_cli.cache.split_files import NamedParts, PartName, SplitFile
from medssl_cli.cache.splits import NUM_FOLDS, Split, chosen_patients, same_people, shuffled
from medssl_cli.formats.name_words import CHANNEL_WORDS, CHANNELS
from medssl_cli.formats.table import stem_of

SHOWN: Final = 5
MOST_CHANNELS: Final = 16
_ENDS: Final = (
    *(f"_{number:04d}" for number in range(MOST_CHANNELS)),
    "#t0",
    *(f"{mark}{word}" for mark in "_-" for word in sorted({*CHANNELS, *CHANNEL_WORDS})),
)
"""What the name of an image may have behind that of its case: nnU-Net's number, a word for a channel, the first part
of a 4D file."""


@dataclass(frozen=True)
class GivenSplit:
    """A split that files give, instead of the rule.

    Args:
        file: What they say.
        skips_missing: Names that the cache does not know are left out and counted, instead of refused.
    """

    file: SplitFile
    skips_missing: bool = False

    def document(self, pseudonyms: Pseudonyms) -> dict[str, object]:
        """For a manifest. The digest is keyed: names could be guessed from a bare one."""
        document: dict[str, object] = {"digest": pseudonyms.hasher("split file")(self.file.content)}
        return document | ({"skips_missing": True} if self.skips_missing else {})


@dataclass
class Matched:
    """Items by part, and what could not be matched.

    Args:
        parts: Item ids of each named part.
        missing: Names that mean nothing in the cache.
        ambiguous: Names that mean images of several patients.
        num_names: All of them.
        name_of: First name that means it, for each item.
    """

    parts: dict[PartName, set[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    num_names: int = 0
    name_of: dict[str, str] = field(default_factory=dict)


class NamedItems:
    """The items of a cache by what a split file may call them.

    Args:
        records: All of them.
        pseudonyms: Pseudonyms of the cache's site.
    """

    def __init__(self, records: Sequence[ItemRecord], pseudonyms: Pseudonyms) -> None:
        self._of = pseudonyms.of
        self._people = same_people(records)
        self._by_key: dict[str, list[ItemRecord]] = defaultdict(list)
        self._by_case: dict[tuple[str, str], list[ItemRecord]] = defaultdict(list)
        for record in records:
            for key in (record.series_key, record.study_key, record.patient_key):
                self._by_key[key].append(record)
            if record.example_key is not None:
                self._by_case[record.patient_key, record.example_key].append(record)

    def match(self, parts: NamedParts) -> Matched:
        """The items of each part, with all channels of their cases."""
        found = Matched()
        for part, names in parts.named():
            items = found.parts.setdefault(part, set())
            for name in dict.fromkeys(names):
                records = self._find(name)
                found.num_names += 1
                if not records:
                    found.missing.append(name)
                elif len({self._people[record.patient_key] for record in records}) > 1:
                    found.ambiguous.append(name)
                else:
                    for record in records:
                        items.add(record.item_id)
                        found.name_of.setdefault(record.item_id, name)
        return found

    def _find(self, name: str) -> list[ItemRecord]:
        """The items that a name means, by the most specific level that knows it."""
        *folders, last = [word for word in re.split(r"[\\/]", name) if word not in ("", ".")] or [""]
        for words, levels in self._readings(folders, last):
            found = {
                record.item_id: record for word in words for level in levels for record in self._known(level, word)
            }
            if found:
                return self._with_channels(self._below(folders, list(found.values())))
        return []

    def _readings(self, folders: Sequence[str], last: str) -> Iterator[tuple[list[str], tuple[Level, ...]]]:
        plain = list(dict.fromkeys((last, stem_of(last))))
        yield plain, ("series",)
        yield [f"{word}{end}" for word in plain for end in _ENDS], ("series",)
        yield plain, ("study", "patient")
        for folder in reversed(folders):
            yield [folder], ("study", "patient")

    def _known(self, level: Level, word: str) -> list[ItemRecord]:
        return self._by_key.get(self._of(level, word), [])

    def _below(self, folders: Sequence[str], records: list[ItemRecord]) -> list[ItemRecord]:
        """Images of the patient or study that a folder of the name says, of those that are called the same."""
        keys = {self._of(level, folder) for folder in folders for level in ("study", "patient")}
        return [record for record in records if {record.study_key, record.patient_key} & keys] or records

    def _with_channels(self, records: list[ItemRecord]) -> list[ItemRecord]:
        cases = {(record.patient_key, record.example_key) for record in records if record.example_key is not None}
        others = [other for case in cases for other in self._by_case[case]]
        return list({record.item_id: record for record in (*records, *others)}.values())


def split_by_names(
    all_records: Sequence[ItemRecord],
    usable: Sequence[ItemRecord],
    given: GivenSplit,
    pseudonyms: Pseudonyms,
    *,
    seed: int,
    fold: int,
    num_folds: int = NUM_FOLDS,
    fraction: float = 1.0,
    num_train: int | None = None,
    draw: int = 0,
) -> tuple[Split, str]:
    """Split the items that a task can use as files say; see `splits.split_items` for the other arguments.

    A part that no file names is what is left: those train who neither validate nor test, and of those who train a
    fold validates, by the rule. Nobody tests whom no file names.

    Returns:
        The split, and one line about names that count for nothing, "" if there are none.

    Raises:
        UsageError: `E_SPLIT_FILE`, `E_SPLIT_NAMES`, `E_SPLIT_PATIENT`.
        NothingUsableError: `E_TOO_FEW_PATIENTS`.
    """
    matched = NamedItems(all_records, pseudonyms).match(given.file.parts(fold))
    _refuse_names(matched, skips_missing=given.skips_missing)
    people = same_people([*all_records, *usable])
    items = _items_of(matched, usable)
    _refuse_leaks(items, people, matched.name_of)
    persons = {part: {people[record.patient_key] for record in records} for part, records in items.items()}
    others = persons.get("val", set()) | persons.get("test", set())
    pool = items.get("train", [record for record in usable if people[record.patient_key] not in others])
    train = shuffled(sorted({people[record.patient_key] for record in pool}), seed)
    val = items.get("val")
    if val is None:
        validating = set(train[fold::num_folds])
        val = [record for record in pool if people[record.patient_key] in validating]
        train = [person for person in train if person not in validating]
    num_val = len({people[record.patient_key] for record in val})
    kept = chosen_patients(train, num_val, seed=seed, fraction=fraction, num_train=num_train, draw=draw)
    split = Split(
        train=tuple(record for record in pool if people[record.patient_key] in kept),
        val=tuple(val),
        test=tuple(items.get("test", ())),
    )
    return split, _said(matched, items)


def held_out_by_names(all_records: Sequence[ItemRecord], given: GivenSplit, pseudonyms: Pseudonyms) -> set[str]:
    """Keys of all who test in any fold of the files, under every key that a person has.

    Raises:
        UsageError: `E_SPLIT_FILE`, `E_SPLIT_NAMES`, `E_SPLIT_PATIENT`.
    """
    named, people = NamedItems(all_records, pseudonyms), same_people(all_records)
    persons: set[str] = set()
    for fold in range(given.file.num_folds or 1):
        matched = named.match(given.file.parts(fold))
        _refuse_names(matched, skips_missing=given.skips_missing)
        items = _items_of(matched, all_records)
        _refuse_leaks(items, people, matched.name_of)
        persons |= {people[record.patient_key] for record in items.get("test", ())}
    return {patient for patient, person in people.items() if person in persons}


def _items_of(matched: Matched, records: Sequence[ItemRecord]) -> dict[PartName, list[ItemRecord]]:
    """The items of each part that is named."""
    return {part: [record for record in records if record.item_id in ids] for part, ids in matched.parts.items()}


def _said(matched: Matched, items: Mapping[PartName, Sequence[ItemRecord]]) -> str:
    """What of the split file counts for nothing."""
    named = {item for ids in matched.parts.values() for item in ids}
    used = {record.item_id for records in items.values() for record in records}
    cases = {matched.name_of[item] for item in named} - {matched.name_of[item] for item in used}
    told = []
    if matched.missing:
        told.append(f"W_SPLIT_NAMES: {len(matched.missing)} of {matched.num_names} names of the split file are not in "
                    "the cache and are left out")  # fmt: skip
    if cases:
        told.append(f"{len(cases)} of {matched.num_names} names of the split file have no labels of the task")
    return "; ".join(told)


def _refuse_names(matched: Matched, *, skips_missing: bool) -> None:
    if matched.ambiguous:
        raise UsageError(
            "E_SPLIT_NAMES",
            f"{len(matched.ambiguous)} of {matched.num_names} names of the split file mean images of several patients: "
            f"{_shown(matched.ambiguous)}",
            hint="write the folder before the name, as in patient/name",
        )
    if matched.missing and not (skips_missing and len(matched.missing) < matched.num_names):
        raise UsageError(
            "E_SPLIT_NAMES",
            f"{len(matched.missing)} of {matched.num_names} names of the split file are not in the cache: "
            f"{_shown(matched.missing)}",
        )


def _refuse_leaks(
    items: Mapping[PartName, Sequence[ItemRecord]], people: Mapping[str, str], name_of: Mapping[str, str]
) -> None:
    """Refuse a patient in two parts."""
    first: dict[str, tuple[PartName, str]] = {}
    leaks: Counter[tuple[PartName, PartName]] = Counter()
    shown: list[str] = []
    for part, records in items.items():
        for person, item in {people[record.patient_key]: record.item_id for record in records}.items():
            before, other = first.setdefault(person, (part, item))
            if before != part:
                leaks[before, part] += 1
                shown.append(f"{name_of[other]} and {name_of[item]}")
    if leaks:
        pairs = ", ".join(f"{number} in {one} and {other}" for (one, other), number in leaks.items())
        raise UsageError(
            "E_SPLIT_PATIENT", f"patients of the split file are in two parts: {pairs}; {_shown(shown[:1])}"
        )


def _shown(names: Sequence[str]) -> str:
    short = [name if len(name) <= 64 else f"{name[:61]}..." for name in names[:SHOWN]]
    return ", ".join(ascii(name)[1:-1] for name in short) + (" ..." if len(names) > SHOWN else "")
