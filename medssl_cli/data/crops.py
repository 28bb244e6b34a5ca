"""From prepared items to batches of crops. Every random choice is a function of (seed, step, slot).

Worker count, interruptions and resuming change nothing: sample (step, slot) is the same crop everywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medssl_cli.cache.arrays import open_array, refuse_damage
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.cache.targets import to_classes
from medssl_cli.data.loading import StepSampler, worker_options
from medssl_cli.imaging.geometry import Shape, spacing_mm


@dataclass(frozen=True)
class CropBatch:
    """Crops of one step.

    Args:
        images: `[B, C, X, Y, Z]` float32 network input.
        labels: `[B, X, Y, Z]` int64 classes, or `[B, K, X, Y, Z]` uint8 regions, `classes.IGNORE` among them; None for
            unlabelled data.
        item_ids: Where each came from.
        spacing_mm: `[B, 3]`, of the crops' axes.
        labelled: Crops of a second data set that the step wants beside them.
    """

    images: Tensor
    labels: Tensor | None
    item_ids: list[str]
    spacing_mm: Tensor
    labelled: "CropBatch | None" = None


class Crop(NamedTuple):
    """One sample: network input `[C, X, Y, Z]`, its item, and its spacing (x, y, z).

    Its label is classes `[X, Y, Z]`, regions `[K, X, Y, Z]`, or None.
    """

    image: NDArray[np.float32]
    label: NDArray[np.integer] | None
    item_id: str
    spacing_mm: tuple[float, float, float]


def item_of(step: int, slot: int, *, batch_size: int, num_items: int, seed: int) -> int:
    """Index of the item that sample (step, slot) shows: every epoch is a new permutation of all items."""
    epoch, offset = divmod(step * batch_size + slot, num_items)
    return int(_epoch_order(seed, epoch, num_items)[offset])


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_items: int) -> NDArray[np.int64]:
    """The order of all items in an epoch."""
    return np.random.default_rng([seed, 1, epoch]).permutation(num_items)


def crop_start(
    item: PreparedItem, crop_size: Shape, rng: np.random.Generator, *, foreground_prob: float
) -> tuple[int, int, int]:
    """First voxel of a random crop; with `foreground_prob` it shows a random voxel of a random class.

    See `random_start`.
    """
    wants_foreground = bool(item.points) and rng.random() < foreground_prob
    point = None
    if wants_foreground:
        classes = sorted(item.points)
        candidates = item.points[classes[rng.integers(len(classes))]]
        point = candidates[rng.integers(len(candidates))]

    def within(axis: int, spare: int) -> tuple[int, int]:
        if point is None:
            return 0, spare
        return max(0, int(point[axis]) - crop_size[axis] + 1), min(spare, int(point[axis]))

    return random_start(item.shape, crop_size, rng, within)


def random_start(
    shape: Shape, crop_size: Shape, rng: np.random.Generator, within: Callable[[int, int], tuple[int, int]]
) -> tuple[int, int, int]:
    """First voxel of a random crop; negative where the image is smaller, which then lies in the middle of the crop.

    Args:
        shape: Size of the image.
        crop_size: Size of the crop.
        rng: Draws.
        within: First and last place along an axis, of those from 0 to a last one that the image leaves.
    """
    start = []
    for axis, (size, length) in enumerate(zip(shape, crop_size, strict=True)):
        spare = size - length
        low, high = within(axis, spare) if spare > 0 else (0, 0)
        start.append(int(rng.integers(low, high + 1)) if spare > 0 else spare // 2)
    return start[0], start[1], start[2]


def read_crop(array: Any, start: tuple[int, int, int], crop_size: Shape, *, pad_value: float | None) -> NDArray[Any]:
    """Read a box, padding what lies outside of the image.

    Args:
        array: `[X, Y, Z]`, read lazily.
        start: First voxel; may be negative.
        crop_size: Size of the box.
        pad_value: Value outside; None repeats the border. A float makes the result one too: it may lie outside of the
            range of the array's dtype (air of unsigned images).
    """
    low = [max(0, first) for first in start]
    high = [min(size, first + length) for size, first, length in zip(array.shape, start, crop_size, strict=True)]
    inside = np.asarray(array[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    widths = [
        (begin - first, first + length - end)
        for first, length, begin, end in zip(start, crop_size, low, high, strict=True)
    ]
    if not any(before or after for before, after in widths):
        return inside
    if pad_value is None:
        return np.pad(inside, widths, mode="edge")
    dtype = np.result_type(inside, np.float32) if isinstance(pad_value, float) else inside.dtype
    return np.pad(inside.astype(dtype), widths, constant_values=pad_value)


def read_input(
    item: PreparedItem, start: tuple[int, int, int], crop_size: Shape, *, pad_with_low: bool
) -> NDArray[np.float32]:
    """A box of every channel of an item as network input, `[C, X, Y, Z]`; see `read_crop`.

    Args:
        item: Prepared.
        start: First voxel; may be negative.
        crop_size: Size of the box.
        pad_with_low: Outside of an image lies its lowest value instead of a repetition of its border.
    """
    boxes = []
    for channel in item.channels:
        outside = float(channel.intensity.low) if pad_with_low else None
        with refuse_damage(channel.image):
            voxels = read_crop(open_array(channel.image), start, crop_size, pad_value=outside)
        boxes.append(channel.intensity.apply(voxels))
    return np.stack(boxes)


def read_classes(item: PreparedItem, start: tuple[int, int, int], crop_size: Shape) -> NDArray[np.integer] | None:
    """Classes or regions of a box of an item's label map, background outside; None if it was prepared without one."""
    if item.label is None:
        return None
    with refuse_damage(item.label):
        stored = read_crop(open_array(item.label), start, crop_size, pad_value=0)
    return stored if item.table is None else to_classes(stored, item.table)


