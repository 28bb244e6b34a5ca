"""Downstream tasks, one per file: options, head, loss, and the names of what the network says.

A task module defines `Options`, `Task`, and `SUPERVISION`: the module of `engine.supervision` that finds its labels,
makes its batches and scores it. The engine knows nothing else about it.
"""

from abc import ABC
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field
from torch import Tensor, nn

SLICES: Final = "slices"
"""What joint pre-training calls the modules that make volumes of slices."""

ClassName = Annotated[str, Field(pattern=r"^[\w .+/-]{1,64}$")]
BoxNames = Literal["any"] | tuple[str, ...]
"""A class of boxes takes those of any name, or those of the names that are given."""


def each_by_itself(classes: object) -> object:
    """A list of names stands for classes of the same names."""
    return {str(name): (name,) for name in classes} if isinstance(classes, list | tuple) else classes


class TaskBase(nn.Module, ABC):
    """What every `Task` offers beside its `backbone`, `forward` and `loss`."""

    takes_stacks: ClassVar[bool] = False
    """Whether a backbone of 2D images gets images with several slices, one slice at a time."""

    def kept(self) -> dict[str, nn.Module]:
        """Modules beside the backbone that pre-training may have learnt, by the names that it keeps them under."""
        return {}


@dataclass(frozen=True)
class TaskLosses:
    """What a step optimises, and its parts for the log."""

    total: Tensor
    parts: dict[str, Tensor]
