"""What a recipe's `Preprocessing` does to a volume, and how predictions find their way back.

Two steps: geometry (`to_grid`: orientation and spacing) and intensity (`intensity_of`, elementwise).
The cache keeps the result of the first; the second is applied to crops, tiles and whole volumes alike.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape, ras_index_affine, reorient_to_ras
from medssl_cli.imaging.resample import SAME_GRID_MM, resample, spaced_grid
from medssl_cli.imaging.separable import planes, shared_axes
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import Preprocessing


@dataclass(frozen=True)
class Intensity:
    """An elementwise rule: clip to [low, high], subtract `shift`, multiply by `scale`."""

    low: float
    high: float
    shift: float
    scale: float

    def apply(self, voxels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Network input of the same shape, float32."""
        values = voxels.astype(np.float32)
        np.clip(values, np.float32(self.low), np.float32(self.high), out=values)
        values -= np.float32(self.shift)
        values *= np.float32(self.scale)
        return values


def needs_new_grid(volume: Volume, preprocessing: Preprocessing) -> bool:
    """Whether `to_grid` would change anything."""
    gridded_affine, gridded_shape = _target_grid(volume, preprocessing)
    return gridded_shape != volume.shape or not np.array_equal(gridded_affine, volume.affine)


def to_grid(volume: Volume, preprocessing: Preprocessing, *, is_label: bool = False) -> Volume:
    """Orient to RAS and resample to the recipe's spacing; values keep their meaning, sampled images are floats."""
    voxels, affine = reorient_to_ras(volume.voxels, volume.affine)
    target_affine, target_shape = _target_grid(volume, preprocessing)
    sampled = resample(voxels, affine, target_affine, target_shape, is_label=is_label)
    return Volume(np.ascontiguousarray(sampled), target_affine, volume.modality, volume.units)


def _target_grid(volume: Volume, preprocessing: Preprocessing) -> tuple[Affine, Shape]:
    affine = volume.affine @ ras_index_affine(volume.affine, volume.shape)
    shape = _ras_shape(volume)
    if preprocessing.spacing_mm is None:
        return affine, shape
    return spaced_grid(affine, shape, preprocessing.spacing_mm)


def _ras_shape(volume: Volume) -> Shape:
    permutation = np.abs(ras_index_affine(volume.affine, volume.shape)[:3, :3])
    x, y, z = (int(size) for size in np.array(volume.shape) @ permutation)
    return x, y, z


def intensity_of(voxels: NDArray[np.generic], preprocessing: Preprocessing) -> Intensity:
    """The elementwise rule for one volume on its grid.

    Args:
        voxels: `[C, X, Y, Z]` as `to_grid` returns them; only their statistics are used.
        preprocessing: A fixed window, or z-scores over the non-zero voxels (all voxels if none is zero).
    """
    if preprocessing.window_hu is not None:
        low, high = preprocessing.window_hu
        return Intensity(low, high, low, 1 / (high - low))
    values = voxels[voxels != 0]
    sample = values if values.size else voxels
    mean, std = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
    return Intensity(float(voxels.min()), float(voxels.max()), mean, 1 / max(std, 1e-6))


def preprocess(volume: Volume, preprocessing: Preprocessing) -> Volume:
    """Geometry and intensity together: what a network sees of a volume, float32."""
    gridded = to_grid(volume, preprocessing)
    values = intensity_of(gridded.voxels, preprocessing).apply(gridded.voxels)
    return Volume(values, gridded.affine, volume.modality, volume.units)


def restore_labels(
    logits: NDArray[np.float32], grid_affine: Affine, source_affine: Affine, source_shape: Shape
) -> NDArray[np.uint8]:
    """Class per voxel of the source grid from logits on the preprocessed grid.

    Logits are resampled linearly, then the largest wins, of equal ones the lowest class. The two grids share their
    axes, so this is done plane by plane, and resampled logits never exist all at once.

    Args:
        logits: `[K, X, Y, Z]` on the preprocessed grid.
        grid_affine: Affine of the preprocessed grid, which `to_grid` made of the source's.
        source_affine: Affine of the image as it came.
        source_shape: Its size (X, Y, Z).

    Returns:
        `source_shape`, uint8.

    Raises:
        ValueError: The grids do not share their axes.
    """
    to_ras = ras_index_affine(source_affine, source_shape)
    ras_affine = source_affine @ to_ras
    x, y, z = (int(size) for size in np.array(source_shape) @ np.abs(to_ras[:3, :3]))
    grid_shape = (logits.shape[1], logits.shape[2], logits.shape[3])
    if grid_shape == (x, y, z) and np.allclose(grid_affine, ras_affine, rtol=0, atol=SAME_GRID_MM):
        sampled = iter(logits.swapaxes(0, 1))
    else:
        sampled = planes(logits, shared_axes(np.linalg.inv(grid_affine) @ ras_affine, grid_shape, (x, y, z)))
    labels = np.empty(source_shape, dtype=np.uint8)
    in_ras, _ = reorient_to_ras(labels[None], source_affine)  # a view
    for plane, values in zip(in_ras[0], sampled, strict=True):
        plane[...] = _largest(values)
    return labels


def _largest(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Which of the values `[K, Y, Z]` is the largest, `[Y, Z]`."""
    classes = np.zeros(values.shape[1:], dtype=np.uint8)
    best = values[0].copy()
    for index, candidate in enumerate(values[1:], start=1):
        wins = candidate > best
        np.putmask(classes, wins, index)
        np.maximum(best, candidate, out=best)
    return classes
