"""What every task plans alike: the optimiser, its schedule, and how often a training looks at itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from medssl_cli.plan.draft import RULES, Pins, PlannedValue
from medssl_cli.recipe import sketched, validate_recipe

STEPS_PER_LOOK: Final = 10
"""Parts of a training, with a validation at the end of each."""
SHARE_OF_STEPS: Final = 0.85
"""Share of a time budget that steps take; the rest is for validation, checkpoints and the start."""
LEAST_STEPS: Final = 20
FIXED_SIZES: Final = ("data.crop_size", "inference.tile_size")
WANTED_STEPS: Final = 3000
"""A larger network is taken while a training still has so many steps."""


@dataclass(frozen=True)
class PlanBudget:
    """What a training may take.

    Args:
        device: `cpu` or `cuda`.
        memory_bytes: Most memory of a step.
        minutes: Minutes of the whole training.
        is_measured: Steps are tried on the device; else the first draft is taken, with so many steps as its own.
    """

    device: str
    memory_bytes: float
    minutes: float
    is_measured: bool = True

    def steps(self, step_s: float) -> int:
        """How many steps of so many seconds a training has, to two digits."""
        number = SHARE_OF_STEPS * 60 * self.minutes / max(step_s, 1e-4)
        return int(max(float(f"{number:.2g}"), LEAST_STEPS))


def sketch_of(pins: Pins, backbone: dict[str, Any], crop_size: list[int], task_keys: tuple[str, ...]) -> dict[str, Any]:
    """A recipe that is sound and trains nothing; see `TaskPlanner.sketch`.

    Args:
        pins: What is given.
        backbone: Any small one.
        crop_size: That suits it.
        task_keys: Keys of the task's options that say which images and labels it takes.
    """
    names = [each["name"] for each in pins.get("data.channels", ())]
    rule: dict[str, Any] = (
        {"channels": [{"name": name, "zscore": True} for name in names]} if names else {"zscore": True}
    )
    return {
        "schema": 1,
        "name": "sketch",
        "split_seed": pins.get("split_seed", 0),
        "backbone": backbone,
        "task": {key: value for key, value in pins.get("task").items() if key in ("name", "label_set", *task_keys)},
        "data": {"modality": pins.get("data.modality"), "crop_size": crop_size, "batch_size": 1, **rule},
        "optimizer": {"learning_rate": 1e-3},
        "steps": 1,
    }


def head_values(name: str) -> dict[str, PlannedValue]:
    """The first lines of every recipe.

    Args:
        name: Name of the installed model.
    """
    return {
        "schema": PlannedValue(1, "form of this file"),
        "name": PlannedValue(name, f"of the installed model: medssl infer --task {name}"),
        "seed": PlannedValue(0, "another seed, another initialisation and another order of images"),
        "split_seed": PlannedValue(0, "another one holds out other patients: scores can then not be compared"),
    }


def training_values(budget: PlanBudget, *, learning_rate: float, weight_decay: float) -> dict[str, PlannedValue]:
    """Optimiser, schedule and precision."""
    is_cuda = budget.device == "cuda"
    precision = ("bf16", "half the memory of fp32 on CUDA") if is_cuda else ("fp32", "CPUs are no faster with less")
    return {
        "optimizer.name": PlannedValue("adamw", "forgives a wrong learning rate more than sgd"),
        "optimizer.learning_rate": PlannedValue(
            learning_rate, "halve it if the loss jumps; its peak, after the warm-up"
        ),
        "optimizer.weight_decay": PlannedValue(weight_decay, "more of it holds the weights smaller"),
        "optimizer.max_grad_norm": PlannedValue(
            5.0, "longer gradients are cut: one odd image does not spoil the weights"
        ),
        "schedule.name": PlannedValue("warmup_cosine", "the only one"),
        "schedule.warmup_fraction": PlannedValue(0.03, "share of the steps until the peak"),
        "schedule.final_fraction": PlannedValue(0.01, "of the peak at the end: small steps find the last percent"),
        "precision": PlannedValue(*precision),
        "channels_last": PlannedValue(True, "faster convolutions on CPUs and on CUDA"),
    }


def pace_values(steps: int, reason: str) -> dict[str, PlannedValue]:
    """Steps, and what depends on their number."""
    look_every = max(1, steps // STEPS_PER_LOOK)
    slow = steps >= 6000
    return {
        "steps": PlannedValue(steps, reason),
        "validate_every": PlannedValue(look_every, "the best of these validations is what is kept and exported"),
        "checkpoint_every": PlannedValue(look_every, "a killed training goes on from the last one"),
        "ema_decay": PlannedValue(
            0.999 if slow else 0.995, f"weights averaged over about {1000 if slow else 200} steps are what is tested"
        ),
    }


def require_sound(pins: Pins) -> None:
    """Refuse given values that no recipe may have; what is not given counts as planned to suit them.

    Raises:
        UsageError: `E_RECIPE`.
    """
    given = sketched(pins.document)
    data = given.get("data")
    if isinstance(data, Mapping):
        channels = data.get("channels")
        if isinstance(channels, list):
            given["data"] = {**data, "channels": [_with_rule(channel) for channel in channels]}
        elif not any(data.get(rule) for rule in RULES):
            given["data"] = {**data, "zscore": True}
    crops, warmup = pins.get("crops_per_image"), pins.get("schedule.warmup_steps")
    needed: dict[str, Any] = {
        "schema": 1,
        "name": "planned",
        "backbone": {"name": "unet"},
        "data": {"crop_size": [32, 32, 32], "batch_size": crops if isinstance(crops, int) else 1, "zscore": True},
        "optimizer": {"learning_rate": 1e-3},
        "steps": warmup + 1 if isinstance(warmup, int) else 1,
    }
    if isinstance(given.get("data"), Mapping):
        del needed["data"]["zscore"]
    validate_recipe(_merged(needed, given), source="what is given")


def _with_rule(channel: Any) -> Any:
    """A channel with some rule of intensities, as it will have one."""
    if isinstance(channel, Mapping) and not any(channel.get(rule) for rule in RULES):
        return {**channel, "zscore": True}
    return channel


def _merged(needed: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(needed)
    for key, value in given.items():
        before = needed.get(key)
        found[key] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return found


def fixed_sizes(pins: Pins) -> list[Sequence[int]]:
    """Sizes in voxels that are given, and that a network must take as they are."""
    return [pins.get(key) for key in FIXED_SIZES if pins.get(key) is not None]


def batch_of(pins: Pins, wanted: float, *, least: int, most: int) -> int:
    """Images or crops in a step: as given, or about as wanted, and a multiple of `crops_per_image`.

    Args:
        pins: What is given.
        wanted: How many of them are wanted.
        least: Least number of them.
        most: Largest number of them.
    """
    if pins.has("data.batch_size"):
        return int(pins.get("data.batch_size"))
    each = int(pins.get("crops_per_image", 1))
    return each * max(1, math.ceil(least / each), int(min(wanted, most)) // each)
