"""Series that grew: which of two images of a series holds the whole of the other."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.arrays import open_array
from medssl_cli.cache.items import ItemRecord
from medssl_cli.imaging.geometry import is_same_grid
from medssl_cli.imaging.volume import Volume

LARGEST_SHIFT: Final = 20_000


def find_successor(record: ItemRecord, volume: Volume, other: ItemRecord, other_image: Path) -> tuple[str, str] | None:
    """Which of two images has every slice of the other and more, voxel by voxel.

    Args:
        record: Record of the first image.
        volume: Its voxels.
        other: Record of the second, which is in the cache.
        other_image: Its file; read only if the two grids fit.

    Returns:
        Ids of the smaller and the larger one; None if neither covers the other, or it is known already.
    """
    if record.superseded_by is None and other.superseded_by is None:
        first = first_slice(record, within=other)
        if first is not None:
            part = open_array(other_image)[:, :, first : first + record.shape[2]]
            return (record.item_id, other.item_id) if _is_equal(part, volume.voxels[0]) else None
        first = first_slice(other, within=record)
        if first is not None:
            part = volume.voxels[0, :, :, first : first + other.shape[2]]
            return (other.item_id, record.item_id) if _is_equal(part, open_array(other_image)[:]) else None
    return None


def first_slice(smaller: ItemRecord, *, within: ItemRecord) -> int | None:
    """Where in a longer stack on the same grid a shorter one begins; None if it does not lie in it."""
    if not (smaller.is_volume and within.is_volume) or smaller.shape[:2] != within.shape[:2]:
        return None
    origin = np.linalg.solve(within.affine_array, smaller.affine_array[:, 3])
    if not abs(origin[2]) < LARGEST_SHIFT:
        return None
    first = round(float(origin[2]))
    if not (smaller.shape[2] < within.shape[2] and 0 <= first <= within.shape[2] - smaller.shape[2]):
        return None
    shifted = within.affine_array @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, first], [0, 0, 0, 1]])
    return first if is_same_grid(shifted, smaller.affine_array, smaller.shape) else None


def _is_equal(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    return first.shape == second.shape and bool(np.array_equal(first, second))
