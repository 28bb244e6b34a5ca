"""Patient-grouped splits: a pure function of who is in the cache and which label sets they have."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.cache.fingerprints import NO_CONTENT
from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.imaging.geometry import Shape

SplitName = Literal["train", "val", "test"]
TEST_EVERY: Final = 5
NUM_FOLDS: Final = 5


@dataclass(frozen=True)
class Split:
    """Items of one fold. No patient is in two of the lists."""

    train: tuple[ItemRecord, ...]
    val: tuple[ItemRecord, ...]
    test: tuple[ItemRecord, ...]

    def of(self, name: SplitName) -> tuple[ItemRecord, ...]:
        """One of the three lists."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def shuffled(keys: Sequence[str], seed: int | str) -> list[str]:
    """Keys in an order that depends on nothing but the keys and the seed."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}|{key}".encode()).digest())


def held_out_patients(records: Sequence[ItemRecord | Entry], seed: int) -> set[str]:
    """Every fifth labelled patient, stratified by the label sets a patient has; unlabelled patients never.

    Pre-training leaves these out, so that no evaluation sees an image that any training has seen. Patients who share
    an image count as one. Sets of boxes and findings count for those who have no label maps.
    """
    people = same_people(records)
    maps: dict[str, set[str]] = defaultdict(set)
    others: dict[str, set[str]] = defaultdict(set)
    for record in records:
        maps[people[record.patient_key]] |= set(record.label_digests)
        others[people[record.patient_key]] |= set(record.annotation_sets)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for person, own in maps.items():
        if names := own or others[person]:
            strata[tuple(sorted(names))].append(person)
    held_out = {person for members in strata.values() for person in shuffled(members, seed)[::TEST_EVERY]}
    return {patient for patient, person in people.items() if person in held_out}


def probe_patients(records: Sequence[ItemRecord | Entry], *, seed: int, is_pseudo: bool) -> set[str]:
    """Whom a probe of a pre-trained encoder is scored on: the held-out patients.

    Args:
        records: Every item of the cache.
        seed: Seed of the shuffle.
        is_pseudo: What is asked needs no labels, so that every fifth unlabelled patient is tested too.
    """
    test = held_out_patients(records, seed)
    if not is_pseudo:
        return test
    people = same_people(records)
    labelled = {people[record.patient_key] for record in records if record.label_digests or record.annotation_sets}
    rest = set(shuffled(sorted(set(people.values()) - labelled), seed)[::TEST_EVERY])
    return test | {patient for patient, person in people.items() if person in rest}


def same_people(records: Sequence[ItemRecord | Entry]) -> dict[str, str]:
    """For each patient key the smallest key among those that share an image with it.

    The same fingerprint and shape under two identities is one person twice, or one of the identities is wrong. Either
    way the two must not be on different sides of a split.
    """
    people = {record.patient_key: record.patient_key for record in records}

    def person_of(patient: str) -> str:
        while people[patient] != patient:
            people[patient] = people[people[patient]]
            patient = people[patient]
        return patient

    first: dict[tuple[str, Shape], str] = {}
    for record in records:
        if record.fingerprint not in (None, NO_CONTENT):
            image = (str(record.fingerprint), record.shape)
            smaller, larger = sorted(
                (person_of(first.setdefault(image, record.patient_key)), person_of(record.patient_key))
            )
            people[larger] = smaller
    return {patient: person_of(patient) for patient in people}


def split_items(
    all_records: Sequence[ItemRecord],
    usable: Sequence[ItemRecord],
    *,
    seed: int,
    fold: int,
    fraction: float = 1.0,
    num_val: int | None = None,
    num_train: int | None = None,
    draw: int = 0,
    num_folds: int = NUM_FOLDS,
) -> Split:
    """Split the items that a task can use by patient; patients who share an image stay together.

    Args:
        all_records: Every item of the cache; decides who is a test patient.
        usable: The items to split.
        seed: Seed of the shuffle.
        fold: 0 to `num_folds` - 1; which part of the remaining patients validates.
        fraction: Share of the training patients to keep, at least one; validation and test do not change.
        num_val: Validate on so many patients of the fold at most; the others train.
        num_train: Train on exactly so many patients, instead of a fraction of them.
        draw: Which random order they are taken in. Of one draw, the few are among the many.
        num_folds: Parts of equal size, each of which validates in one fold.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`.
    """
    test = held_out_patients(all_records, seed)
    people = same_people([*all_records, *usable])
    patients = shuffled(
        sorted({people[record.patient_key] for record in usable if record.patient_key not in test}), seed
    )
    if num_folds > max(NUM_FOLDS, len(patients)):
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            f"{len(patients)} patients are left to train and validate on, too few for {num_folds} folds",
            hint="ask for fewer folds, or label more patients",
        )
    val = patients[fold::num_folds][:num_val]
    train = [patient for patient in patients if patient not in set(val)]
    kept = chosen_patients(train, len(val), seed=seed, fraction=fraction, num_train=num_train, draw=draw)
    rest = [record for record in usable if record.patient_key not in test]
    return Split(
        train=tuple(record for record in rest if people[record.patient_key] in kept),
        val=tuple(record for record in rest if people[record.patient_key] in set(val)),
        test=tuple(record for record in usable if record.patient_key in test),
    )


def chosen_patients(
    train: Sequence[str], num_val: int, *, seed: int, fraction: float, num_train: int | None, draw: int
) -> set[str]:
    """Those of the training patients to learn from; see `split_items`.

    Args:
        train: All of them, in an order that depends on the seed only.
        num_val: How many validate.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`.
    """
    if draw:
        train = shuffled(train, f"{seed}/{draw}")
    if not train or not num_val:
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            f"{len(train) + num_val} patients are left to train and validate on",
            hint="take a lower fold, or fewer of them"
            if train
            else "label more patients, or check medssl ingest --patient-pattern",
        )
    if num_train is not None and num_train > len(train):
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            f"{len(train)} patients are there to train on, {num_train} were asked for",
            hint="ask for fewer --patients, or label more",
        )
    return set(train[: num_train or max(1, round(len(train) * fraction))])
