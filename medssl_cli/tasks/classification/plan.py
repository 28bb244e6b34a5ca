"""Input size, network and batch of a classification, from the fingerprint of its images."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from medssl_cli.base.names import safe_name
from medssl_cli.base.talk import Talk
from medssl_cli.cache.findings import PRESENT_FROM, finding_names
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.nn.build import build_backbone
from medssl_cli.plan.common import PlanBudget, batch_of, head_values, sketch_of, training_values
from medssl_cli.plan.draft import Draft, Pins, PlannedValue
from medssl_cli.plan.fingerprint import ClassAmount, Fingerprint, amount, look_at
from medssl_cli.plan.geometry import rounded_to
from medssl_cli.plan.intensity import rule_values
from medssl_cli.plan.planner import TaskPlanner
from medssl_cli.plan.whole import steps_of_epochs, whole_augmentation
from medssl_cli.recipe import AUTO, Named
from medssl_cli.tasks.classification.targets import ClassificationSupervision

NETWORKS: Final = {
    "cpu": ((64, 18, 32), (96, 18, 32), (128, 18, 32), (224, 18, 32)),
    "cuda": ((224, 50, 64), (320, 50, 64)),
}
"""(pixels along each side, layers, channels of the first level) of a ResNet, the cheapest first."""
BATCH: Final = 32
STACK_BATCH: Final = 8
MOST_SLICES: Final = 32
STEP: Final = 32
EPOCHS: Final = 100
"""A set of images is gone through at most so often: afterwards only the training images are known better."""


class ClassificationPlanner(TaskPlanner):
    """See `plan.planner.TaskPlanner`."""

    annotation = "findings"

    def own_task(self, records: Sequence[ItemRecord], label_set: str) -> dict[str, Any]:
        """See `TaskPlanner.own_task`: every finding that some images show and others do not is a class."""
        names = finding_names(records, label_set)
        findings = [record.findings[label_set] for record in records]
        told = {name: [found[name] >= PRESENT_FROM for found in findings if name in found] for name in names}
        wanted = [name for name in names if len(set(told[name])) == 2] or names
        shown = [sum(found.get(name, 0) >= PRESENT_FROM for name in wanted) for found in findings]
        is_exclusive = len(wanted) > 1 and all(number == 1 for number in shown)
        return {
            "name": "classification",
            "label_set": label_set,
            "classes": {safe_name(name): [name] for name in wanted},
            **({"is_exclusive": True} if is_exclusive else {}),
        }

    def sketch(self, pins: Pins, records: Sequence[ItemRecord]) -> dict[str, Any]:
        """See `TaskPlanner.sketch`: for 2D images, or for volumes where most are."""
        given = pins.get("data.crop_size")
        is_flat = (
            given[2] == 1 if given is not None else 2 * sum(record.shape[2] == 1 for record in records) >= len(records)
        )
        backbone = {"name": "resnet", "depth": 18, "width": 8}
        return sketch_of(pins, backbone, [STEP, STEP, 1 if is_flat else 4], ("classes", "is_exclusive"))

    def look(
        self, cache: Cache, supervision: ClassificationSupervision, records: Sequence[ItemRecord], talk: Talk
    ) -> Fingerprint:
        """See `TaskPlanner.look`; amounts are images."""
        return look_at(
            cache,
            records,
            supervision.recipe.data.preprocessing,
            talk,
            label_set=supervision.label_set,
            unit="images",
            classes=_amounts(cache, supervision, records),
            classes_of=lambda record, image: {},
        )

    def drafts(self, pins: Pins, fingerprint: Fingerprint, budget: PlanBudget, *, scale: float) -> list[Draft]:
        """See `TaskPlanner.drafts`: finer images, as far as the images are."""
        longest = float(np.median(fingerprint.shapes[:, :2].max(axis=1)))
        finest = STEP * math.ceil(longest / STEP)
        fitting = [each for each in NETWORKS[budget.device] if each[0] <= finest] or [NETWORKS[budget.device][0]]
        if pins.has("data.crop_size"):
            fitting = [(pins.get("data.crop_size")[0], *fitting[-1][1:])]
        return [_draft(pins, fingerprint, budget, *network, longest=longest, scale=scale) for network in fitting]


def _draft(
    pins: Pins,
    fingerprint: Fingerprint,
    budget: PlanBudget,
    side: int,
    depth: int,
    width: int,
    *,
    longest: float,
    scale: float,
) -> Draft:
    slices = 1 if fingerprint.is_flat else int(min(MOST_SLICES, max(2, np.median(fingerprint.shapes[:, 2]))))
    most = BATCH if slices == 1 else STACK_BATCH
    batch = batch_of(pins, scale * most, least=2, most=most)
    crop = pins.get("data.crop_size") or list(rounded_to((side, side, slices), _multiple(pins, fingerprint)))
    seen = "all of an image" if slices == 1 else f"all of a volume, at most {MOST_SLICES} of its slices"
    values = {
        **head_values(pins.get("name", "planned")),
        "backbone.name": PlannedValue("resnet", "the network of the 2D methods of pre-training: --init fits"),
        "backbone.depth": PlannedValue(depth, "layers: 18, 34, 50 or 101"),
        "backbone.width": PlannedValue(width, "channels of the first level; 64 as published"),
        **_task_values(pins, fingerprint),
        "data.modality": PlannedValue(fingerprint.modality, "images of other modalities are left out"),
        **rule_values(pins, fingerprint),
        "data.crop_size": PlannedValue(
            crop, f"{seen}; the median image has {longest:.0f} pixels; twice as many take 4 times the time"
        ),
        "data.batch_size": PlannedValue(batch, "images in a step; fewer make batch norms noisy"),
        "data.num_workers": PlannedValue(4 if budget.device == "cuda" else 0, "processes that read images"),
        **whole_augmentation(pins, fingerprint, rotate_degrees=10, scale_range=(0.9, 1.15)),
        **training_values(budget, learning_rate=1e-3, weight_decay=0.05),
    }
    cost = float(crop[0] * crop[1] * crop[2] * depth * width**2 * batch)
    most_steps = steps_of_epochs(fingerprint.num_images, batch, EPOCHS)
    return Draft(Draft(values).pinned(pins).values, cost, most_steps)


def _multiple(pins: Pins, fingerprint: Fingerprint) -> tuple[int, ...]:
    """What a network that is given takes multiples of; planned ones take any size."""
    if not pins.is_whole("backbone"):
        return ()
    network = Named.model_validate(pins.get("backbone"))
    return build_backbone(network, in_channels=len(fingerprint.channels)).crop_multiple


def _task_values(pins: Pins, fingerprint: Fingerprint) -> dict[str, PlannedValue]:
    total = fingerprint.num_images
    known = "; ".join(f"{each.name} in {each.num_images} of {total}" for each in fingerprint.classes[:3])
    more = f"; and {len(fingerprint.classes) - 3} more" if len(fingerprint.classes) > 3 else ""
    values = {
        "task.name": PlannedValue("classification", "what an image shows as a whole"),
        "task.label_set": PlannedValue(fingerprint.label_set, "name of the findings; medssl cache labels lists them"),
        "task.classes": PlannedValue(pins.get("task.classes"), f"{known}{more}"),
        "task.dropout_prob": PlannedValue(0.2, "of a number of the embedding: more helps small sets"),
    }
    for key, value in pins.get("task").items():
        if value != AUTO and (f"task.{key}" not in values or values[f"task.{key}"].value != value):
            values[f"task.{key}"] = PlannedValue(value, "as given")
    return values


def _amounts(cache: Cache, supervision: ClassificationSupervision, records: Sequence[ItemRecord]) -> list[ClassAmount]:
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for record, row in zip(records, supervision.targets(cache, records), strict=True):
        for place in np.flatnonzero(row == 1):
            found[int(place)].append((record.patient_key, 1.0))
    return [amount(name, found[place]) for place, name in supervision.classes.items()]


PLANNER: Final = ClassificationPlanner()
