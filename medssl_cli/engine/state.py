"""Everything that changes from step to step of a training, and how it is saved and restored."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medssl_cli.base.talk import Talk
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
from medssl_cli.nn.training_mode import in_mode
from medssl_cli.recipe import TaskRecipe, Training

T = TypeVar("T")


class Computation(nn.Module):
    """Whatever is computed with a network, as one forward pass: what precision, DDP and FSDP hook into.

    Args:
        network: Its parameters are this module's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, work: Callable[[Any], T]) -> T:
        """Call the work with the network. A function passes untouched where Fabric would cast tensors."""
        return work(self.network)


class TrainingState:
    """A network with its optimiser, gradient scaler and averaged weights, after some steps.

    Args:
        recipe: How to train.
        network: Freshly initialised, with all that its loss needs and a `backbone`; moved to the device here.
        processes: Launched.
        result: What the training is for: the network, or a part of it. Its weights are averaged.
        name: What checkpoints call the network.
    """

    def __init__(
        self, recipe: Training, network: nn.Module, processes: Processes, *, result: nn.Module, name: str
    ) -> None:
        fabric = processes.fabric
        self.layouts = lay_out(network, channels_last=recipe.channels_last)
        self.average = AveragedWeights(result, recipe.ema_decay) if recipe.ema_decay else None
        if recipe.compile:
            network.get_submodule("backbone").compile(dynamic=False)
        self.network, self._result, self._name = network, result, name
        self._in_full_precision = Computation(network)
        self.compute = fabric.setup_module(self._in_full_precision)
        if self.average is not None:
            self.average.network.to(fabric.device)
            if hasattr(fabric.strategy, "device_mesh"):
                shard(self.average.network, fabric.strategy.device_mesh)
        # On CUDA the fused step is faster; its clipping cannot see gradients that are still scaled, as in fp16.
        is_fused = fabric.device.type == "cuda" and recipe.precision != "fp16"
        transfer = recipe.transfer if isinstance(recipe, TaskRecipe) else None
        self._raw_optimizer = build_optimizer(network, recipe.optimizer, is_fused=is_fused, transfer=transfer)
        self.optimizer = fabric.setup_optimizers(self._raw_optimizer)
        self.step = 0
        self._processes = processes
        self._saved_step = 0

    def save(self, folder: CheckpointFolder, values: dict[str, Any]) -> None:
        """Write a checkpoint, unless this step has one. All processes call it, the main one writes.

        Args:
            folder: Folder of the run.
            values: What else is to be restored, JSON.
        """
        if self._saved_step == self.step:
            return
        tensors = prefixed(self._name, module_tensors(self.network)) | optimizer_tensors(self._raw_optimizer)
        if self.average is not None:
            tensors |= prefixed("average", module_tensors(self.average.network))
        if self._processes.is_main:
            folder.save(Checkpoint(self.step, tensors, {"scaler": self._precision.state_dict(), **values}))
        self._saved_step = self.step

    def restore(self, folder: CheckpointFolder, talk: Talk) -> dict[str, Any] | None:
        """Take the last intact checkpoint. All processes call it.

        Returns:
            Its other values; None if there is no checkpoint.
        """
        checkpoint = self._processes.main_first(lambda _: folder.load_last(talk.note))
        if checkpoint is None:
            return None
        with refuse_foreign_state():
            restore_module(self.network, unprefixed(self._name, checkpoint.tensors))
            restore_optimizer(self._raw_optimizer, checkpoint.tensors)
            if self.average is not None:
                restore_module(self.average.network, unprefixed("average", checkpoint.tensors))
            if scaler := checkpoint.values.get("scaler"):
                self._precision.load_state_dict(scaler)
        self.step = self._saved_step = checkpoint.step
        talk.note(f"resuming after step {checkpoint.step}")
        return checkpoint.values

    def result_tensors(self) -> dict[str, Tensor]:
        """Weights to keep: the averaged ones, if there are any. All processes call it."""
        return module_tensors(self._result if self.average is None else self.average.network)

    def with_result(self, work: Callable[[Any], T]) -> T:
        """Compute with the weights to keep, in evaluation and full precision. All processes call it."""
        result = self._result if self.average is None else self.average.network
        with in_mode(result, training=False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return work(result) if self.average is not None else self._in_full_precision(lambda _: work(result))

    @property
    def has_scaler(self) -> bool:
        """Whether gradients are scaled (fp16), so that a step with infinite ones is skipped, not an error."""
        return getattr(self._precision, "scaler", None) is not None

    @property
    def _precision(self) -> Any:
        """What scales gradients, or does not."""
        return self._processes.fabric.strategy.precision


def total_norm(norm: Tensor) -> float:
    """The norm of all gradients as a number; of FSDP it comes in parts."""
    return float(whole(norm))
