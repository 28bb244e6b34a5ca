"""Spacing, crop, strides and kernels from the sizes and spacings of images, in the spirit of nnU-Net's planner.

Isensee et al., nnU-Net, Nature Methods 2021, https://doi.org/10.1038/s41592-020-01008-z, with one stage only: where
images are much larger than what a step can show, they are resampled coarser instead of being segmented twice.

Shapes: N images. Axes are right, anterior, superior.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Shape

Array = NDArray[np.float64]
Spacing = tuple[float, float, float]

ANISOTROPIC_FROM: Final = 3.0
"""An axis whose spacing is so many times another's is one of thick slices."""
THICK_PERCENTILE: Final = 10
"""Percentile of the spacings along an axis of thick slices: thinner ones are rare, thicker ones are interpolated."""
LEAST_SHARE: Final = 0.1
"""Share of an image's voxels that a crop must show; else the spacing becomes coarser."""
LARGEST_COARSENING: Final = 3.0
LEAST_VOXELS: Final = 200
"""Least number of voxels of the smallest class."""
LEAST_EDGE: Final = 2
"""Cells along an axis of the coarsest feature map."""
MAX_HALVINGS: Final = 5
"""Largest number of halvings of an axis: cells of 32 voxels see enough."""
ROUND_UP_WITHIN: Final = 1.15
"""A crop that is larger than the images by no more than this shows all of them."""


@dataclass(frozen=True)
class SpacingChoice:
    """A spacing and where it comes from.

    Args:
        spacing_mm: Spacing to resample to.
        thick_axis: The axis of thick slices, if there is one.
        coarsening: How many times coarser the finest axis is than in the images.
    """

    spacing_mm: Spacing
    thick_axis: int | None
    coarsening: float = 1.0


@dataclass(frozen=True)
class LevelShape:
    """One level of a network: its stride relative to the level before, and the size of its kernels, per axis."""

    stride: tuple[int, ...]
    kernel: tuple[int, ...]


def target_spacing(spacings: Array, shapes: Array) -> SpacingChoice:
    """The median spacing; along an axis of thick slices the 10th percentile, but no finer than the other axes.

    Args:
        spacings: Millimetres, `[N, 3]`.
        shapes: Voxels, `[N, 3]`.
    """
    median, size = np.median(spacings, axis=0), np.median(shapes, axis=0)
    thick = int(np.argmax(median))
    others = [axis for axis in range(3) if axis != thick]
    is_thick = median[thick] > ANISOTROPIC_FROM * median[others].max()
    is_short = ANISOTROPIC_FROM * size[thick] < size[others].min()
    if not (is_thick and is_short):
        return SpacingChoice(_rounded(median), None)
    median[thick] = max(np.percentile(spacings[:, thick], THICK_PERCENTILE), median[others].max())
    return SpacingChoice(_rounded(median), thick)


def coarsened(choice: SpacingChoice, extents_mm: Array, max_voxels: int, smallest_mm3: float) -> SpacingChoice:
    """The same, or coarser where a crop would show less than a tenth of the median image.

    The finest axes become coarser first. A spacing stays fine enough for the smallest class to keep 200 voxels.

    Args:
        choice: Result of `target_spacing`.
        extents_mm: Extents of the median image, `[3]`.
        max_voxels: Largest number of voxels of a crop.
        smallest_mm3: Median volume of the smallest class.
    """
    spacing = np.array(choice.spacing_mm)
    finest = float(spacing.min())
    found = choice
    for step in range(1, 41):
        if LEAST_SHARE * math.prod(extents_mm / np.array(found.spacing_mm)) <= max_voxels:
            break
        floor = finest * LARGEST_COARSENING ** (step / 40)
        candidate = np.maximum(spacing, floor)
        if smallest_mm3 < LEAST_VOXELS * math.prod(candidate.tolist()):
            break
        found = SpacingChoice(_rounded(candidate), choice.thick_axis, floor / finest)
    return found


def crop_within(extents: Sequence[float], spacing: Sequence[float], max_voxels: int) -> Array:
    """The largest box of at most so many voxels that is as cubic in millimetres as the images allow, in voxels `[3]`.

    Args:
        extents: Extents of the median image in voxels.
        spacing: Millimetres per voxel.
        max_voxels: Largest number of voxels of the box.
    """
    whole, steps = np.maximum(np.array(extents, dtype=np.float64), 1.0), np.array(spacing, dtype=np.float64)
    if math.prod(whole.tolist()) <= max_voxels:
        return whole
    low, high = 0.0, float((whole * steps).max())
    for _ in range(50):
        edge = (low + high) / 2
        box = np.clip(edge / steps, 1.0, whole)
        low, high = (edge, high) if math.prod(box.tolist()) <= max_voxels else (low, edge)
    return np.clip(low / steps, 1.0, whole)


