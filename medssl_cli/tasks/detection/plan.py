"""Input size, network and batch of a detection, from the sizes of its boxes: here on 2D images."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from medssl_cli.base.names import safe_name
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.boxes import class_of
from medssl_cli.imaging.geometry import spacing_mm
from medssl_cli.plan.common import PlanBudget, batch_of, head_values, sketch_of, training_values
from medssl_cli.plan.draft import Draft, Pins, PlannedValue
from medssl_cli.plan.fingerprint import ClassAmount, Fingerprint, amount, look_at
from medssl_cli.plan.geometry import Array
from medssl_cli.plan.intensity import rule_values
from medssl_cli.plan.planner import TaskPlanner
from medssl_cli.plan.whole import steps_of_epochs, whole_augmentation
from medssl_cli.recipe import AUTO
from medssl_cli.tasks.detection.targets import DetectionSupervision
from medssl_cli.tasks.detection.volume_plan import volume_drafts

SIDES: Final = {"cpu": (128, 384), "cuda": (256, 1024)}
"""Least and most pixels along each side of the square that the network sees."""
NETWORKS: Final = {"cpu": ((18, 32, 64),), "cuda": ((18, 64, 128), (50, 64, 256))}
"""(layers, channels of the first level, channels of the pyramid) of a ResNet, the cheapest first."""
STEP: Final = 64
LEAST_PIXELS: Final = 16
"""Along the shorter side of all boxes but the smallest tenth: two places of the finest map."""
SMALL: Final = 10
BATCH: Final = {"cpu": 8, "cuda": 16}
EPOCHS: Final = 200
TASK_KEYS: Final = ("classes", "ignore", "min_readers")
"""Options that say which boxes count."""


class DetectionPlanner(TaskPlanner):
    """See `plan.planner.TaskPlanner`."""

    annotation = "boxes"

    def own_task(self, records: Sequence[ItemRecord], label_set: str) -> dict[str, Any]:
        """See `TaskPlanner.own_task`: every name of boxes is a class, the most frequent first."""
        counts = Counter(box.name for record in records for box in record.boxes[label_set])
        names = sorted(counts, key=lambda name: (-counts[name], name))
        return {"name": "detection", "label_set": label_set, "classes": {safe_name(name): [name] for name in names}}

    def sketch(self, pins: Pins, records: Sequence[ItemRecord]) -> dict[str, Any]:
        """See `TaskPlanner.sketch`: for 2D images, or for volumes where most are."""
        if 2 * sum(record.shape[2] == 1 for record in records) >= len(records):
            return sketch_of(pins, {"name": "resnet", "depth": 18, "width": 8}, [STEP, STEP, 1], TASK_KEYS)
        return sketch_of(pins, {"name": "unet", "channels": [4, 8], "strides": [1, 2]}, [16, 16, 16], TASK_KEYS)

    def look(
        self, cache: Cache, supervision: DetectionSupervision, records: Sequence[ItemRecord], talk: Talk
    ) -> Fingerprint:
        """See `TaskPlanner.look`; amounts are boxes per image."""
        label_set, classes = supervision.label_set, supervision.options.classes
        return look_at(
            cache,
            records,
            supervision.recipe.data.preprocessing,
            talk,
            label_set=label_set,
            unit="boxes",
            classes=_amounts(records, label_set, classes, supervision.classes),
            classes_of=lambda record, image: {},
            sizes=_sizes(records, label_set),
        )

    def drafts(self, pins: Pins, fingerprint: Fingerprint, budget: PlanBudget, *, scale: float) -> list[Draft]:
        """See `TaskPlanner.drafts`: as fine as the smaller boxes need, and half as fine."""
        if not fingerprint.is_flat:
            return volume_drafts(pins, fingerprint, budget, _task_values(pins, fingerprint), scale=scale)
        shares = fingerprint.sizes.min(axis=1) if len(fingerprint.sizes) else np.array([0.1])
        small = max(1e-3, float(np.percentile(shares, SMALL)))
        least, most = SIDES[budget.device]
        needed = min(max(STEP * math.ceil(LEAST_PIXELS / small / STEP), least), most)
        sides = sorted({max(least, STEP * round(needed / 2 / STEP)), needed})
        if pins.has("data.crop_size"):
            sides = [pins.get("data.crop_size")[0]]
        return [
            _draft(pins, fingerprint, budget, side, network, small=small, scale=scale)
            for side in sides
            for network in NETWORKS[budget.device]
        ]


def _draft(
    pins: Pins,
    fingerprint: Fingerprint,
    budget: PlanBudget,
    side: int,
    network: tuple[int, int, int],
    *,
    small: float,
    scale: float,
) -> Draft:
    depth, width, pyramid = network
    batch = batch_of(pins, scale * BATCH[budget.device], least=2, most=BATCH[budget.device])
    about = f"{100 - SMALL} % of the boxes are wider than {small:.2g} of the image, {small * side:.0f} pixels here"
    values = {
        **head_values(pins.get("name", "planned")),
        "backbone.name": PlannedValue("resnet", "the network of the 2D methods of pre-training: --init fits"),
        "backbone.depth": PlannedValue(depth, "layers: 18, 34, 50 or 101"),
        "backbone.width": PlannedValue(width, "channels of the first level; 64 as published"),
        **_task_values(pins, fingerprint),
        "task.width": PlannedValue(pins.get("task.width", pyramid), "channels of the pyramid"),
        "data.modality": PlannedValue(fingerprint.modality, "images of other modalities are left out"),
        **rule_values(pins, fingerprint),
        "data.crop_size": PlannedValue([side, side, 1], f"{about}; twice as many take 4 times the time"),
        "data.batch_size": PlannedValue(batch, "images in a step; fewer make batch norms noisy"),
        "data.num_workers": PlannedValue(4 if budget.device == "cuda" else 0, "processes that read images"),
        **whole_augmentation(pins, fingerprint, rotate_degrees=5, scale_range=(0.8, 1.25)),
        **training_values(budget, learning_rate=3e-4, weight_decay=0.05),
    }
    most_steps = steps_of_epochs(fingerprint.num_images, batch, EPOCHS)
    return Draft(Draft(values).pinned(pins).values, float(side**2 * depth * width**2 * batch), most_steps)


def _task_values(pins: Pins, fingerprint: Fingerprint) -> dict[str, PlannedValue]:
    known = "; ".join(f"{each.name} on {each.num_images} images" for each in fingerprint.classes[:3])
    more = f"; and {len(fingerprint.classes) - 3} more" if len(fingerprint.classes) > 3 else ""
    values = {
        "task.name": PlannedValue("detection", "boxes around what an image shows"),
        "task.label_set": PlannedValue(fingerprint.label_set, "name of the boxes; medssl cache labels lists them"),
        "task.classes": PlannedValue(pins.get("task.classes"), f"{known}{more}"),
    }
    for key, value in pins.get("task").items():
        if value != AUTO and (f"task.{key}" not in values or values[f"task.{key}"].value != value):
            values[f"task.{key}"] = PlannedValue(value, "as given")
    return values


def _sizes(records: Sequence[ItemRecord], label_set: str) -> Array:
    """Sizes of all boxes: in volumes millimetres along the axes of the array, else shares of the image; `[M, D]`."""
    is_flat = bool(np.median([record.shape[2] for record in records]) == 1)
    rows = []
    for record in records:
        unit = 1 / np.array(record.shape[:2]) if is_flat else np.array(spacing_mm(record.affine_array))
        dims = len(unit)
        for box in record.boxes[label_set]:
            rows.append((np.array(box.upper[:dims]) - np.array(box.lower[:dims])) * unit)
    return np.array(rows, dtype=np.float64).reshape(-1, 2 if is_flat else 3)


def _amounts(records: Sequence[ItemRecord], label_set: str, classes: Any, names: dict[int, str]) -> list[ClassAmount]:
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        places = Counter(class_of(box.name, classes) for box in record.boxes[label_set])
        for place, number in places.items():
            if place is not None:
                found[place].append((record.patient_key, float(number)))
    return [amount(name, found[place]) for place, name in names.items()]


PLANNER: Final = DetectionPlanner()
