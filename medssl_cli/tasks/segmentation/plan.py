"""Spacing, crop, network, batch and augmentation of a segmentation, from the fingerprint of its images.

Shapes: N images, X Y Z space.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import WantedClasses
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import class_voxels, everything_in
from medssl_cli.imaging.geometry import Shape, spacing_mm
from medssl_cli.imaging.volume import Volume
from medssl_cli.nn.axes import shortest
from medssl_cli.nn.build import build_backbone
from medssl_cli.plan.common import PlanBudget, head_values, sketch_of, training_values
from medssl_cli.plan.draft import Draft, Pins, PlannedValue
from medssl_cli.plan.fingerprint import ClassAmount, Fingerprint, amount, look_at
from medssl_cli.plan.geometry import (
    LevelShape,
    SpacingChoice,
    coarsened,
    crop_and_levels,
    crop_within,
    levels_of,
    rounded_to,
    target_spacing,
)
from medssl_cli.plan.intensity import rule_values
from medssl_cli.plan.planner import TaskPlanner
from medssl_cli.plan.whole import is_lateral
from medssl_cli.recipe import AUTO, Named
from medssl_cli.tasks.segmentation.scores import reference_of
from medssl_cli.tasks.segmentation.targets import SegmentationSupervision

STEP_VOXELS: Final = {"cpu": 400_000, "cuda": 4_200_000}
"""What the crops of a step hold together: more teaches more slowly, less is noise."""
CROP_VOXELS: Final = {"cpu": 200_000, "cuda": 2_100_000}
NETWORKS: Final = {
    "cpu": ((0, 16), (0, 24), (0, 32), (8, 32), (16, 32), (24, 48), (32, 64)),
    "cuda": ((16, 32), (32, 64)),
}
"""(channels at full resolution, 0 for no such level; channels at half of it), the cheapest first."""
MOST_CHANNELS: Final = {"cpu": 256, "cuda": 320}
BATCHES: Final = (2, 16)
FEW_SLICES: Final = 5
"""Fewer than so many slices give a network of volumes nothing."""
WHOLE: Final = 0.85
"""Share of an image along each axis: a crop that shows so much shows all of it."""
SMALL_SET: Final = 300
DEEP_LEVELS: Final = 5
"""Number of levels of a network that learns at all of them at once."""
PAYS_BELOW: Final = 0.7
"""Share of an image that its content takes: below it, cutting the rest away pays."""
RARE: Final = 0.001
VALIDATION_PATIENTS: Final = 16


@dataclass(frozen=True)
class _Grid:
    """What the network sees of the median image."""

    choice: SpacingChoice
    spacing: tuple[float, float, float]
    extents: tuple[float, float, float]
    is_cropped: bool
    dims: int


@dataclass(frozen=True)
class _Setting:
    """What all drafts of a plan have in common."""

    pins: Pins
    fingerprint: Fingerprint
    budget: PlanBudget
    grid: _Grid
    crop_voxels: int
    step_voxels: int


class SegmentationPlanner(TaskPlanner):
    """See `plan.planner.TaskPlanner`."""

    annotation = "labels"

    def own_task(self, records: Sequence[ItemRecord], label_set: str) -> dict[str, Any]:
        """See `TaskPlanner.own_task`: every name is a class; values without a name are classes by number."""
        wanted = everything_in([record.labels[label_set] for record in records])
        return {
            "name": "segmentation",
            "label_set": label_set,
            "classes": {name: list(members) for name, members in wanted.classes.items()},
        }

    def sketch(self, pins: Pins, records: Sequence[ItemRecord]) -> dict[str, Any]:
        """See `TaskPlanner.sketch`."""
        return sketch_of(pins, {"name": "unet", "channels": [4], "strides": [1]}, [8, 8, 8], ("classes", "ignore"))

    def look(
        self, cache: Cache, supervision: SegmentationSupervision, records: Sequence[ItemRecord], talk: Talk
    ) -> Fingerprint:
        """See `TaskPlanner.look`; amounts are millilitres."""
        label_set, wanted = supervision.label_set, supervision.wanted

        def classes_of(record: ItemRecord, image: Volume) -> dict[str, NDArray[np.bool_]]:
            return _masks(cache, record, label_set, wanted, image)

        return look_at(
            cache,
            records,
            supervision.preprocessing,
            talk,
            label_set=label_set,
            unit="mL",
            classes=_amounts(records, label_set, wanted),
            classes_of=classes_of,
        )

    def drafts(self, pins: Pins, fingerprint: Fingerprint, budget: PlanBudget, *, scale: float) -> list[Draft]:
        """See `TaskPlanner.drafts`: wider networks, then networks that compute at full resolution."""
        step_voxels = scale * STEP_VOXELS[budget.device]
        crop_voxels = int(min(CROP_VOXELS[budget.device], step_voxels / 2))
        setting = _Setting(
            pins, fingerprint, budget, _grid_of(pins, fingerprint, crop_voxels), crop_voxels, int(step_voxels)
        )
        if pins.has("backbone"):
            return [_around_given_network(setting)]
        return [_with_network(setting, finest, width) for finest, width in NETWORKS[budget.device]]


def _around_given_network(setting: _Setting) -> Draft:
    """A draft around a network that a recipe gives."""
    network = Named.model_validate(setting.pins.get("backbone"))
    backbone = build_backbone(network, in_channels=len(setting.fingerprint.channels))
    grid = setting.grid
    crop = rounded_to(crop_within(grid.extents, grid.spacing, setting.crop_voxels), backbone.crop_multiple)
    return _around_crop(setting, crop, {}, [], learning_rate=1e-3)


def _with_network(setting: _Setting, finest: int, width: int) -> Draft:
    """A draft with a network of its own; see `NETWORKS`."""
    grid, first_stride = setting.grid, 1 if finest else 2
    crop, levels = crop_and_levels(
        grid.extents, grid.spacing, max_voxels=setting.crop_voxels, first_stride=first_stride, dims=grid.dims
    )
    if setting.pins.has("data.crop_size"):
        crop = tuple(setting.pins.get("data.crop_size"))
        levels = levels_of(crop[: grid.dims], grid.spacing[: grid.dims], first_stride=first_stride)
    widths = [finest] * (finest > 0) + [width * 2**number for number in range(len(levels))]
    channels = [min(each, MOST_CHANNELS[setting.budget.device]) for each in widths[: len(levels)]]
    wide = f"{finest} at full resolution sharpen borders" if finest else "none at full resolution: half of the time"
    values = {
        "backbone.name": PlannedValue("unet", "residual convolutions; plainconv and resenc are nnU-Net's own"),
        "backbone.spatial_dims": PlannedValue(grid.dims, _dims_reason(grid, setting.fingerprint)),
        "backbone.channels": PlannedValue(channels, f"{wide}; twice as many take 3 times the time"),
        "backbone.strides": PlannedValue(
            [shortest(level.stride) for level in levels], "of each level; axes with short cells are halved more often"
        ),
        "backbone.kernel_sizes": PlannedValue(
            [shortest(level.kernel) for level in levels], "1 along an axis whose cells are twice as long as others"
        ),
        "backbone.num_res_units": PlannedValue(2, "convolutions of a level"),
        "backbone.activation": PlannedValue("leakyrelu", "as nnU-Net has it"),
    }
    draft = _around_crop(setting, crop, values, levels, learning_rate=2e-3 if width <= 16 else 1.5e-3)
    return Draft(draft.values, cost=_cost(crop, levels, channels))


def _around_crop(
    setting: _Setting,
    crop: Shape,
    network: dict[str, PlannedValue],
    levels: Sequence[LevelShape],
    *,
    learning_rate: float,
) -> Draft:
    """Everything around a network and its crop."""
    pins, fingerprint, grid, budget = setting.pins, setting.fingerprint, setting.grid, setting.budget
    crop = tuple(pins.get("data.crop_size", crop))
    batch = int(min(max(setting.step_voxels // math.prod(crop), BATCHES[0]), BATCHES[1]))
    shows_all = all(WHOLE * extent <= length for extent, length in zip(grid.extents, crop, strict=True))
    lateral = sorted(each.name for each in fingerprint.classes if is_lateral(each.name))
    values = {
        **head_values(pins.get("name", "planned")),
        **network,
        **_task_values(pins, fingerprint),
        **_decoder_values(pins, levels, budget),
        **_grid_values(fingerprint, grid),
        **rule_values(pins, fingerprint),
        "data.crop_size": PlannedValue(list(crop), _crop_reason(grid, crop)),
        "data.batch_size": PlannedValue(batch, "crops in a step; twice as many take twice the time and memory"),
        "data.num_workers": PlannedValue(4 if budget.device == "cuda" else 0, "processes that read crops"),
        **_augmentation_values(fingerprint, grid, lateral),
        **training_values(budget, learning_rate=learning_rate, weight_decay=0.02),
        "foreground_prob": _foreground(fingerprint, grid, shows_all=shows_all),
        "max_validation_patients": PlannedValue(VALIDATION_PATIENTS, "more of them choose better and take longer"),
        "inference.overlap": PlannedValue(0.5, "of neighbouring tiles; 0.25 is twice as fast and a little worse"),
        "inference.mirror_axes": PlannedValue([] if lateral else [0], "mean over mirror images: twice the time"),
        "evaluation.nsd_tolerance_mm": PlannedValue(
            float(f"{max(1.0, min(grid.spacing)):.2g}"), "surfaces this near count as the same: about a voxel"
        ),
    }
    return Draft(values).pinned(pins)


def _grid_of(pins: Pins, fingerprint: Fingerprint, crop_voxels: int) -> _Grid:
    """The grid of the images: as given, or planned."""
    share = fingerprint.content_share if _pays(fingerprint) else np.ones(3)
    median_mm = np.median(fingerprint.shapes * fingerprint.spacings, axis=0) * share
    if pins.has("data.spacing_mm"):
        given = pins.get("data.spacing_mm")
        spacing = tuple(np.median(fingerprint.spacings, axis=0).tolist()) if given is None else tuple(given)
        choice = SpacingChoice(
            (spacing[0], spacing[1], spacing[2]), target_spacing(fingerprint.spacings, fingerprint.shapes).thick_axis
        )
    else:
        choice = target_spacing(fingerprint.spacings, fingerprint.shapes)
        smallest = min((each.median for each in fingerprint.classes if each.num_images), default=0.0) * 1000
        choice = coarsened(choice, median_mm, crop_voxels, smallest)
    x, y, z = (median_mm / np.array(choice.spacing_mm)).tolist()
    is_cropped = bool(pins.get("data.foreground_crop", _pays(fingerprint)))
    return _Grid(choice, choice.spacing_mm, (x, y, z), is_cropped, 2 if z < FEW_SLICES else 3)


def _pays(fingerprint: Fingerprint) -> bool:
    return bool(fingerprint.content_share.prod() < PAYS_BELOW)


def _grid_values(fingerprint: Fingerprint, grid: _Grid) -> dict[str, PlannedValue]:
    share = fingerprint.content_share.prod()
    modality = fingerprint.modality
    about = f"median of {fingerprint.num_images} images"
    if grid.choice.thick_axis is not None:
        about += "; of thick slices the 10th percentile"
    if grid.choice.coarsening > 1:
        about = f"{grid.choice.coarsening:.2g} times coarser than the images, so that a crop shows a tenth of one"
    return {
        "data.modality": PlannedValue(
            modality, "images of other modalities are left out" if modality else "of several"
        ),
        "data.spacing_mm": PlannedValue(list(grid.spacing), f"{about}; half of it, 8 times the time"),
        "data.foreground_crop": PlannedValue(
            grid.is_cropped,
            f"what is not background takes {share:.0%} of an image: cutting pays below {PAYS_BELOW:.0%}",
        ),
    }


def _task_values(pins: Pins, fingerprint: Fingerprint) -> dict[str, PlannedValue]:
    known = "; ".join(
        f"{each.name} {each.median:.3g} mL in {each.num_images} images" for each in fingerprint.classes[:3]
    )
    more = f"; and {len(fingerprint.classes) - 3} more" if len(fingerprint.classes) > 3 else ""
    values = {
        "task.name": PlannedValue("segmentation", "one class per voxel, or regions that overlap"),
        "task.label_set": PlannedValue(fingerprint.label_set, "name of the label maps; medssl cache labels lists them"),
        "task.classes": PlannedValue(pins.get("task.classes"), f"median {known}{more}"),
    }
    for key, value in pins.get("task").items():
        if f"task.{key}" not in values and value != AUTO:
            values[f"task.{key}"] = PlannedValue(value, "as given")
    if pins.get("task.keep_largest") in (None, AUTO):
        values["task.keep_largest"] = PlannedValue(
            "where_it_pays", "parts apart from the largest one of a class are dropped if validation gains by it"
        )
    return values


def _decoder_values(pins: Pins, levels: Sequence[LevelShape], budget: PlanBudget) -> dict[str, PlannedValue]:
    """The way back up, with the kernels of the way down where some of these are shorter along an axis.

    Args:
        pins: What is given.
        levels: Levels of the backbone; none of one that is given.
        budget: Budget of the training.
    """
    values = {}
    if not isinstance(pins.get("task.decoder"), dict):
        shape: dict[str, Any] = {"activation": "leakyrelu"}
        reason = "one convolution per level on the way back up"
        kernels = [level.kernel for level in levels[:-1]]
        if any(len(set(kernel)) > 1 for kernel in kernels):
            shape["kernel_sizes"] = [shortest(kernel) for kernel in kernels]
            reason += ", with the kernels of the way down"
        values["task.decoder"] = PlannedValue(shape, reason)
    if len(levels) >= DEEP_LEVELS and budget.device == "cuda":
        values["task.deep_supervision"] = PlannedValue(
            True, f"{len(levels)} levels and many steps, as in nnU-Net: the loss reaches coarse ones directly"
        )
    return values


def _augmentation_values(fingerprint: Fingerprint, grid: _Grid, lateral: Sequence[str]) -> dict[str, PlannedValue]:
    is_small = fingerprint.num_images < SMALL_SET
    axes = [0, 1] if grid.choice.thick_axis == 2 or grid.dims == 2 else [0, 1, 2]
    if grid.choice.thick_axis in (0, 1):
        axes = [axis for axis in (0, 1, 2) if axis != grid.choice.thick_axis]
    flips = f"{lateral[0]} is on one side: no mirror images" if lateral else "left and right; other axes do not occur"
    turns = "all axes" if len(axes) == 3 else "within thick slices, never across them"
    return {
        "augmentation.flip_prob": PlannedValue(0.0 if lateral else 0.5, flips),
        "augmentation.flip_axes": PlannedValue([] if lateral else [0], "0 is left and right"),
        "augmentation.affine_prob": PlannedValue(
            1.0 if is_small else 0.5,
            f"{fingerprint.num_images} images: {'few, so all' if is_small else 'half of the'} crops move",
        ),
        "augmentation.affine_axes": PlannedValue(axes, f"turns and scales: {turns}"),
        "augmentation.rotate_degrees": PlannedValue(15, "more than patients lie askew helps rarely"),
        "augmentation.scale_range": PlannedValue([0.85, 1.2], "of sizes; wider for children and adults together"),
        "augmentation.intensity_scale": PlannedValue(0.15, "contrast"),
        "augmentation.intensity_shift": PlannedValue(0.15, "brightness"),
        "augmentation.gamma_range": PlannedValue([0.74, 1.35], "contrast of dark against bright"),
        "augmentation.noise_std": PlannedValue(0.1, "in units of what the network sees"),
    }


def _foreground(fingerprint: Fingerprint, grid: _Grid, *, shows_all: bool) -> PlannedValue:
    if shows_all:
        return PlannedValue(0.0, "a crop shows the whole image, and with it every class")
    amounts = [each.median for each in fingerprint.classes if each.num_images]
    image_ml = math.prod(extent * step for extent, step in zip(grid.extents, grid.spacing, strict=True)) / 1000
    is_rare = bool(amounts) and min(amounts) < RARE * image_ml
    share = 0.67 if is_rare else 0.5
    return PlannedValue(share, "of the crops show a voxel of a class; all classes equally often")


def _crop_reason(grid: _Grid, crop: tuple[int, int, int]) -> str:
    extent = " x ".join(f"{length * step:.0f}" for length, step in zip(crop, grid.spacing, strict=True))
    whole = " x ".join(f"{length:.0f}" for length in grid.extents)
    return f"{extent} mm; the median image has {whole} voxels; larger sees more and takes longer"


def _dims_reason(grid: _Grid, fingerprint: Fingerprint) -> str:
    slices = np.median(fingerprint.shapes[:, 2])
    why = "too few for volumes" if grid.dims == 2 else "volumes"
    return f"{slices:.0f} slices in the median image: {why}"


def _amounts(records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses) -> list[ClassAmount]:
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        millilitres = math.prod(spacing_mm(record.affine_array)) / 1000
        for place, number in class_voxels(record.labels[label_set], wanted).items():
            if number:
                found[place].append((record.patient_key, number * millilitres))
    return [amount(name, found[place]) for place, name in wanted.names.items()]


def _masks(
    cache: Cache, record: ItemRecord, label_set: str, wanted: WantedClasses, image: Volume
) -> dict[str, NDArray[np.bool_]]:
    answer = reference_of(cache, record, label_set, wanted, image)
    masks = [answer == place for place in wanted.names] if answer.ndim == 3 else list(answer == 1)
    return dict(zip(wanted.classes, masks, strict=True))


def _cost(crop: Sequence[int], levels: Sequence[LevelShape], channels: Sequence[int]) -> float:
    """Multiplications of a forward pass, roughly."""
    total, voxels = 0.0, float(math.prod(crop))
    before = 1
    for level, width in zip(levels, channels, strict=True):
        voxels /= math.prod(level.stride)
        total += voxels * math.prod(level.kernel) * width * (before + 3 * width)
        before = width
    return total


PLANNER: Final = SegmentationPlanner()
