"""Cross-validation: one fine-tuning for each fold, each a run of its own, side by side in one folder.

The folds share their test patients, whom none of them sees, and every other patient validates in one of them. Finished
folds are not trained again, and one that was stopped goes on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from medssl_cli.base.errors import MedsslError, StorageError, UsageError
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.splits import same_people
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices, split_of
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.finetune import FinetuneSummary, finetune
from medssl_cli.engine.fold_runs import fold_folder, open_folds
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.weights import load_encoder
from medssl_cli.recipe import TaskRecipe
from medssl_cli.report.run import finetuning_page
from medssl_cli.tasks import supervision_of
from medssl_cli.work.workers import TaskMap, Workers

NO_LIMIT: Final = float("inf")


@dataclass(frozen=True)
class FoldTask:
    """The training of one fold, as a child process or another machine gets it.

    Args:
        recipe: How to train.
        cache: Folder of the cache.
        root: Folder of the run.
        choices: Choices of the fold, without weights.
        init: Where the weights come from; None for from scratch.
        device: Device to train on.
        num_threads: Number of threads of the CPU.
    """

    recipe: TaskRecipe
    cache: Path
    root: Path
    choices: Choices
    init: Path | None
    device: str
    num_threads: int


def finetune_folds(
    recipe: TaskRecipe,
    cache: Cache,
    parent: Path,
    choices: Choices,
    folds: Sequence[int],
    *,
    device: str,
    talk: Talk,
    init: Path | None = None,
    num_jobs: int = 1,
    cluster: Callable[[], AbstractContextManager[TaskMap]] | None = None,
) -> dict[int, FinetuneSummary]:
    """Train folds, or go on where an earlier call stopped.

    Args:
        recipe: How to train.
        cache: Holds the images.
        parent: Folder of the folds.
        choices: The same for all of them.
        folds: Which ones.
        device: Device to train on; several at once are dealt to several CUDA devices.
        talk: Told how it goes.
        init: Where `choices.encoder` comes from.
        num_jobs: Folds at once, each in a process of its own.
        cluster: Connects to other machines that train them instead.

    Raises:
        UsageError: Fault of a recipe, device, weights or run folder; `E_SPLIT_PATIENT`, a test patient of one fold is
            learnt from in another.
        MedsslError: The first failure of a fold, once all have ended.
        InterruptedCleanlyError: A signal; the same call goes on.
    """
    resolve_device(device)
    choices = replace(choices, is_cross_validation=True)
    _require_held_out(recipe, cache, choices, folds)
    open_folds(parent, choices.num_folds)
    if num_jobs == 1 and cluster is None:
        return _one_by_one(recipe, cache, parent, choices, folds, device=device, talk=talk)
    threads = max(1, torch.get_num_threads() // num_jobs)
    tasks = [
        FoldTask(
            recipe,
            cache.root.absolute(),
            fold_folder(parent, fold).absolute(),
            replace(choices, fold=fold, encoder=None),
            init and init.absolute(),
            device if cluster is not None else _dealt(device, place),
            threads,
        )
        for place, fold in enumerate(folds)
    ]
    return _at_once(tasks, cluster or partial(Workers, num_jobs), talk)


def _one_by_one(
    recipe: TaskRecipe, cache: Cache, parent: Path, choices: Choices, folds: Sequence[int], *, device: str, talk: Talk
) -> dict[int, FinetuneSummary]:
    found = {}
    with stop_on_signals() as stop:
        for done, fold in enumerate(folds):
            if stop.is_set:
                stop.raise_interrupted(f"stopped after {done} of {len(folds)} folds")
            talk.note(f"fold {fold}, {done + 1} of {len(folds)}")
            found[fold] = finetune(
                recipe,
                cache,
                fold_folder(parent, fold),
                replace(choices, fold=fold),
                device=device,
                talk=talk,
                outlets=Outlets(finetuning_page),
            )
    return found


def _at_once(
    tasks: Sequence[FoldTask], connect: Callable[[], AbstractContextManager[TaskMap]], talk: Talk
) -> dict[int, FinetuneSummary]:
    """Train folds in other processes; those that fail do not stop the others."""
    found: dict[int, FinetuneSummary] = {}
    failures: dict[int, MedsslError] = {}
    with stop_on_signals() as stop, connect() as workers:
        for outcome in workers.map(train_fold, tasks, timeout_s=NO_LIMIT, should_stop=lambda: stop.is_set):
            fold, ended = outcome.task.choices.fold, outcome.result
            if isinstance(ended, FinetuneSummary):
                found[fold] = ended
                best = "unknown" if ended.best_score is None else f"{ended.best_score:.4f}"
                talk.note(f"fold {fold} is done: best validation {ended.score} {best}")
            else:
                failures[fold] = ended or StorageError("E_WORKER_CRASH", f"its process {outcome.failure}")
                talk.note(f"fold {fold} failed: {failures[fold]}")
            talk.progress("folds", len(found) + len(failures), len(tasks))
        if stop.is_set:
            stop.raise_interrupted(f"stopped after {len(found)} of {len(tasks)} folds")
    for fold, error in sorted(failures.items()):
        raise type(error)(error.code, f"fold {fold}: {error.message}", hint=error.hint)
    return dict(sorted(found.items()))


def train_fold(task: FoldTask) -> FinetuneSummary | MedsslError:
    """Train one fold in this process, silently; what it is refused with comes back as a value."""
    torch.set_num_threads(task.num_threads)
    try:
        encoder = None if task.init is None else load_encoder(task.init)
        return finetune(
            task.recipe,
            Cache.open(task.cache),
            task.root,
            replace(task.choices, encoder=encoder),
            device=task.device,
            talk=Silence(),
            outlets=Outlets(finetuning_page),
        )
    except MedsslError as error:
        return error


def _dealt(device: str, place: int) -> str:
    """The CUDA device of one of several trainings; all others share the one there is."""
    if ":" in device or not resolve_device(device).startswith("cuda"):
        return device
    return f"cuda:{place % torch.cuda.device_count()}"


def _require_held_out(recipe: TaskRecipe, cache: Cache, choices: Choices, folds: Sequence[int]) -> None:
    """Refuse folds one of which learns from, or chooses its weights by, a test patient of another."""
    usable = supervision_of(recipe).usable(cache, Silence())
    people = same_people(cache.records())
    test: set[str] = set()
    learnt: set[str] = set()
    for fold in folds:
        split = split_of(recipe, cache, usable, replace(choices, fold=fold), Silence())
        test |= {people[record.patient_key] for record in split.test}
        learnt |= {people[record.patient_key] for record in (*split.train, *split.val)}
    if test & learnt:
        raise UsageError(
            "E_SPLIT_PATIENT",
            f"{len(test & learnt)} test patients of one fold are learnt from in another",
            hint="such folds have no test patients in common: train them one by one with medssl finetune --fold",
        )
