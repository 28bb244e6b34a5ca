"""Bringing voxels to another number of voxels over the same box, one axis after the other, without aliasing.

Shapes: C channels, X Y Z space.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm


def fitted_shape(shape: Shape, affine: Affine, fit: tuple[int, ...]) -> Shape:
    """The size of an image that fills as much of another as its proportions in millimetres allow.

    Args:
        shape: Size (X, Y, Z) of the image.
        affine: Its affine.
        fit: Size (x, y) or (x, y, z) to stay within; along other axes the voxels stay as many.
    """
    lengths_mm = [size * spacing for size, spacing in zip(shape, spacing_mm(affine), strict=True)]
    scale = min(extent / length for extent, length in zip(fit, lengths_mm, strict=False))
    sizes = [min(extent, max(1, round(length * scale))) for extent, length in zip(fit, lengths_mm, strict=False)]
    x, y, z = (*sizes, *shape[len(fit) :])
    return x, y, z


def stretched(affine: Affine, shape: Shape, new_shape: Shape) -> Affine:
    """The affine of a grid of another size over the same box: voxel edges coincide at both ends of every axis."""
    ratio = np.array(shape) / np.array(new_shape)
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2
    return affine @ step


def resize(voxels: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Resample voxels to another size over the same box.

    Along each axis a new voxel is the weighted mean of the old ones around its centre. Weights fall linearly to zero at
    a distance of one voxel, of the old or the new grid, whichever is larger: enlarging interpolates linearly, shrinking
    averages and skips nothing.

    Args:
        voxels: `[C, X, Y, Z]`.
        shape: Wanted size (X, Y, Z).

    Returns:
        `[C, *shape]` in floats that hold the numbers: 32 bits, 64 for integers of 32.
    """
    dtype, sampled = np.result_type(voxels.dtype, np.float32), voxels
    for axis, size in enumerate(shape, start=1):
        if sampled.shape[axis] != size:
            sampled = _along(sampled, axis, size)
    return sampled.astype(dtype, copy=False)


def _along(voxels: NDArray[Any], axis: int, size: int) -> NDArray[Any]:
    """Voxels with another number of them along one axis."""
    moved = np.ascontiguousarray(np.moveaxis(voxels, axis, 0))
    dtype = np.result_type(voxels.dtype, np.float32)
    lines = moved.reshape(len(moved), -1)
    sampled = np.empty((size, lines.shape[1]), dtype=dtype)
    for place, (first, weights) in enumerate(axis_weights(len(lines), size)):
        np.matmul(weights.astype(dtype), lines[first : first + len(weights)].astype(dtype), out=sampled[place])
    return np.moveaxis(sampled.reshape(size, *moved.shape[1:]), 0, axis)


def axis_weights(old_size: int, new_size: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """For each new voxel the first old one that it is made of, and the weights of that one and its neighbours behind.

    Args:
        old_size: Voxels along an axis.
        new_size: Wanted over the same length.
    """
    ratio = old_size / new_size
    reach = max(1.0, ratio)
    for place in range(new_size):
        centre = (place + 0.5) * ratio - 0.5
        first, last = max(0, int(np.ceil(centre - reach))), min(old_size - 1, int(np.floor(centre + reach)))
        weights = np.maximum(0, 1 - np.abs(np.arange(first, last + 1) - centre) / reach)
        yield first, weights / weights.sum()
