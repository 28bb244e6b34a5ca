"""From prepared items to batches of 2D images: radiographs, single slices, and whole volumes as stacks of slices.

Every random choice is a function of (seed, step, slot), as in `data.crops`. All processes take the same turn: a step
shows single images to all of them or volumes to all of them.

Shapes: B batch, S slices, C channels, X Y pixels, N images.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medssl_cli.cache.arrays import open_array, refuse_damage
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.crops import item_of
from medssl_cli.data.loading import worker_options
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.imaging.stacks import choose_window, middle_window

MAX_REPEATS: Final = 4  # of a modality per epoch, so that balancing does not wear out a few images
TRIES: Final = 4  # for a slice that shows something
MIN_SLICES: Final = 5
"""Number of slices of a volume whose slices have a level: fewer are hardly the whole of anything."""


class Stack(NamedTuple):
    """One sample: network input `[S, C, X, Y]`, place in the training set, positions `[S]` in mm, item.

    A single slice has its level within the volume too, -1 to 1.
    """

    images: Tensor
    place: int
    positions_mm: Tensor
    item_id: str
    is_volume: bool
    level: float = math.nan


@dataclass(frozen=True)
class SliceBatch:
    """Images of one step.

    Args:
        images: `[B, S, C, X, Y]` float32 network input, 0 where a slice is padding.
        is_present: bool `[B, S]`.
        positions_mm: `[B, S]` along the slices' normal.
        places: Places of each image, or volume, in the training set, int64 `[B]`.
        item_ids: Where each came from.
        are_volumes: Whether these are stacks.
        levels: Levels of single slices within their volumes, -1 to 1, float32 `[B]`; NaN of others.
    """

    images: Tensor
    is_present: Tensor
    positions_mm: Tensor
    places: Tensor
    item_ids: list[str]
    are_volumes: bool
    levels: Tensor


class ImageIndex:
    """The images of a training set by number: a radiograph is one, a volume `per_volume` ranges of its slices.

    Args:
        are_volumes: Whether each item is a volume, `[items]`.
        groups: Group of each item, such as its modality.
        per_volume: Ranges.
        balance: Images of a group of n are drawn in proportion to n ** balance.
        seed: Seed of the run.
        weights: How many times an epoch shows each item instead, `[items]`; `balance` does not count then.
    """

    def __init__(
        self,
        are_volumes: Sequence[bool],
        groups: Sequence[str],
        *,
        per_volume: int,
        balance: float,
        seed: int,
        weights: NDArray[np.int64] | None = None,
    ) -> None:
        is_volume = np.asarray(are_volumes, dtype=bool)
        counts = np.where(is_volume, per_volume, 1)
        self.volumes = np.flatnonzero(is_volume)
        self.per_volume = per_volume
        self.item_of_image = np.repeat(np.arange(len(counts)), counts)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._is_volume = is_volume
        codes = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
        self.image_groups = np.repeat(codes, counts)
        self.volume_groups = codes[self.volumes]
        self._groups, self._draws = _groups_and_draws(self.image_groups, balance)
        self.volume_order = np.arange(len(self.volumes))
        if weights is not None:
            each = np.repeat(weights, counts)
            self._groups = [np.flatnonzero(each == weight) for weight in np.unique(each)]
            self._draws = [int(each[members].sum()) for members in self._groups]
            self.volume_order = np.repeat(self.volume_order, weights[self.volumes])
        self._seed = seed

    def __len__(self) -> int:
        return int(self._first[-1])

    def find(self, place: int) -> tuple[int, int, int]:
        """Item of an image, which of its ranges it is, and how many the item has."""
        item = int(np.searchsorted(self._first, place, side="right")) - 1
        return item, place - int(self._first[item]), self.per_volume if self._is_volume[item] else 1

    def place_of(self, draw: int) -> int:
        """Image that draw number `draw` of the whole training shows."""
        epoch, offset = divmod(draw, self.epoch_length)
        return int(_epoch_order(self, epoch)[offset])

    @property
    def epoch_length(self) -> int:
        """Draws after which all groups have been shown in proportion."""
        return sum(self._draws)

    def shuffled(self, epoch: int) -> NDArray[np.int64]:
        """Images of an epoch in random order; a group that is drawn in part goes on where the last epoch stopped."""
        parts = []
        for number, (members, count) in enumerate(zip(self._groups, self._draws, strict=True)):
            cycles, offsets = np.divmod(np.arange(epoch * count, (epoch + 1) * count), len(members))
            for cycle in np.unique(cycles):
                order = np.random.default_rng([self._seed, 3, number, int(cycle)]).permutation(members)
                parts.append(order[offsets[cycles == cycle]])
        return np.random.default_rng([self._seed, 4, epoch]).permutation(np.concatenate(parts))


@lru_cache(maxsize=2)
def _epoch_order(index: ImageIndex, epoch: int) -> NDArray[np.int64]:
    return index.shuffled(epoch)


def _groups_and_draws(groups: NDArray[np.int64], balance: float) -> tuple[list[NDArray[np.int64]], list[int]]:
    """Images of each group, and how many of them are drawn in an epoch."""
    members = [np.flatnonzero(groups == code) for code in range(groups.max(initial=-1) + 1)]
    return members, _draws([len(own) for own in members], balance)


def _draws(sizes: Sequence[int], balance: float) -> list[int]:
    """Draws per epoch of groups of these sizes: about as many as there are images in all, in balanced shares."""
    weights = np.asarray(sizes, dtype=np.float64) ** balance
    wanted = np.round(weights / weights.sum() * sum(sizes)).astype(int)
    return [int(np.clip(draws, 1, MAX_REPEATS * size)) for draws, size in zip(wanted, sizes, strict=True)]


@dataclass(frozen=True)
class StepPlan:
    """Which steps show volumes, and how many of each kind a step shows on all devices together.

    Args:
        batch_size: Single images.
        volume_batch_size: Volumes; 0 for none.
        every: Number of steps of which one shows volumes.
    """

    batch_size: int
    volume_batch_size: int = 0
    every: int = 0

    def turn(self, step: int) -> tuple[bool, int]:
        """Whether a step shows volumes, and how many steps of its kind came before."""
        is_volume = self.every > 0 and step % self.every == self.every - 1
        return is_volume, self.shown(step, are_volumes=is_volume)

    def shown(self, step: int, *, are_volumes: bool) -> int:
        """Steps of a kind before a step."""
        volumes = step // self.every if self.every else 0
        return volumes if are_volumes else step - volumes

    def size(self, step: int) -> int:
        """Samples of a step."""
        return self.volume_batch_size if self.turn(step)[0] else self.batch_size


class SliceDataset(Dataset[Stack]):
    """Images and stacks by (step, slot).

    Args:
        items: Prepared items, whose slices fit one square.
        index: Index of the same items.
        plan: Plan of the steps.
        max_slices: Largest number of slices of a stack.
        seed: Seed of the run.
        is_centred: Stacks are the middle slices of volumes, instead of random ones.
    """

    def __init__(
        self,
        items: Sequence[PreparedItem],
        index: ImageIndex,
        plan: StepPlan,
        *,
        max_slices: int,
        seed: int,
        is_centred: bool = False,
    ) -> None:
        self._items, self._index, self._plan = items, index, plan
        self._max_slices, self._seed, self._is_centred = max_slices, seed, is_centred

    def __getitem__(self, key: tuple[int, int]) -> Stack:
        step, slot = key
        is_volume, turn = self._plan.turn(step)
        rng = np.random.default_rng([self._seed, 5, step, slot])
        if not is_volume:
            return self.image(self._index.place_of(turn * self._plan.batch_size + slot), rng)
        size, order = self._plan.volume_batch_size, self._index.volume_order
        drawn = item_of(turn, slot, batch_size=size, num_items=len(order), seed=self._seed)
        return self.volume(int(order[drawn]), rng)

    def image(self, place: int, rng: np.random.Generator | None) -> Stack:
        """An image by its number; of a range of slices a random one, or the middle one."""
        number, part, parts = self._index.find(place)
        item = self._items[number]
        images, shown = None, 0
        for _ in range(TRIES if rng is not None else 1):
            shown = int((part + (0.5 if rng is None else rng.random())) * item.shape[2] / parts)
            images = read_slices(item, range(shown, shown + 1))
            if (images.amax(dim=(2, 3)) > images.amin(dim=(2, 3))).any():
                break
        assert images is not None
        level = 2 * shown / (item.shape[2] - 1) - 1 if item.shape[2] >= MIN_SLICES else math.nan
        return Stack(images, place, torch.zeros(1), item.item_id, is_volume=False, level=level)

    def volume(self, place: int, rng: np.random.Generator | None) -> Stack:
        """A volume by its number: a random window of every or every second ... slice, or the whole of it, thinned.

        Centred stacks have the middle slices.
        """
        item = self._items[int(self._index.volumes[place])]
        number, most = item.shape[2], self._max_slices
        window = middle_window(number, most) if self._is_centred else choose_window(number, most, rng)
        positions = torch.tensor(window, dtype=torch.float32) * spacing_mm(item.affine)[2]
        return Stack(read_slices(item, window), place, positions, item.item_id, is_volume=True)


def read_slices(item: PreparedItem, window: range) -> Tensor:
    """Slices of an item as network input, `[S, C, X, Y]`; they are prepared to fit the square."""
    channels = []
    for channel in item.channels:
        with refuse_damage(channel.image):
            voxels = np.asarray(open_array(channel.image)[:, :, window.start : window[-1] + 1])[:, :, :: window.step]
        channels.append(channel.intensity.apply(voxels).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(channels, axis=1))


class _Everything(Dataset[Stack]):
    """Every single image, or every volume, by its number and without randomness."""

    def __init__(self, dataset: SliceDataset, *, are_volumes: bool) -> None:
        self._dataset = dataset
        self._are_volumes = are_volumes

    def __getitem__(self, place: int) -> Stack:
        return self._dataset.volume(place, None) if self._are_volumes else self._dataset.image(place, None)


class _PlanSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (step, slot) of one of several processes."""

    def __init__(self, plan: StepPlan, steps: range, rank: int, num_processes: int) -> None:
        self._plan, self._steps, self._rank, self._num_processes = plan, steps, rank, num_processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            share = self._plan.size(step) // self._num_processes
            yield [(step, slot) for slot in range(self._rank * share, (self._rank + 1) * share)]

    def __len__(self) -> int:
        return len(self._steps)


