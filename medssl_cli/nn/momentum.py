"""Teachers that follow a student as an exponential moving average (EMA)."""

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from medssl_cli.nn.backbones import Backbone

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Take a module's parameters out of differentiation; returns the module."""
    return module.requires_grad_(False)


@torch.no_grad()
def random_like(module: Module) -> Module:
    """A copy with other random weights: the entries of every parameter, shuffled with torch's own generator.

    The entries of a fresh tensor are drawn alike, so a shuffled tensor is another draw. Constants stay what they are.
    """
    twin = copy.deepcopy(module)
    for parameter in twin.parameters():
        order = torch.randperm(parameter.numel()).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return twin


def cosine_momentum(progress: float, *, first: float, last: float) -> float:
    """Momentum that rises along half a cosine from `first` at progress 0 to `last` at progress 1."""
    return last - (last - first) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, *, momentum: float, keeps_statistics: bool = False) -> None:
    """Move the teacher towards the student in place: t <- momentum * t + (1 - momentum) * s.

    A student at rest is approached as t_n = s + momentum^n (t_0 - s): at 0.9 half of the gap is gone after 6.6 updates.

    Args:
        teacher: Same architecture as the student.
        student: Module that is being trained.
        momentum: Momentum in [0, 1]; 0 copies the student, 1 never moves.
        keeps_statistics: Leave the buffers, such as running means of batch norms, to a teacher that makes its own;
            otherwise they are copied.
    """
    targets: list[Tensor] = list(teacher.parameters())
    sources: list[Tensor] = list(student.parameters())
    torch._foreach_mul_(targets, momentum)
    torch._foreach_add_(targets, sources, alpha=1.0 - momentum)
    if keeps_statistics:
        return
    for target, source in zip(teacher.buffers(), student.buffers(), strict=True):
        target.copy_(source)


class SlowEncoder(nn.Module):
    """A backbone and what projects its embeddings as an average over the training: the teacher of a method.

    It normalises by the batches that it sees, keeps its own running statistics, and gets no gradient.

    Args:
        backbone: Backbone of the student.
        projector: Projector of the student, from embeddings to projections.
        momentum: Momentum of the first step; see `update_teacher`.
        last_momentum: Momentum of the last step; between them it follows half a cosine.
    """

    def __init__(
        self, backbone: Backbone, projector: nn.Module, *, momentum: float, last_momentum: float = 1.0
    ) -> None:
        super().__init__()
        self.backbone = freeze(copy.deepcopy(backbone))
        self.projector = freeze(copy.deepcopy(projector))
        self._momentum, self._last_momentum = momentum, last_momentum

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Projections [B, E] of images."""
        projections: Tensor = self.projector(self.backbone.embed(images))
        return projections

    def follow(self, students: Sequence[nn.Module], progress: float) -> None:
        """Move towards backbone and projector of the student, after a step.

        Args:
            students: The two that it is the average of.
            progress: Share of the training that is done.
        """
        momentum = cosine_momentum(progress, first=self._momentum, last=self._last_momentum)
        for teacher, student in zip((self.backbone, self.projector), students, strict=True):
            update_teacher(teacher, student, momentum=momentum, keeps_statistics=True)


def warm_momentum(updates: int, *, limit: float, pace: int = 1) -> float:
    """Momentum of a teacher that knows nothing yet: 0 at first, so that it becomes the student, then up to a limit.

    Args:
        updates: How often the teacher has moved.
        limit: Largest momentum.
        pace: The teacher is an average over about the last 1 / pace of its updates; 1 is published.
    """
    return min(updates / (updates + pace), limit)


def exponential_ramp(progress: float, length: float) -> float:
    """exp(-5 (1 - t)^2) with t from 0 to 1 over `length`: 0.0067 at first, 1 from then on; 1 for a length of 0.

    Source: Laine and Aila, Temporal ensembling, https://arxiv.org/abs/1610.02242.
    """
    through = min(1.0, progress / length) if length > 0 else 1.0
    return math.exp(-5.0 * (1.0 - through) ** 2)
