"""Self-supervised pre-training: an encoder from images, by any method."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medssl_cli.base.files import write_atomic, write_json
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.named_splits import GivenSplit
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import build_method
from medssl_cli.engine.checkpoints import module_tensors
from medssl_cli.engine.devices import make_fabric, resolve_device
from medssl_cli.engine.health import DRAWN, Alarm, Health, alarms
from medssl_cli.engine.initial_weights import check_channels
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.metrics_log import read_health, read_metrics
from medssl_cli.engine.placed_source import PlacedSource
from medssl_cli.engine.processes import Processes, Spread, agreed, launched
from medssl_cli.engine.randomness import Purpose, generator, implicit_randomness
from medssl_cli.engine.runs import Manifest, Run, damaged, start_run
from medssl_cli.engine.sources import BoxSource, SliceSource, Source
from medssl_cli.engine.state import TrainingState
from medssl_cli.engine.tensor_files import tensor_bytes
from medssl_cli.engine.trainer import Trainer
from medssl_cli.engine.training_parts import TrainingParts, training_parts
from medssl_cli.engine.weights import begin_with, load_encoder
from medssl_cli.methods import Losses, MethodBase, ViewRequest, Views
from medssl_cli.recipe import PretrainRecipe

SUMMARY_FRACTION: Final = 0.1


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
    others: Mapping[str, Cache] | None = None,
    split: GivenSplit | None = None,
) -> PretrainSummary:
    """Train a recipe's method on the cache's images, or go on where an earlier call stopped.

    Labelled test patients, or those whom `split` names, are left out.
    After any kill, the same call ends with the same weights (bit for bit on CPU).
    Over how many processes a run is spread may change with every call, and the result does not depend on it.
    The parts of the first `profile_steps` steps are timed for RUN/profile.json. It begins with the encoder of `init`.
    Parts of a mixture may take their images from `others`, caches by name.
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
                check_channels(encoder, recipe.data, talk)
                talk.note("from --init: " + begin_with(method, encoder))
        before = {} if encoder is None else {"init": encoder.origin()}
        arguments = before | ({} if max_minutes is None else {"max_minutes": max_minutes})
        if split is not None:
            arguments["split_file"] = split.document(cache.pseudonyms)
        start = processes.main_first(
            lambda _: _open(recipe, cache, others or {}, root, method.views(), arguments, talk, split)
        )
        if start.run.grown:
            talk.note(
                f"this run goes on for longer: {start.run.grown}; its schedules follow the new length from here on"
            )
        if start.run.is_finished:
            talk.note(f"{root} is finished already")
        else:
            goal = Pretraining(recipe, start, _source(recipe, start, method, processes, talk), method, processes)
            Trainer(
                recipe,
                start.run,
                goal,
                processes,
                talk,
                outlets=outlets or Outlets(),
                max_minutes=max_minutes,
                profile_steps=profile_steps,
            ).train()
        return processes.of_main(lambda: start.run.summary(PretrainSummary, lambda stored: {**stored, "root": root}))


@dataclass(frozen=True)
class _Start:
    """The run's folder, and what it trains on."""

    run: Run
    parts: TrainingParts


def _open(
    recipe: PretrainRecipe,
    cache: Cache,
    others: Mapping[str, Cache],
    root: Path,
    views: ViewRequest,
    arguments: dict[str, Any],
    talk: Talk,
    split: GivenSplit | None,
) -> _Start:
    parts = training_parts(recipe, cache, others, views, talk, split)
    run = start_run(root, "pretrain", recipe, Manifest(parts.splits(), arguments | parts.arguments()))
    return _Start(run, parts)


def _source(recipe: PretrainRecipe, start: _Start, method: MethodBase, processes: Processes, talk: Talk) -> Source:
    """Where the method's views come from."""
    views = method.views()
    if views.placed is not None:
        return PlacedSource(recipe, processes, start.parts, views, views.placed, talk)
    if views.slices is None:
        return BoxSource(recipe, processes, start.parts, views, talk)
    return SliceSource(recipe, processes, start.parts, views.slices, talk)


