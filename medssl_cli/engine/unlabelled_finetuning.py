"""Fine-tuning that learns from labels and from images without them: a student, and the teacher that follows it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from medssl_cli.data.augmentation import Draws
from medssl_cli.engine.build import build_unlabelled
from medssl_cli.engine.finetuning import Finetuning
from medssl_cli.engine.health import Alarm
from medssl_cli.engine.randomness import Purpose, generator
from medssl_cli.engine.state import TrainingState
from medssl_cli.engine.unlabelled_images import BothBatches, BothLoaders
from medssl_cli.nn.distributed import sum_over_processes, world_size
from medssl_cli.nn.momentum import freeze, update_teacher, warm_momentum
from medssl_cli.unlabelled import Learnt, Networks, StepImages, class_shares, finest, learning_unlabelled

LEAST_SHARE: Final = 0.1
LARGEST_SHARE: Final = 10.0
STEPS_TO_COLLAPSE: Final = 200
MEMORY: Final = 0.98
PACE: Final = 20
"""A teacher over a longer part of a short training lags behind its student: see decision 0311."""
SURE: Final = 0.01
FALLEN: Final = 0.5


class StudentAndTeacher(nn.Module):
    """A network that is trained and the running average of its weights.

    Args:
        task: As it begins; both begin with its weights.
        momentum: Largest momentum of the teacher.
    """

    num_updates: Tensor

    def __init__(self, task: nn.Module, momentum: float) -> None:
        super().__init__()
        self.student = task
        self.teacher = freeze(copy.deepcopy(task))
        self._momentum = momentum
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @property
    def backbone(self) -> nn.Module:
        """The student's."""
        return self.student.get_submodule("backbone")

    def update(self) -> None:
        """Let the teacher follow the student, also with what normalisation remembers."""
        momentum = warm_momentum(int(self.num_updates), limit=self._momentum, pace=PACE)
        update_teacher(self.teacher, self.student, momentum=momentum)
        self.num_updates += 1


