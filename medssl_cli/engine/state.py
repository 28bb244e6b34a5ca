"""Everything that changes from step to step of a pre-training, and how it is saved and restored."""

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from torch import Tensor, nn

from medssl_cli.engine.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    module_tensors,
    optimizer_tensors,
    prefixed,
    refuse_foreign_state,
    restore_module,
    restore_optimizer,
    unprefixed,
    whole,
)
from medssl_cli.engine.devices import lay_out, shard
from medssl_cli.engine.optimisation import AveragedWeights, build_optimizer
from medssl_cli.engine.processes import Processes
from medssl_cli.methods import MethodBase
from medssl_cli.recipe import PretrainRecipe
from medssl_cli.talk import Talk

T = TypeVar("T")


class Computation(nn.Module):
    """Whatever is computed with the method, as one forward pass: what precision, DDP and FSDP hook into.

    Args:
        method: Its parameters are this module's.
    """

    def __init__(self, method: MethodBase) -> None:
        super().__init__()
        self.method = method

    def forward(self, work: Callable[[MethodBase], T]) -> T:
        """Call the work with the method. A function passes untouched where Fabric would cast tensors."""
        return work(self.method)


class TrainingState:
    """A method with its optimiser, gradient scaler and averaged weights, after some steps.

    Args:
        recipe: How to train.
        method: Freshly initialised; moved to the device here.
        processes: Launched.
        is_timed: Checkpoints note how long it took; others are the same bytes for the same weights.
    """

    def __init__(
        self, recipe: PretrainRecipe, method: MethodBase, processes: Processes, *, is_timed: bool = False
    ) -> None:
        fabric = processes.fabric
        lay_out(method, channels_last=recipe.channels_last)
        self.average = AveragedWeights(method.backbone, recipe.ema_decay) if recipe.ema_decay else None
        if recipe.compile:
            method.backbone.compile(dynamic=False)
        self.method = method
        self.compute = fabric.setup_module(Computation(method))
        if self.average is not None:
            self.average.network.to(fabric.device)
            if hasattr(fabric.strategy, "device_mesh"):
                shard(self.average.network, fabric.strategy.device_mesh)
        # On CUDA the fused step is faster; its clipping cannot see gradients that are still scaled, as in fp16.
        is_fused = fabric.device.type == "cuda" and recipe.precision != "fp16"
        self._raw_optimizer = build_optimizer(method, recipe.optimizer, is_fused=is_fused)
        self.optimizer = fabric.setup_optimizers(self._raw_optimizer)
        self.step = 0
        self.is_timed = is_timed
        self.elapsed_s = 0.0
        self._started = monotonic()
        self._processes = processes
        self._saved_step = 0

    def save(self, folder: CheckpointFolder) -> None:
        """Write a checkpoint, unless this step has one. All processes call it, the main one writes."""
        if self._saved_step == self.step:
            return
        tensors = prefixed("method", module_tensors(self.method)) | optimizer_tensors(self._raw_optimizer)
        if self.average is not None:
            tensors |= prefixed("average", module_tensors(self.average.network))
        if self._processes.is_main:
            values = {"scaler": self._precision.state_dict()} | ({"elapsed_s": self.spent_s} if self.is_timed else {})
            folder.save(Checkpoint(self.step, tensors, values))
        self._saved_step = self.step

    def restore(self, folder: CheckpointFolder, talk: Talk) -> None:
        """Take the last intact checkpoint, if there is one. All processes call it."""
        checkpoint = self._processes.main_first(lambda _: folder.load_last(talk.note))
        if checkpoint is None:
            return
        with refuse_foreign_state():
            restore_module(self.method, unprefixed("method", checkpoint.tensors))
            restore_optimizer(self._raw_optimizer, checkpoint.tensors)
            if self.average is not None:
                restore_module(self.average.network, unprefixed("average", checkpoint.tensors))
            self._precision.load_state_dict(checkpoint.values["scaler"])
            self.elapsed_s = float(checkpoint.values.get("elapsed_s", 0.0))
        self.step = self._saved_step = checkpoint.step
        talk.note(f"resuming after step {checkpoint.step}")

    @property
    def spent_s(self) -> float:
        """Seconds of training in all calls so far."""
        return self.elapsed_s + monotonic() - self._started

    def encoder_tensors(self) -> dict[str, Tensor]:
        """Weights of the backbone to keep: the averaged ones, if there are any. All processes call it."""
        return module_tensors(self.method.backbone if self.average is None else self.average.network)

    @property
    def has_scaler(self) -> bool:
        """Whether gradients are scaled (fp16), so that a step with infinite ones is skipped, not an error."""
        return getattr(self._precision, "scaler", None) is not None

    @property
    def _precision(self) -> Any:
        return self._processes.fabric.strategy.precision


def total_norm(norm: Tensor) -> float:
    """The norm of all gradients as a number; of FSDP it comes in parts."""
    return float(whole(norm))
