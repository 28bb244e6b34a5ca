"""The outlines of a mask on one slice: closed polygons along the edges of its voxels, one for each hole, too."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

DIRECTIONS: Final = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""Directions of an edge, each a quarter turn to the left of the one before."""
LEFT_STRAIGHT_RIGHT: Final = (1, 0, 3)
INSET: Final = 0.01
"""Voxels by which outlines lie inside of the mask: programs that round corners to whole voxels get the mask, too."""
Edge = tuple[int, int, int]
"""The corner of a voxel where an edge begins, and its direction."""


def mask_outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Polygons that hold exactly the voxels of a mask, by the even-odd rule.

    The mask lies to the left of each edge. Voxels that share only a corner are apart.

    Args:
        mask: `[X, Y]`.

    Returns:
        Corners `[N, 2]` in continuous voxel indices, `INSET` away from the edges: voxel 0 reaches from -0.5 to 0.5.
    """
    edges = _edges(mask)
    return [_outline(start, edges) for start in sorted(edges) if start in edges]


def _edges(mask: NDArray[np.bool_]) -> set[Edge]:
    """Edges between voxels of the mask and others."""
    inside = np.pad(mask, 1)
    beside = {
        0: (inside & ~np.roll(inside, 1, axis=1), (0, 0)),
        1: (inside & ~np.roll(inside, -1, axis=0), (1, 0)),
        2: (inside & ~np.roll(inside, -1, axis=1), (1, 1)),
        3: (inside & ~np.roll(inside, 1, axis=0), (0, 1)),
    }
    return {
        (x, y, direction)
        for direction, (voxels, offset) in beside.items()
        for x, y in (np.argwhere(voxels) - 1 + offset).tolist()
    }


def _outline(start: Edge, edges: set[Edge]) -> NDArray[np.float64]:
    """One closed polygon, whose edges are taken away."""
    corners: list[tuple[int, int]] = []
    x, y, direction = start
    last = -1
    while (x, y, direction) in edges:
        edges.remove((x, y, direction))
        if direction != last:
            corners.append((x, y))
        x, y, last = x + DIRECTIONS[direction][0], y + DIRECTIONS[direction][1], direction
        turns = ((direction + turn) % 4 for turn in LEFT_STRAIGHT_RIGHT)
        direction = next((one for one in turns if (x, y, one) in edges), direction)
    found = np.array(corners, dtype=np.float64)
    along = np.sign(np.roll(found, -1, axis=0) - found)
    left = np.column_stack([-along[:, 1], along[:, 0]])
    return found - 0.5 + INSET * (left + np.roll(left, 1, axis=0))
