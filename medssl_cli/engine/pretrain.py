"""Self-supervised pre-training: one loop for every method."""

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.data.selection import images_of, volumes_of
from medssl_cli.engine.build import build_method
from medssl_cli.engine.checkpoints import module_tensors
from medssl_cli.engine.devices import compile_errors, make_fabric, resolve_device
from medssl_cli.engine.feed import Feed
from medssl_cli.engine.health import Health, Page, alarms, run_document, say_new
from medssl_cli.engine.labelled import labelled_entries
from medssl_cli.engine.metrics_log import MetricsLog, NoLog, Sink, read_metrics
from medssl_cli.engine.optimisation import learning_rate, set_learning_rate
from medssl_cli.engine.processes import Processes, Spread, agreed, launched
from medssl_cli.engine.profile import Profile
from medssl_cli.engine.randomness import Purpose, generator, implicit_randomness
from medssl_cli.engine.runs import Manifest, Run, damaged, start_run
from medssl_cli.engine.signals import stop_on_signals
from medssl_cli.engine.skipped import SkippedSteps
from medssl_cli.engine.sources import BoxSource, SliceSource, Source
from medssl_cli.engine.state import TrainingState, total_norm
from medssl_cli.engine.tensor_files import tensor_bytes
from medssl_cli.engine.weights import begin_with, load_encoder
from medssl_cli.errors import NothingUsableError
from medssl_cli.files import write_atomic, write_json
from medssl_cli.methods import Losses, MethodBase, ViewRequest
from medssl_cli.recipe import PretrainRecipe, dump_recipe
from medssl_cli.talk import Silence, Talk

SUMMARY_FRACTION = 0.1
MEASURED_IMAGES = 200  # at most, for a median


@dataclass(frozen=True)
class PretrainSummary:
    """How a pre-training ended.

    Args:
        root: Run folder.
        steps: Steps done.
        loss: Mean over the last tenth of the logged steps.
        baselines: Losses of predictors that have learnt nothing.
        has_learnt: Whether the loss is below all of them.
        alarms: Codes of what gives cause for concern.
    """

    root: Path
    steps: int
    loss: float
    baselines: dict[str, float]
    has_learnt: bool
    alarms: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outlets:
    """Where a training shows itself beside its run folder.

    Args:
        page: Turns the run's facts into `page.html`.
        sinks: Get the numbers too.
    """

    page: Page | None = None
    sinks: Sequence[Sink] = ()


def pretrain(
    recipe: PretrainRecipe,
    cache: Cache,
    root: Path,
    *,
    device: str,
    talk: Talk,
    spread: Spread | None = None,
    outlets: Outlets | None = None,
    profile_steps: int = 0,
    init: Path | None = None,
    max_minutes: float | None = None,
) -> PretrainSummary:
    """Train a recipe's method on the cache's images, or go on where an earlier call stopped.

    Labelled test patients are left out. After any kill, the same call ends with the same weights (bit for bit on CPU).
    Over how many processes a run is spread may change with every call, and the result does not depend on it.
    The parts of the first `profile_steps` steps are timed for RUN/profile.json. It begins with the encoder of `init`.
    It ends after the recipe's steps or after `max_minutes`, whichever comes first; schedules follow the nearer.

    Raises:
        UsageError: Wrong recipe, device or run folder.
        NothingUsableError: `E_CACHE_EMPTY`, `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
        GateError: `E_DIVERGED`.
        StorageError: `E_PROCESS_LOST`, `E_WORKER_CRASH`.
        InterruptedCleanlyError: A signal; the state is saved.
    """
    resolve_device(device)
    fabric = make_fabric(device, recipe.precision, spread)
    with stop_on_signals(is_immediate=True), launched(fabric) as processes:
        talk = talk if processes.is_main else Silence()
        with agreed():
            encoder = None if init is None else load_encoder(init)
            method = build_method(recipe)
            if encoder is not None:
                talk.note("from --init: " + begin_with(method, encoder))
        before = {} if encoder is None else {"init": encoder.origin()}
        arguments = before | ({} if max_minutes is None else {"max_minutes": max_minutes})
        start = processes.main_first(lambda _: _open(recipe, cache, root, method.views(), arguments, talk))
        if start.run.grown:
            talk.note(
                f"this run goes on for longer: {start.run.grown}; its schedules follow the new length from here on"
            )
        if start.run.is_finished:
            talk.note(f"{root} is finished already")
        else:
            training = _Training(recipe, cache, start, method, processes, talk, outlets or Outlets(), max_minutes)
            training.train(profile_steps)
        return processes.of_main(lambda: start.run.summary(PretrainSummary, lambda stored: {**stored, "root": root}))


@dataclass(frozen=True)
class _Start:
    """The run's folder, the items that it trains on, and those of them whose labels it sees."""

    run: Run
    records: list[Entry]
    labelled: list[Entry]


