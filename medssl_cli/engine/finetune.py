"""Supervised training of a task on few labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl_cli.base.signals import stop_on_signals
from medssl_cli.base.talk import KeepWaiting, Silence, Talk
from medssl_cli.cache.items import Entry, ItemRecord
from medssl_cli.cache.splits import Split
from medssl_cli.cache.store import Cache
from medssl_cli.data.examples import Example
from medssl_cli.data.selection import say_misfits
from medssl_cli.engine.build import build_task, build_unlabelled
from medssl_cli.engine.choices import Choices, split_of, validated_items
from medssl_cli.engine.devices import make_fabric, resolve_device
from medssl_cli.engine.finetuning import Finetuning
from medssl_cli.engine.initial_weights import check_channels, patients_seen, with_network_of
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.processes import Processes, Spread, agreed, launched
from medssl_cli.engine.runs import Manifest, Run, start_run
from medssl_cli.engine.trainer import Trainer
from medssl_cli.engine.unlabelled_finetuning import UnlabelledFinetuning
from medssl_cli.engine.unlabelled_images import (
    unlabelled_dataset,
    unlabelled_examples,
    without_labels,
    without_second_average,
)
from medssl_cli.engine.weights import initialise_task
from medssl_cli.nn.distributed import synchronise_norms
from medssl_cli.recipe import TaskRecipe
from medssl_cli.tasks import SupervisionBase, Validate, supervision_of
from medssl_cli.unlabelled import learning_unlabelled


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
    recipe: TaskRecipe,
    cache: Cache,
    root: Path,
    choices: Choices,
    *,
    device: str,
    talk: Talk,
    spread: Spread | None = None,
    outlets: Outlets | None = None,
    profile_steps: int = 0,
) -> FinetuneSummary:
    """Train a task from labels, or go on where an earlier call stopped.

    After any kill, the same call ends with the same weights (bit for bit on CPU). Over how many processes a run is
    spread may change with every call, and the result does not depend on it. The parts of the first `profile_steps`
    steps are timed for RUN/profile.json.

    Raises:
        UsageError: Wrong recipe, device, weights or run folder.
        NothingUsableError: `E_NO_LABELS`, `E_TOO_FEW_PATIENTS`.
        UsageError: `E_SPLIT_FILE`, `E_SPLIT_NAMES`, `E_SPLIT_PATIENT`.
        GateError: `E_DIVERGED`, `E_SPLIT_LEAK`.
        StorageError: `E_PROCESS_LOST`, `E_WORKER_CRASH`.
        InterruptedCleanlyError: A signal; the state is saved.
    """
    resolve_device(device)
    fabric = make_fabric(device, recipe.precision, spread)
    with stop_on_signals(is_immediate=True), launched(fabric) as processes:
        talk = talk if processes.is_main else Silence()
        recipe = with_network_of(choices.encoder, recipe, talk)
        with agreed():
            if choices.encoder is not None:
                check_channels(choices.encoder, recipe.data, talk)
            recipe = without_second_average(recipe, talk)
            supervision = supervision_of(recipe)
            processes.share_of(recipe.data.batch_size)
            if recipe.unlabelled is not None and recipe.unlabelled.batch_size is not None:
                processes.share_of(recipe.unlabelled.batch_size, "unlabelled.batch_size")
        start = processes.main_first(
            lambda keep_waiting: _begin(recipe, cache, choices, supervision, KeepWaiting(talk, keep_waiting))
        )
        with agreed():
            task = _network(recipe, choices, supervision, talk)
        run = processes.main_first(lambda _: start_run(root, "finetune", recipe, start.manifest))
        if run.grown:
            talk.note(
                f"this run goes on for longer: {run.grown}; its learning rate follows the new length from here on"
            )
        if run.is_finished:
            talk.note(f"{root} is finished already")
        else:
            talk.note(_counts(start.split))
            goal = _goal(recipe, cache, run, start, choices, supervision, task, processes, talk)
            Trainer(
                recipe,
                run,
                goal,
                processes,
                talk,
                outlets=outlets or Outlets(),
                max_minutes=choices.max_minutes,
                profile_steps=profile_steps,
            ).train()
        return processes.of_main(lambda: _summary(run, supervision))


def _network(recipe: TaskRecipe, choices: Choices, supervision: SupervisionBase, talk: Talk) -> Any:
    """The network as it begins; before there is a run folder, which a recipe that cannot be trained would occupy."""
    task = build_task(recipe)
    if recipe.unlabelled is not None:
        build_unlabelled(recipe, task, supervision)
    if choices.encoder is not None:
        how = recipe.backbone.options.get("inflation", "mean")
        classes = tuple(supervision.classes.values())
        talk.note("from --init: " + initialise_task(task, choices.encoder, how=how, classes=classes))
    return task


@dataclass(frozen=True)
class _Start:
    """Who trains, validates and tests, which images take part without labels, and what the run records of both."""

    split: Split
    unlabelled: list[Example]
    manifest: Manifest


def _begin(recipe: TaskRecipe, cache: Cache, choices: Choices, supervision: SupervisionBase, talk: Talk) -> _Start:
    """Split the patients, and refuse what cannot be learnt from."""
    labelled = supervision.usable(cache, talk)
    split = split_of(recipe, cache, labelled, choices, talk)
    say_misfits(split.train, recipe.data, talk)
    arguments = {**choices.document(cache), **patients_seen(split, choices.encoder, talk)}
    arguments |= supervision.check(cache, labelled, split, talk)
    splits: dict[str, Sequence[ItemRecord | Entry]] = {"train": split.train, "val": split.val, "test": split.test}
    others: list[Example] = []
    if recipe.unlabelled is not None:
        others = unlabelled_examples(recipe, cache, split, choices, supervision, talk)
        splits["unlabelled"] = without_labels(others)
    return _Start(split, others, Manifest(splits, arguments))


def _goal(
    recipe: TaskRecipe,
    cache: Cache,
    run: Run,
    start: _Start,
    choices: Choices,
    supervision: SupervisionBase,
    task: Any,
    processes: Processes,
    talk: Talk,
) -> "Finetuning":
    """What a network learns from and what it is validated on."""
    if processes.size > 1:
        synchronise_norms(task)

    validated = validated_items(start.split, recipe, choices)

    def prepare(keep_waiting: Callable[[], None]) -> tuple[Any, Any, Validate]:
        waiting = KeepWaiting(talk, keep_waiting)
        dataset = supervision.dataset(cache, start.split.train, waiting)
        others = unlabelled_dataset(recipe, cache, start.unlabelled, supervision, waiting, beside=dataset)
        supervision.begin(task, dataset)
        return dataset, others, supervision.validator(cache, validated)

    dataset, others, validate = processes.main_first(prepare)
    common = (recipe, run, task, supervision, dataset, validate, processes, talk)
    minutes, seen = choices.max_minutes, (cache, validated)
    if recipe.unlabelled is None:
        return Finetuning(*common, max_minutes=minutes, validated=seen)
    shares = learning_unlabelled(supervision).class_shares(cache, start.split.train)
    return UnlabelledFinetuning(*common, others=others, shares=shares, max_minutes=minutes, validated=seen)


def _counts(split: Split) -> str:
    counts = {
        name: len({record.patient_key for record in records})
        for name, records in (("train", split.train), ("val", split.val), ("test", split.test))
    }
    return f"patients: {counts['train']} train, {counts['val']} validation, {counts['test']} test (held out)"


def _summary(run: Run, supervision: SupervisionBase) -> FinetuneSummary:
    score = supervision.score
    known = {"root": run.root, "score": score, "is_exportable": supervision.is_exportable}
    return run.summary(FinetuneSummary, lambda stored: {**stored, **known, "best_score": stored[f"best_{score}"]})
