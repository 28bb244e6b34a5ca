"""Which labelled images a training learns from, and crops of them."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medssl_cli.base.errors import NothingUsableError
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import Entry
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.cache.reading import no_labels
from medssl_cli.cache.store import Cache
from medssl_cli.data.crops import CropDataset
from medssl_cli.data.label_checks import check_labels
from medssl_cli.engine.randomness import Purpose, stream_seed
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