class Pretraining:
    """The goal of a pre-training: the encoder of a method; see `goal.Goal`.

    Args:
        recipe: How to train.
        start: Run and images.
        source: Source of the method's views.
        method: Freshly initialised.
        processes: Launched.
    """

    name: Final = "pre-training"
    network_name: Final = "method"
    looks_apart: Final = True
    ends_with_steps: Final = True

    def __init__(
        self, recipe: PretrainRecipe, start: _Start, source: Source, method: MethodBase, processes: Processes
    ) -> None:
        self._recipe, self._run, self._source, self._processes = recipe, start.run, source, processes
        self.network, self.result = method, method.backbone
        with agreed():
            method.begin(source.training_set)
        self._baselines = method.baselines(source.labels)
        self.look_every = recipe.health_every
        self._health = Health(start.run.root, source.probe, processes, seed=recipe.seed)

    @property
    def baselines(self) -> Mapping[str, float]:
        """Losses of predictors that have learnt nothing, those that are measured as soon as they are."""
        return self._baselines | self.network.measured_baselines()

    def loader(self, first_step: int, last_step: int) -> DataLoader[Any]:
        """See `Goal.loader`; the source knows the last step."""
        return self._source.loader(first_step)

    def epoch(self, step: int) -> int | None:
        """See `Goal.epoch`."""
        return self._source.epoch(step)

    def before_epoch(self, state: TrainingState, epoch: int) -> None:
        """Let the method look back at all images."""
        source, seed = self._source, self._recipe.seed
        random = generator(seed, Purpose.CLUSTERS, epoch)
        with torch.no_grad(), implicit_randomness(seed, Purpose.CLUSTERS, epoch):
            state.compute(lambda method: method.before_epoch(epoch, source.everything, random))

    def before_step(self, progress: float) -> None:
        """See `Goal.before_step`."""
        self.network.before_step(progress)

    def inputs(self, batch: Any, index: int) -> Views:
        """Views on the device."""
        return self._source.views(batch, index)

    def loss(self, state: TrainingState, inputs: Views, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Goal.loss`; all of it is computed in the recipe's precision."""
        loss: tuple[Tensor, dict[str, Tensor]] = state.compute(lambda method: _plain(method.loss(inputs, progress)))
        return loss

    def after_backward(self, progress: float) -> None:
        """See `Goal.after_backward`."""
        self.network.after_backward(progress)

    def after_step(self, progress: float) -> None:
        """See `Goal.after_step`."""
        self.network.after_step(progress)

    def look(self, state: TrainingState) -> dict[str, float]:
        """The embeddings' health."""
        return self._health.look(state)

    def alarms(self, progress: float) -> list[Alarm]:
        """What the run's records give cause for."""
        method = self.network
        return alarms(
            self._run.root,
            self.baselines,
            progress,
            method.health,
            code=method.worry_code,
            judged_from=method.judged_from,
            learnt_below=method.learnt_below,
        )

    def facts(self) -> dict[str, Any]:
        """The health so far, and the method's matrices and pictures."""
        root = self._run.root
        drawn = {name: sorted((root / folder).glob("*.png")) for name, folder in DRAWN.items()}
        return {"health": read_health(root), **drawn}

    def evidence(self) -> Mapping[str, Tensor]:
        """What the method saw last."""
        return self.network.evidence()

    def values(self) -> dict[str, Any]:
        """Nothing: all of it is in the network."""
        return {}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Nothing to do; see `values`."""

    def finish(self, state: TrainingState) -> None:
        """Write the encoder, what the method keeps beside it, and how it went."""
        weights = state.result_tensors()
        kept = {name: module_tensors(module) for name, module in self.network.kept().items()}
        if not self._processes.is_main:
            return
        run, recipe = self._run, self._recipe
        for name, tensors in kept.items():
            about = {"method": json.dumps(recipe.method.model_dump())}
            write_atomic(run.root / f"{name}.safetensors", tensor_bytes(tensors, about))
        described = {"backbone": json.dumps(recipe.backbone.model_dump()), "ema_decay": str(recipe.ema_decay)}
        if names := recipe.data.channel_names:
            described |= {"in_channels": str(len(names)), "channels": json.dumps(names)}
        write_atomic(run.encoder_path, tensor_bytes(weights, described))
        logged = [entry["loss"] for entry in read_metrics(run.root) if entry["loss"] is not None]
        if not logged:
            raise damaged("metrics.jsonl", "it has no losses")
        tail = logged[-max(1, math.ceil(len(logged) * SUMMARY_FRACTION)) :]
        loss = sum(tail) / len(tail)
        summary = {
            "steps": state.step,
            "loss": loss,
            "baselines": dict(self.baselines),
            "has_learnt": all(loss < value for value in self.baselines.values()),
            "alarms": [alarm.code for alarm in self.alarms(1.0)],
        }
        write_json(run.summary_path, summary)


def _plain(losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses as what DDP and FSDP can look into."""
    return losses.total, losses.parts | losses.diagnostics
