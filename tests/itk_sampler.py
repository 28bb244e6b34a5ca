"""Resampling by SimpleITK alone: what all other ways to resample are compared with."""

from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape


def itk_resampled(voxels: NDArray[Any], affine: Affine, target_affine: Affine, shape: Shape) -> NDArray[np.float32]:
    """`[X, Y, Z]` on another grid: linear up to half a voxel outside, the nearest voxel beyond."""
    matrix = np.linalg.inv(affine) @ target_affine
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    sampler = sitk.ResampleImageFilter()
    sampler.SetInterpolator(sitk.sitkLinear)
    sampler.SetNumberOfThreads(1)
    sampler.SetUseNearestNeighborExtrapolator(True)
    sampler.SetSize(shape)
    sampler.SetTransform(transform)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.astype(np.float32).transpose(2, 1, 0)))
    return sitk.GetArrayFromImage(sampler.Execute(image)).transpose(2, 1, 0)
