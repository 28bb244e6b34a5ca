"""Which labelled images a training learns from, and crops of them."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.cache.reading import no_labels
from medssl_cli.cache.store import Cache
from medssl_cli.data.crops import CropDataset
from medssl_cli.data.examples import Example
from medssl_cli.data.label_checks import check_labels
from medssl_cli.engine.randomness import Purpose, stream_seed
from medssl_cli.methods import LabelRequest

BASELINE_STEPS: Final = 8


def labelled_examples(
    parts: Sequence[tuple[Cache, Sequence[Example]]], request: LabelRequest, held_out: set[str], talk: Talk
) -> list[list[Example]]:
    """Those of the usable examples whose labels a pre-training may see: never those of test patients.

    Args:
        parts: Usable examples of each part of a training, and the cache that they are in.
        request: Request of the method.
        held_out: Test patients.
        talk: Told how many there are.

    Raises:
        NothingUsableError: `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
        UsageError: `E_LABEL_CLASSES`.
    """
    name = request.label_set
    found = [[example for example in usable if name in example.label_digests] for _, usable in parts]
    if not any(found):
        raise no_labels(name, {other for _, usable in parts for example in usable for other in example.label_digests})
    labelled = [[example for example in part if example.patient_key not in held_out] for part in found]
    if not any(labelled):
        raise NothingUsableError(
            "E_TOO_FEW_PATIENTS", f"all patients with labels of the set {name!r} are test patients"
        )
    records = [
        labelled_record(cache, example, name)
        for (cache, _), part in zip(parts, labelled, strict=True)
        for example in part
    ]
    check_labels(records, name, request.wanted, talk, option=f"{request.option}.classes")
    patients = len({record.patient_key for record in records})
    talk.note(f"labels of {len(records)} images, {patients} patients, set {name!r}")
    return labelled


def labelled_record(cache: Cache, example: Example, label_set: str) -> ItemRecord:
    """The record of the image of an example that has the label map of a set; there is one."""
    home = example.labelled(label_set)
    assert home is not None
    return cache.record(home.item_id)


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