class _RoundSampler(Sampler[list[int]]):
    """Batches that show one of several processes its share of everything; at the end it begins anew to fill up."""

    def __init__(self, number: int, batch_size: int, rank: int, num_processes: int) -> None:
        self._number, self._batch_size, self._rank, self._num_processes = number, batch_size, rank, num_processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            first = (batch * self._num_processes + self._rank) * self._batch_size
            yield [place % self._number for place in range(first, first + self._batch_size)]

    def __len__(self) -> int:
        return math.ceil(self._number / (self._batch_size * self._num_processes))


def collate(samples: list[Stack]) -> SliceBatch:
    """Stack samples into a batch, padding those with fewer slices."""
    lengths = torch.tensor([len(sample.images) for sample in samples])
    longest = int(lengths.max())
    images = [F.pad(sample.images, (0, 0, 0, 0, 0, 0, 0, longest - len(sample.images))) for sample in samples]
    positions = [F.pad(sample.positions_mm, (0, longest - len(sample.positions_mm))) for sample in samples]
    return SliceBatch(
        images=torch.stack(images),
        is_present=torch.arange(longest) < lengths[:, None],
        positions_mm=torch.stack(positions),
        places=torch.tensor([sample.place for sample in samples]),
        item_ids=[sample.item_id for sample in samples],
        are_volumes=samples[0].is_volume,
        levels=torch.tensor([sample.level for sample in samples], dtype=torch.float32),
    )


