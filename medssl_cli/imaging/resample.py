"""Resampling between grids, in the voxel-centre convention.

Both grids are given by their affines; the sampler is SimpleITK's, fed with index space only, so that no axis
convention of a file format can enter.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm
from medssl_cli.imaging.separable import Axis, axes_between, planes

SAME_GRID_MM: Final = 1e-9
"""Affines that differ by less are the same grid, and nothing is resampled."""


def spaced_grid(affine: Affine, shape: Shape, target_mm: tuple[float, float, float]) -> tuple[Affine, Shape]:
    """The grid with another spacing that covers the same box: voxel edges, not centres, coincide at the low corner.

    Args:
        affine: Affine of the present grid.
        shape: Its size (X, Y, Z).
        target_mm: Wanted spacing (x, y, z).

    Returns:
        Affine and size; the size is rounded to whole voxels, at least 1.
    """
    ratio = np.array(target_mm) / np.array(spacing_mm(affine))
    new_shape = np.maximum(1, np.round(np.array(shape) / ratio)).astype(int)
    step = np.diag([*ratio, 1.0])
    step[:3, 3] = (ratio - 1) / 2
    return affine @ step, (int(new_shape[0]), int(new_shape[1]), int(new_shape[2]))


def resample(
    voxels: NDArray[np.generic],
    affine: Affine,
    target_affine: Affine,
    target_shape: Shape,
    *,
    is_label: bool = False,
) -> NDArray[np.generic]:
    """Sample voxels at the centres of another grid: linear for images, nearest for labels.

    Points up to half a voxel outside of the source take its border value; farther ones are extrapolated by the
    nearest voxel, so that grids rounded to whole voxels have no invented zeros at their ends.

    Args:
        voxels: `[C, X, Y, Z]` on the source grid.
        affine: Source affine.
        target_affine: Wanted affine.
        target_shape: Wanted size (X, Y, Z).
        is_label: Nearest neighbour, dtype kept; otherwise linear, in floating point whatever is stored: rounding would
            make another image of whole numbers than of the same numbers as floats.

    Returns:
        `[C, *target_shape]`. Labels, and voxels that are on the wanted grid already, in the dtype of the source; other
        images in floats that hold its numbers: 32 bits, 64 for integers of 32.
    """
    if voxels.shape[1:] == target_shape and np.allclose(affine, target_affine, rtol=0, atol=SAME_GRID_MM):
        return voxels
    matrix = np.linalg.inv(affine) @ target_affine
    if not is_label and np.result_type(voxels.dtype, np.float32) == np.float32:
        axes = axes_between(matrix, _size(voxels), target_shape)
        if axes is not None:
            return _by_planes(voxels, axes, target_shape)
    import SimpleITK as sitk

    sampler = sitk.ResampleImageFilter()
    sampler.SetInterpolator(sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear)
    sampler.SetNumberOfThreads(1)
    sampler.SetUseNearestNeighborExtrapolator(True)
    sampler.SetSize(target_shape)
    sampler.SetTransform(_index_transform(matrix))
    return np.stack([_sample(sampler, channel, is_label=is_label) for channel in voxels])


def _size(voxels: NDArray[np.generic]) -> Shape:
    _, x, y, z = voxels.shape
    return x, y, z


def _by_planes(voxels: NDArray[np.generic], axes: tuple[Axis, Axis, Axis], shape: Shape) -> NDArray[np.float32]:
    """What the sampler gives for images in 32 bits, with no more than a few planes beside the two images."""
    along = max(range(3), key=lambda axis: abs(voxels.strides[axis + 1]))
    sampled = np.empty((len(voxels), *shape), dtype=np.float32)
    for out, plane in zip(np.moveaxis(sampled, along + 1, 0), planes(voxels, axes, along=along), strict=True):
        out[...] = plane
    return sampled


def _index_transform(matrix: Affine) -> Any:
    """The map from target to source indices; SimpleITK indexes x, y, z like the affine does."""
    import SimpleITK as sitk

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    return transform


def _sample(sampler: Any, channel: NDArray[Any], *, is_label: bool) -> NDArray[Any]:
    import SimpleITK as sitk

    working = channel if is_label else channel.astype(np.result_type(channel.dtype, np.float32))
    image = sitk.GetImageFromArray(np.ascontiguousarray(working.transpose(2, 1, 0)))
    sampled: NDArray[Any] = sitk.GetArrayFromImage(sampler.Execute(image)).transpose(2, 1, 0)
    return sampled.astype(working.dtype, copy=False)
