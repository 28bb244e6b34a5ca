"""Learning from unlabelled images while a task is fine-tuned: one way in one file, found by its name.

A file holds `OPTIONS`, what a recipe may say of it, and `METHOD`, an `UnlabelledMethod`. The task supplies the loss of
labels and says what its logits mean; nothing here knows which task it is.

Shapes: B batch, K classes, X Y Z space.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from medssl_cli.base import plugins
from medssl_cli.base.classes import Activation, joined
from medssl_cli.base.errors import UsageError
from medssl_cli.data.augmentation import Draws
from medssl_cli.data.unlabelled import UnlabelledSource
from medssl_cli.nn.pseudo_labels import entropy, largest_entropy, most_probable, probabilities
from medssl_cli.tasks import SupervisionBase, TaskLosses

KIND: Final = "semi-supervised method"
NOISE_LIMIT: Final = 2.0


@dataclass(frozen=True)
class AnswerMeaning:
    """What a task's answers mean.

    Args:
        activation: Activation of its logits.
        classes: Names of its classes in their order, without background.
        spatial_dims: Number of spatial dimensions of what its network sees at once.
    """

    activation: Activation
    classes: tuple[str, ...]
    spatial_dims: int


@dataclass(frozen=True)
class StepImages:
    """What a step shows, on the device.

    Args:
        labelled: What the network gets of the labelled images, these first.
        targets: Theirs.
        unlabelled: What it gets of the unlabelled images.
        draws: Source of all random numbers of this step.
    """

    labelled: tuple[Tensor, ...]
    targets: Tensor
    unlabelled: tuple[Tensor, ...]
    draws: Draws


@dataclass(frozen=True)
class Networks:
    """A student, its teacher, and how the student's answers are judged.

    Args:
        student: Network from inputs to what `judge` takes: logits, or those of several levels, fine first.
        teacher: Network from inputs to the finest logits, without gradient.
        judge: The task's own loss of answers and targets.
    """

    student: Callable[..., Any]
    teacher: Callable[..., Tensor]
    judge: Callable[[Any, Tensor], TaskLosses]


@dataclass(frozen=True)
class Learnt:
    """What a step minimises, and what it shows.

    Args:
        total: Loss.
        parts: Parts for the log.
        pseudo_shares: Share of each class in what the teacher says of the unlabelled images, [K]; None while the step
            does not ask it.
    """

    total: Tensor
    parts: dict[str, Tensor]
    pseudo_shares: Tensor | None = None


class UnlabelledMethod(ABC):
    """What every way of learning from unlabelled images offers.

    Args:
        options: Its own, of the recipe.
        target: What the task's answers mean.
    """

    annotations: ClassVar[frozenset[str]] = frozenset({"labels", "findings"})
    """Kinds of annotations that the task may learn from."""
    pairs_images: ClassVar[bool] = False
    """Each labelled image needs one unlabelled image of the same size."""

    def __init__(self, options: Any, target: AnswerMeaning) -> None:
        self.options, self.target = options, target

    @abstractmethod
    def is_full(self, progress: float) -> bool:
        """Whether unlabelled images count as much as they ever will, after this share of the training."""

    @abstractmethod
    def loss(self, networks: Networks, shown: StepImages, progress: float, *, is_off: bool) -> Learnt:
        """Loss of one step; pure, but for what the networks' own normalisation remembers.

        Args:
            networks: Student, teacher, judge.
            shown: Images and targets.
            progress: Share of the training that is done.
            is_off: The teacher has collapsed: unlabelled images weigh nothing.
        """


def places_of(names: Sequence[str], classes: Sequence[str], option: str) -> frozenset[int]:
    """Places of classes, counted from 1, by their names.

    Raises:
        UsageError: `E_RECIPE`.
    """
    for name in names:
        if name not in classes:
            raise UsageError("E_RECIPE", f"{option} names {name!r}; the task has {', '.join(classes)}")
    return frozenset(classes.index(name) + 1 for name in names)


def finest(answers: Any) -> Tensor:
    """Logits of the finest level, of one level or several."""
    logits: Tensor = answers[0] if isinstance(answers, list | tuple) else answers
    return logits


def rows(answers: Any, first: int, last: int | None = None) -> Any:
    """Some images of logits, of one level or several."""
    if isinstance(answers, list | tuple):
        return [level[first:last] for level in answers]
    return answers[first:last]


def together(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the network gets of two sets of images, as one batch."""
    return tuple(torch.cat(pair) for pair in zip(first, second, strict=True))


