"""Does the box that a step reads suit the images of a cache, and which would?"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base import plugins
from medssl_cli.base.classes import joined
from medssl_cli.base.errors import UsageError
from medssl_cli.base.faults import validate_model
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import select, training_examples
from medssl_cli.engine.build import check_dims
from medssl_cli.imaging.canvas import Canvas, CanvasFit, CanvasLimits, Proposal, measure, propose
from medssl_cli.imaging.geometry import Shape, ras_index_affine, spacing_mm
from medssl_cli.methods import CellGrid
from medssl_cli.nn.build import build_backbone
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.recipe import PretrainRecipe

Array = NDArray[np.float64]
CODE: Final = "W_CANVAS"


@dataclass(frozen=True)
class CanvasPlan:
    """What to change in a recipe for a cache.

    Args:
        proposal: The canvas and its reasons in numbers.
        modalities: How many volumes of each.
        settings: `key=value` overrides; empty if the recipe suits.
        warnings: What no canvas can mend.
    """

    proposal: Proposal
    modalities: dict[str, int]
    settings: list[str]
    warnings: list[str]


def plan_canvas(recipe: PretrainRecipe, cache: Cache, talk: Talk) -> CanvasPlan:
    """Search for a canvas that costs no more than the recipe's and suits the cache better.

    Raises:
        UsageError: `E_USAGE`, the recipe's method has no grid of base crops; `E_RECIPE`, its backbone is of 2D images.
        NothingUsableError: `E_CACHE_EMPTY`.
    """
    module = plugins.load("method", recipe.method.name)
    options: Any = validate_model(module.Options, recipe.method.options, source=f"method {recipe.method.name}")
    grid: CellGrid | None = module.Method.grid(options)
    if grid is None:
        hint = f"plan {joined(methods_with_grids())}"
        raise UsageError("E_USAGE", f"{recipe.method.name} has no grid of base crops to plan", hint=hint)
    records = select(cache, modality=recipe.data.modality, talk=talk)
    if recipe.data.channels is not None:
        found = training_examples(cache.entries(), recipe.data, takes_pictures=False, talk=talk)
        records = [cache.record(example.item_id) for example in found]
    shapes, spacings = _shapes(records), _spacings(records)
    spacing = recipe.data.spacing_mm or tuple(float(value) for value in np.median(spacings, axis=0))
    current = Canvas((spacing[0], spacing[1], spacing[2]), grid.cells, recipe.data.crop_size)
    network_size = grid.network_size or recipe.data.crop_size
    backbone = build_backbone(recipe.backbone)
    check_dims(recipe, backbone, module.Method.dims & {3})
    along_x, along_y, along_z = backbone.crop_multiple
    limits = CanvasLimits(
        crop_multiple=(along_x, along_y, along_z),
        max_crop_voxels=math.prod(network_size),
        max_canvas_voxels=math.prod(network_size) * current.num_bases,
    )
    proposal = propose(shapes * spacings, spacings, current, limits)
    return CanvasPlan(
        proposal,
        dict(Counter(record.modality for record in records)),
        _settings(recipe, grid, proposal, records),
        [_sentence(proposal.fit, proposal.canvas.extent_mm)] if proposal.fit.is_mostly_padding else [],
    )


def methods_with_grids() -> list[str]:
    """Names of the methods whose recipes can be planned."""
    modules = {name: plugins.load("method", name) for name in plugins.names("method")}
    return [name for name, module in modules.items() if module.Method.grid(module.Options()) is not None]


def canvas_warning(preprocessing: Preprocessing, view_size: Shape, records: Sequence[ItemRecord]) -> str | None:
    """One line if more than a third of a step's box is padding in the median image, else None; None for fitted images.

    Args:
        preprocessing: Its spacing counts.
        view_size: Box that a step reads of each image, in voxels.
        records: The images.
    """
    if preprocessing.fit is not None or preprocessing.stretch is not None:
        return None
    shapes = _shapes(records)
    if preprocessing.spacing_mm is None:
        fit, extent, unit = measure(shapes, view_size), tuple(map(float, view_size)), "voxels"
    else:
        x, y, z = (voxels * step for voxels, step in zip(view_size, preprocessing.spacing_mm, strict=True))
        fit, extent, unit = measure(shapes * _spacings(records), (x, y, z)), (x, y, z), "mm"
    if not fit.is_mostly_padding:
        return None
    return f"{CODE}: {_sentence(fit, extent, unit)}; medssl recipes plan proposes another"


def _sentence(fit: CanvasFit, extent: tuple[float, ...], unit: str = "mm") -> str:
    size = " x ".join(f"{length:.0f}" for length in extent)
    return f"{fit.padding:.0%} of a step's {size} {unit} is padding in the median image, which teaches little"


def _settings(recipe: PretrainRecipe, grid: CellGrid, proposal: Proposal, records: Sequence[ItemRecord]) -> list[str]:
    settings = []
    if proposal.canvas != proposal.recipe:
        canvas = proposal.canvas
        settings += [
            f"data.spacing_mm={_listed(canvas.spacing_mm)}",
            f"method.{grid.option}={_listed(canvas.base_grid)}",
            f"data.crop_size={_listed(canvas.crop_size)}",
        ]
        settings += [f"data.{name}=null" for name in ("fit", "stretch") if getattr(recipe.data, name) is not None]
        settings += [f"method.{name}=null" for name in grid.resizing]
    num_hu = sum(record.units == "HU" for record in records)
    if recipe.data.window_hu is not None and num_hu < len(records) / 2:
        settings += ["data.window_hu=null", "data.zscore=true"]
    return settings


def _listed(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _shapes(records: Sequence[ItemRecord]) -> Array:
    """Voxels along right, anterior, superior, [N, 3]."""
    return np.array([np.array(record.shape) @ _order(record) for record in records], dtype=np.float64)


def _spacings(records: Sequence[ItemRecord]) -> Array:
    """Voxel sizes along right, anterior, superior in millimetres, [N, 3]."""
    return np.array([np.array(spacing_mm(record.affine_array)) @ _order(record) for record in records])


def _order(record: ItemRecord) -> Array:
    """Which array axis runs along each world axis, a permutation [3, 3]."""
    order: Array = np.abs(ras_index_affine(record.affine_array, record.shape)[:3, :3])
    return order
