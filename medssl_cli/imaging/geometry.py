"""Where voxels are. Affines map voxel-centre indices (i, j, k, 1) to RAS+ millimetres, in float64.

The one measure of geometric disagreement is the maximum corner displacement: the largest distance, over the eight
corner voxels, between where two affines put the same voxel.
"""

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]

MAX_DISPLACEMENT_MM: Final = 0.10
MAX_DISPLACEMENT_FRACTION: Final = 0.05


def spacing_mm(affine: Affine) -> tuple[float, float, float]:
    """Distance (x, y, z) between neighbouring voxel centres in millimetres."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def corner_indices(shape: Shape) -> NDArray[np.float64]:
    """Homogeneous indices `[4, 8]` of the corner voxels of a box of size (X, Y, Z)."""
    ends = [(0, size - 1) for size in shape]
    return np.array([(*corner, 1) for corner in itertools.product(*ends)], dtype=np.float64).T


def corner_displacement_mm(first: Affine, second: Affine, shape: Shape) -> float:
    """Largest distance in millimetres between the places of one corner voxel under two affines."""
    difference = (first - second) @ corner_indices(shape)
    return float(np.linalg.norm(difference[:3], axis=0).max())


def displacement_limit_mm(affine: Affine) -> float:
    """Largest corner displacement that is accepted: 0.10 mm or 5 % of the smallest voxel edge, whichever is less."""
    return min(MAX_DISPLACEMENT_MM, MAX_DISPLACEMENT_FRACTION * min(spacing_mm(affine)))


def is_same_grid(first: Affine, second: Affine, shape: Shape) -> bool:
    """Whether two affines put every voxel of a box at the same place within the accepted displacement."""
    return corner_displacement_mm(first, second, shape) <= displacement_limit_mm(first)


def is_invertible(affine: Affine) -> bool:
    """Whether an affine is finite, has three independent axes of positive length and a proper last row."""
    if not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((lengths > 1e-6).all() and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def orthonormalised(affine: Affine) -> Affine:
    """The nearest affine with orthogonal axes and unchanged spacing and centre of rotation at voxel 0.

    Nearest in the sense of the polar decomposition of the direction matrix.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / lengths)
    result = affine.copy()
    result[:3, :3] = (left @ right) * lengths
    return result


def axis_order(affine: Affine) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axis runs along each world axis, and whether it runs against it.

    Returns:
        `order[w]` is the array axis nearest to world axis w (R, A, S), each used once; `reversed[w]` says that it
        runs towards L, P or I.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    best = max(itertools.permutations(range(3)), key=lambda order: sum(abs(cosines[w, order[w]]) for w in range(3)))
    backwards = tuple(bool(cosines[w, best[w]] < 0) for w in range(3))
    return (best[0], best[1], best[2]), (backwards[0], backwards[1], backwards[2])


def ras_index_affine(affine: Affine, shape: Shape) -> Affine:
    """Affine from indices of the RAS-reoriented array to indices of the original one (exact whole numbers)."""
    order, backwards = axis_order(affine)
    to_original = np.zeros((4, 4), dtype=np.float64)
    to_original[3, 3] = 1
    for world in range(3):
        axis = order[world]
        to_original[axis, world] = -1 if backwards[world] else 1
        to_original[axis, 3] = shape[axis] - 1 if backwards[world] else 0
    return to_original


def reorient_to_ras(voxels: NDArray[np.generic], affine: Affine) -> tuple[NDArray[np.generic], Affine]:
    """Permute and flip axes so that they run towards right, anterior and superior; no value changes.

    Args:
        voxels: `[C, X, Y, Z]`.
        affine: Its affine.

    Returns:
        A view of the voxels and its affine; every voxel keeps its place in the world.
    """
    order, backwards = axis_order(affine)
    _, x, y, z = voxels.shape
    moved = voxels.transpose(0, *(axis + 1 for axis in order))
    flips = tuple(world + 1 for world in range(3) if backwards[world])
    return np.flip(moved, flips), affine @ ras_index_affine(affine, (x, y, z))


def turned_onto(
    voxels: NDArray[np.generic], affine: Affine, grid: Affine, shape: Shape, *, is_cropped: bool = False
) -> NDArray[np.generic] | None:
    """Bring voxels onto a grid with the same voxel centres, whose axes may run in another order or direction.

    Args:
        voxels: `[C, X, Y, Z]`; no value changes.
        affine: Theirs.
        grid: Affine of the grid.
        shape: Its size.
        is_cropped: The voxels may be a box within the grid; what lies outside of it is 0.

    Returns:
        The voxels on the grid; None if any voxel centre of them is not one of the grid, or of the grid not one of them.
    """
    _, x, y, z = voxels.shape
    order, flips, turned, size = _turn(affine, (x, y, z), grid)
    if sorted(order) != [0, 1, 2]:
        return None
    moved = np.flip(voxels.transpose(0, *(axis + 1 for axis in order)), tuple(axis + 1 for axis in flips))
    if size == shape and is_same_grid(grid, turned, shape):
        return moved
    place = np.eye(4)
    place[:3, 3] = first = np.rint(np.linalg.solve(grid, turned[:, 3])[:3])
    fits = (first >= 0).all() and (first + size <= shape).all() and is_same_grid(grid @ place, turned, size)
    if not (is_cropped and fits):
        return None
    whole = np.zeros((len(voxels), *shape), voxels.dtype)
    whole[:, *(slice(int(low), int(low) + length) for low, length in zip(first, size, strict=True))] = moved
    return whole


def is_turned_grid(affine: Affine, shape: Shape, grid: Affine, grid_shape: Shape) -> bool:
    """Whether two grids have the same voxel centres, whatever the order and direction of their axes."""
    order, _, turned, size = _turn(affine, shape, grid)
    return sorted(order) == [0, 1, 2] and size == grid_shape and is_same_grid(grid, turned, grid_shape)


def _turn(affine: Affine, shape: Shape, grid: Affine) -> tuple[tuple[int, ...], tuple[int, ...], Affine, Shape]:
    """How axes must be put to run as those of a grid: which comes where, which turn round, and what becomes of affine
    and shape. An order that is none (an axis occurs twice) means that the axes of the two are not parallel."""
    from_grid = np.linalg.solve(affine, grid)
    order = tuple(int(axis) for axis in np.abs(from_grid[:3, :3]).argmax(axis=0))
    flips = tuple(axis for axis in range(3) if from_grid[order[axis], axis] < 0)
    x, y, z = (shape[axis] for axis in order)
    index = np.zeros((4, 4))
    index[3, 3] = 1
    for axis, source in enumerate(order):
        index[source, axis] = -1 if axis in flips else 1
        index[source, 3] = (x, y, z)[axis] - 1 if axis in flips else 0
    return order, flips, affine @ index, (x, y, z)
