"""A fixed set of crops with whatever the cache knows about them, to ask again and again what embeddings tell apart.

Everything is a function of the recipe's seed and the items, so figures of a resumed run compare.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medssl_cli.base.classes import IGNORE
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.own_classes import everything_in
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.cache.targets import tables_of
from medssl_cli.data.crops import crop_start, read_classes, read_input
from medssl_cli.data.selection import known_of
from medssl_cli.data.windows import WindowBatch
from medssl_cli.engine.training_parts import TrainingParts
from medssl_cli.imaging.geometry import Shape
from medssl_cli.recipe import Data

MIN_PROBE_CROPS: Final = 16
PROBE_CROPS: Final = 96
PROBE_VOXELS: Final = 2**25
PROBE_STEPS: Final = 4
"""Voxels of the probe in those of a step: a look is a forward pass only, so it costs about as much as a step."""
DRAWN_BOXES: Final = 2
MIN_CROPS_PER_CLASS: Final = 4
STREAM: Final = 3
"""Stream of the seed; 1 and 2 are the training's order and crops."""


@dataclass(frozen=True)
class Question:
    """Something that embeddings may tell.

    Args:
        classes: Class per crop, 0...K-1, [N].
        is_fitted: Crops of the patients that a probe is fitted on, [N]; the other patients score it.
        is_asked: Crops for which the answer is known, [N].
    """

    classes: Tensor
    is_fitted: Tensor
    is_asked: Tensor


@dataclass(frozen=True)
class Probe:
    """The crops and what is asked about them.

    Args:
        crops: Network input, [N, C, X, Y, Z] or [N, C, X, Y].
        boxes: Boxes as the method wants them, [B, C, X, Y, Z], for its matrices; none for 2D images.
        questions: Questions by name.
        windows: Windows for its pictures, where its views know where they lie.
    """

    crops: Tensor
    boxes: Tensor
    questions: dict[str, Question]
    windows: WindowBatch | None = None


def build_probe(
    parts: TrainingParts,
    items: Sequence[PreparedItem],
    data: Data,
    *,
    box_size: Shape,
    seed: int,
    progress: Callable[[int, int], None],
) -> Probe:
    """Choose crops of the training items; where there are labels, each class takes its turn in the middle.

    Args:
        parts: Parts of the training.
        items: Its examples, prepared.
        data: Section `data` of the recipe.
        box_size: Size of the method's input.
        seed: Seed of the recipe.
        progress: Told (done, total) while labels are prepared.
    """
    rng = np.random.default_rng([seed, STREAM])
    voxels = min(PROBE_VOXELS, PROBE_STEPS * data.batch_size * prod(box_size))
    number = min(max(voxels // prod(data.crop_size), MIN_PROBE_CROPS), PROBE_CROPS)
    order = rng.permutation(len(items))
    chosen = [int(order[index % len(order)]) for index in range(number)]
    known = {index: _known(parts, index) for index in sorted(set(chosen))}
    label_set = _label_set([known[index] for index in chosen])
    labelled = {}
    if label_set is not None:
        labels = {index: record.labels[label_set] for index, record in known.items() if label_set in record.labels}
        found = tables_of(list(labels.values()), everything_in(list(labels.values())))
        tables = dict(zip(labels, found, strict=True))
        labelled = parts.some(labels, lambda part: part.preprocessing, progress, label_set=label_set, tables=tables)
    crops, centres = [], []
    for turn, index in enumerate(chosen):
        item = labelled.get(index, items[index])
        start = _start(item, data.crop_size, turn // len(order) + turn, rng)
        crops.append(_read(item, start, data.crop_size))
        centres.append(_class_at_centre(item, start, data.crop_size))
    boxes = [_read(item, crop_start(item, box_size, rng, foreground_prob=0), box_size) for item in items[:DRAWN_BOXES]]
    answers = {f"centre of {label_set}": centres} | record_answers([known[index] for index in chosen])
    patients = [known[index].patient_key for index in chosen]
    return Probe(
        torch.from_numpy(np.stack(crops)),
        torch.from_numpy(np.stack(boxes)),
        questions(answers, patients, rng),
    )


def _known(parts: TrainingParts, place: int) -> ItemRecord:
    """What is known of an example by its place."""
    part, example = parts.find(place)
    return known_of(part.cache, example)


def _label_set(records: Sequence[ItemRecord]) -> str | None:
    """The label set that most of the items have."""
    counts = Counter(name for record in records for name in record.labels)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def _start(item: PreparedItem, crop_size: Shape, turn: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Where a crop begins: in turn anywhere, and with a voxel of each class in the middle."""
    classes = [0, *sorted(item.points)]
    wanted = classes[turn % len(classes)]
    if wanted == 0:
        return crop_start(item, crop_size, rng, foreground_prob=0)
    point = item.points[wanted][rng.integers(len(item.points[wanted]))]
    x, y, z = (int(voxel) - length // 2 for voxel, length in zip(point, crop_size, strict=True))
    return x, y, z


def _read(item: PreparedItem, start: tuple[int, int, int], size: Shape) -> NDArray[np.float32]:
    return read_input(item, start, size, pad_with_low=True)


def _class_at_centre(item: PreparedItem, start: tuple[int, int, int], size: Shape) -> int | None:
    x, y, z = (first + length // 2 for first, length in zip(start, size, strict=True))
    found = read_classes(item, (x, y, z), (1, 1, 1))
    return None if found is None or found.item() == IGNORE else int(found.item())


def record_answers(records: Sequence[ItemRecord]) -> dict[str, list[int | None]]:
    """Modality and findings of each record, as numbers."""
    modalities = sorted({record.modality for record in records})
    answers: dict[str, list[int | None]] = {"modality": [modalities.index(record.modality) for record in records]}
    findings = sorted(
        {(group, name) for record in records for group in record.findings for name in record.findings[group]}
    )
    for group, name in findings:
        values = [record.findings.get(group, {}).get(name) for record in records]
        answers[f"finding {name}"] = [None if value is None else int(value > 0) for value in values]
    return answers


def questions(
    answers: dict[str, list[int | None]], patients: Sequence[str], rng: np.random.Generator
) -> dict[str, Question]:
    """Those with at least two classes on either side of a split by patient."""
    keys = sorted(set(patients))
    fitted = {keys[index] for index in rng.permutation(len(keys))[: len(keys) // 2]}
    is_fitted = torch.tensor([patient in fitted for patient in patients])
    found = {}
    for name, values in answers.items():
        is_asked = torch.tensor([value is not None for value in values])
        classes = torch.tensor([0 if value is None else value for value in values])
        enough = [
            value
            for value in classes[is_asked].unique().tolist()
            if all(
                int(((classes == value) & is_asked & side).sum()) >= MIN_CROPS_PER_CLASS
                for side in (is_fitted, ~is_fitted)
            )
        ]
        if len(enough) > 1:
            is_asked &= torch.isin(classes, torch.tensor(enough))
            found[name] = Question(torch.searchsorted(torch.tensor(enough), classes), is_fitted, is_asked)
    return found
