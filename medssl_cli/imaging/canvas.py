"""Which box of each volume a step should read: a canvas of grid cells that suits the images at hand, and why.

A canvas larger than the images is mostly padding, and padded cells look alike: nothing can tell them apart, and the
loss does not fall. A canvas much smaller than the images shows little of the body around a cell.

Shapes: N volumes.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.geometry import Shape

Array = NDArray[np.float64]
Spacing = tuple[float, float, float]

MAX_PADDING: Final = 1 / 3
MAX_VOLUMES: Final = 128  # more say nothing new about medians
MIN_GAIN: Final = 5.0  # points; below it the recipe's own canvas stays
SPACING_FACTORS: Final = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 5 / 6, 1, 7 / 6, 4 / 3, 3 / 2, 5 / 3, 2)
NUM_BASES: Final = (9, 16)
MIN_SLICES: Final = 8  # native planes that a cell must hold before an axis is divided
POINTS_PER_DOUBLING: Final = 5.0
POINTS_PER_BASE: Final = 5.0
MAX_SHAPE_RATIO: Final = 2
MAX_EXTENT_RATIO: Final = 4


@dataclass(frozen=True)
class Canvas:
    """Grid cells side by side.

    Args:
        spacing_mm: Voxel size (x, y, z).
        base_grid: Cells along x, y, z.
        crop_size: Voxels of a cell along x, y, z.
    """

    spacing_mm: Spacing
    base_grid: Shape
    crop_size: Shape

    @property
    def size(self) -> Shape:
        """Voxels along x, y, z."""
        x, y, z = (cells * voxels for cells, voxels in zip(self.base_grid, self.crop_size, strict=True))
        return x, y, z

    @property
    def extent_mm(self) -> Spacing:
        """Length along x, y, z."""
        x, y, z = (voxels * spacing for voxels, spacing in zip(self.size, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def num_bases(self) -> int:
        """Cells in all."""
        return math.prod(self.base_grid)


@dataclass(frozen=True)
class CanvasFit:
    """How a canvas suits volumes.

    Args:
        coverage: Share of a volume that one canvas shows, median over volumes.
        padding: Share of a canvas that lies outside of its volume, median over volumes.
        padding_p75: The same for the volume at the 75th percentile: a quarter of the volumes has more.
        share_padded: Share of volumes for which more than a third of the canvas is padding.
    """

    coverage: float
    padding: float
    padding_p75: float
    share_padded: float

    @property
    def is_mostly_padding(self) -> bool:
        """Whether more than a third of the canvas is padding in the median volume."""
        return self.padding > MAX_PADDING


@dataclass(frozen=True)
class CanvasLimits:
    """What a network and a device allow.

    Args:
        crop_multiple: Sizes of crops along x, y, z are multiples of it.
        max_crop_voxels: Largest number of voxels of one crop.
        max_canvas_voxels: Largest number of voxels of all base crops together, which is what a step costs.
    """

    crop_multiple: Shape
    max_crop_voxels: int
    max_canvas_voxels: int


@dataclass(frozen=True)
class Proposal:
    """A canvas for a cache, beside the recipe's.

    Args:
        recipe: The recipe's canvas.
        recipe_fit: How it suits.
        canvas: The best one found, or the recipe's if that is hardly worse.
        fit: How it suits.
        extent_mm: Extent in mm of the volumes, median along x, y, z.
        native_mm: Voxel size of the volumes, median along x, y, z.
        num_considered: Canvases that the limits allow.
    """

    recipe: Canvas
    recipe_fit: CanvasFit
    canvas: Canvas
    fit: CanvasFit
    extent_mm: Spacing
    native_mm: Spacing
    num_considered: int


def measure(extents: Array, canvas: Spacing) -> CanvasFit:
    """How a canvas suits volumes of extents [N, 3], all in one unit; the canvas lies inside as far as it can."""
    shared = np.minimum(extents, canvas).prod(axis=1)
    coverage = shared / extents.prod(axis=1)
    padding = 1 - shared / math.prod(canvas)
    return CanvasFit(
        coverage=float(np.median(coverage)),
        padding=float(np.median(padding)),
        padding_p75=float(np.percentile(padding, 75)),
        share_padded=float((padding > MAX_PADDING).mean()),
    )


def propose(extents_mm: Array, native_mm: Array, recipe: Canvas, limits: CanvasLimits) -> Proposal:
    """Search for the canvas that shows most of most volumes without padding much.

    Points: 100 for the whole median volume, less 200 times the padding at the 75th percentile, less 5 per axis for each
    doubling of the voxel size beyond the recipe's and the images' own (or halving below the images' own), less 5 for
    each base crop short of nine or above sixteen. An axis is divided only where each cell holds eight native planes.
    Cells are as long in x as in y. The recipe's canvas stays unless another has five points more.

    Args:
        extents_mm: Extents in mm of each volume along x, y, z, [N, 3].
        native_mm: Voxel size of each volume, [N, 3].
        recipe: What the recipe asks for.
        limits: What network and device allow.
    """
    chosen = _spread(extents_mm)
    extents, native = extents_mm[chosen], np.median(native_mm, axis=0)
    start = _points(extents, native, recipe, recipe)
    best, best_points, num_considered = recipe, start + MIN_GAIN, 0
    for canvas in _candidates(native, recipe, limits):
        num_considered += 1
        points = _points(extents, native, recipe, canvas)
        if points > best_points + 1e-9:
            best, best_points = canvas, points
    return Proposal(
        recipe=recipe,
        recipe_fit=measure(extents_mm, recipe.extent_mm),
        canvas=best,
        fit=measure(extents_mm, best.extent_mm),
        extent_mm=_triple(np.median(extents_mm, axis=0)),
        native_mm=_triple(native),
        num_considered=num_considered,
    )


def _points(extents: Array, native: Array, recipe: Canvas, canvas: Canvas) -> float:
    fit = measure(extents, canvas.extent_mm)
    spacing, allowed = np.array(canvas.spacing_mm), np.maximum(recipe.spacing_mm, native)
    doublings = np.maximum(0, np.maximum(np.log2(spacing / allowed), np.log2(native / spacing))).sum()
    fewest, most = NUM_BASES
    odd_bases = max(0, fewest - canvas.num_bases, canvas.num_bases - most)
    points = 100 * fit.coverage - 200 * fit.padding_p75 - POINTS_PER_DOUBLING * doublings - POINTS_PER_BASE * odd_bases
    return float(points)


def _candidates(native: Array, recipe: Canvas, limits: CanvasLimits) -> Iterator[Canvas]:
    """Every canvas that the limits allow, those nearest to the recipe's spacing and shape first."""
    in_plane = [round(recipe.spacing_mm[0] * factor, 2) for factor in SPACING_FACTORS]
    along_z = {round(recipe.spacing_mm[2] * factor, 2) for factor in SPACING_FACTORS}
    along_z |= {round(4 * native[2] * factor) / 4 for factor in (1 / 2, 1, 2)}
    spacings = [(xy, xy, z) for xy in in_plane for z in sorted(along_z) if z > 0]
    spacings.sort(key=lambda spacing: float(np.abs(np.log(np.divide(spacing, recipe.spacing_mm))).sum()))
    grids = sorted(_grids(), key=lambda grid: sum(abs(a - b) for a, b in zip(grid, recipe.base_grid, strict=True)))
    for spacing, crop_size, base_grid in itertools.product(spacings, _crop_sizes(recipe, limits), grids):
        canvas = Canvas(spacing, base_grid, crop_size)
        cell_mm = np.multiply(crop_size, spacing)
        is_divided = np.array(base_grid) > 1
        if (
            math.prod(canvas.size) <= limits.max_canvas_voxels
            and cell_mm.max() <= MAX_EXTENT_RATIO * cell_mm.min()
            and (cell_mm[is_divided] >= MIN_SLICES * native[is_divided]).all()
        ):
            yield canvas


def _crop_sizes(recipe: Canvas, limits: CanvasLimits) -> list[Shape]:
    """Crops of the recipe's number of voxels down to a quarter of it, the largest first."""
    longest = MAX_SHAPE_RATIO * max(recipe.crop_size)
    along_xy, along_z = math.lcm(*limits.crop_multiple[:2]), limits.crop_multiple[2]
    in_plane, depths = range(along_xy, longest + 1, along_xy), range(along_z, longest + 1, along_z)
    sizes = [(xy, xy, z) for xy in in_plane for z in depths if max(xy, z) <= MAX_SHAPE_RATIO * min(xy, z)]
    fits = [size for size in sizes if limits.max_crop_voxels / 4 <= math.prod(size) <= limits.max_crop_voxels]
    return sorted((size for size in fits if size != limits.crop_multiple), key=math.prod, reverse=True)


def _grids() -> list[Shape]:
    """Grids of four to eighteen cells, about as many along x as along y."""
    found = itertools.product(range(1, 5), range(1, 5), range(1, 4))
    return [(x, y, z) for x, y, z in found if abs(x - y) <= 1 and 4 <= x * y * z <= 18]


def _spread(extents_mm: Array) -> NDArray[np.intp]:
    """Indices of at most `MAX_VOLUMES` volumes, from the smallest to the largest."""
    order = np.argsort(extents_mm.prod(axis=1), kind="stable")
    if len(order) <= MAX_VOLUMES:
        return order
    return order[np.linspace(0, len(order) - 1, MAX_VOLUMES).round().astype(np.intp)]


def _triple(values: Array) -> Spacing:
    x, y, z = (float(value) for value in values)
    return x, y, z
