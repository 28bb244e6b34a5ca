"""Supervised training of a task on few labels: one loop for every task."""

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medssl_cli.cache.splits import Split, split_items
from medssl_cli.cache.store import Cache
from medssl_cli.engine.build import build_task
from medssl_cli.engine.checkpoints import (
    Checkpoint,
    optimizer_tensors,
    prefixed,
    refuse_foreign_state,
    restore_optimizer,
    unprefixed,
)
from medssl_cli.engine.devices import lay_out, make_fabric, resolve_device
from medssl_cli.engine.metrics_log import MetricsLog
from medssl_cli.engine.optimisation import (
    AveragedWeights,
    Budget,
    build_optimizer,
    learning_rate,
    require_finite,
    set_learning_rate,
)
from medssl_cli.engine.predict import torch_predict
from medssl_cli.engine.randomness import Purpose, generator, implicit_randomness
from medssl_cli.engine.runs import Manifest, Run, start_run
from medssl_cli.engine.signals import stop_on_signals
from medssl_cli.engine.weights import Encoder, initialise_task
from medssl_cli.errors import GateError
from medssl_cli.files import write_json
from medssl_cli.recipe import Named, TaskRecipe, flow_yaml
from medssl_cli.talk import Talk
from medssl_cli.tasks import SupervisionBase, TaskLosses, Validate, supervision_of


@dataclass(frozen=True)
class Choices:
    """What a user decides beside the recipe.

    Args:
        fold: Which fifth of the training patients validates.
        fraction: Share of the training patients to use.
        patients: Number of training patients to use, instead of a share.
        draw: Which random order they are taken in; of one draw, the few are among the many.
        max_minutes: Time limit instead of the recipe's steps.
        encoder: Pre-trained weights, or None to start from scratch.
    """

    fold: int = 0
    fraction: float = 1.0
    patients: int | None = None
    draw: int = 0
    max_minutes: float | None = None
    encoder: Encoder | None = None

    def document(self) -> dict[str, Any]:
        """For the manifest; what came with a later version is named only where it is used, so that old runs go on."""
        later = {"patients": self.patients, "draw": self.draw or None}
        return {
            "fold": self.fold,
            "fraction": self.fraction,
            **{name: value for name, value in later.items() if value is not None},
            "max_minutes": self.max_minutes,
            "encoder_sha256": None if self.encoder is None else self.encoder.sha256,
            **({} if self.encoder is None else {"init": self.encoder.origin()}),
        }


@dataclass(frozen=True)
class FinetuneSummary:
    """How a fine-tuning ended.

    Args:
        root: Run folder.
        steps: Steps done.
        score: Name of the validation's figure.
        best_score: The best one; None if the validation could not tell good from bad.
        best_step: Its step.
        num_train_patients: Who was learnt from.
        max_minutes: Time limit that ended it, if one did.
        is_exportable: Whether `medssl export` takes it.
    """

    root: Path
    steps: int
    score: str
    best_score: float | None
    best_step: int
    num_train_patients: int
    max_minutes: float | None = None
    is_exportable: bool = True

    def document(self) -> dict[str, Any]:
        """For JSON; the figure under its own name, such as `best_dice`."""
        return {
            "root": str(self.root),
            "steps": self.steps,
            f"best_{self.score}": self.best_score,
            "best_step": self.best_step,
            "num_train_patients": self.num_train_patients,
            "max_minutes": self.max_minutes,
        }


def finetune(
    recipe: TaskRecipe, cache: Cache, root: Path, choices: Choices, *, device: str, talk: Talk
) -> FinetuneSummary:
    """Train a task from labels, or go on where an earlier call stopped.

    Raises:
        UsageError: Wrong recipe, device, weights or run folder.
        NothingUsableError: `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
        GateError: `E_DIVERGED`, `E_SPLIT_LEAK`.
        InterruptedCleanlyError: A signal; the state is saved.
    """
    resolve_device(device)
    backbone = recipe.backbone if choices.encoder is None else choices.encoder.backbone_for(recipe.backbone)
    if backbone != recipe.backbone:
        talk.note(_unfair(recipe.backbone, backbone))
        recipe = recipe.model_copy(update={"backbone": backbone})
    supervision = supervision_of(recipe)
    labelled = supervision.usable(cache, talk)
    split = split_items(
        cache.records(),
        labelled,
        seed=recipe.split_seed,
        fold=choices.fold,
        fraction=choices.fraction,
        num_val=recipe.max_validation_patients,
        num_train=choices.patients,
        draw=choices.draw,
    )
    num_labelled = _validation_labels_seen(split, choices.encoder, talk)
    num_seen = _test_patients_seen(split, choices.encoder)
    if num_seen is None:
        talk.note(
            "W_WEIGHTS_ORIGIN: it is not known whose images the weights have seen; test patients may be among them"
        )
    elif num_seen:
        talk.note(f"W_SPLIT_LEAK: pre-training has seen images (not labels) of {num_seen} test patients")
    arguments = {**choices.document(), "test_patients_seen_in_pretraining": num_seen}
    if num_labelled:
        arguments["validation_patients_labelled_in_pretraining"] = num_labelled
    arguments |= supervision.check(cache, labelled, split, talk)
    manifest = Manifest({"train": split.train, "val": split.val, "test": split.test}, arguments)
    run = start_run(root, "finetune", recipe, manifest)
    if run.grown:
        talk.note(f"this run goes on for longer: {run.grown}; its learning rate follows the new length from here on")
    if run.is_finished:
        talk.note(f"{root} is finished already")
        return _summary(run, supervision)
    talk.note(_counts(split))
    task = build_task(recipe)
    if choices.encoder is not None:
        how = recipe.backbone.options.get("inflation", "mean")
        classes = tuple(supervision.classes.values())
        talk.note("from --init: " + initialise_task(task, choices.encoder, how=how, classes=classes))
    dataset = supervision.dataset(cache, split.train, talk)
    supervision.begin(task, dataset)
    loop = _Loop(recipe, run, task, supervision, talk, device=device, max_minutes=choices.max_minutes)
    loop.train(dataset, supervision.validator(cache, split.val))
    return _summary(run, supervision)


