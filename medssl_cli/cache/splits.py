"""Patient-grouped splits: a pure function of who is in the cache and which label sets they have."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from medssl_cli.cache.items import ItemRecord
from medssl_cli.errors import NothingUsableError

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


def shuffled(keys: Sequence[str], seed: int) -> list[str]:
    """Keys in an order that depends on nothing but the keys and the seed."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}|{key}".encode()).digest())


def held_out_patients(records: Sequence[ItemRecord], seed: int) -> set[str]:
    """Every fifth labelled patient, stratified by the label sets a patient has; unlabelled patients never.

    Pre-training leaves these out, so that no evaluation sees an image that any training has seen.
    """
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient, sets in _label_sets(records).items():
        if sets:
            strata[tuple(sorted(sets))].append(patient)
    return {patient for patients in strata.values() for patient in shuffled(patients, seed)[::TEST_EVERY]}


def _label_sets(records: Sequence[ItemRecord]) -> dict[str, set[str]]:
    sets: dict[str, set[str]] = defaultdict(set)
    for record in records:
        sets[record.patient_key] |= set(record.labels)
    return sets


def split_items(
    all_records: Sequence[ItemRecord],
    usable: Sequence[ItemRecord],
    *,
    seed: int,
    fold: int,
    fraction: float = 1.0,
    num_val: int | None = None,
) -> Split:
    """Split the items that a task can use by patient.

    Args:
        all_records: Every item of the cache; decides who is a test patient.
        usable: The items to split.
        seed: Of the shuffle.
        fold: 0 to 4; which fifth of the remaining patients validates.
        fraction: Share of the training patients to keep, at least one; validation and test do not change.
        num_val: Validate on so many patients of the fold at most; the others train.

    Raises:
        NothingUsableError: `E_TOO_FEW_PATIENTS`.
    """
    test = held_out_patients(all_records, seed)
    patients = shuffled(sorted({record.patient_key for record in usable} - test), seed)
    val = patients[fold::NUM_FOLDS][:num_val]
    train = [patient for patient in patients if patient not in set(val)]
    if not train or not val:
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS",
            f"{len(patients)} patients are left to train and validate on",
            hint="label more patients, try another --fold, or check --patient-pattern of ingest",
        )
    kept = set(train[: max(1, round(len(train) * fraction))])
    return Split(
        train=tuple(record for record in usable if record.patient_key in kept),
        val=tuple(record for record in usable if record.patient_key in set(val)),
        test=tuple(record for record in usable if record.patient_key in test),
    )
