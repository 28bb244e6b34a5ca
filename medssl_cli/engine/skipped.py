"""Steps of a training whose loss or gradient is not finite: left out by all processes, and written down."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl_cli.base.files import write_atomic, write_json
from medssl_cli.base.talk import Talk
from medssl_cli.engine.optimisation import named_items, require_finite
from medssl_cli.engine.processes import Processes, agreed


class SkippedSteps:
    """What a step that is left out must not leave behind, and how many of them in a row are too many.

    Its forward passes have changed the running statistics of batch norms; these are brought back. Queues and banks do
    not take rows that are not finite.

    Args:
        network: Being trained, with all that its loss needs.
        evidence: Tensors that show what happened, by name; none if there is nothing to show.
        folder: Folder for the facts of steps that were left out.
        limit: Steps in a row that may be left out.
        processes: That share the steps.
        talk: Told of each.
    """

    def __init__(
        self,
        network: nn.Module,
        evidence: Callable[[], Mapping[str, Tensor]],
        folder: Path,
        limit: int,
        processes: Processes,
        talk: Talk,
    ) -> None:
        self._evidence, self._folder, self._limit = evidence, folder, limit
        self._processes, self._talk = processes, talk
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self._before: list[Tensor] = []
        self._in_a_row = 0

    def before_step(self) -> None:
        """Remember the running statistics."""
        self._before = [buffer.clone() for buffer in self._statistics]

    def is_left_out(self, step: int, numbers: dict[str, float], norm: float, item_ids: Sequence[str]) -> bool:
        """Whether the optimiser must not use this step. All processes call it, with the same numbers.

        Args:
            step: Steps done before this one.
            numbers: Numbers of the step, over all processes; `loss` is one.
            norm: Norm of the gradient.
            item_ids: Ids of this process's part of the batch.

        Raises:
            GateError: `E_DIVERGED`, too many in a row.
        """
        if math.isfinite(numbers["loss"]) and math.isfinite(norm):
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        everyone = self._processes.from_all(list(item_ids))
        if self._processes.is_main:
            self._write(step + 1, numbers | {"gradient_norm": norm}, everyone)
        if self._in_a_row > self._limit:
            with agreed():
                require_finite(numbers["loss"], step, everyone)
                require_finite(norm, step, everyone, what="gradient")
        with torch.no_grad():
            for buffer, before in zip(self._statistics, self._before, strict=True):
                buffer.copy_(before)
        what = "gradient" if math.isfinite(numbers["loss"]) else "loss"
        self._talk.note(
            f"W_STEP_SKIPPED: the {what} of step {step + 1} is not finite, the step is left out; "
            f"items {named_items(everyone)}"
        )
        return True

    def _write(self, step: int, numbers: dict[str, float], item_ids: Sequence[str]) -> None:
        self._folder.mkdir(exist_ok=True)
        shown: dict[str, Any] = {
            name: value if math.isfinite(value) else repr(value) for name, value in numbers.items()
        }
        name = f"step-{step:08d}"
        write_json(self._folder / f"{name}.json", {"step": step, "items": list(item_ids), **shown})
        evidence = {key: tensor.cpu().contiguous() for key, tensor in self._evidence().items()}
        if evidence:
            write_atomic(self._folder / f"{name}.safetensors", safetensors.torch.save(evidence))
