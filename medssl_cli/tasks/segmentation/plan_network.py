"""Networks for a segmentation and the crops that they learn from: planned ones, or the one that a recipe gives.

What is given of a network, a crop or a tile decides what is planned around it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from medssl_cli.base.errors import UsageError
from medssl_cli.imaging.geometry import Shape
from medssl_cli.nn.axes import per_level, shortest
from medssl_cli.nn.backbones import Backbone
from medssl_cli.plan.common import fixed_sizes
from medssl_cli.plan.draft import Pins, PlannedValue
from medssl_cli.plan.geometry import (
    LevelShape,
    SpacingChoice,
    crop_and_levels,
    crop_within,
    levels_of,
    levels_with,
    multiple_of,
    rounded_to,
)

NETWORKS: Final = {
    "cpu": ((0, 16), (0, 24), (0, 32), (8, 32), (16, 32), (24, 48), (32, 64)),
    "cuda": ((16, 32), (32, 64)),
}
"""(channels at full resolution, 0 for no such level; channels at half of it), the cheapest first."""
MOST_CHANNELS: Final = {"cpu": 256, "cuda": 320}
FEW_SLICES: Final = 5
"""Fewer than so many slices give a network of volumes nothing."""
SUPERVISED_LEVELS: Final = 4
"""Least number of levels that deep supervision needs."""
PLANNED_NAME: Final = "unet"


@dataclass(frozen=True)
class SeenGrid:
    """What the network sees of the median image.

    Args:
        choice: Spacing and where it comes from.
        extents: Extents of the median image in voxels.
        is_cropped: Whether its background is cut away.
        dims: Dimensions of the network.
        whole_stacks: A network of 2D images gets the slices of a volume together.
    """

    choice: SpacingChoice
    extents: tuple[float, float, float]
    is_cropped: bool
    dims: int
    whole_stacks: bool = True

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel."""
        return self.choice.spacing_mm

    @property
    def shown(self) -> tuple[float, float, float]:
        """What a crop may show of the median image: all of it, or one slice."""
        x, y, z = self.extents
        return (x, y, z) if self.dims == 3 or self.whole_stacks else (x, y, 1.0)


@dataclass(frozen=True)
class NetworkPlan:
    """A network with the crop that it learns from.

    Args:
        crop: Size of a crop in voxels.
        levels: Levels of a planned network; none of one that is given.
        values: The backbone section of a planned network.
        learning_rate: Learning rate that suits it.
        cost: Nominal work of a crop.
    """

    crop: Shape
    levels: Sequence[LevelShape] = ()
    values: dict[str, PlannedValue] = field(default_factory=dict)
    learning_rate: float = 1e-3
    cost: float = 1.0


def dims_of(pins: Pins, num_slices: float) -> int:
    """Dimensions of a planned network: as given, those that a given size allows, or by the number of slices.

    Args:
        pins: What is given.
        num_slices: Slices of the median image.
    """
    if (given := pins.get("backbone.spatial_dims")) in (2, 3):
        return int(given)
    is_flat = any(size[2] == 1 for size in fixed_sizes(pins))
    return 2 if is_flat or pins.get("task.relation") is not None or num_slices < FEW_SLICES else 3


def given_network(pins: Pins, grid: SeenGrid, backbone: Backbone, crop_voxels: int) -> NetworkPlan:
    """A crop for a network that a recipe gives.

    Args:
        pins: What is given.
        grid: What the network sees.
        backbone: The network.
        crop_voxels: Largest number of voxels of a crop.
    """
    multiple = backbone.crop_multiple
    crop = list(rounded_to(crop_within(grid.shown, grid.spacing, crop_voxels), multiple))
    if crop[: grid.dims] == list(multiple):  # one cell at the coarsest level has no variance to be normalised by
        crop[int(np.argmax(np.array(grid.extents[: grid.dims]) * grid.spacing[: grid.dims]))] *= 2
    x, y, z = pins.get("data.crop_size", crop)
    return NetworkPlan((x, y, z))


def planned_networks(
    pins: Pins, grid: SeenGrid, *, device: str, crop_voxels: int, dims_reason: str
) -> list[NetworkPlan]:
    """Networks of their own, the cheapest first: wider ones, then ones that compute at full resolution.

    Args:
        pins: What is given.
        grid: What they see.
        device: `cpu` or `cuda`.
        crop_voxels: Largest number of voxels of a crop.
        dims_reason: Reason for the dimensions.

    Raises:
        UsageError: `E_RECIPE`, what is given of the network goes with no plan.
    """
    if pins.get("backbone.name", PLANNED_NAME) != PLANNED_NAME:
        raise UsageError(
            "E_RECIPE",
            f"backbone {pins.get('backbone.name')} cannot be planned in parts, only {PLANNED_NAME} can",
            hint="give all of its options, or leave the whole backbone to the plan",
        )
    _require_sound_parts(pins)
    found: list[NetworkPlan] = []
    for finest, width in NETWORKS[device]:
        network = _network(pins, grid, finest, width, most=MOST_CHANNELS[device], crop_voxels=crop_voxels)
        network.values["backbone.spatial_dims"] = PlannedValue(grid.dims, dims_reason)
        if network.values not in [known.values for known in found]:
            found.append(network)
    wanted = SUPERVISED_LEVELS if pins.get("task.deep_supervision") is True else 1
    return [network for network in found if len(network.levels) >= wanted] or found