def levels_of(
    crop: Sequence[float], spacing: Sequence[float], *, first_stride: int, given: Sequence[Sequence[int]] = ()
) -> list[LevelShape]:
    """Strides and kernels of the levels of a network for a crop.

    An axis is halved while its cells are less than twice as long as the shortest ones, and while at least two cells are
    left. A kernel is 1 along an axis whose cells are more than twice as long.

    Args:
        crop: Size in voxels, along two or three axes.
        spacing: Millimetres per voxel.
        first_stride: 2 halves before the first level too: nothing is then computed at full resolution.
        given: Sizes that the network must take as they are: an axis is halved only while all of them can be.
    """
    size, steps = [float(each) for each in crop], [float(each) for each in spacing]
    kept = [list(each[: len(size)]) for each in given]
    levels: list[LevelShape] = []
    while len(levels) < MAX_HALVINGS + (first_stride == 1):
        shortest = min(steps)
        wants_halving = bool(levels) or first_stride == 2
        stride = tuple(
            2
            if wants_halving
            and step < 2 * shortest
            and length / 2 >= LEAST_EDGE
            and all(each[axis] % 2 == 0 and each[axis] // 2 >= LEAST_EDGE for each in kept)
            else 1
            for axis, (length, step) in enumerate(zip(size, steps, strict=True))
        )
        if levels and max(stride) == 1:
            break
        size = [length / each for length, each in zip(size, stride, strict=True)]
        kept = [[length // each for length, each in zip(one, stride, strict=True)] for one in kept]
        steps = [step * each for step, each in zip(steps, stride, strict=True)]
        levels.append(LevelShape(stride, _kernel(steps)))
    return levels


def levels_with(strides: Sequence[tuple[int, ...]], spacing: Sequence[float]) -> list[LevelShape]:
    """Levels with given strides, and the kernels that suit them.

    Args:
        strides: Stride of each level relative to the one before, per axis.
        spacing: Millimetres per voxel, along the axes of the strides.
    """
    steps = np.array(spacing, dtype=np.float64)
    levels = []
    for stride in strides:
        steps = steps * np.array(stride)
        levels.append(LevelShape(stride, _kernel(steps.tolist())))
    return levels


def _kernel(steps: Sequence[float]) -> tuple[int, ...]:
    """Size of a kernel for cells of such lengths: 1 along axes whose cells are more than twice as long as others."""
    return tuple(1 if step > 2 * min(steps) else 3 for step in steps)


def crop_and_levels(
    extents: Sequence[float],
    spacing: Sequence[float],
    *,
    max_voxels: int,
    first_stride: int,
    dims: int = 3,
    given: Sequence[Sequence[int]] = (),
) -> tuple[Shape, list[LevelShape]]:
    """A crop, and levels of a network of which it is a multiple; see `crop_within` and `levels_of`.

    Args:
        extents: Extents of the median image in voxels, `[3]`.
        spacing: Millimetres per voxel.
        max_voxels: Largest number of voxels of the crop, or nearly.
        first_stride: First stride of the network.
        dims: 2 for a network that sees slice by slice.
        given: See `levels_of`.
    """
    box = crop_within(extents, spacing, max_voxels)
    for _ in range(4):
        levels = levels_of(box[:dims].tolist(), spacing[:dims], first_stride=first_stride, given=given)
        crop = rounded_to(box, multiple_of(levels))
        again = levels_of(crop[:dims], spacing[:dims], first_stride=first_stride, given=given)
        if [level.stride for level in again] == [level.stride for level in levels]:
            break
        box = np.array(crop, dtype=np.float64)
    return rounded_to(box, multiple_of(again)), again


def multiple_of(levels: Sequence[LevelShape]) -> tuple[int, ...]:
    """What a crop must be a multiple of, along each axis of the network."""
    return tuple(math.prod(level.stride[axis] for level in levels) for axis in range(len(levels[0].stride)))


def rounded_to(box: Sequence[float] | Array, multiple: Sequence[int]) -> Shape:
    """The nearest size that is a multiple; a little larger than the box rather than smaller.

    Args:
        box: Size in voxels, `[3]`.
        multiple: Along the axes of the network; 1 along those beyond.
    """
    sizes = []
    for length, step in zip(box, (*multiple, 1, 1, 1)[:3], strict=True):
        above, nearest = step * math.ceil(length / step), step * max(1, math.floor(length / step + 0.5))
        sizes.append(above if above <= ROUND_UP_WITHIN * length else nearest)
    return sizes[0], sizes[1], sizes[2]


def _rounded(spacing: Array) -> Spacing:
    """Three digits are more than scanners keep."""
    x, y, z = (float(f"{value:.3g}") for value in spacing)
    return x, y, z
