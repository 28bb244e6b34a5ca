"""Mean teacher: the student must agree with its own running average, which sees the same images under other noise.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017, https://arxiv.org/abs/1703.01780.

Labelled and unlabelled images go through the student together; the teacher sees the unlabelled ones with noise. How
much they must agree rises from almost nothing over a share of the training, as a young teacher knows nothing.

Shapes: B batch, K classes, X Y Z space.
"""

from typing import Annotated, Final, Literal

import torch
from pydantic import Field
from torch import Tensor

from medssl_cli.base.classes import Activation
from medssl_cli.base.strict import NonNegativeFloat, Strict
from medssl_cli.nn.momentum import exponential_ramp
from medssl_cli.nn.pseudo_labels import most_probable, probabilities
from medssl_cli.unlabelled import (
    Learnt,
    Networks,
    StepImages,
    UnlabelledMethod,
    agreement,
    class_shares,
    finest,
    noisy,
    rows,
    together,
)

Distance = Literal["mse", "kl"]


class ConsistencyOptions(Strict):
    """How much student and teacher must agree.

    Args:
        weight: Weight of their disagreement, beside the loss of labels, once it has risen.
        ramp: Share of the training over which the weight rises, as exp(-5 (1 - t)^2); 0 gives all of it at once.
        teacher_noise: Standard deviation of the noise on what the teacher sees, in units of the network's input.
    """

    weight: NonNegativeFloat = 1.0
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4
    teacher_noise: NonNegativeFloat = 0.1


class MeanTeacherOptions(ConsistencyOptions):
    """How student and teacher must agree.

    Args:
        distance: Mean squared difference of probabilities, at most 2 / K of K classes, or Kullback-Leibler divergence
            from the teacher's.
    """

    distance: Distance = "mse"


def consistency(student: Tensor, teacher: Tensor, activation: Activation, distance: Distance = "mse") -> Tensor:
    """How far two sets of logits are apart; no gradient reaches the teacher's.

    Args:
        student: [B, K, ...].
        teacher: [B, K, ...].
        activation: `softmax` or `sigmoid`.
        distance: `mse`, the mean over everything of squared differences of probabilities; `kl`, the mean over all but
            K of the divergence, of a sigmoid the sum over both of its answers.

    Returns:
        Scalar; 0 if they are equal.
    """
    goal = probabilities(teacher, activation).detach()
    if distance == "mse":
        return (probabilities(student, activation) - goal).square().mean()
    if activation == "softmax":
        return _divergence(goal, student.float().log_softmax(dim=1)).sum(dim=1).mean()
    present, absent = (torch.nn.functional.logsigmoid(values) for values in (student.float(), -student.float()))
    return (_divergence(goal, present) + _divergence(1 - goal, absent)).sum(dim=1).mean()


def _divergence(goal: Tensor, log_probabilities: Tensor) -> Tensor:
    own: Tensor = torch.special.xlogy(goal, goal)
    return own - goal * log_probabilities


class MeanTeacher(UnlabelledMethod):
    """See the module."""

    options: ConsistencyOptions

    def is_full(self, progress: float) -> bool:
        """See `UnlabelledMethod.is_full`."""
        return progress >= self.options.ramp

    def loss(self, networks: Networks, shown: StepImages, progress: float, *, is_off: bool) -> Learnt:
        """See `UnlabelledMethod.loss`."""
        options, number = self.options, len(shown.targets)
        weight = 0.0 if is_off else options.weight * exponential_ramp(progress, options.ramp)
        goal = networks.teacher(*noisy(shown.unlabelled, options.teacher_noise, shown.draws))
        answers = networks.student(*together(shown.labelled, shown.unlabelled))
        supervised = networks.judge(rows(answers, 0, number), shown.targets)
        own = finest(rows(answers, number))
        term, used = self.term(own, goal, networks, shown, progress)
        parts = {
            "unlabelled/loss": term.detach(),
            "unlabelled/weight": term.new_tensor(weight),
            "unlabelled/used": used,
            "unlabelled/variance": probabilities(own.detach(), self.target.activation).var(correction=0),
            **agreement(own, goal, self.target),
        }
        shares = class_shares(most_probable(goal, self.target.activation), self.target)
        return Learnt(supervised.total + weight * term, {**supervised.parts, **parts}, shares)

    def term(
        self, own: Tensor, goal: Tensor, networks: Networks, shown: StepImages, progress: float
    ) -> tuple[Tensor, Tensor]:
        """The disagreement on the unlabelled images, and the share of voxels that it counts.

        Args:
            own: The student's logits.
            goal: The teacher's.
            networks: Student, teacher, judge.
            shown: Images and targets.
            progress: Share of the training that is done.
        """
        distance: Distance = getattr(self.options, "distance", "mse")
        return consistency(own, goal, self.target.activation, distance), own.new_tensor(1.0)


OPTIONS: Final = MeanTeacherOptions
METHOD: Final = MeanTeacher
