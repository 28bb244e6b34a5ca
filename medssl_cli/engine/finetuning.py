"""What a fine-tuning is for: the network of a task that does best on the validation images."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medssl_cli.base.files import write_json
from medssl_cli.base.talk import Talk
from medssl_cli.cache.items import ItemRecord
from medssl_cli.cache.store import Cache
from medssl_cli.data.augmentation import Draws
from medssl_cli.engine.checkpoints import Checkpoint, prefixed
from medssl_cli.engine.finetuned import load_finetuned
from medssl_cli.engine.health import Alarm
from medssl_cli.engine.predict import torch_predict
from medssl_cli.engine.processes import Processes
from medssl_cli.engine.randomness import Purpose, generator
from medssl_cli.engine.runs import Run
from medssl_cli.engine.state import TrainingState
from medssl_cli.recipe import TaskRecipe, flow_yaml
from medssl_cli.tasks import Answer, SupervisionBase, TaskLosses, Validate


class Finetuning:
    """The goal of a fine-tuning: the network of a task that does best on the validation images; see `goal.Goal`.

    Args:
        recipe: How to train.
        run: Its folder.
        task: Freshly initialised, or from an encoder.
        supervision: What the task learns from.
        dataset: Data set of the training images.
        validate: Scores a network on the validation images.
        processes: Launched.
        talk: Told of validations.
        max_minutes: Time limit.
        validated: The cache with the validation images, and these, from which to learn how to read answers.
    """

    name: Final = "fine-tuning"
    network_name: Final = "task"
    looks_apart: Final = False
    ends_with_steps: Final = False

    def __init__(
        self,
        recipe: TaskRecipe,
        run: Run,
        task: nn.Module,
        supervision: SupervisionBase,
        dataset: Any,
        validate: Validate,
        processes: Processes,
        talk: Talk,
        *,
        max_minutes: float | None,
        validated: tuple[Cache, Sequence[ItemRecord]] | None = None,
    ) -> None:
        self._validated = validated
        self._recipe, self._run, self._supervision, self._dataset = recipe, run, supervision, dataset
        self._validate, self._processes, self._talk, self._max_minutes = validate, processes, talk, max_minutes
        self.network: nn.Module = task
        self.result: nn.Module = task
        self.baselines: dict[str, float] = {}
        self.look_every = recipe.validate_every
        self._checkpoints = run.checkpoints
        self._score = supervision.score
        self._best: dict[str, Any] = {self._score: None, "step": 0}

    def loader(self, first_step: int, last_step: int) -> DataLoader[Any]:
        """See `Goal.loader`."""
        first, last = (step * self._recipe.accumulate for step in (first_step, last_step))
        rank, size = self._processes.rank, self._processes.size
        return self._supervision.loader(self._dataset, first_step=first, num_steps=last, rank=rank, num_processes=size)

    def epoch(self, step: int) -> int | None:
        """There are none."""
        return None

    def before_epoch(self, state: TrainingState, epoch: int) -> None:
        """Nothing to do; see `epoch`."""

    def before_step(self, progress: float) -> None:
        """Nothing to do."""

    def inputs(self, batch: Any, index: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Augmented images with what is told beside them, and targets."""
        random = generator(self._recipe.seed, Purpose.AUGMENTATION, index)
        draws = Draws(random, self._processes.rank, self._processes.size)
        return self._supervision.inputs(batch, draws, self._processes.fabric.to_device)

    def loss(
        self, state: TrainingState, inputs: tuple[tuple[Tensor, ...], Tensor], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Goal.loss`; outside of the network everything is computed in full precision."""
        (images, *beside), targets = inputs
        images = images.contiguous(memory_format=state.layouts[images.ndim])
        logits = state.compute(lambda task: task(images, *beside))
        losses: TaskLosses = self.network.loss(logits, targets)  # type: ignore[operator]
        return losses.total, {name: part.detach() for name, part in losses.parts.items()}

    def after_backward(self, progress: float) -> None:
        """Nothing to do."""

    def after_step(self, progress: float) -> None:
        """Nothing to do."""

    def look(self, state: TrainingState) -> dict[str, float]:
        """Validate. Of equally good weights, and where none can be called good, the later are kept."""
        found = self._validate(_answer(state, self._processes))
        found = self._processes.of_main(lambda: found)
        score, best = None if math.isnan(found.score) else found.score, self._best[self._score]
        if best is None or (score is not None and score >= best):
            self._best = {self._score: score, "step": state.step}
            tensors = prefixed("network", state.result_tensors())
            if self._processes.is_main:
                self._checkpoints.save(Checkpoint(state.step, tensors, {self._score: score}), is_best=True)
        known = {name: value for name, value in found.by_class.items() if not math.isnan(value)}
        each = ", ".join(f"{name} {value:.4f}" for name, value in known.items()) if len(found.by_class) > 1 else ""
        said = f"{found.score:.4f} (best {self._best[self._score]:.4f})" if score is not None else "says nothing"
        self._talk.note(f"step {state.step}: validation {self._score} {said}{f': {each}' * bool(each)}")
        figure = f"val_{self._score}"
        return {figure: found.score, **{f"{figure}/{name}": value for name, value in known.items()}}

    def alarms(self, progress: float) -> list[Alarm]:
        """Validations speak for themselves."""
        return []

    def facts(self) -> dict[str, Any]:
        """The best validation so far."""
        patients = {entry["patient"] for entry in self._run.manifest["splits"]["val"]}
        best = {"best_score": self._best[self._score], "best_step": self._best["step"]}
        return {
            "score": self._score,
            "num_validation_patients": len(patients),
            "max_minutes": self._max_minutes,
            **best,
        }

    def evidence(self) -> dict[str, Tensor]:
        """Nothing: the items say enough."""
        return {}

    def values(self) -> dict[str, Any]:
        """The best validation so far."""
        return {"best": self._best}

    def restore(self, values: Mapping[str, Any]) -> None:
        """See `Goal.restore`; of step 0 earlier versions wrote the score -1."""
        score, step = values["best"][self._score], int(values["best"]["step"])
        self._best = {self._score: None if score is None or step == 0 else float(score), "step": step}

    def finish(self, state: TrainingState) -> None:
        """Write how it went, and say what a comparison with other trainings should know."""
        if self._best[self._score] == 0:
            self._talk.note(f"W_VALIDATION_EMPTY: every validation scored 0; the last one, step {state.step}, is kept")
        if self._max_minutes is not None:
            self._talk.note(
                f"{state.step} steps in {self._max_minutes:g} minutes; compare it with trainings of as many: "
                f"--set steps={state.step} instead of --max-minutes"
            )
        if not self._processes.is_main:
            return
        self._learn()
        summary = {
            "steps": state.step,
            f"best_{self._score}": self._best[self._score],
            "best_step": self._best["step"],
            "num_train_patients": len({entry["patient"] for entry in self._run.manifest["splits"]["train"]}),
            "max_minutes": self._max_minutes,
        }
        write_json(self._run.summary_path, summary)

    def _learn(self) -> None:
        """Let the validation images tell how the best network's answers should be read."""
        self._run.learnt_path.unlink(missing_ok=True)
        if self._validated is None or not self._supervision.learns:
            return
        best = load_finetuned(self._run.root)
        predict = torch_predict(best.network.to(self._processes.fabric.device), str(self._processes.fabric.device))
        if learnt := self._supervision.learn(best.network, predict, *self._validated):
            write_json(self._run.learnt_path, learnt)
            self._talk.note(f"learnt on the validation images: {flow_yaml(learnt)}")


def _answer(state: TrainingState, processes: Processes) -> Answer:
    """The weights to keep, as from numbers to numbers; see `predict.torch_predict`."""

    def answer(*arrays: NDArray[np.generic]) -> NDArray[np.float32]:
        inputs = [processes.fabric.to_device(torch.from_numpy(array)) for array in arrays]
        logits: NDArray[np.float32] = state.with_result(lambda task: task(*inputs)).float().cpu().numpy()
        return logits

    return answer
