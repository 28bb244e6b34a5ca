"""Optimiser, learning-rate schedule and the shadow of averaged weights."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import nn

from medssl_cli.base.errors import GateError, UsageError
from medssl_cli.nn.backbones import Backbone
from medssl_cli.nn.lars import Lars
from medssl_cli.nn.momentum import freeze, update_teacher
from medssl_cli.recipe import Optimizer, Schedule, Transfer

NAMED_ITEMS = 8
SCALE, FROZEN = "scale", "frozen_steps"
"""Keys of a group of parameters: share of the learning rate, and steps until it has one."""


def build_optimizer(
    module: nn.Module, options: Optimizer, *, is_fused: bool = False, transfer: Transfer | None = None
) -> torch.optim.Optimizer:
    """Optimiser over the parameters that need gradients; norms, biases and other vectors do not decay.

    Args:
        module: Being trained. What its `undecayed()` names does not decay either, if it has one (see `MethodBase`), nor
            what that of one of its parts names.
        options: Options of the recipe.
        is_fused: One kernel for all parameters; of AdamW only.
        transfer: How its `backbone` follows the rest; like it if None.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    named = {id(each) for part in module.modules() for each in getattr(part, "undecayed", list)()}
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in named]
    spared = [p for p in trained if p.ndim <= 1 or id(p) in named]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if transfer is not None and transfer != Transfer():
        groups = _with_encoder_apart(groups, module.get_submodule("backbone"), transfer)
    groups = [group for group in groups if group["params"]]
    if options.name == "lars":
        return Lars(groups, lr=options.learning_rate, momentum=options.momentum, trust=options.trust)
    if options.name == "sgd":
        momentum = options.momentum
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(groups, lr=options.learning_rate, amsgrad=options.amsgrad, fused=is_fused or None)


def _with_encoder_apart(groups: list[dict[str, Any]], encoder: nn.Module, transfer: Transfer) -> list[dict[str, Any]]:
    """The same parameters in more groups: those of the encoder know how they follow the others.

    Raises:
        UsageError: `E_RECIPE`, the backbone does not tell its levels apart.
    """
    levels = _levels(encoder) if transfer.layer_decay < 1 else {id(p): 0 for p in encoder.parameters()}
    coarsest = max(levels.values(), default=0)
    encoders = [
        {
            **group,
            SCALE: transfer.encoder_scale * transfer.layer_decay ** (coarsest - level),
            FROZEN: transfer.freeze_steps,
            "params": [p for p in group["params"] if levels.get(id(p)) == level],
        }
        for level in sorted(set(levels.values()))
        for group in groups
    ]
    others = [{**group, "params": [p for p in group["params"] if id(p) not in levels]} for group in groups]
    return encoders + others


def _levels(encoder: nn.Module) -> dict[int, int]:
    """Level of each parameter of a backbone, by its identity."""
    assert isinstance(encoder, Backbone)
    named = {id(parameter): encoder.level_of(name) for name, parameter in encoder.named_parameters()}
    levels = {key: level for key, level in named.items() if level is not None}
    if len(levels) < len(named):
        raise UsageError(
            "E_RECIPE",
            "transfer.layer_decay: this backbone does not say at which level its parameters are",
            hint="leave it out, or set transfer.encoder_scale",
        )
    return levels


def learning_rate(
    progress: float, peak: float, schedule: Schedule, *, steps: int | None = None, step: int | None = None
) -> float:
    """Linear warm-up, then half a cosine, or as many as there is time for.

    Args:
        progress: Share of the training that is done, [0, 1].
        peak: Largest learning rate.
        schedule: Shape.
        steps: Steps of the training, for a warm-up that is given in steps; None if a time limit ends it.
        step: Steps done. Within a time limit a warm-up in steps counts these, and the cosine spans all of the time.
    """
    if schedule.period_steps is not None and schedule.warmup_steps is not None:
        assert step is not None
        return _repeating(step, peak, schedule, schedule.warmup_steps, schedule.period_steps)
    if steps is None and step is not None and schedule.warmup_steps is not None:
        if step < schedule.warmup_steps:
            start = schedule.start_fraction
            return peak * (start + (1 - start) * step / schedule.warmup_steps)
        schedule = schedule.model_copy(update={"warmup_steps": None, "warmup_fraction": 0.0})
    warmup = schedule.warmup(steps)
    if progress < warmup:
        start = schedule.start_fraction
        return peak * (start + (1 - start) * progress / warmup)
    through = min(1.0, (progress - warmup) / (1 - warmup))
    final = schedule.final_fraction
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * through)))


