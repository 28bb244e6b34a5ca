"""The parts of an image that a frozen encoder looks at to describe the whole: slices of a volume, or boxes.

Shapes: P pieces, C channels, X Y Z space.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medssl_cli.cache.prepared import PreparedItem
from medssl_cli.data.crops import read_input
from medssl_cli.data.loading import worker_options
from medssl_cli.data.slices import read_slices
from medssl_cli.imaging.geometry import Shape

QUARTERS: Final = (1, 3)


def read_pieces(item: PreparedItem, size: Shape, *, num_slices: int) -> Tensor:
    """What an encoder is shown of an image, without randomness.

    Args:
        item: A radiograph or a volume; prepared to fit the square if z is 1.
        size: Input of the encoder in voxels (x, y, z). With z 1 slices across the third axis, each from the middle of
            one of equal ranges, or the radiograph; else boxes centred on the quarters of each axis.
        num_slices: Ranges of a volume.

    Returns:
        `[P, C, X, Y]` if z is 1, else `[P, C, X, Y, Z]` with up to eight boxes.
    """
    if size[2] == 1:
        depth = item.shape[2]
        number = 1 if depth == 1 else num_slices
        middles = [int((part + 0.5) * depth / number) for part in range(number)]
        return torch.cat([read_slices(item, range(place, place + 1)) for place in middles])
    starts = product(*(_starts(length, extent) for length, extent in zip(item.shape, size, strict=True)))
    boxes = [read_input(item, (x, y, z), size, pad_with_low=True) for x, y, z in starts]
    return torch.from_numpy(np.stack(boxes))


def _starts(length: int, extent: int) -> list[int]:
    """First voxels of boxes along an axis: two about its quarters, or one in the middle where the box is as long."""
    if length <= extent:
        return [(length - extent) // 2]
    return sorted({min(max(0, length * quarter // 4 - extent // 2), length - extent) for quarter in QUARTERS})


class _Pieces(Dataset[Tensor]):
    """The pieces of each item, by its number."""

    def __init__(self, items: Sequence[PreparedItem], size: Shape, num_slices: int) -> None:
        self._items, self._size, self._num_slices = items, size, num_slices

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Tensor:
        return read_pieces(self._items[place], self._size, num_slices=self._num_slices)


def _as_they_are(samples: list[Tensor]) -> list[Tensor]:
    """A batch is the list of its samples."""
    return samples


def piece_loader(
    items: Sequence[PreparedItem], size: Shape, *, num_slices: int, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Loader of the pieces of all items in order, a list of tensors per batch.

    Args:
        items: Prepared.
        size: See `read_pieces`.
        num_slices: See `read_pieces`.
        batch_size: Items at a time.
        num_workers: Processes that read.
    """
    return DataLoader(
        _Pieces(items, size, num_slices),
        batch_size=batch_size,
        collate_fn=_as_they_are,
        **worker_options(num_workers),
    )
