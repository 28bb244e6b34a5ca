"""A fixed set of 2D images with whatever the cache knows about them; see `probe`."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.crops import read_input
from medssl_cli.data.selection import known_of
from medssl_cli.data.slices import ImageIndex
from medssl_cli.engine.probe import STREAM, Probe, questions, record_answers
from medssl_cli.engine.training_parts import TrainingParts

PROBE_IMAGES: Final = 192
LEVELS: Final = 3


def build_slice_probe(
    parts: TrainingParts,
    index: ImageIndex,
    size: tuple[int, ...],
    *,
    seed: int,
    progress: Callable[[int, int], None],
    is_fitted: bool = True,
) -> Probe:
    """Choose images of the training set as the training draws them, and ask for modality, findings and slice level.

    Args:
        parts: Parts of the training.
        index: Index of their slices.
        size: Size of a slice as the network sees it, in pixels (x, y).
        seed: Seed of the recipe.
        progress: Told (done, total) while they are prepared.
        is_fitted: Slices are brought to the size; else their middle is shown, on the grid that the recipe asks for.
    """
    rng = np.random.default_rng([seed, STREAM])
    places = dict.fromkeys(index.place_of(draw) for draw in range(4 * PROBE_IMAGES))
    found = [index.find(place) for place in list(places)[:PROBE_IMAGES]]
    chosen = [parts.find(place) for place, _, _ in found]
    known = [known_of(part.cache, example) for part, example in chosen]
    items = parts.some(
        (place for place, _, _ in found), lambda part: part.fitted(size) if is_fitted else part.preprocessing, progress
    )
    images, levels = [], []
    for place, number, ranges in found:
        item = items[place]
        middle = int((number + 0.5) * item.shape[2] / ranges)
        images.append(_middle_of_slice(item, middle, size))
        levels.append(None if ranges == 1 else number * LEVELS // ranges)
    answers = record_answers(known) | {"any finding": [_has_finding(record) for record in known], "level": levels}
    crops = torch.from_numpy(np.stack(images))
    return Probe(crops, crops[:0], questions(answers, [record.patient_key for record in known], rng))


def _middle_of_slice(item: PreparedItem, number: int, size: tuple[int, ...]) -> NDArray[np.float32]:
    """As much of the middle of a slice as has a size, network input `[C, X, Y]`."""
    x, y = ((extent - wanted) // 2 for extent, wanted in zip(item.shape, size, strict=False))
    return read_input(item, (x, y, number), (size[0], size[1], 1), pad_with_low=True)[..., 0]


def _has_finding(record: ItemRecord) -> int | None:
    """Whether any finding of any set is there; None where there is no set."""
    values = [value for group in record.findings.values() for value in group.values()]
    return int(any(value > 0 for value in values)) if values else None
