"""From prepared items to windows: boxes of voxels that views are cut from, with where they lie in their image.

Every random choice is a function of (seed, step, slot), as in `data.crops`.

Shapes: B batch, C channels, X Y Z space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medssl_cli.cache.arrays import read_array
from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.crops import read_input
from medssl_cli.data.placed_views import PlacedCrops, PlacedWindows
from medssl_cli.data.slices import TRIES, ImageIndex
from medssl_cli.imaging.foreground import foreground_box
from medssl_cli.imaging.geometry import Affine

STREAM: Final = 7
"""Stream of the seed, for where the window of a sample lies."""
SAMPLE_STREAM: Final = 8
"""Stream of the seed, for windows without images."""
SAMPLE_ITEMS: Final = 64
"""Items at most that windows without images lie in: for the box of its foreground each is read once."""
Array = NDArray[np.float64]


class WindowPlace(NamedTuple):
    """Where a window lies, in indices of its image.

    Args:
        start: First voxel.
        centre: What views lie about, continuous indices `[3]`.
        item: Number of the item.
        slice_number: Number of a slice in its volume.
    """

    start: tuple[int, int, int]
    centre: Array
    item: int
    slice_number: int


@dataclass(frozen=True)
class PlacedSample:
    """One window: network input `[C, X, Y, Z]`, its place, the id of its item."""

    image: Tensor
    window: PlacedWindows
    item_id: str


@dataclass(frozen=True)
class WindowBatch:
    """Windows of one step.

    Args:
        images: `[B, C, X, Y, Z]` float32 network input.
        windows: Where they lie.
        item_ids: Where each came from.
    """

    images: Tensor
    windows: PlacedWindows
    item_ids: list[str]


class WindowDataset(Dataset[PlacedSample]):
    """Windows by (step, slot).

    Args:
        items: Prepared items.
        index: Index of the images in them: slices and pictures for flat views, else one for each volume.
        crops: Views that are cut from the windows.
        batch_size: Samples per step, over all devices.
        seed: Seed of the run.
    """

    def __init__(
        self, items: Sequence[PreparedItem], index: ImageIndex, crops: PlacedCrops, *, batch_size: int, seed: int
    ) -> None:
        self._items, self._index, self._crops = items, index, crops
        self._batch_size, self._seed = batch_size, seed
        self._boxes: dict[int, tuple[Array, Array]] = {}

    def __getitem__(self, key: tuple[int, int]) -> PlacedSample:
        step, slot = key
        rng = np.random.default_rng([self._seed, STREAM, step, slot])
        return self.at(self._index.place_of(step * self._batch_size + slot), rng)

    def at(self, place: int, rng: np.random.Generator) -> PlacedSample:
        """An image by its number, in a window at a random place; a slice that shows nothing is drawn again."""
        for _ in range(TRIES):
            where = self._place(place, rng)
            item = self._items[where.item]
            image = read_input(item, where.start, self._crops.window, pad_with_low=False)
            if not self._crops.is_flat or (image.max(axis=(1, 2, 3)) > image.min(axis=(1, 2, 3))).any():
                break
        return PlacedSample(torch.from_numpy(image), self._described(where), item.item_id)

    def sample(self, number: int) -> PlacedWindows:
        """Windows without images, as a training shows them: of up to `SAMPLE_ITEMS` items, the same every time."""
        rng, known, found = np.random.default_rng([self._seed, SAMPLE_STREAM]), set[int](), []
        for draw in range(SAMPLE_ITEMS * number):
            place = self._index.place_of(draw)
            item = self._index.find(place)[0]
            if item in known or len(known) < SAMPLE_ITEMS:
                known.add(item)
                found.append(self._described(self._place(place, rng)))
            if len(found) == number:
                break
        return stacked(found)

    def _place(self, place: int, rng: np.random.Generator) -> WindowPlace:
        """Where to look at an image."""
        number, part, parts = self._index.find(place)
        item, crops = self._items[number], self._crops
        low, high = self._box(number)
        shift = crops.changes.shift
        centre = (low + high - 1) / 2 + rng.uniform(-shift, shift, 3) * (high - low)
        shown = 0
        if crops.is_flat:
            shown = int((part + rng.random()) * item.shape[2] / parts)
            centre[2] = shown
        x, y, z = (int(first) for first in np.floor(centre - (np.array(crops.window) - 1) / 2 + 0.5))
        return WindowPlace((x, y, z), centre, number, shown)

    def _described(self, where: WindowPlace) -> PlacedWindows:
        """The same in the world."""
        item = self._items[where.item]
        step = np.eye(4)
        step[:3, 3] = where.start
        to_index = np.linalg.inv(item.affine)
        box, field = self._box(where.item), (np.zeros(3), np.array(item.shape, dtype=np.float64))
        centre = item.affine[:3, :3] @ where.centre + item.affine[:3, 3]
        placed = (item.affine @ step, centre, to_sides(*box) @ to_index, to_sides(*field) @ to_index)
        affine, centres, boxes, fields = (torch.from_numpy(each)[None] for each in placed)
        numbers = torch.tensor([where.slice_number]), torch.tensor([item.shape[2]])
        return PlacedWindows(affine, centres, boxes, fields, *numbers)

    def _box(self, number: int) -> tuple[Array, Array]:
        """The reference box of an item: its first voxel along each axis, and the one after its last."""
        if number not in self._boxes:
            item = self._items[number]
            ends: tuple[Any, Any] = (0, 0, 0), item.shape
            if self._crops.changes.box == "foreground":
                ends = foreground_box(read_array(item.image))
            self._boxes[number] = np.array(ends[0], dtype=np.float64), np.array(ends[1], dtype=np.float64)
        return self._boxes[number]


def to_sides(low: Array, high: Array) -> Affine:
    """From indices to a box `[low, high)` whose sides lie at -1 and 1, [4, 4]."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(2 / (high - low))
    matrix[:3, 3] = -(low + high - 1) / (high - low)
    return matrix


def stacked(windows: Sequence[PlacedWindows]) -> PlacedWindows:
    """Windows one after the other."""
    parts = [
        torch.cat([getattr(each, name) for each in windows])
        for name in ("affines", "centres", "boxes", "fields", "slice_numbers", "num_slices")
    ]
    return PlacedWindows(*parts)


def collate_windows(samples: list[PlacedSample]) -> WindowBatch:
    """Stack samples into a batch."""
    return WindowBatch(
        torch.stack([sample.image for sample in samples]),
        stacked([sample.window for sample in samples]),
        [sample.item_id for sample in samples],
    )