class PseudoLabelWatch:
    """Whether what a teacher says of unlabelled images still resembles what labels say of labelled ones.

    Crops of labelled images may show more of a structure than whole images do, and unlabelled crops may lie elsewhere.
    So a share is odd only if it is far from both.

    Args:
        shares: Share of each class in whole labelled images, by name.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = dict(shares)
        self._means: list[float] | None = None
        self._crop_means = list(self._shares.values())
        self._steps = [0] * len(shares)
        self._entropy = 1.0
        self.reason = ""

    @property
    def has_collapsed(self) -> bool:
        """Whether the teacher's labels are of no use any more; it stays so."""
        return bool(self.reason)

    def note(self, shares: Sequence[float], labelled: Sequence[float], entropy: float, *, is_full: bool) -> None:
        """Take in one step.

        Args:
            shares: Shares of each class in the teacher's labels.
            labelled: Shares of each class in the labels of the same step.
            entropy: Entropy of its answers, 1 where they say nothing.
            is_full: The labels count in full; before that nobody expects anything of them.
        """
        self._means = _followed(self._means or shares, shares)
        self._crop_means = _followed(self._crop_means, labelled)
        self._entropy = MEMORY * self._entropy + (1 - MEMORY) * entropy
        if not is_full or self.has_collapsed:
            return
        for place, (name, share) in enumerate(self._shares.items()):
            mean, expected = self._means[place], sorted((share, self._crop_means[place]))
            is_odd = expected[0] > 0 and not LEAST_SHARE * expected[0] <= mean <= LARGEST_SHARE * expected[1]
            self._steps[place] = self._steps[place] + 1 if is_odd else 0
            if self._steps[place] >= STEPS_TO_COLLAPSE:
                self.reason = (
                    f"for {STEPS_TO_COLLAPSE} steps the teacher has given {name} to {mean:.2%} of what it saw, labels "
                    f"give it to {self._crop_means[place]:.2%}"
                )

    def judge(self, score: float, best: float | None) -> None:
        """Take in a validation: a teacher that is sure of everything while its score has halved has collapsed."""
        if best is not None and self._entropy < SURE and score < FALLEN * best and not self.has_collapsed:
            self.reason = f"the teacher is sure of everything, and the validation fell from {best:.4f} to {score:.4f}"

    def values(self) -> dict[str, Any]:
        """For a checkpoint, JSON."""
        return {
            "means": self._means,
            "crop_means": self._crop_means,
            "steps": self._steps,
            "entropy": self._entropy,
            "reason": self.reason,
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Undo `values`."""
        self._means, self._crop_means = values["means"], values["crop_means"]
        self._steps = [int(number) for number in values["steps"]]
        self._entropy, self.reason = float(values["entropy"]), str(values["reason"])


def _followed(means: Sequence[float], values: Sequence[float]) -> list[float]:
    """Running means after one more value of each."""
    return [MEMORY * mean + (1 - MEMORY) * value for mean, value in zip(means, values, strict=True)]


class UnlabelledFinetuning(Finetuning):
    """The goal of a fine-tuning with unlabelled images: the teacher, or the student, that does best; see `goal.Goal`.

    Args:
        common, limits: See `Finetuning`.
        others: Data set of the unlabelled images.
        shares: Share of each class among the labels, by name.
    """

    def __init__(self, *common: Any, others: Any, shares: Mapping[str, float], **limits: Any) -> None:
        super().__init__(*common, **limits)
        section, task = self._recipe.unlabelled, self.network
        assert section is not None
        self._others = others
        self._method = build_unlabelled(self._recipe, task, self._supervision)
        self._both = StudentAndTeacher(task, section.momentum)
        self.network = self._both
        self.result = self._both.teacher if section.keep == "teacher" else task
        self._watch, self._whole = PseudoLabelWatch(shares), torch.tensor(list(shares.values()))
        self._noted: Tensor | None = None

    def loader(self, first_step: int, last_step: int) -> Any:
        """See `Goal.loader`."""
        first, last = (step * self._recipe.accumulate for step in (first_step, last_step))
        rank, size = self._processes.rank, self._processes.size
        others = self._supervision.loader(self._others, first_step=first, num_steps=last, rank=rank, num_processes=size)
        return BothLoaders(super().loader(first_step, last_step), others)

    def inputs(self, batch: BothBatches, index: int) -> Any:
        """Augmented images with and without targets; those without draw from a stream of their own."""
        inputs, targets = super().inputs(batch.labelled, index)
        random = generator(self._recipe.seed, Purpose.UNLABELLED, index)
        draws = Draws(random, self._processes.rank, self._processes.size)
        learning, to_device = learning_unlabelled(self._supervision), self._processes.fabric.to_device
        others = learning.unlabelled_inputs(batch.unlabelled, draws, to_device)
        return StepImages(inputs, targets, others, draws)

    def loss(self, state: TrainingState, inputs: Any, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Goal.loss`."""

        def student(images: Tensor, *beside: Tensor) -> Any:
            laid_out = images.contiguous(memory_format=state.layouts[images.ndim])
            return state.compute(lambda both: both.student(laid_out, *beside))

        @torch.no_grad()
        def teacher(images: Tensor, *beside: Tensor) -> Tensor:
            laid_out = images.contiguous(memory_format=state.layouts[images.ndim])
            return finest(state.compute(lambda both: both.teacher(laid_out, *beside)))

        judge: Any = self._both.student.loss
        learnt = self._method.loss(
            Networks(student, teacher, judge), inputs, progress, is_off=self._watch.has_collapsed
        )
        parts = {name: part.detach() for name, part in learnt.parts.items()}
        return learnt.total, parts | self._pseudo_shares(learnt, inputs.targets)

    def _pseudo_shares(self, learnt: Learnt, targets: Tensor) -> dict[str, Tensor]:
        """What the teacher says of the unlabelled images of all processes, for the log; it is kept for the watch."""
        self._noted = None
        if learnt.pseudo_shares is None:
            return {}
        shares, entropy = learnt.pseudo_shares, learnt.parts["unlabelled/entropy"].float()
        expected = class_shares(targets, self._method.target) if targets.ndim > 2 else self._whole.to(shares)
        numbers = torch.cat([shares.float(), expected.float(), entropy.reshape(1)])
        self._noted = sum_over_processes(numbers).cpu() / world_size()
        names = self._supervision.classes.values()
        return {f"unlabelled/share/{name}": share for name, share in zip(names, self._noted, strict=False)}

    def after_step(self, progress: float) -> None:
        """Let the teacher follow, and look at what it said."""
        self._both.update()
        if self._noted is not None:
            *numbers, entropy = self._noted.tolist()
            half = len(numbers) // 2
            self._watch.note(numbers[:half], numbers[half:], entropy, is_full=self._method.is_full(progress))

    def look(self, state: TrainingState) -> dict[str, float]:
        """Validate; see `Finetuning.look`."""
        best = self._best[self._score]
        found = super().look(state)
        self._watch.judge(found[f"val_{self._score}"], best)
        return found

    def alarms(self, progress: float) -> list[Alarm]:
        """A teacher that has collapsed."""
        if not self._watch.has_collapsed:
            return []
        return [Alarm("W_PSEUDO_COLLAPSE", f"{self._watch.reason}; unlabelled images count no more")]

    def values(self) -> dict[str, Any]:
        """The best validation so far, and what the watch remembers."""
        return super().values() | {"watch": self._watch.values()}

    def restore(self, values: Mapping[str, Any]) -> None:
        """See `Goal.restore`."""
        super().restore(values)
        self._watch.restore(values["watch"])
