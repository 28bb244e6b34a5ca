"""Downstream tasks, one per file: options, head, loss, and the names of what the network says.

A task module defines `Options`, `Task`, and `SUPERVISION`: the module of `engine.supervision` that finds its labels,
makes its batches and scores it. The engine knows nothing else about it.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TaskLosses:
    """What a step optimises, and its parts for the log."""

    total: Tensor
    parts: dict[str, Tensor]