def slice_loader(
    dataset: SliceDataset, plan: StepPlan, steps: range, *, num_workers: int, rank: int = 0, num_processes: int = 1
) -> DataLoader[Any]:
    """Loader of one batch per step; arrays are opened in the workers only.

    Args:
        dataset: Data set of the batches.
        plan: The same as the data set's.
        steps: Which.
        num_workers: Processes that read.
        rank: This process.
        num_processes: That share each step.
    """
    return _loader(dataset, _PlanSampler(plan, steps, rank, num_processes), num_workers)


def everything_loader(
    dataset: SliceDataset,
    index: ImageIndex,
    batch_size: int,
    *,
    are_volumes: bool,
    num_workers: int,
    rank: int = 0,
    num_processes: int = 1,
) -> DataLoader[Any]:
    """Loader that shows this process's share of all single images or all volumes once.

    Args:
        dataset: Data set of the images.
        index: Index of the data set.
        batch_size: Batch size of this process.
        are_volumes: Which.
        num_workers: Processes that read.
        rank: This process.
        num_processes: That share the work.
    """
    number = len(index.volumes) if are_volumes else len(index)
    sampler = _RoundSampler(number, batch_size, rank, num_processes)
    return _loader(_Everything(dataset, are_volumes=are_volumes), sampler, num_workers)


def _loader(dataset: Dataset[Stack], sampler: Any, num_workers: int) -> DataLoader[Any]:
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **worker_options(num_workers))