def noisy(inputs: Sequence[Tensor], std: float, draws: Draws) -> tuple[Tensor, ...]:
    """Inputs whose images have noise, of at most two standard deviations; nothing else of them changes."""
    images, *beside = inputs
    noise = (draws.normal(tuple(images.shape)) * std).clamp(-NOISE_LIMIT * std, NOISE_LIMIT * std)
    return images + noise.to(images), *beside


@torch.no_grad()
def class_shares(labels: Tensor, target: AnswerMeaning) -> Tensor:
    """Share of the voxels, or images, of each class in what logits say: those of `most_probable`, [K].

    Args:
        labels: Classes [B, ...] or regions [B, K, ...]; what is ignored belongs to no class.
        target: What they mean.
    """
    if target.activation == "sigmoid":
        axes = [axis for axis in range(labels.ndim) if axis != 1]
        return (labels == 1).float().mean(dim=axes)
    first = 1 if labels.ndim > 1 else 0  # voxels have a background, whole images have none
    return torch.stack([(labels == first + place).float().mean() for place in range(len(target.classes))])


@torch.no_grad()
def agreement(
    student: Tensor, teacher: Tensor, target: AnswerMeaning, is_counted: Tensor | None = None
) -> dict[str, Tensor]:
    """How well student and teacher agree, for the log.

    Args:
        student: Logits [B, K, ...].
        teacher: The same of the teacher.
        target: What they mean.
        is_counted: Voxels that count, bool [B, ...]; None for all.

    Returns:
        `unlabelled/agreement`, the share of equal answers; `unlabelled/entropy`, of the teacher, 1 where it says
        nothing; and of voxels `unlabelled/dice`, the mean Dice over the classes that either of them sees.
    """
    own, other = (most_probable(logits, target.activation) for logits in (student, teacher))
    unsure = entropy(probabilities(teacher, target.activation), target.activation) / largest_entropy(
        teacher.shape[1], target.activation
    )
    found = {
        "unlabelled/agreement": _mean_where((own == other).float(), is_counted, target),
        "unlabelled/entropy": unsure.mean(),
    }
    if student.ndim > 2:
        found["unlabelled/dice"] = _dice(own, other, target, is_counted)
    return found


def _mean_where(values: Tensor, is_counted: Tensor | None, target: AnswerMeaning) -> Tensor:
    if is_counted is None:
        return values.mean()
    counted = is_counted[:, None].expand_as(values) if target.activation == "sigmoid" else is_counted
    return (values * counted).sum() / counted.sum().clamp(min=1)


def _dice(own: Tensor, other: Tensor, target: AnswerMeaning, is_counted: Tensor | None) -> Tensor:
    scores = []
    for place in range(len(target.classes)):
        pair = [each[:, place] == 1 if target.activation == "sigmoid" else each == place + 1 for each in (own, other)]
        first, second = (mask if is_counted is None else mask & is_counted for mask in pair)
        both = first.sum() + second.sum()
        scores.append(torch.where(both > 0, 2 * (first & second).sum() / both.clamp(min=1), torch.nan))
    return torch.stack(scores).nanmean().nan_to_num(1.0)


def learning_unlabelled(supervision: SupervisionBase) -> UnlabelledSource:
    """What a task learns from, which must be able to learn from unlabelled images.

    Raises:
        UsageError: `E_RECIPE`.
    """
    if not isinstance(supervision, UnlabelledSource):
        raise no_unlabelled(supervision.recipe.task.name)
    return supervision


def unlabelled_method_of(name: str) -> str:
    """The method by which a task learns from unlabelled images where its recipe names none.

    Raises:
        UsageError: `E_UNKNOWN_NAME`; `E_RECIPE`, the task does not learn from them.
    """
    method: str | None = getattr(plugins.load("task", name), "UNLABELLED", None)
    if method is None:
        raise no_unlabelled(name)
    return method


def no_unlabelled(name: str) -> UsageError:
    """`E_RECIPE` about a task for which images without labels are of no use."""
    can = [other for other in plugins.names("task") if hasattr(plugins.load("task", other), "UNLABELLED")]
    return UsageError(
        "E_RECIPE",
        f"{name} does not learn from unlabelled images; {joined(can)} do",
        hint="leave out --unlabelled of medssl finetune and the section unlabelled",
    )
