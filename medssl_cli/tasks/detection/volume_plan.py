"""Spacing, crop and network of a detection in volumes, from the sizes of its boxes in millimetres."""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from medssl_cli.imaging.geometry import Shape
from medssl_cli.plan.common import PlanBudget, batch_of, fixed_sizes, head_values, training_values
from medssl_cli.plan.draft import Draft, Pins, PlannedValue
from medssl_cli.plan.fingerprint import Fingerprint
from medssl_cli.plan.geometry import Spacing, crop_within, levels_of, multiple_of, rounded_to, target_spacing
from medssl_cli.plan.intensity import rule_values
from medssl_cli.plan.whole import steps_of_epochs, whole_augmentation

STEP_VOXELS: Final = {"cpu": 400_000, "cuda": 8_400_000}
CROP_VOXELS: Final = {"cpu": 200_000, "cuda": 2_100_000}
WIDTHS: Final = {"cpu": ((8, 32), (16, 64)), "cuda": ((32, 128), (32, 256))}
"""(channels of the first level, channels of the pyramid), the cheapest first."""
LEAST_VOXELS: Final = 5.0
"""Along the shortest side of all boxes but the smallest tenth: finer images than that are resampled coarser."""
LEVELS: Final = (3, 5)
SMALL: Final = 10
BATCHES: Final = (2, 8)
NUM_MAPS: Final = 2
EPOCHS: Final = 1000
"""Crops of an image that a training shows at most."""


def volume_drafts(
    pins: Pins, fingerprint: Fingerprint, budget: PlanBudget, task: Mapping[str, PlannedValue], *, scale: float
) -> list[Draft]:
    """Recipes for boxes in volumes, from the cheapest step to the dearest.

    Args:
        pins: What is given.
        fingerprint: Fingerprint of the images; sizes of boxes in millimetres.
        budget: Budget of the training.
        task: The task section.
        scale: Scale of what a step reads.
    """
    sides = fingerprint.sizes.min(axis=1) if len(fingerprint.sizes) else np.array([10.0])
    small_mm = float(np.percentile(sides, SMALL))
    spacing = _spacing(pins, fingerprint, small_mm)
    whole = np.median(fingerprint.shapes * fingerprint.spacings, axis=0) / np.array(spacing)
    step_voxels = scale * STEP_VOXELS[budget.device]
    at_once = max(BATCHES[0], pins.get("data.batch_size", 1))
    box = crop_within(whole.tolist(), spacing, int(min(CROP_VOXELS[budget.device], step_voxels / at_once)))
    fixed = fixed_sizes(pins)
    if pins.has("data.crop_size"):
        box = np.array(pins.get("data.crop_size"), dtype=np.float64)
    finest_map = 2 ** int(max(1, min(3, math.log2(max(2.0, small_mm / min(spacing))))))
    levels = levels_of(box.tolist(), spacing, first_stride=1, given=fixed)[: int(math.log2(finest_map)) + NUM_MAPS]
    levels = levels[: LEVELS[1]]
    crop: Shape = rounded_to(box, multiple_of(levels))
    crop = tuple(pins.get("data.crop_size", crop))
    least = 1 if pins.has("data.crop_size") else BATCHES[0]
    batch = batch_of(pins, step_voxels // math.prod(crop), least=least, most=BATCHES[1])
    extent = " x ".join(f"{length * step:.0f}" for length, step in zip(crop, spacing, strict=True))
    drafts = []
    for width, pyramid in WIDTHS[budget.device]:
        channels = [min(width * 2**number, 256) for number in range(len(levels))]
        values = {
            **head_values(pins.get("name", "planned")),
            "backbone.name": PlannedValue("unet", "residual convolutions; plainconv and resenc are nnU-Net's own"),
            "backbone.spatial_dims": PlannedValue(3, "volumes"),
            "backbone.channels": PlannedValue(channels, "of each level; twice as many take 3 times the time"),
            "backbone.strides": PlannedValue(
                [list(level.stride) for level in levels], f"the coarsest {NUM_MAPS} maps look for boxes of these sizes"
            ),
            "backbone.kernel_sizes": PlannedValue(
                [list(level.kernel) for level in levels], "1 along an axis whose cells are twice as long as others"
            ),
            "backbone.activation": PlannedValue("leakyrelu", "as nnU-Net has it"),
            **task,
            "task.num_levels": PlannedValue(NUM_MAPS, "maps of the network that look for boxes; the pyramid adds one"),
            "task.width": PlannedValue(pyramid, "channels of the pyramid"),
            "data.modality": PlannedValue(fingerprint.modality, "images of other modalities are left out"),
            "data.spacing_mm": PlannedValue(
                list(spacing), f"nine boxes in ten are wider than {small_mm:.3g} mm; half of it, 8 times the time"
            ),
            **rule_values(pins, fingerprint),
            "data.crop_size": PlannedValue(list(crop), f"{extent} mm; larger sees more and takes longer"),
            "data.batch_size": PlannedValue(batch, "crops in a step; twice as many take twice the time and memory"),
            "data.num_workers": PlannedValue(4 if budget.device == "cuda" else 0, "processes that read crops"),
            **whole_augmentation(pins, fingerprint, rotate_degrees=0, scale_range=(0.7, 1.4)),
            **training_values(budget, learning_rate=1e-3, weight_decay=0.02),
            "foreground_prob": PlannedValue(0.5, "of the crops show a box"),
            "max_validation_patients": PlannedValue(16, "more of them choose better and take longer"),
            "inference.overlap": PlannedValue(0.25, "of neighbouring tiles: boxes on a border are seen twice"),
        }
        cost, most_steps = (
            float(math.prod(crop) * batch * width**2),
            steps_of_epochs(fingerprint.num_images, batch, EPOCHS),
        )
        drafts.append(Draft(Draft(values).pinned(pins).values, cost, most_steps))
    return drafts


def _spacing(pins: Pins, fingerprint: Fingerprint, small_mm: float) -> Spacing:
    """As given, or the median; coarser along axes that are finer than small boxes need."""
    given = pins.get("data.spacing_mm")
    if given is not None:
        return given[0], given[1], given[2]
    if pins.has("data.spacing_mm"):
        x, y, z = np.median(fingerprint.spacings, axis=0).tolist()
        return x, y, z
    x, y, z = (
        float(f"{max(step, small_mm / LEAST_VOXELS):.3g}")
        for step in target_spacing(fingerprint.spacings, fingerprint.shapes).spacing_mm
    )
    return x, y, z
