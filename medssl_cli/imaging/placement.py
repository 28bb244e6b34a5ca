"""Where what a network sees lies in the image that it was made of, and the way there and back.

From an image to a grid: its axes are put in the order and direction of RAS, a box is cut out, the box is resampled (to
a spacing) or resized (to fit), and what remains of the grid is filled up. All of it keeps to the axes, so images, label
maps, boxes and answers find their way in both directions by one affine.

Shapes: C channels, K classes, M boxes, X Y Z space of the image, X' Y' Z' of the grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Affine, Shape, ras_index_affine, reorient_to_ras, turned_onto
from medssl_cli.imaging.resample import SAME_GRID_MM, resample, spaced_grid
from medssl_cli.imaging.resize import fitted_shape, resize, stretched
from medssl_cli.imaging.separable import Axis, planes, shared_axes
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing

ChannelImages = Sequence[Volume]
"""What a network sees at once: one image `[1, X, Y, Z]` for each channel; the grid is the first one's."""


@dataclass(frozen=True, eq=False)
class GridPlacement:
    """What lies where.

    Args:
        source_affine: Affine of the image as it came.
        source_shape: Its size (X, Y, Z).
        box_start: First voxel of the box that is kept, in the axes of RAS.
        box_shape: Size of the box, in the axes of RAS.
        content_affine: Affine of the part of the grid that shows the box.
        content_shape: Size of that part.
        content_start: Its first voxel on the grid; the voxels around it are padding.
        shape: Size (X', Y', Z') of the grid.
        is_fitted: The box is resized to the content without aliasing; else it is sampled at the voxels' centres.
    """

    source_affine: Affine
    source_shape: Shape
    box_start: Shape
    box_shape: Shape
    content_affine: Affine
    content_shape: Shape
    content_start: Shape
    shape: Shape
    is_fitted: bool

    @property
    def affine(self) -> Affine:
        """Affine of the grid."""
        return _moved(self.content_affine, self.content_start, back=True)

    @property
    def is_identity(self) -> bool:
        """Whether the grid is that of the image as it came."""
        return self.shape == self.source_shape and np.array_equal(self.affine, self.source_affine)

    @property
    def box_affine(self) -> Affine:
        """Affine of the box before it is resampled."""
        ras = self.source_affine @ ras_index_affine(self.source_affine, self.source_shape)
        return _moved(ras, self.box_start)

    @property
    def to_source(self) -> Affine:
        """From voxel indices of the grid to those of the image as it came."""
        return np.linalg.inv(self.source_affine) @ self.affine

    @property
    def to_grid(self) -> Affine:
        """From voxel indices of the image as it came to those of the grid."""
        return np.linalg.inv(self.affine) @ self.source_affine

    def sampled(self, voxels: NDArray[np.generic], *, is_label: bool = False) -> NDArray[np.generic]:
        """The box in the axes of RAS, resampled where a spacing is wanted; not yet resized to fit.

        Args:
            voxels: `[C, X, Y, Z]` as they came.
            is_label: Whether they are label maps, which take the nearest voxel.
        """
        oriented, _ = reorient_to_ras(voxels, self.source_affine)
        box = oriented[(slice(None), *slices_of(self.box_start, self.box_shape))]
        if self.is_fitted and not is_label:
            return box
        return resample(box, self.box_affine, self.content_affine, self.content_shape, is_label=is_label)

    def filled(self, sampled: NDArray[np.generic], *, outside: float) -> NDArray[np.generic]:
        """The whole grid `[C, X', Y', Z']` from what `sampled` gives: resized to fit, and padded.

        Args:
            sampled: `[C, ...]`.
            outside: Value of the padding.
        """
        content = resize(sampled, self.content_shape) if sampled.shape[1:] != self.content_shape else sampled
        if self.content_shape == self.shape:
            return np.ascontiguousarray(content)
        whole = np.full((len(content), *self.shape), outside, dtype=content.dtype)
        whole[(slice(None), *slices_of(self.content_start, self.content_shape))] = content
        return whole

    def labels(self, voxels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Label maps or masks `[K, X, Y, Z]` of the image, on the grid; background in the padding."""
        return self.filled(self.sampled(voxels, is_label=True), outside=0)


def placement_of(example: ChannelImages, preprocessing: Preprocessing) -> GridPlacement:
    """Decide about the grid on which a network sees an example.

    Args:
        example: Example on the grid of its first image; voxels are looked at only where the foreground is cut out.
        preprocessing: The recipe's.
    """
    first = example[0]
    ras_affine = first.affine @ ras_index_affine(first.affine, first.shape)
    x, y, z = (int(size) for size in np.array(first.shape) @ _order(first.affine, first.shape))
    start, shape = (0, 0, 0), (x, y, z)
    if preprocessing.foreground_crop:
        start, shape = _foreground(example, preprocessing.foreground_above)
    affine = _moved(ras_affine, start)
    found = GridPlacement(first.affine, first.shape, start, shape, affine, shape, (0, 0, 0), shape, is_fitted=False)
    if preprocessing.spacing_mm is not None:
        affine, size = spaced_grid(affine, shape, preprocessing.spacing_mm)
        return replace(found, content_affine=affine, content_shape=size, shape=size)
    if preprocessing.stretch is not None:
        size = preprocessing.stretch
        affine = stretched(affine, shape, size)
        return replace(found, content_affine=affine, content_shape=size, shape=size, is_fitted=True)
    if preprocessing.fit is None:
        return found
    fit: tuple[int, ...] = preprocessing.fit
    size = fitted_shape(shape, affine, fit)
    whole = (fit[0], fit[1], fit[2] if len(fit) == 3 else size[2])
    return replace(
        found,
        content_affine=stretched(affine, shape, size),
        content_shape=size,
        content_start=((whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2, (whole[2] - size[2]) // 2),
        shape=whole,
        is_fitted=True,
    )


def on_one_grid(example: ChannelImages) -> list[Volume]:
    """Images of an example on the grid of the first.

    Whoever puts an example together answers for it that the images share a frame of reference.
    """
    return [example[0], *(brought_to(example[0], other) for other in example[1:])]


def brought_to(first: Volume, other: Volume, *, is_label: bool = False) -> Volume:
    """An image or a label map on the grid of another image: its own voxels where it has them, else resampled."""
    voxels = turned_onto(other.voxels, other.affine, first.affine, first.shape)
    if voxels is None:
        voxels = resample(other.voxels, other.affine, first.affine, first.shape, is_label=is_label)
    return replace(other, voxels=voxels, affine=first.affine)


def restore_probabilities(probabilities: NDArray[np.float32], placement: GridPlacement) -> NDArray[np.float32]:
    """Probabilities on the image as it came, interpolated linearly.

    Args:
        probabilities: `[K, X', Y', Z']`.
        placement: Placement of the grid.

    Returns:
        `[K, X, Y, Z]`; zero outside of the box that the network saw.
    """
    found = np.zeros((len(probabilities), *placement.source_shape), dtype=np.float32)
    in_ras, _ = reorient_to_ras(found, placement.source_affine)  # a view
    box = in_ras[(slice(None), *slices_of(placement.box_start, placement.box_shape))]
    content = probabilities[(slice(None), *slices_of(placement.content_start, placement.content_shape))]
    for number, plane in enumerate(planes(content, axes_of(placement))):
        box[:, number] = plane
    return found


def move_boxes(boxes: NDArray[np.float64], matrix: Affine) -> NDArray[np.float64]:
    """Boxes in the voxel indices of another grid that shares the axes, in any order and direction.

    Args:
        boxes: `[M, 2, 3]`, lower and upper corners in continuous voxel indices.
        matrix: Matrix from these indices to the others, such as `GridPlacement.to_source`.
    """
    corners = boxes @ matrix[:3, :3].T + matrix[:3, 3]
    return np.stack([corners.min(axis=1), corners.max(axis=1)], axis=1)


def axes_of(placement: GridPlacement) -> tuple[Axis, Axis, Axis]:
    """Where the voxels of the box lie on the part of the grid that shows it.

    Raises:
        ValueError: The grids do not share their axes.
    """
    affine, shape, box_affine = placement.content_affine, placement.content_shape, placement.box_affine
    if shape == placement.box_shape and np.allclose(affine, box_affine, rtol=0, atol=SAME_GRID_MM):
        return shared_axes(np.eye(4), shape, shape)
    return shared_axes(np.linalg.inv(affine) @ box_affine, shape, placement.box_shape)


def _foreground(example: ChannelImages, above: float | None) -> tuple[Shape, Shape]:
    """First voxel and size, in the axes of RAS, of the box around all voxels above a value, or the lowest one."""
    low, high = np.full(3, np.iinfo(np.int64).max), np.full(3, -1)
    for volume in example:
        voxels, _ = reorient_to_ras(volume.voxels, volume.affine)
        limit: Any = voxels.min(axis=(1, 2, 3), keepdims=True) if above is None else above
        is_above = (voxels > limit).any(axis=0)
        for axis in range(3):
            places = np.flatnonzero(is_above.any(axis=tuple({0, 1, 2} - {axis})))
            if places.size:
                low[axis], high[axis] = min(low[axis], places[0]), max(high[axis], places[-1])
    if (high < 0).any():
        low, high = np.zeros(3, dtype=np.int64), np.array(is_above.shape) - 1
    start, size = low.tolist(), (high - low + 1).tolist()
    return (start[0], start[1], start[2]), (size[0], size[1], size[2])


def _order(affine: Affine, shape: Shape) -> NDArray[np.float64]:
    """Which array axis runs along each axis of RAS, a permutation `[3, 3]`."""
    return np.abs(ras_index_affine(affine, shape)[:3, :3])


def _moved(affine: Affine, start: Shape, *, back: bool = False) -> Affine:
    """The affine of a grid whose first voxel is another one of the same grid, or the other way round."""
    step = np.eye(4)
    step[:3, 3] = np.negative(start) if back else start
    return affine @ step


def slices_of(start: Shape, shape: Shape) -> tuple[slice, slice, slice]:
    """A box of an array, from its first voxel and its size."""
    x, y, z = (slice(low, low + size) for low, size in zip(start, shape, strict=True))
    return x, y, z
