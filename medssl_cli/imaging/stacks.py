"""Volumes as stacks of their own slices: which of them a network sees.

Shapes: C channels, X Y pixels, Z slices of the volume, S of the stack.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SliceStack(NamedTuple):
    """Network input `[C, X, Y, S]`, which slices are there, bool `[S]`, and their positions in mm, `[S]` float32."""

    images: NDArray[np.float32]
    is_present: NDArray[np.bool_]
    positions_mm: NDArray[np.float32]


def choose_window(num_slices: int, max_slices: int, rng: np.random.Generator | None) -> range:
    """At most `max_slices` of a volume's slices, equally far apart.

    Args:
        num_slices: Number of slices of the volume.
        max_slices: Largest number of slices of the window.
        rng: Draws the distance and the first slice; without it the window covers the volume.
    """
    widest = -(-num_slices // max_slices)
    stride = widest if rng is None else int(rng.integers(1, widest + 1))
    length = min(max_slices, -(-num_slices // stride))
    spare = num_slices - (length - 1) * stride - 1
    first = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return range(first, first + (length - 1) * stride + 1, stride)


def middle_window(num_slices: int, max_slices: int) -> range:
    """At most `max_slices` neighbours in the middle of a volume.

    Args:
        num_slices: Number of slices of the volume.
        max_slices: Largest number of slices of the window.
    """
    length = min(num_slices, max_slices)
    first = (num_slices - length) // 2
    return range(first, first + length)


def as_stack(voxels: NDArray[np.float32], slice_spacing_mm: float, num_slices: int) -> SliceStack:
    """A volume as a stack of S slices; of more slices every second, third ... over its whole depth.

    Args:
        voxels: Network input `[C, X, Y, Z]`.
        slice_spacing_mm: Between neighbouring slices.
        num_slices: S; where there are fewer, zeros follow.
    """
    window = np.array(choose_window(voxels.shape[3], num_slices, None))
    images = np.zeros((*voxels.shape[:3], num_slices), dtype=np.float32)
    images[..., : len(window)] = voxels[..., window]
    positions = np.zeros(num_slices, dtype=np.float32)
    positions[: len(window)] = window.astype(np.float32) * np.float32(slice_spacing_mm)
    return SliceStack(images, np.arange(num_slices) < len(window), positions)
