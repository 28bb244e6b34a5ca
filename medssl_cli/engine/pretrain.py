"""Self-supervised pre-training: one loop for every method."""

import json
import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medssl_cli.cache.prepared import prepare
from medssl_cli.cache.splits import held_out_patients
from medssl_cli.cache.store import Cache
from medssl_cli.data.crops import CropBatch, CropDataset, crop_loader
from medssl_cli.engine.build import build_method
from medssl_cli.engine.checkpoints import Checkpoint, optimizer_tensors, prefixed, restore_optimizer, unprefixed
from medssl_cli.engine.devices import lay_out, make_fabric, resolve_device
from medssl_cli.engine.metrics_log import MetricsLog, read_metrics
from medssl_cli.engine.optimisation import build_optimizer, learning_rate, require_finite, set_learning_rate
from medssl_cli.engine.profile import Profile
from medssl_cli.engine.randomness import Purpose, generator, implicit_randomness
from medssl_cli.engine.runs import Manifest, Run, start_run
from medssl_cli.engine.selection import volumes_of
from medssl_cli.engine.signals import stop_on_signals
from medssl_cli.engine.talk import Talk
from medssl_cli.errors import NothingUsableError
from medssl_cli.files import write_atomic, write_json
from medssl_cli.methods import Losses, MethodBase, Views
from medssl_cli.recipe import PretrainRecipe

SUMMARY_FRACTION = 0.1


@dataclass(frozen=True)
class PretrainSummary:
    """How a pre-training ended.

    Args:
        root: Run folder.
        steps: Steps done.
        loss: Mean over the last tenth of the logged steps.
        baselines: Losses of predictors that have learnt nothing.
        has_learnt: Whether the loss is below all of them.
    """

    root: Path
    steps: int
    loss: float
    baselines: dict[str, float]
    has_learnt: bool


def pretrain(
    recipe: PretrainRecipe, cache: Cache, root: Path, *, device: str, talk: Talk, profile_steps: int = 0
) -> PretrainSummary:
    """Train a recipe's method on the cache's images, or go on where an earlier call stopped.

    Labelled test patients are left out. After any kill, the same call ends with the same weights (bit for bit on CPU).
    The parts of the first `profile_steps` steps are timed for RUN/profile.json.

    Raises:
        UsageError: Wrong recipe, device or run folder.
        NothingUsableError: `E_CACHE_EMPTY`.
        GateError: `E_DIVERGED`.
        InterruptedCleanlyError: A signal; the state is saved.
    """
    resolve_device(device)
    everything = cache.entries()
    held_out = held_out_patients(everything, recipe.split_seed)
    usable = volumes_of(everything, modality=recipe.data.modality, talk=talk)
    records = [record for record in usable if record.patient_key not in held_out]
    if not records:
        raise NothingUsableError("E_CACHE_EMPTY", "every image belongs to a labelled test patient")
    run = start_run(root, "pretrain", recipe, Manifest({"train": records}, {}))
    if run.is_finished:
        talk.note(f"{root} is finished already")
        return _summary(run)
    talk.note(f"{len(records)} images ({len(usable) - len(records)} of labelled test patients left out)")
    method = build_method(recipe)
    items = prepare(
        cache, records, recipe.data.preprocessing, progress=lambda done, total: talk.progress("preparing", done, total)
    )
    dataset = CropDataset(
        items,
        method.views().size,
        batch_size=recipe.data.batch_size,
        seed=recipe.seed,
        pad_with_low=True,
    )
    _loop(recipe, run, method, dataset, device=device, talk=talk, profile_steps=profile_steps)
    _finish(run, method)
    return _summary(run)


