"""Which labelled images a training learns from, and crops of them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.cache.reading import no_labels
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import LabelSurvey, class_voxels
from medssl_cli.classes import WantedClasses, joined
from medssl_cli.data.crops import CropDataset
from medssl_cli.engine.randomness import Purpose, stream_seed
from medssl_cli.engine.talk import Talk
from medssl_cli.errors import NothingUsableError
from medssl_cli.methods import LabelRequest

BASELINE_STEPS: Final = 8


def labelled_entries(
    cache: Cache, usable: Sequence[Entry], request: LabelRequest, held_out: set[str], talk: Talk
) -> list[Entry]:
    """Those of the usable items whose labels a pre-training may see: never those of test patients.

    Raises:
        NothingUsableError: `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
        UsageError: `E_LABEL_CLASSES`.
    """
    found = [entry for entry in usable if request.label_set in entry.label_digests]
    if not found:
        raise no_labels(request.label_set, {name for entry in usable for name in entry.label_digests})
    entries = [entry for entry in found if entry.patient_key not in held_out]
    if not entries:
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS", f"all patients with labels of the set {request.label_set!r} are test patients"
        )
    records = [cache.record(entry.item_id) for entry in entries]
    check_labels(records, request.label_set, request.wanted, talk, option=f"{request.option}.classes")
    patients = len({entry.patient_key for entry in entries})
    talk.note(f"labels of {len(entries)} images, {patients} patients, set {request.label_set!r}")
    return entries


def check_labels(
    records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses, talk: Talk, *, option: str
) -> None:
    """Refuse label maps and classes that contradict each other now, not after the training, and say what is left out.

    Args:
        records: Labelled.
        label_set: Which labels.
        wanted: Classes of the recipe.
        talk: Told which labels are no class, and where names decide.
        option: Where the recipe has the classes.

    Raises:
        UsageError: `E_LABEL_CLASSES`.
    """
    survey = LabelSurvey([record.labels[label_set] for record in records], wanted, option)
    survey.refuse_contradictions()
    for line in survey.notes():
        talk.note(line)


def check_reference(records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses, talk: Talk) -> None:
    """The same for the labels that a trained model is scored by: a part of them may lack some of its classes.

    Raises:
        UsageError: `E_LABEL_CLASSES`, two names for one value, two spellings of one name, or no class of the model in
            any label map.
    """
    survey = LabelSurvey([record.labels[label_set] for record in records], wanted)
    survey.refuse_two_names()
    survey.refuse_other_spellings("score it with labels that have its names, ingested under another --label-set")
    survey.refuse_strangers()
    for line in survey.notes():
        talk.note(line)
    say_unseen({"scored": records}, label_set, wanted, talk)


def say_unseen(splits: Mapping[str, Sequence[ItemRecord]], label_set: str, wanted: WantedClasses, talk: Talk) -> None:
    """Name the classes that no image of a split shows: they cannot be learnt from it, or not be scored on it.

    Args:
        splits: Images by the name of their split.
        label_set: Which labels.
        wanted: Classes of the recipe.
        talk: Told.
    """
    for split, records in splits.items():
        unseen = LabelSurvey([record.labels[label_set] for record in records], wanted).unseen()
        if unseen:
            classes = joined([repr(name) for name in unseen])
            talk.note(f"W_CLASS_ABSENT: no voxel of {classes} in the {len(records)} {split} images")


def say_amounts(records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses, talk: Talk) -> None:
    """Say of each class how many patients and voxels there are to learn from.

    Args:
        records: Of the training.
        label_set: Which labels.
        wanted: Classes of the recipe.
        talk: Told.
    """
    patients: dict[int, set[str]] = defaultdict(set)
    voxels: Counter[int] = Counter()
    for record in records:
        for place, number in class_voxels(record.labels[label_set], wanted).items():
            patients[place].add(record.patient_key)
            voxels[place] += number
    amounts = [
        f"{name} {voxels[place]} voxels in {len(patients[place])} patients" for place, name in wanted.names.items()
    ]
    talk.note(f"to learn from: {joined(amounts, 20)}")


def labelled_crops(items: Sequence[PreparedItem], request: LabelRequest, seed: int) -> CropDataset:
    """Crops of labelled items, drawn apart from the unlabelled ones."""
    return CropDataset(
        items,
        request.size,
        batch_size=request.batch_size,
        seed=stream_seed(seed, Purpose.LABELLED),
        foreground_prob=request.foreground_prob,
        pad_with_low=True,
    )


def first_labels(crops: CropDataset, batch_size: int) -> Tensor:
    """Classes of the crops of the first steps, int64 [N, L, X, Y, Z]: what a baseline is computed from."""
    labels = [[crops[step, slot].label for slot in range(batch_size)] for step in range(BASELINE_STEPS)]
    return torch.from_numpy(np.array(labels).astype(np.int64))