def _open(
    recipe: PretrainRecipe, cache: Cache, root: Path, views: ViewRequest, arguments: dict[str, Any], talk: Talk
) -> _Start:
    everything, request = cache.entries(), views.labelled
    held_out = held_out_patients(everything, recipe.split_seed)
    if views.slices is None:
        usable = volumes_of(everything, modality=recipe.data.modality, talk=talk)
    else:
        usable = images_of(everything, modality=recipe.data.modality)
    records = [record for record in usable if record.patient_key not in held_out]
    if not records:
        raise NothingUsableError("E_CACHE_EMPTY", "every image belongs to a labelled test patient")
    talk.note(f"{len(records)} images ({len(usable) - len(records)} of labelled test patients left out)")
    labelled = [] if request is None else labelled_entries(cache, usable, request, held_out, talk)
    splits: dict[str, Sequence[ItemRecord | Entry]] = {"train": records}
    if request is not None:
        splits["labelled"] = labelled
    return _Start(start_run(root, "pretrain", recipe, Manifest(splits, arguments)), records, labelled)


class _Training:
    """One pre-training, from its recipe to its encoder."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        cache: Cache,
        start: _Start,
        method: MethodBase,
        processes: Processes,
        talk: Talk,
        outlets: Outlets,
        max_minutes: float | None,
    ) -> None:
        run = start.run
        self._recipe, self._run, self._processes, self._talk, self._outlets = recipe, run, processes, talk, outlets
        views = method.views()
        if views.slices is None:
            self._source: Source = BoxSource(recipe, processes, cache, start.records, start.labelled, views, talk)
        else:
            self._source = SliceSource(recipe, processes, cache, start.records, views.slices, talk)
        with agreed():
            method.begin(self._source.training_set)
        self._baselines = method.baselines(self._source.labels)
        self._state = TrainingState(recipe, method, processes, is_timed=max_minutes is not None)
        self._state.compute.train()
        self._checkpoints = run.checkpoints
        self._state.restore(self._checkpoints, talk)
        self._max_minutes, self._progress = max_minutes, 0.0
        self._advance(self._state.elapsed_s)
        self._health = Health(run.root, self._state, self._source.probe, processes, seed=recipe.seed)
        self._skipped = SkippedSteps(method, run.root / "skipped", recipe.max_skipped, processes, talk)
        self._said: set[str] = set()
        self._profile = Profile()

    def train(self, profile_steps: int) -> None:
        """Steps until the recipe's number, with looks at the network's health and checkpoints."""
        recipe, state, talk = self._recipe, self._state, self._talk
        device = str(self._processes.fabric.device)
        self._profile = profile = Profile(min(profile_steps, recipe.steps - state.step - 1), device=device)
        with stop_on_signals() as stop, closing(self._log()) as log, compile_errors():
            feed = Feed(self._source.loader(state.step), recipe.accumulate, stop, is_alone=self._processes.size == 1)
            if state.step == 0:
                self._look(log)
            is_stopping = False
            while self._progress < 1 and not is_stopping:
                with profile("data"):
                    batches = feed.next()
                if batches is None:
                    break
                self._begin_epoch()
                numbers = self._step(batches, is_asked_to_stop=stop.is_set)
                is_stopping = numbers.pop("stop") > 0
                is_last = self._progress >= 1
                talk.progress("pre-training", state.step, recipe.steps, f"loss {numbers['loss']:.4f}")
                with profile("log"):
                    self._record(log, numbers, is_last=is_last)
                if profile.end_step() and self._processes.is_main:
                    talk.note(profile.write(self._run.root / "profile.json"))
            state.save(self._checkpoints)
        if self._progress < 1:
            with agreed():
                stop.raise_interrupted(f"pre-training stopped after step {state.step} of {recipe.steps}")
        self._finish()

    def _begin_epoch(self) -> None:
        """Let the method look back at what it has seen, if an epoch begins with this step."""
        epoch, seed = self._source.epoch(self._state.step), self._recipe.seed
        if epoch is None:
            return
        source, random = self._source, generator(seed, Purpose.CLUSTERS, epoch)
        with self._profile("epoch"), torch.no_grad(), implicit_randomness(seed, Purpose.CLUSTERS, epoch):
            self._state.compute(lambda method: method.before_epoch(epoch, source.everything, random))

    def _record(self, log: MetricsLog | NoLog, numbers: dict[str, float], *, is_last: bool) -> None:
        """What is due after a step: numbers, a look at the network's health, a checkpoint."""
        recipe, state = self._recipe, self._state
        if state.step % recipe.log_every == 0 or is_last:
            log.write(state.step, numbers | {f"baseline/{key}": loss for key, loss in self._baselines.items()})
        if state.step % recipe.health_every == 0 or is_last:
            self._look(log)
        if state.step % recipe.checkpoint_every == 0 or is_last:
            state.save(self._checkpoints)

    def _step(self, batches: list[Any], *, is_asked_to_stop: bool) -> dict[str, float]:
        """One step of the optimiser; returns its numbers, averaged over batches and processes."""
        recipe, state = self._recipe, self._state
        progress = self._progress
        steps = recipe.steps if self._max_minutes is None else None
        peak = recipe.optimizer.learning_rate
        rate = learning_rate(progress, peak, recipe.schedule, steps=steps, step=state.step)
        set_learning_rate(state.optimizer, rate)
        state.method.before_step(progress)
        self._skipped.before_step()
        parts = [self._backward(batch, micro, progress) for micro, batch in enumerate(batches)]
        means = _means(parts)
        numbers = self._processes.mean(means | {"stop": float(is_asked_to_stop), "spent_s": state.spent_s})
        spent_s = numbers.pop("spent_s")
        state.method.after_backward(progress)
        with self._profile("optimiser"):
            is_left_out = self._skipped.is_left_out(state.step, numbers, self._clip(), _item_ids(batches))
            if not is_left_out or state.has_scaler:  # the scaler leaves it out itself, and scales less next time
                state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            if not is_left_out:
                state.method.after_step(progress)
                if state.average is not None:
                    state.average.update(state.method.backbone, state.step)
        state.step += 1
        self._advance(spent_s)
        return numbers | {"learning_rate": rate}

    def _advance(self, spent_s: float) -> None:
        """Say how much is done: in steps, or in time where that is nearer its end. The same in all processes."""
        by_steps = self._state.step / self._recipe.steps
        by_time = 0.0 if self._max_minutes is None else spent_s / (60 * self._max_minutes)
        self._progress = min(1.0, max(by_steps, by_time))

    def _clip(self) -> float:
        """Limit the gradient's norm, and return it; 0 where nobody needs to know."""
        limit, state = self._recipe.optimizer.max_grad_norm, self._state
        if limit is None:
            return 0.0
        norm = self._processes.fabric.clip_gradients(
            state.compute, state.optimizer, max_norm=limit, error_if_nonfinite=False
        )
        return 0.0 if state.has_scaler else total_norm(norm)  # scaled steps with infinite gradients are skipped

    def _backward(self, batch: Any, micro: int, progress: float) -> dict[str, float]:
        """Forward and backward of one batch of a step; returns its loss and what it shows."""
        recipe, processes, compute = self._recipe, self._processes, self._state.compute
        index = self._state.step * recipe.accumulate + micro
        with self._profile("to_device"):
            views = self._source.views(batch, index)
        is_last = micro + 1 == recipe.accumulate
        with processes.fabric.no_backward_sync(compute, enabled=not is_last):
            with self._profile("forward"), implicit_randomness(recipe.seed, Purpose.NETWORK, index, processes.rank):
                total, shown = compute(lambda method: _plain(method.loss(views, progress)))
            with self._profile("backward"):
                processes.fabric.backward(total / recipe.accumulate)
        return {"loss": float(total.detach()), **{name: float(value) for name, value in shown.items()}}

    def _look(self, log: MetricsLog | NoLog) -> None:
        """Record the embeddings' health, say what is wrong, draw the page."""
        log.write(self._state.step, self._health.look())
        if not self._processes.is_main:
            return
        root, progress = self._run.root, self._progress
        concerns = self._state.method.health
        say_new(alarms(root, self._baselines, progress, concerns), self._said, self._talk)
        if self._outlets.page is not None:
            document = run_document(
                root, dump_recipe(self._recipe), self._baselines, progress, self._state.method.health
            )
            write_atomic(root / "page.html", self._outlets.page(document).encode())

    def _log(self) -> MetricsLog | NoLog:
        if not self._processes.is_main:
            return NoLog()
        return MetricsLog(self._run.root, resume_step=self._state.step, sinks=self._outlets.sinks)

    def _finish(self) -> None:
        """Write what the run was for: the encoder, and how it went."""
        weights = self._state.encoder_tensors()
        kept = {name: module_tensors(module) for name, module in self._state.method.kept().items()}
        if not self._processes.is_main:
            return
        run, recipe = self._run, self._recipe
        for name, tensors in kept.items():
            about = {"method": json.dumps(recipe.method.model_dump())}
            write_atomic(run.root / f"{name}.safetensors", tensor_bytes(tensors, about))
        described = {"backbone": json.dumps(recipe.backbone.model_dump()), "ema_decay": str(recipe.ema_decay)}
        write_atomic(run.encoder_path, tensor_bytes(weights, described))
        logged = [entry["loss"] for entry in read_metrics(run.root) if entry["loss"] is not None]
        if not logged:
            raise damaged("metrics.jsonl", "it has no losses")
        tail = logged[-max(1, math.ceil(len(logged) * SUMMARY_FRACTION)) :]
        loss = sum(tail) / len(tail)
        summary = {
            "steps": self._state.step,
            "loss": loss,
            "baselines": self._baselines,
            "has_learnt": all(loss < value for value in self._baselines.values()),
            "alarms": [alarm.code for alarm in alarms(run.root, self._baselines, 1.0, self._state.method.health)],
        }
        write_json(run.summary_path, summary)


def _plain(losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses as what DDP and FSDP can look into."""
    return losses.total, losses.parts | losses.diagnostics


def _item_ids(batches: list[Any]) -> list[str]:
    parts = [part for batch in batches for part in (batch, getattr(batch, "labelled", None)) if part is not None]
    return [item for part in parts for item in part.item_ids]


def _means(parts: list[dict[str, float]]) -> dict[str, float]:
    """Of numbers by name, each over those that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    having = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in having.items()}