def _unfair(own: Named, other: Named) -> str:
    """That weights brought their own network with them, and how to train the same one from scratch."""
    return (
        f"W_BACKBONE_REPLACED: backbone {other.name} of --init replaces the recipe's {own.name}; to compare with a "
        f"training from scratch, give it the same network: --set 'backbone={flow_yaml(other.model_dump())}'"
    )


def _validation_labels_seen(split: Split, encoder: Encoder | None, talk: Talk) -> int:
    """Number of validation patients whose labels pre-training has seen: it knows the test patients, but not the fold.

    Raises:
        GateError: `E_SPLIT_LEAK`, it has seen labels of test patients.
    """
    known = frozenset() if encoder is None else encoder.labelled_patients
    test, val = (known & {record.patient_key for record in records} for records in (split.test, split.val))
    if test:
        raise GateError(
            "E_SPLIT_LEAK",
            f"pre-training has learnt from labels of {len(test)} test patients",
            hint="pre-train again on this cache with the split_seed of this recipe: test patients are left out then",
        )
    if val:
        talk.note(f"W_LABELS_SEEN: pre-training has learnt from labels of {len(val)} of the patients to validate on")
    return len(val)


def _test_patients_seen(split: Split, encoder: Encoder | None) -> int | None:
    """Labels may have come after pre-training, so that it could not know whom to leave out. None if nobody knows."""
    if encoder is None:
        return 0
    test = {record.patient_key for record in split.test}
    return None if encoder.patients is None else len(test & encoder.patients)


def _counts(split: Split) -> str:
    counts = {
        name: len({record.patient_key for record in records})
        for name, records in (("train", split.train), ("val", split.val), ("test", split.test))
    }
    return f"patients: {counts['train']} train, {counts['val']} validation, {counts['test']} test (held out)"