def _loop(
    recipe: PretrainRecipe,
    run: Run,
    method: MethodBase,
    dataset: CropDataset,
    *,
    device: str,
    talk: Talk,
    profile_steps: int,
) -> None:
    fabric = make_fabric(device, recipe.precision)
    lay_out(method, channels_last=recipe.channels_last)
    optimizer = build_optimizer(method, recipe.optimizer)
    first = _restore(run, method, optimizer, talk)
    profile = Profile(min(profile_steps, recipe.steps - first - 1), device=resolve_device(device))
    module, optimizer = fabric.setup(method, optimizer)
    module.mark_forward_method("loss")
    module.train()
    loader = crop_loader(
        dataset,
        first_step=first * recipe.accumulate,
        num_steps=recipe.steps * recipe.accumulate,
        batch_size=recipe.data.batch_size,
        num_workers=recipe.data.num_workers,
    )
    batches = iter(loader)
    baselines = {f"baseline/{name}": value for name, value in method.baselines().items()}
    with stop_on_signals() as stop, closing(MetricsLog(run.root, resume_step=first)) as log:
        for step in range(first, recipe.steps):
            progress = step / recipe.steps
            rate = learning_rate(progress, recipe.optimizer.learning_rate, recipe.schedule)
            set_learning_rate(optimizer, rate)
            method.before_step(progress)
            losses = _accumulated_step(recipe, fabric, module, batches, step, progress, profile)
            with profile("optimiser"):
                if recipe.optimizer.max_grad_norm is not None:
                    fabric.clip_gradients(module, optimizer, max_norm=recipe.optimizer.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                method.after_step(progress)
            done = step + 1
            with profile("log"):
                if done % recipe.log_every == 0 or done == recipe.steps:
                    values = {name: float(value) for name, value in (losses.parts | losses.diagnostics).items()}
                    log.write(
                        done, {"loss": float(losses.total.detach()), **values, "learning_rate": rate, **baselines}
                    )
                talk.progress("pre-training", done, recipe.steps, f"loss {float(losses.total.detach()):.4f}")
                if done % recipe.checkpoint_every == 0 or done == recipe.steps or stop.is_set:
                    _save(run, method, optimizer, done)
            if profile.end_step():
                talk.note(profile.write(run.root / "profile.json"))
            if stop.is_set and done < recipe.steps:
                stop.raise_interrupted(f"pre-training stopped after step {done} of {recipe.steps}")


def _accumulated_step(
    recipe: PretrainRecipe, fabric: Any, module: Any, batches: Any, step: int, progress: float, profile: Profile
) -> Losses:
    """Forward and backward of one optimiser step; returns the last micro-batch's losses."""
    for micro in range(recipe.accumulate):
        with profile("data"):
            batch: CropBatch = next(batches)
        index = step * recipe.accumulate + micro
        with profile("to_device"):
            views = Views(fabric.to_device(batch.images)[:, None], generator(recipe.seed, Purpose.LOSS, index))
        with profile("forward"), implicit_randomness(recipe.seed, Purpose.NETWORK, index):
            losses: Losses = module.loss(views, progress)
            require_finite(losses.total, step, batch.item_ids)
        with profile("backward"):
            fabric.backward(losses.total / recipe.accumulate)
    return losses


def _save(run: Run, method: MethodBase, optimizer: Any, step: int) -> None:
    raw = getattr(optimizer, "optimizer", optimizer)
    tensors = prefixed("method", method.state_dict()) | optimizer_tensors(raw)
    run.checkpoints.save(Checkpoint(step, tensors, {}))


def _restore(run: Run, method: MethodBase, optimizer: torch.optim.Optimizer, talk: Talk) -> int:
    checkpoint = run.checkpoints.load_last(talk.note)
    if checkpoint is None:
        return 0
    method.load_state_dict(unprefixed("method", checkpoint.tensors))
    restore_optimizer(optimizer, checkpoint.tensors)
    talk.note(f"resuming after step {checkpoint.step}")
    return checkpoint.step


def _finish(run: Run, method: MethodBase) -> None:
    import safetensors.torch

    weights: dict[str, Tensor] = {
        name: value.cpu().contiguous() for name, value in method.backbone.state_dict().items()
    }
    described = {"backbone": json.dumps(run.recipe.backbone.model_dump())}
    write_atomic(run.encoder_path, safetensors.torch.save(weights, metadata=described))
    logged = [entry for entry in read_metrics(run.root) if entry["loss"] is not None]
    tail = logged[-max(1, math.ceil(len(logged) * SUMMARY_FRACTION)) :]
    loss = sum(entry["loss"] for entry in tail) / len(tail)
    baselines = method.baselines()
    summary = {
        "steps": run.recipe.steps,
        "loss": loss,
        "baselines": baselines,
        "has_learnt": all(loss < value for value in baselines.values()),
    }
    write_json(run.summary_path, summary)


def _summary(run: Run) -> PretrainSummary:
    return PretrainSummary(root=run.root, **json.loads(run.summary_path.read_bytes()))
