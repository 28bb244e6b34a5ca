"""The one loop of every training. What is trained, looked at and kept differs, and is said by a `Goal`."""

from contextlib import closing
from typing import Any

from medssl_cli.base.signals import stop_on_signals
from medssl_cli.base.talk import Talk
from medssl_cli.engine.checkpoints import refuse_foreign_state
from medssl_cli.engine.cost import CostMeter
from medssl_cli.engine.devices import compile_errors
from medssl_cli.engine.goal import Goal
from medssl_cli.engine.live_page import LivePage, Outlets
from medssl_cli.engine.metrics_log import MetricsLog, NoLog
from medssl_cli.engine.optimisation import Budget, learning_rate, set_learning_rate
from medssl_cli.engine.processes import Processes, agreed
from medssl_cli.engine.profile import Profile
from medssl_cli.engine.randomness import Purpose, implicit_randomness
from medssl_cli.engine.runs import Run
from medssl_cli.engine.skipped import SkippedSteps
from medssl_cli.engine.state import TrainingState, total_norm
from medssl_cli.engine.step_batches import StepBatches
from medssl_cli.recipe import Training


class Trainer:
    """One training, from its first step, or from where an earlier call stopped, to its end.

    Args:
        recipe: How to train.
        run: Its folder.
        goal: What is trained, and what for.
        processes: Launched; they share each step.
        talk: Told how it goes.
        outlets: Where it is shown.
        max_minutes: Time limit.
        profile_steps: Steps to time.
    """

    def __init__(
        self,
        recipe: Training,
        run: Run,
        goal: Goal,
        processes: Processes,
        talk: Talk,
        *,
        outlets: Outlets,
        max_minutes: float | None,
        profile_steps: int,
    ) -> None:
        self._recipe, self._run, self._goal, self._processes = recipe, run, goal, processes
        self._talk, self._outlets = talk, outlets
        self._state = TrainingState(recipe, goal.network, processes, result=goal.result, name=goal.network_name)
        self._state.compute.train()
        self._budget = Budget(recipe.steps, max_minutes, ends_with_steps=goal.ends_with_steps)
        self._checkpoints = run.checkpoints
        self._restore()
        self._progress = self._budget.progress(self._state.step, self._budget.elapsed_s)
        self._page = LivePage(run.root, recipe, processes, talk, outlets, begun_at=self._progress)
        self._skipped = SkippedSteps(
            goal.network, goal.evidence, run.root / "skipped", recipe.max_skipped, processes, talk
        )
        num_timed = min(profile_steps, self._budget.last_step - self._state.step - 1)
        device = str(processes.fabric.device)
        self._profile = Profile(num_timed, device=device)
        self._cost = CostMeter(run.root, device, processes.size, is_going_on=self._state.step > 0)

    def train(self) -> None:
        """Steps until their number or the time is reached, with looks and checkpoints; then what is kept is written.

        Raises:
            GateError: `E_DIVERGED`.
            InterruptedCleanlyError: A signal; the state is saved.
        """
        state, goal, last_step = self._state, self._goal, self._budget.last_step
        is_alone = self._processes.size == 1
        with stop_on_signals() as stop, closing(self._open_log()) as log, compile_errors():
            source = StepBatches(goal.loader(state.step, last_step), self._recipe.accumulate, stop, is_alone=is_alone)
            if state.step == 0 and goal.looks_apart:
                log.write(0, goal.look(state))
                self._page.show(goal, self._progress)
            is_stopping = False
            while self._progress < 1 and not is_stopping:
                with self._profile("data"):
                    batches = source.next()
                if batches is None:
                    break
                numbers = self._step(batches, is_asked_to_stop=stop.is_set)
                is_stopping = numbers.pop("stop") > 0
                self._talk.progress(
                    goal.name, *self._budget.shown(state.step, self._progress), f"loss {numbers['loss']:.4f}"
                )
                with self._profile("log"):
                    self._record(log, numbers)
                if self._profile.end_step() and self._processes.is_main:
                    self._talk.note(self._profile.write(self._run.root / "profile.json"))
            self._save()
        if self._progress < 1:
            with agreed():
                stop.raise_interrupted(f"{goal.name} stopped after step {state.step}{self._budget.of_steps}")
        goal.finish(state)

    def _step(self, batches: list[Any], *, is_asked_to_stop: bool) -> dict[str, float]:
        """One step of the optimiser; returns its numbers, averaged over batches and processes."""
        recipe, state, goal, progress = self._recipe, self._state, self._goal, self._progress
        if (epoch := goal.epoch(state.step)) is not None:
            with self._profile("epoch"):
                goal.before_epoch(state, epoch)
        peak, steps = recipe.optimizer.learning_rate, self._budget.num_steps
        rate = learning_rate(progress, peak, recipe.schedule, steps=steps, step=state.step)
        set_learning_rate(state.optimizer, rate, step=state.step)
        goal.before_step(progress)
        self._skipped.before_step()
        means = _means([self._backward(batch, micro) for micro, batch in enumerate(batches)])
        agreeing = {"stop": float(is_asked_to_stop), "spent_s": self._budget.spent_s}
        numbers = self._processes.mean(means | agreeing)
        spent_s = numbers.pop("spent_s")
        goal.after_backward(progress)
        with self._profile("optimiser"):
            is_left_out = self._skipped.is_left_out(state.step, numbers, self._clip(), _item_ids(batches))
            if not is_left_out or state.has_scaler:  # the scaler leaves it out itself, and scales less next time
                state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if not is_left_out:
                goal.after_step(progress)
                if state.average is not None:
                    state.average.update(goal.result, state.step)
        state.step += 1
        self._progress = self._budget.progress(state.step, spent_s)
        return numbers | {"learning_rate": rate}

    def _backward(self, batch: Any, micro: int) -> dict[str, float]:
        """Forward and backward of one batch of a step; returns its loss and what it shows."""
        recipe, processes, state = self._recipe, self._processes, self._state
        index = state.step * recipe.accumulate + micro
        with self._profile("to_device"):
            inputs = self._goal.inputs(batch, index)
        is_last = micro + 1 == recipe.accumulate
        with processes.fabric.no_backward_sync(state.compute, enabled=not is_last):
            with self._profile("forward"), implicit_randomness(recipe.seed, Purpose.NETWORK, index, processes.rank):
                total, shown = self._goal.loss(state, inputs, self._progress)
            with self._profile("backward"):
                processes.fabric.backward(total / recipe.accumulate)
        return {"loss": float(total.detach()), **{name: float(value) for name, value in shown.items()}}

    def _clip(self) -> float:
        """Limit the gradient's norm, and return it; 0 where nobody needs to know."""
        limit, state = self._recipe.optimizer.max_grad_norm, self._state
        if limit is None:
            return 0.0
        norm = self._processes.fabric.clip_gradients(
            state.compute, state.optimizer, max_norm=limit, error_if_nonfinite=False
        )
        return 0.0 if state.has_scaler else total_norm(norm)  # scaled steps with infinite gradients are skipped

    def _record(self, log: MetricsLog | NoLog, numbers: dict[str, float]) -> None:
        """What is due after a step: numbers, a look at the network, a checkpoint."""
        recipe, goal, step, is_last = self._recipe, self._goal, self._state.step, self._progress >= 1
        is_look = is_last or step % goal.look_every == 0
        found = goal.look(self._state) if is_look else {}
        beside = {} if goal.looks_apart else found
        if is_last or beside or step % recipe.log_every == 0:
            log.write(step, numbers | beside | {f"baseline/{key}": loss for key, loss in goal.baselines.items()})
        if is_look and goal.looks_apart:
            log.write(step, found)
        if is_look:
            self._page.show(goal, self._progress)
        if is_last or step % recipe.checkpoint_every == 0:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint. Without a time limit equal weights give equal bytes, however long they took."""
        is_timed = self._budget.max_minutes is not None
        elapsed = {"elapsed_s": self._budget.spent_s} if is_timed else {}
        self._state.save(self._checkpoints, self._goal.values() | elapsed)
        if self._processes.is_main:
            self._cost.write()

    def _restore(self) -> None:
        """Go on from the last intact checkpoint, if there is one."""
        values = self._state.restore(self._checkpoints, self._talk)
        if values is not None:
            with refuse_foreign_state():
                self._goal.restore(values)
                self._budget.elapsed_s = float(values.get("elapsed_s", 0.0))

    def _open_log(self) -> MetricsLog | NoLog:
        """The log of the main process; the others write nothing."""
        if not self._processes.is_main:
            return NoLog()
        return MetricsLog(self._run.root, resume_step=self._state.step, sinks=self._outlets.sinks)


def _item_ids(batches: list[Any]) -> list[str]:
    """Whatever the batches of a step show."""
    parts = [part for batch in batches for part in (batch, getattr(batch, "labelled", None)) if part is not None]
    return [item for part in parts for item in part.item_ids]


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """Means of numbers by name, each over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    having = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}
