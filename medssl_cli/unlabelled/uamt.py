"""Uncertainty-aware mean teacher (UA-MT): the student must agree with its teacher only where that is sure.

Yu et al., Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation, MICCAI 2019,
https://arxiv.org/abs/1907.07034.

How sure the teacher is, the entropy of the mean of several of its answers under noise says. The limit rises over the
training from three quarters of the largest entropy to all of it.

Shapes: B batch, K classes, X Y Z space.

Differences from the released code: the largest entropy is that of the task's own number of classes; the mean counts
voxels of all processes.
"""

from typing import Final

import torch
from torch import Tensor

from medssl_cli.base.classes import Activation
from medssl_cli.base.strict import PositiveInt, Probability
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.nn.momentum import exponential_ramp
from medssl_cli.nn.pseudo_labels import entropy, largest_entropy, probabilities
from medssl_cli.unlabelled import Networks, StepImages, noisy
from medssl_cli.unlabelled.mean_teacher import ConsistencyOptions, MeanTeacher

FLOOR: Final = 1e-6


class UncertaintyOptions(ConsistencyOptions):
    """How student and teacher must agree, and where.

    Args:
        passes: Answers of the teacher under different noise, whose mean says how sure it is.
        first_limit: Share of the largest entropy up to which a voxel counts at first; at the end all of it.
    """

    passes: PositiveInt = 8
    first_limit: Probability = 0.75


def entropy_limit(progress: float, num_outputs: int, activation: Activation, *, first: float = 0.75) -> float:
    """Entropy below which a voxel counts, after a share of the training."""
    share = first + (1 - first) * exponential_ramp(progress, 1.0)
    return share * largest_entropy(num_outputs, activation)


def sure_consistency(
    student: Tensor, teacher: Tensor, unsure: Tensor, limit: float, activation: Activation
) -> tuple[Tensor, Tensor]:
    """Mean squared difference of probabilities over voxels that the teacher is sure of, and their share.

    Args:
        student: Logits [B, K, ...].
        teacher: The same of the teacher; no gradient reaches it.
        unsure: Entropy, [B, 1, ...] of classes, [B, K, ...] of regions.
        limit: What counts is below.
        activation: Activation of the logits.

    Returns:
        Two scalars, both 0 where nothing counts.
    """
    is_sure = (unsure < limit).float().expand_as(student)
    squared = (probabilities(student, activation) - probabilities(teacher, activation).detach()).square()
    count = sum_over_processes(is_sure.sum()).clamp(min=1) / world_size()
    return (squared * is_sure).sum() / count, is_sure.mean()


class UncertaintyAwareTeacher(MeanTeacher):
    """See the module."""

    options: UncertaintyOptions

    def term(
        self, own: Tensor, goal: Tensor, networks: Networks, shown: StepImages, progress: float
    ) -> tuple[Tensor, Tensor]:
        """See `MeanTeacher.term`."""
        options, activation = self.options, self.target.activation
        answers = [
            probabilities(networks.teacher(*noisy(shown.unlabelled, options.teacher_noise, shown.draws)), activation)
            for _ in range(options.passes)
        ]
        unsure = entropy(torch.stack(answers).mean(dim=0), activation, floor=FLOOR)
        limit = entropy_limit(progress, own.shape[1], activation, first=options.first_limit)
        return sure_consistency(own, goal, unsure, limit, activation)


OPTIONS: Final = UncertaintyOptions
METHOD: Final = UncertaintyAwareTeacher
