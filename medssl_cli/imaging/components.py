"""Connected parts of label maps and masks: voxels that share a face, an edge or a corner belong together."""

from collections.abc import Collection

import cc3d
import numpy as np
from numpy.typing import NDArray


def connected_parts(labels: NDArray[np.uint8]) -> tuple[NDArray[np.unsignedinteger], int]:
    """Numbers of the connected parts of each label, from 1 on, and how many there are; 0 is background.

    The numbers of `cc3d` (4.1.1) are wrong for some views and for arrays of the type bool: it is given neither.

    Args:
        labels: Label map of two or three axes.
    """
    plain = np.require(labels, requirements=["C", "W"])
    numbers, num_parts = cc3d.connected_components(plain, connectivity=8 if labels.ndim == 2 else 26, return_N=True)
    return numbers, num_parts


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected part of a mask `[X, Y, Z]` with most voxels; of equally large ones the first in the array."""
    if not mask.any():
        return mask
    box = tuple(_ends(mask, axis) for axis in range(mask.ndim))
    parts, _ = connected_parts(mask[box].view(np.uint8))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) > 1:
        first = [int(np.argmax(parts == number)) for number in largest]
        largest = largest[[int(np.argmin(first))]]
    kept = np.zeros_like(mask)
    kept[box] = parts == largest[0]
    return kept


def only_largest(answer: NDArray[np.uint8], *, foreground: bool, places: Collection[int]) -> NDArray[np.uint8]:
    """An answer of which only the largest connected parts are left; the rest is background.

    Args:
        answer: Label map `[X, Y, Z]`, or masks of regions `[K, X, Y, Z]` of 0 and 1.
        foreground: First of all classes together.
        places: Then of these classes, from 1 on, each by itself.
    """
    found = answer.copy(order="K")
    if foreground:
        kept = largest_part((found if found.ndim == 3 else found.max(axis=0)) > 0)
        found *= kept
    for place in sorted(places):
        if found.ndim == 3:
            mask = found == place
            found[mask & ~largest_part(mask)] = 0
        else:
            found[place - 1] = largest_part(found[place - 1] == 1)
    return found


def _ends(mask: NDArray[np.bool_], axis: int) -> slice:
    """Between which places of an axis a mask that is not empty lies."""
    occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    return slice(int(occupied[0]), int(occupied[-1]) + 1)
