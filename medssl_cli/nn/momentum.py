"""Teachers that follow a student as an exponential moving average (EMA)."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Take a module's parameters out of differentiation; returns the module."""
    return module.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """Move the teacher towards the student in place: t <- momentum * t + (1 - momentum) * s; buffers are copied.

    A student at rest is approached as t_n = s + momentum^n (t_0 - s): at 0.9 half of the gap is gone after 6.6 updates.

    Args:
        teacher: Same architecture as the student.
        student: Module that is being trained.
        momentum: In [0, 1]; 0 copies the student, 1 never moves.
    """
    targets: list[Tensor] = list(teacher.parameters())
    sources: list[Tensor] = list(student.parameters())
    torch._foreach_mul_(targets, momentum)
    torch._foreach_add_(targets, sources, alpha=1.0 - momentum)
    for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
        target.copy_(source)