def _repeating(step: int, peak: float, schedule: Schedule, warmup: int, period: int) -> float:
    """The rate of a schedule that goes on after it has fallen."""
    if step < warmup:
        return peak * (schedule.start_fraction + (1 - schedule.start_fraction) * step / warmup)
    wave = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (period - warmup)))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * wave)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float, *, step: int = 0) -> None:
    """Give all parameter groups one learning rate, and an encoder that is apart its share of it.

    Args:
        optimizer: See `build_optimizer`.
        value: Value of what is not apart.
        step: Steps done; an encoder that is frozen has the rate 0.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if step < group.get(FROZEN, 0) else value * group.get(SCALE, 1.0)


@dataclass
class Budget:
    """How much of a training is done: counted in steps, or in minutes if a time limit is given.

    Args:
        steps: Steps of the recipe; the limit where no time is given.
        max_minutes: Wall-clock limit that replaces it.
        elapsed_s: Time that earlier sessions of the same run took.
        ends_with_steps: The steps end a training with a time limit too, whichever comes first.
    """

    steps: int
    max_minutes: float | None = None
    elapsed_s: float = 0.0
    ends_with_steps: bool = False

    def __post_init__(self) -> None:
        self._started = monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds of training in all sessions so far."""
        return self.elapsed_s + monotonic() - self._started

    @property
    def num_steps(self) -> int | None:
        """How many steps there will be; None if a time limit decides."""
        return self.steps if self.max_minutes is None else None

    @property
    def last_step(self) -> int:
        """Step after which the loop ends in any case."""
        return self.steps if self.max_minutes is None or self.ends_with_steps else 10**9

    @property
    def of_steps(self) -> str:
        """How many steps there will be, for a message; nothing if a time limit decides."""
        return "" if self.max_minutes is not None else f" of {self.steps}"

    def shown(self, step: int, progress: float) -> tuple[float, float]:
        """How much of how much is done: steps, or a share of 1 if a time limit decides."""
        return (progress, 1.0) if self.max_minutes is not None else (step, self.steps)

    def progress(self, step: int, spent_s: float | None = None) -> float:
        """Share that is done, [0, 1]; 1 means stop.

        Args:
            step: Steps done.
            spent_s: Seconds of training, where several processes have agreed about them.
        """
        by_steps = step / self.steps
        if self.max_minutes is None:
            return min(1.0, by_steps)
        by_time = (self.spent_s if spent_s is None else spent_s) / (60 * self.max_minutes)
        return min(1.0, max(by_steps, by_time) if self.ends_with_steps else by_time)


class AveragedWeights:
    """Exponential moving average of a network's weights, which usually predicts better than its last step.

    Args:
        network: Being trained.
        decay: Decay of the average; early steps use a smaller one, (1 + step) / (10 + step).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.network = freeze(copy.deepcopy(network))

    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the network's present weights."""
        update_teacher(self.network, network, momentum=min(self._decay, (1 + step) / (10 + step)))


def named_items(item_ids: Sequence[str]) -> str:
    """The first few, for a message."""
    return ", ".join(item_ids[:NAMED_ITEMS]) + (" ..." if len(item_ids) > NAMED_ITEMS else "")


def require_finite(loss: torch.Tensor | float, step: int, item_ids: Sequence[str], *, what: str = "loss") -> None:
    """Stop a training that has diverged before it spoils the weights.

    Args:
        loss: Scalar.
        step: Steps done before this one.
        item_ids: Ids of the batch.
        what: What the scalar is.

    Raises:
        GateError: `E_DIVERGED`, with the items of the batch.
    """
    if not math.isfinite(float(loss.detach() if isinstance(loss, torch.Tensor) else loss)):
        raise GateError(
            "E_DIVERGED",
            f"the {what} of step {step + 1} is not finite; items {named_items(item_ids)}",
            hint="lower optimizer.learning_rate, or look at these items with medssl cache show",
        )
