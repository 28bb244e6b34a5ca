"""Crops of volumes with the boxes that lie in them. Every random choice is a function of (seed, step, slot).

Shapes: C channels, X Y Z space, M boxes, N volumes.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.boxes import IGNORED, NO_CLASS
from medssl_cli.data.crops import item_of, random_start, read_input
from medssl_cli.data.whole import Whole, stream
from medssl_cli.imaging.geometry import Shape

MIN_VISIBLE: Final = 0.5
"""Least share of a box that a crop must show to teach what is there; of less, nothing is learnt."""
PLACES: Final = 7
"""Stream of the seed, so that places of crops are drawn apart from all else."""


class BoxCropDataset(Dataset[Whole]):
    """Crops with boxes by (step, slot); their targets are boxes of the crop, `[M, 7]`, as many rows in each.

    Args:
        items: Prepared volumes.
        boxes: Boxes of each volume, `[M, 7]` in voxel edges of the prepared grid, with a class.
        crop_size: Size (X, Y, Z) in voxels.
        batch_size: Samples per step, over all devices.
        seed: Seed of the run.
        box_prob: Share of crops that show a box of a class, where the volume has one.
        crops_per_image: Neighbouring slots whose crops are of one volume; divides `batch_size`.
    """

    def __init__(
        self,
        items: Sequence[PreparedItem],
        boxes: Sequence[NDArray[np.float64]],
        crop_size: Shape,
        *,
        batch_size: int,
        seed: int,
        box_prob: float,
        crops_per_image: int = 1,
    ) -> None:
        self._items, self._boxes, self._crop_size = items, boxes, crop_size
        self.batch_size, self._seed, self._box_prob = batch_size, stream(seed), box_prob
        self._crops_per_image = crops_per_image
        self._num_rows = max([1, *map(len, boxes)])

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: tuple[int, int]) -> Whole:
        step, slot = index
        each, images = self._crops_per_image, self.batch_size // self._crops_per_image
        place = item_of(step, slot // each, batch_size=images, num_items=len(self._items), seed=self._seed)
        item, boxes = self._items[place], self._boxes[place]
        rng = np.random.default_rng([self._seed, PLACES, step, slot])
        start = box_crop_start(item.shape, boxes, self._crop_size, rng, box_prob=self._box_prob)
        image = read_input(item, start, self._crop_size, pad_with_low=False)
        targets = np.zeros((self._num_rows, 7), dtype=np.float32)
        targets[:, -1] = NO_CLASS
        inside = boxes_in_crop(boxes, start, self._crop_size)
        targets[: len(inside)] = inside
        return Whole(torch.from_numpy(image), targets, item.item_id)


def box_crop_start(
    shape: Shape, boxes: NDArray[np.float64], crop_size: Shape, rng: np.random.Generator, *, box_prob: float
) -> Shape:
    """First voxel of a random crop; with `box_prob` it shows a random box of a class, all of it where it can.

    See `data.crops.random_start`.

    Args:
        shape: Size of the volume.
        boxes: Boxes of the volume, `[M, 7]`.
        crop_size: Size of the crop.
        rng: Draws.
        box_prob: See `BoxCropDataset`.
    """
    wanted = boxes[boxes[:, -1] >= 0]
    shows_box = len(wanted) > 0 and rng.random() < box_prob
    box = wanted[rng.integers(len(wanted))] if shows_box else None

    def within(axis: int, spare: int) -> tuple[int, int]:
        if box is None:
            return 0, spare
        first, last, length = box[axis], box[axis + 3], crop_size[axis]
        if last - first > length:  # at least its middle
            first = last = (first + last) / 2
        low = int(np.clip(np.ceil(last) - length, 0, spare))
        return low, int(np.clip(np.floor(first), low, spare))

    return random_start(shape, crop_size, rng, within)


def boxes_in_crop(boxes: NDArray[np.float64], start: Shape, crop_size: Shape) -> NDArray[np.float64]:
    """What a crop shows of boxes `[M, 7]`, in its own voxel edges; of those that are mostly outside nothing is learnt.

    Args:
        boxes: Boxes in voxel edges of the volume.
        start: First voxel of the crop.
        crop_size: Size of the crop.
    """
    first = np.array(start, dtype=np.float64)
    low, high = boxes[:, :3] - first, boxes[:, 3:6] - first
    seen_low, seen_high = low.clip(0, crop_size), high.clip(0, crop_size)
    whole, seen = (high - low).prod(axis=1), (seen_high - seen_low).prod(axis=1)
    is_seen = seen > 0
    is_mostly = seen >= MIN_VISIBLE * whole
    classes = np.where(is_mostly, boxes[:, 6], IGNORED)
    return np.column_stack([seen_low, seen_high, classes])[is_seen]
