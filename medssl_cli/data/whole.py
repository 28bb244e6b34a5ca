"""Whole images with what is to be said about each: radiographs on a square, volumes on one grid for all of them, or as
stacks of their own slices. They are prepared to `fit`, so that nothing is left to do here but to read them.

Which image sample (step, slot) shows is a function of the seed, as in `data.crops`.

Shapes: B batch, C channels, X Y Z space, S slices, K classes, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medssl_cli.cache.arrays import read_array, refuse_damage
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.crops import item_of
from medssl_cli.data.loading import worker_options
from medssl_cli.imaging.geometry import Shape, spacing_mm
from medssl_cli.imaging.stacks import as_stack

STREAM: Final = 6
"""Stream of the seed, so that other orders of the same seed are others."""


class Whole(NamedTuple):
    """One sample: network input `[C, X, Y]`, `[C, X, Y, Z]` or `[C, X, Y, S]`, targets `[K]`, its item.

    A stack of slices also says which slices are there, bool `[S]`, and their positions in mm, `[S]`.
    """

    image: Tensor
    targets: NDArray[np.float32]
    item_id: str
    is_present: Tensor | None = None
    positions_mm: Tensor | None = None


@dataclass(frozen=True)
class WholeBatch:
    """Images of one step.

    Args:
        images: `[B, C, X, Y]`, `[B, C, X, Y, Z]` or `[B, C, X, Y, S]` float32 network input.
        targets: `[B, K]` float32; NaN where nobody knows.
        item_ids: Where each came from.
        beside: What a network of stacks is told too: bool `[B, S]`, which slices are there, and float32 `[B, S]`, their
            positions in mm.
    """

    images: Tensor
    targets: Tensor
    item_ids: list[str]
    beside: tuple[Tensor, ...] = ()


class WholeDataset(Dataset[Whole]):
    """Whole images by (step, slot).

    Args:
        items: Items prepared to fit the size.
        targets: `[N, K]` float32.
        size: Voxels (x, y, z) of each; z 1 for 2D images.
        batch_size: Samples per step.
        seed: Seed of the run.
        as_stacks: Volumes are stacks of at most z of their own slices.
    """

    def __init__(
        self,
        items: Sequence[PreparedItem],
        targets: NDArray[np.float32],
        size: Shape,
        *,
        batch_size: int,
        seed: int,
        as_stacks: bool = False,
    ) -> None:
        self._items, self.targets, self._size, self._as_stacks = items, targets, size, as_stacks
        self.batch_size, self._seed = batch_size, stream(seed)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: tuple[int, int]) -> Whole:
        step, slot = index
        return self.at(item_of(step, slot, batch_size=self.batch_size, num_items=len(self._items), seed=self._seed))

    def at(self, place: int) -> Whole:
        """An image by its number."""
        item = self._items[place]
        if not self._as_stacks:
            return Whole(read_whole(item, self._size), self.targets[place], item.item_id)
        image, is_present, positions_mm = read_stack(item, self._size)
        return Whole(image, self.targets[place], item.item_id, is_present, positions_mm)


class _Each(Dataset[Whole]):
    """Every image once, in order."""

    def __init__(self, dataset: WholeDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: int) -> Whole:
        return self._dataset.at(place)


def stream(seed: int) -> int:
    """A seed of its own for the order of whole images."""
    return int(np.random.SeedSequence([seed, STREAM]).generate_state(1)[0])


def read_whole(item: PreparedItem, size: Shape) -> Tensor:
    """A whole image as network input, `[C, X, Y]` if z is 1 and `[C, X, Y, Z]` else.

    Args:
        item: A 2D image if z is 1, else a volume, prepared to fit the size.
        size: Voxels (x, y, z).
    """
    voxels = torch.from_numpy(_network_input(item))
    return voxels[..., 0] if size[2] == 1 else voxels


def read_stack(item: PreparedItem, size: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """A volume as its slices; of more than z every second, third ... over its whole depth.

    Args:
        item: A volume, whose slices are prepared to fit the square.
        size: Pixels of the square, twice, and the number of slices S.

    Returns:
        Network input `[C, X, X, S]`, the slices and then zeros; which slices are there, bool `[S]`; their positions in
        mm, `[S]`.
    """
    images, is_present, positions_mm = map(
        torch.from_numpy, as_stack(_network_input(item), spacing_mm(item.affine)[2], size[2])
    )
    return images, is_present, positions_mm


def _network_input(item: PreparedItem) -> NDArray[np.float32]:
    """All of a prepared item, `[C, X, Y, Z]`."""
    channels = []
    for channel in item.channels:
        with refuse_damage(channel.image):
            channels.append(channel.intensity.apply(read_array(channel.image)))
    return np.stack(channels)


def collate_whole(samples: list[Whole]) -> WholeBatch:
    """Stack samples into a batch."""
    each = [(sample.is_present, sample.positions_mm) for sample in samples]
    stacks = [(present, positions) for present, positions in each if present is not None and positions is not None]
    return WholeBatch(
        images=torch.stack([sample.image for sample in samples]),
        targets=torch.from_numpy(np.stack([sample.targets for sample in samples])),
        item_ids=[sample.item_id for sample in samples],
        beside=tuple(torch.stack(parts) for parts in zip(*stacks, strict=True)),
    )


def each_loader(dataset: WholeDataset, *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Loader that shows every image once, in order; it can be gone through again and again.

    Args:
        dataset: Dataset of the images.
        batch_size: Largest size of a batch.
        num_workers: Processes that read; they stay between passes.
    """
    return DataLoader(
        _Each(dataset),
        batch_size=batch_size,
        collate_fn=collate_whole,
        persistent_workers=num_workers > 0,
        **worker_options(num_workers),
    )
