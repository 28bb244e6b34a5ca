"""Spacing, crop, network, batch and augmentation of a segmentation, from the fingerprint of its images.

Shapes: N images, X Y Z space.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.classes import WantedClasses, first_overlap, joined, parse_classes
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.own_classes import declared_in
from medssl_cli.cache.store import Cache
from medssl_cli.cache.targets import class_voxels
from medssl_cli.imaging.measuring import voxel_ml
from medssl_cli.imaging.volume import Volume
from medssl_cli.nn.axes import shortest
from medssl_cli.nn.build import build_backbone
from medssl_cli.plan.common import PlanBudget, batch_of, head_values, sketch_of, training_values
from medssl_cli.plan.draft import GIVEN, Draft, Pins, PlannedValue
from medssl_cli.plan.fingerprint import ClassAmount, Fingerprint, amount, look_at
from medssl_cli.plan.geometry import LevelShape, SpacingChoice, coarsened, target_spacing
from medssl_cli.plan.intensity import rule_values
from medssl_cli.plan.planner import TaskPlanner
from medssl_cli.plan.whole import flip_values, is_lateral
from medssl_cli.recipe import AUTO, Named
from medssl_cli.tasks.segmentation.plan_network import (
    FEW_SLICES,
    NetworkPlan,
    SeenGrid,
    dims_of,
    given_network,
    planned_networks,
)
from medssl_cli.tasks.segmentation.scores import reference_of
from medssl_cli.tasks.segmentation.targets import SegmentationSupervision

STEP_VOXELS: Final = {"cpu": 400_000, "cuda": 4_200_000}
"""What the crops of a step hold together: more teaches more slowly, less is noise."""
CROP_VOXELS: Final = {"cpu": 200_000, "cuda": 2_100_000}
BATCHES: Final = (2, 16)
WHOLE: Final = 0.85
"""Share of an image along each axis: a crop that shows so much shows all of it."""
SMALL_SET: Final = 300
DEEP_LEVELS: Final = 5
"""Number of levels of a network that learns at all of them at once."""
PAYS_BELOW: Final = 0.7
"""Share of an image that its content takes: below it, cutting the rest away pays."""
RARE: Final = 0.001
EXCLUSIVE: Final = "one class per voxel"
OVERLAPPING: Final = "its classes are regions that overlap: each has a sigmoid of its own"
VALIDATION_PATIENTS: Final = 16


@dataclass(frozen=True)
class _Setting:
    """What all drafts of a plan have in common."""

    pins: Pins
    fingerprint: Fingerprint
    budget: PlanBudget
    grid: SeenGrid
    step_voxels: int


class SegmentationPlanner(TaskPlanner):
    """See `plan.planner.TaskPlanner`."""

    annotation = "labels"

    def own_task(self, records: Sequence[ItemRecord], label_set: str) -> dict[str, Any]:
        """See `TaskPlanner.own_task`: every name is a class, every region one that overlaps others.

        Values without a name that are in no region are classes by number.
        """
        wanted = declared_in([record.labels[label_set] for record in records])
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
        if wanted.are_regions:
            talk.note(f"{joined(list(wanted.classes))} overlap: the network has a sigmoid for each, and no background")

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
        batch = max(BATCHES[0], pins.get("data.batch_size", 1))
        crop_voxels = int(min(CROP_VOXELS[budget.device], step_voxels / batch))
        backbone = None
        if pins.is_whole("backbone"):
            network = Named.model_validate(pins.get("backbone"))
            backbone = build_backbone(network, in_channels=len(fingerprint.channels))
        grid = _grid_of(pins, fingerprint, crop_voxels, dims=None if backbone is None else backbone.spatial_dims)
        setting = _Setting(pins, fingerprint, budget, grid, int(step_voxels))
        if backbone is not None:
            return [_around(setting, given_network(pins, grid, backbone, crop_voxels))]
        networks = planned_networks(
            pins,
            grid,
            device=budget.device,
            crop_voxels=crop_voxels,
            dims_reason=_dims_reason(pins, grid, fingerprint),
        )
        return [_around(setting, network) for network in networks]


def _around(setting: _Setting, network: NetworkPlan) -> Draft:
    """A draft: everything around a network and its crop."""
    pins, fingerprint, grid, budget = setting.pins, setting.fingerprint, setting.grid, setting.budget
    crop = network.crop
    least = 1 if pins.has("data.crop_size") else BATCHES[0]
    batch = batch_of(pins, setting.step_voxels // math.prod(crop), least=least, most=BATCHES[1])
    shows_all = all(WHOLE * extent <= length for extent, length in zip(grid.extents, crop, strict=True))
    lateral = sorted(each.name for each in fingerprint.classes if is_lateral(each.name))
    flips = flip_values(pins, lateral)
    values = {
        **head_values(pins.get("name", "planned")),
        **network.values,
        **_task_values(pins, fingerprint),
        **_decoder_values(pins, network.levels, budget),
        **_grid_values(fingerprint, grid),
        **rule_values(pins, fingerprint),
        "data.crop_size": PlannedValue(list(crop), _crop_reason(grid, crop)),
        "data.batch_size": PlannedValue(batch, "crops in a step; twice as many take twice the time and memory"),
        "data.num_workers": PlannedValue(4 if budget.device == "cuda" else 0, "processes that read crops"),
        **flips,
        **_augmentation_values(fingerprint, grid),
        **training_values(budget, learning_rate=network.learning_rate, weight_decay=0.02),
        "foreground_prob": _foreground(fingerprint, grid, shows_all=shows_all),
        "max_validation_patients": PlannedValue(VALIDATION_PATIENTS, "more of them choose better and take longer"),
        "inference.overlap": PlannedValue(0.5, "of neighbouring tiles; 0.25 is twice as fast and a little worse"),
        "inference.mirror_axes": _mirrored(flips),
        "evaluation.nsd_tolerance_mm": PlannedValue(
            float(f"{max(1.0, min(grid.spacing)):.2g}"), "surfaces this near count as the same: about a voxel"
        ),
    }
    return Draft(Draft(values).pinned(pins).values, network.cost)


def _mirrored(flips: Mapping[str, PlannedValue]) -> PlannedValue:
    """Axes along which answers are averaged over mirror images: left and right, where training knows these."""
    is_known = flips["augmentation.flip_prob"].value > 0 and 0 in flips["augmentation.flip_axes"].value
    reason = "mean over mirror images: twice the time" if is_known else "training sees no mirror images"
    return PlannedValue([0] if is_known else [], reason)


def _grid_of(pins: Pins, fingerprint: Fingerprint, crop_voxels: int, *, dims: int | None) -> SeenGrid:
    """The grid of the images: as given, or planned.

    Args:
        pins: What is given.
        fingerprint: Fingerprint of the images.
        crop_voxels: Largest number of voxels of a crop.
        dims: Dimensions of a network that is given.
    """
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
        choice = _at_given_levels(pins, coarsened(choice, median_mm, crop_voxels, smallest))
    x, y, z = (median_mm / np.array(choice.spacing_mm)).tolist()
    is_cropped = bool(pins.get("data.foreground_crop", _pays(fingerprint)))
    is_stack = z < FEW_SLICES or pins.get("task.relation") is not None
    return SeenGrid(choice, (x, y, z), is_cropped, dims or dims_of(pins, z), whole_stacks=is_stack)


def _at_given_levels(pins: Pins, choice: SpacingChoice) -> SpacingChoice:
    """The same with the distance of slices that a relation of theirs is given."""
    relation = pins.get("task.relation")
    given = relation.get("slice_spacing_mm") if isinstance(relation, Mapping) else None
    if given is None:
        return choice
    x, y, _ = choice.spacing_mm
    return replace(choice, spacing_mm=(x, y, float(given)))


def _pays(fingerprint: Fingerprint) -> bool:
    return bool(fingerprint.content_share.prod() < PAYS_BELOW)


def _grid_values(fingerprint: Fingerprint, grid: SeenGrid) -> dict[str, PlannedValue]:
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
    are_regions = first_overlap(parse_classes(pins.get("task.classes"))) is not None
    values = {
        "task.name": PlannedValue("segmentation", OVERLAPPING if are_regions else EXCLUSIVE),
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


def _augmentation_values(fingerprint: Fingerprint, grid: SeenGrid) -> dict[str, PlannedValue]:
    is_small = fingerprint.num_images < SMALL_SET
    axes = [0, 1] if grid.choice.thick_axis == 2 or grid.dims == 2 else [0, 1, 2]
    if grid.choice.thick_axis in (0, 1):
        axes = [axis for axis in (0, 1, 2) if axis != grid.choice.thick_axis]
    turns = "all axes" if len(axes) == 3 else "within thick slices, never across them"
    return {
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


def _foreground(fingerprint: Fingerprint, grid: SeenGrid, *, shows_all: bool) -> PlannedValue:
    if shows_all:
        return PlannedValue(0.0, "a crop shows the whole image, and with it every class")
    amounts = [each.median for each in fingerprint.classes if each.num_images]
    image_ml = math.prod(extent * step for extent, step in zip(grid.extents, grid.spacing, strict=True)) / 1000
    is_rare = bool(amounts) and min(amounts) < RARE * image_ml
    share = 0.67 if is_rare else 0.5
    return PlannedValue(share, "of the crops show a voxel of a class; all classes equally often")


def _crop_reason(grid: SeenGrid, crop: tuple[int, int, int]) -> str:
    extent = " x ".join(f"{length * step:.0f}" for length, step in zip(crop, grid.spacing, strict=True))
    whole = " x ".join(f"{length:.0f}" for length in grid.extents)
    return f"{extent} mm; the median image has {whole} voxels; larger sees more and takes longer"


def _dims_reason(pins: Pins, grid: SeenGrid, fingerprint: Fingerprint) -> str:
    if pins.has("backbone.spatial_dims"):
        return GIVEN
    slices = np.median(fingerprint.shapes[:, 2])
    if grid.dims == 2 and grid.extents[2] >= FEW_SLICES:
        return f"{slices:.0f} slices in the median image, and what is given sees them one by one"
    why = "too few for volumes" if grid.dims == 2 else "volumes"
    return f"{slices:.0f} slices in the median image: {why}"


def _amounts(records: Sequence[ItemRecord], label_set: str, wanted: WantedClasses) -> list[ClassAmount]:
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        millilitres = voxel_ml(record.affine_array)
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


PLANNER: Final = SegmentationPlanner()