def _require_sound_parts(pins: Pins) -> None:
    """Refuse parts of a network that the plan around them could not count with."""
    channels, dims = pins.get("backbone.channels", [1]), pins.get("backbone.spatial_dims", 3)
    if dims not in (2, 3):
        raise UsageError("E_RECIPE", f"backbone.spatial_dims {dims!r} is neither 2 nor 3")
    if not isinstance(channels, list) or not all(isinstance(each, int) and each > 0 for each in channels or [0]):
        raise UsageError("E_RECIPE", f"backbone.channels {channels!r} is no list of whole numbers above 0")


def _network(pins: Pins, grid: SeenGrid, finest: int, width: int, *, most: int, crop_voxels: int) -> NetworkPlan:
    """A network; see `NETWORKS`."""
    crop, levels = _crop_and_levels(pins, grid, first_stride=1 if finest else 2, crop_voxels=crop_voxels)
    widths = [finest] * (finest > 0) + [width * 2**number for number in range(len(levels))]
    channels = pins.get("backbone.channels", [min(each, most) for each in widths[: len(levels)]])
    is_full = max(levels[0].stride) == 1
    wide = (
        f"{channels[0]} at full resolution sharpen borders" if is_full else "none at full resolution: half of the time"
    )
    values = {
        "backbone.name": PlannedValue(PLANNED_NAME, "residual convolutions; plainconv and resenc are nnU-Net's own"),
        "backbone.spatial_dims": PlannedValue(grid.dims, ""),
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
    rate = 2e-3 if width <= 16 else 1.5e-3
    return NetworkPlan(crop, levels, values, rate, _cost(crop, levels, channels))


def _crop_and_levels(
    pins: Pins, grid: SeenGrid, *, first_stride: int, crop_voxels: int
) -> tuple[Shape, list[LevelShape]]:
    """A crop and levels that take it, and every size that is given."""
    dims, spacing, fixed = grid.dims, grid.spacing, fixed_sizes(pins)
    number = _given_levels(pins)
    if pins.has("backbone.strides"):
        levels = levels_with(_strides(pins, number, dims), spacing[:dims])
        crop = rounded_to(crop_within(grid.shown, spacing, crop_voxels), multiple_of(levels))
    else:
        crop, levels = crop_and_levels(
            grid.shown, spacing, max_voxels=crop_voxels, first_stride=first_stride, dims=dims, given=fixed
        )
    if pins.has("data.crop_size"):
        crop = tuple(pins.get("data.crop_size"))
        if not pins.has("backbone.strides"):
            levels = levels_of(crop[:dims], spacing[:dims], first_stride=first_stride, given=fixed)
    if number is not None and len(levels) < number:
        raise UsageError(
            "E_RECIPE",
            f"the backbone is given {number} levels, and crops of {list(crop)} can be halved for {len(levels)}",
            hint="give backbone.strides too, larger crops, or fewer levels",
        )
    return crop, levels[:number]


def _given_levels(pins: Pins) -> int | None:
    """How many levels the given parts of a network have.

    Raises:
        UsageError: `E_RECIPE`, they are no lists, or differ in their length.
    """
    given = {key: pins.get(f"backbone.{key}") for key in ("channels", "strides", "kernel_sizes")}
    listed = {key: value for key, value in given.items() if isinstance(value, list)}
    if len({len(value) for value in listed.values()}) > 1:
        counts = " and ".join(f"{len(value)} {key}" for key, value in listed.items())
        raise UsageError("E_RECIPE", f"the backbone has {counts}", hint="give one of each per level")
    return len(next(iter(listed.values()))) if listed else None


def _strides(pins: Pins, number: int | None, dims: int) -> tuple[tuple[int, ...], ...]:
    try:
        return per_level(pins.get("backbone.strides"), number or 1, dims, "strides")
    except (TypeError, ValueError) as error:
        raise UsageError("E_RECIPE", f"backbone: {error}") from error


def _cost(crop: Sequence[int], levels: Sequence[LevelShape], channels: Sequence[Any]) -> float:
    """Multiplications of a forward pass, roughly."""
    total, voxels = 0.0, float(math.prod(crop))
    before = 1
    for level, width in zip(levels, channels, strict=True):
        voxels /= math.prod(level.stride)
        total += voxels * math.prod(level.kernel) * width * (before + 3 * width)
        before = width
    return total
