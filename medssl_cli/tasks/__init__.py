"""Downstream tasks, one per file: options, head, loss, and the names of what the network says.

A task module defines `Options`, `Task`, and `SUPERVISION`: the module of `engine.supervision` that finds its labels,
makes its batches and scores it. The engine knows nothing else about it.
"""

from abc import ABC
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator
from torch import Tensor, nn

from medssl_cli.names import is_safe_name

SLICES: Final = "slices"
"""What joint pre-training calls the modules that make volumes of slices."""


def _safe(name: str) -> str:
    if not is_safe_name(name):
        raise ValueError("a class name has letters, digits, space and ._+/-, at most 64 characters")
    return name


ClassName = Annotated[str, AfterValidator(_safe)]
BoxNames = Literal["any"] | tuple[str, ...]
"""A class of boxes takes those of any name, or those of the names that are given."""


def each_by_itself(classes: object) -> object:
    """A list of names stands for classes of the same names; one name may stand without a list."""
    if isinstance(classes, list | tuple):
        return {str(name): (name,) for name in classes}
    if not isinstance(classes, dict):
        return classes
    is_alone = {name: isinstance(own, str) and own not in ("any", "none") for name, own in classes.items()}
    return {name: (own,) if is_alone[name] else own for name, own in classes.items()}


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