class _Loop:
    """The state of one fine-tuning between steps."""

    def __init__(
        self,
        recipe: TaskRecipe,
        run: Run,
        task: nn.Module,
        supervision: SupervisionBase,
        talk: Talk,
        *,
        device: str,
        max_minutes: float | None,
    ) -> None:
        self._recipe = recipe
        self._run = run
        self._supervision = supervision
        self._score = supervision.score
        self._talk = talk
        self._fabric = make_fabric(device, recipe.precision)
        self._layouts = lay_out(task, channels_last=recipe.channels_last)
        optimizer = build_optimizer(task, recipe.optimizer)
        self._task = task
        self._average = AveragedWeights(task, recipe.ema_decay) if recipe.ema_decay else None
        self._best: dict[str, Any] = {self._score: None, "step": 0}
        self._budget = Budget(recipe.steps, max_minutes)
        self._first = self._restore(optimizer)
        self._module, self._optimizer = self._fabric.setup(task, optimizer)
        if self._average is not None:
            self._average.network.to(self._fabric.device)

    def train(self, dataset: Any, validate: Validate) -> None:
        """Steps until the budget is spent, with validation and checkpoints."""
        recipe, budget = self._recipe, self._budget
        first, last = self._first * recipe.accumulate, budget.last_step * recipe.accumulate
        batches = iter(self._supervision.loader(dataset, first_step=first, num_steps=last))
        validation = f"val_{self._score}"
        step = self._first
        with stop_on_signals() as stop, closing(MetricsLog(self._run.root, resume_step=self._first)) as log:
            is_last = step >= budget.last_step
            while not is_last:
                progress = budget.progress(step)
                rate = learning_rate(
                    progress, recipe.optimizer.learning_rate, recipe.schedule, steps=budget.num_steps, step=step
                )
                losses = self._step(batches, step, rate)
                step += 1
                is_last = budget.progress(step) >= 1
                values = {"loss": float(losses.total.detach()), "learning_rate": rate}
                self._talk.progress("fine-tuning", budget.progress(step), 1.0, f"loss {values['loss']:.4f}")
                if step % recipe.validate_every == 0 or is_last:
                    values |= self._validate(validate, step)
                if step % recipe.log_every == 0 or validation in values:
                    log.write(step, values | {name: float(part.detach()) for name, part in losses.parts.items()})
                if step % recipe.checkpoint_every == 0 or is_last or stop.is_set:
                    self._save(step)
                if stop.is_set and not is_last:
                    stop.raise_interrupted(f"fine-tuning stopped after step {step}")
        summary = {
            "steps": step,
            f"best_{self._score}": self._best[self._score],
            "best_step": self._best["step"],
            "num_train_patients": len({entry["patient"] for entry in self._run.manifest["splits"]["train"]}),
            "max_minutes": budget.max_minutes,
        }
        self._say_end(step)
        write_json(self._run.summary_path, summary)

    def _say_end(self, step: int) -> None:
        """What a comparison with other trainings should know."""
        if self._best[self._score] == 0:
            self._talk.note(f"W_VALIDATION_EMPTY: every validation scored 0; the last one, step {step}, is kept")
        if self._budget.max_minutes is not None:
            self._talk.note(
                f"{step} steps in {self._budget.max_minutes:g} minutes; compare it with trainings of as many: "
                f"--set steps={step} instead of --max-minutes"
            )

    def _step(self, batches: Any, step: int, rate: float) -> TaskLosses:
        recipe, fabric = self._recipe, self._fabric
        self._module.train()
        set_learning_rate(self._optimizer, rate)
        for micro in range(recipe.accumulate):
            batch = next(batches)
            index = step * recipe.accumulate + micro
            random = generator(recipe.seed, Purpose.AUGMENTATION, index)
            (images, *beside), targets = self._supervision.inputs(batch, random, fabric.to_device)
            with implicit_randomness(recipe.seed, Purpose.NETWORK, index):
                logits = self._module(images.contiguous(memory_format=self._layouts[images.ndim]), *beside)
            losses: TaskLosses = self._task.loss(logits, targets)  # type: ignore[operator]
            require_finite(losses.total, step, batch.item_ids)
            fabric.backward(losses.total / recipe.accumulate)
        if recipe.optimizer.max_grad_norm is not None:
            fabric.clip_gradients(self._module, self._optimizer, max_norm=recipe.optimizer.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self._task, step)
        return losses

    def _predictor(self) -> nn.Module:
        return self._task if self._average is None else self._average.network

    def _validate(self, validate: Validate, step: int) -> dict[str, float]:
        """Numbers for the log. Of equally good weights, and where none can be called good, the later are kept."""
        found = validate(torch_predict(self._predictor(), str(self._fabric.device)))
        score, best = None if math.isnan(found.score) else found.score, self._best[self._score]
        if best is None or (score is not None and score >= best):
            self._best = {self._score: score, "step": step}
            tensors = prefixed("network", self._predictor().state_dict())
            self._run.checkpoints.save(Checkpoint(step, tensors, {self._score: score}), is_best=True)
        known = {name: value for name, value in found.by_class.items() if not math.isnan(value)}
        each = ", ".join(f"{name} {value:.4f}" for name, value in known.items()) if len(found.by_class) > 1 else ""
        said = f"{found.score:.4f} (best {self._best[self._score]:.4f})" if score is not None else "says nothing"
        self._talk.note(f"step {step}: validation {self._score} {said}{f': {each}' * bool(each)}")
        figure = f"val_{self._score}"
        return {figure: found.score, **{f"{figure}/{name}": value for name, value in known.items()}}

    def _save(self, step: int) -> None:
        raw = getattr(self._optimizer, "optimizer", self._optimizer)
        tensors = prefixed("task", self._task.state_dict()) | optimizer_tensors(raw)
        if self._average is not None:
            tensors |= prefixed("average", self._average.network.state_dict())
        values = {"best": self._best, "elapsed_s": self._budget.spent_s}
        self._run.checkpoints.save(Checkpoint(step, tensors, values))

    def _restore(self, optimizer: torch.optim.Optimizer) -> int:
        checkpoint = self._run.checkpoints.load_last(self._talk.note)
        if checkpoint is None:
            return 0
        with refuse_foreign_state():
            self._task.load_state_dict(unprefixed("task", checkpoint.tensors))
            restore_optimizer(optimizer, checkpoint.tensors)
            if self._average is not None:
                self._average.network.load_state_dict(unprefixed("average", checkpoint.tensors))
            best, elapsed_s = checkpoint.values["best"], checkpoint.values["elapsed_s"]
            score, step = best[self._score], int(best["step"])  # of step 0 earlier versions wrote -1
            self._best = {self._score: None if score is None or step == 0 else float(score), "step": step}
            self._budget.elapsed_s = float(elapsed_s)
        self._talk.note(f"resuming after step {checkpoint.step}")
        return checkpoint.step


def _summary(run: Run, supervision: SupervisionBase) -> FinetuneSummary:
    score = supervision.score
    known = {"root": run.root, "score": score, "is_exportable": supervision.is_exportable}
    return run.summary(FinetuneSummary, lambda stored: {**stored, **known, "best_score": stored[f"best_{score}"]})