class CropDataset(Dataset[Crop]):
    """Crops by (step, slot).

    Args:
        items: Prepared items.
        crop_size: Size (X, Y, Z) in voxels.
        batch_size: Samples per step, over all devices.
        seed: Seed of the run.
        foreground_prob: Share of crops that show a labelled voxel; needs labels.
        pad_with_low: Outside of an image lies its lowest value (air) instead of a repetition of its border.
        crops_per_image: Neighbouring slots whose crops are of one image; divides `batch_size`.
    """

    def __init__(
        self,
        items: Sequence[PreparedItem],
        crop_size: Shape,
        *,
        batch_size: int,
        seed: int,
        foreground_prob: float = 0,
        pad_with_low: bool = False,
        crops_per_image: int = 1,
    ) -> None:
        self.items = items
        self._crop_size = crop_size
        self.batch_size = batch_size
        self._seed = seed
        self._foreground_prob = foreground_prob
        self._pad_with_low = pad_with_low
        self._crops_per_image = crops_per_image

    def __getitem__(self, index: tuple[int, int]) -> Crop:
        step, slot = index
        each, images = self._crops_per_image, self.batch_size // self._crops_per_image
        chosen = item_of(step, slot // each, batch_size=images, num_items=len(self.items), seed=self._seed)
        item = self.items[chosen]
        rng = np.random.default_rng([self._seed, 2, step, slot])
        start = crop_start(item, self._crop_size, rng, foreground_prob=self._foreground_prob)
        image = read_input(item, start, self._crop_size, pad_with_low=self._pad_with_low)
        return Crop(image, read_classes(item, start, self._crop_size), item.item_id, spacing_mm(item.affine))


def collate(samples: list[Crop]) -> CropBatch:
    """Stack samples into a batch."""
    images, labels, item_ids, spacings = zip(*samples, strict=True)
    has_labels = labels[0] is not None
    return CropBatch(
        images=torch.from_numpy(np.stack(images)),
        labels=_targets(np.stack(labels)) if has_labels else None,
        item_ids=list(item_ids),
        spacing_mm=torch.tensor(spacings, dtype=torch.float32),
    )


def _targets(labels: NDArray[np.integer]) -> Tensor:
    """Classes as losses take them; regions stay small, there are K of them."""
    return torch.from_numpy(labels.astype(np.int64) if labels.ndim == 4 else labels)


@dataclass(frozen=True)
class Share:
    """Crops that each process gets of a data set in every step."""

    dataset: CropDataset
    batch_size: int


class _Datasets(Dataset[Crop]):
    """Several data sets as one, by (data set, step, slot)."""

    def __init__(self, datasets: Sequence[CropDataset]) -> None:
        self._datasets = datasets

    def __getitem__(self, index: tuple[int, int, int]) -> Crop:
        number, step, slot = index
        return self._datasets[number][step, slot]


class _SideBySideSampler(Sampler[list[tuple[int, int, int]]]):
    """For each step the samples of every data set, one data set after the other."""

    def __init__(self, samplers: Sequence[StepSampler]) -> None:
        self._samplers = samplers

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for parts in zip(*self._samplers, strict=True):
            yield [(number, *index) for number, part in enumerate(parts) for index in part]

    def __len__(self) -> int:
        return len(self._samplers[0])


def _collate_both(samples: list[Crop], *, number: int) -> CropBatch:
    """Stack the first samples, and the others beside them."""
    return replace(collate(samples[:number]), labelled=collate(samples[number:]) if samples[number:] else None)


def crop_loader(
    dataset: CropDataset,
    *,
    first_step: int,
    num_steps: int,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    labelled: Share | None = None,
) -> DataLoader[Any]:
    """Loader of batches `first_step` to `num_steps`; arrays are opened in the workers only.

    Args:
        dataset: Dataset of the batches.
        first_step: Where to begin.
        num_steps: Where to end.
        batch_size: Samples per process.
        num_workers: Processes that read.
        rank: This process.
        labelled: Labelled crops beside each batch.
    """
    shares = [Share(dataset, batch_size)] + ([] if labelled is None else [labelled])
    return DataLoader(
        _Datasets([share.dataset for share in shares]),
        batch_sampler=_SideBySideSampler(
            [StepSampler(first_step, num_steps, share.batch_size, rank=rank) for share in shares]
        ),
        collate_fn=partial(_collate_both, number=batch_size),
        **worker_options(num_workers),
    )
