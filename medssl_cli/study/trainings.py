"""The trainings of a study: each a run folder of its own with its evaluation, one after another or side by side."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from medssl_cli.base.errors import MedsslError, StorageError
from medssl_cli.base.files import storage_errors, write_atomic
from medssl_cli.base.plain_json import dump
from medssl_cli.base.signals import StopRequest, stop_on_signals
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.evaluate import subject_of_run
from medssl_cli.engine.finetune import finetune
from medssl_cli.engine.weights import load_encoder
from medssl_cli.recipe import TaskRecipe
from medssl_cli.work.workers import Workers

NO_LIMIT: Final = float("inf")
KEEP_BYTES: Final = 2**33
"""Memory that a child process may hold between two trainings."""


@dataclass(frozen=True)
class StudyTraining:
    """One training, as a child process gets it.

    Args:
        recipe: How to train.
        cache: Folder of the cache.
        root: Folder of the run.
        choices: Who is learnt from, without weights.
        init: Where the weights come from; None for from scratch.
        device: Device to train on.
    """

    recipe: TaskRecipe
    cache: Path
    root: Path
    choices: Choices
    init: Path | None
    device: str


def train_all(trainings: Sequence[StudyTraining], *, num_jobs: int, talk: Talk) -> None:
    """Train and test what is not done yet.

    Args:
        trainings: All of a study.
        num_jobs: Number of trainings at once, each in a process of its own; 1 for all in this process.
        talk: Progress.

    Raises:
        MedsslError: The first failure; side by side, once all have ended.
        InterruptedCleanlyError: A signal; the same call goes on.
    """
    with stop_on_signals() as stop:
        if num_jobs == 1:
            for done, training in enumerate(trainings):
                if stop.is_set:
                    stop.raise_interrupted(f"stopped after {done} of {len(trainings)} trainings")
                talk.note(f"training {done + 1} of {len(trainings)}: {training.root.name}")
                train_one(training, talk, stop)
            return
        waiting = [training for training in trainings if not scores_path(training.root).is_file()]
        talk.note(f"{len(waiting)} of {len(trainings)} trainings are to be done, {num_jobs} at once")
        for training in trainings:
            if training not in waiting:
                train_one(training, Silence(), stop)  # refuses another recipe or other images
        failures = list(_side_by_side(waiting, num_jobs, stop, talk))
    for training, error in failures:
        raise type(error)(error.code, f"{training.root.name}: {error.message}", hint=error.hint)


def _side_by_side(
    trainings: Sequence[StudyTraining], num_jobs: int, stop: StopRequest, talk: Talk
) -> Iterator[tuple[StudyTraining, MedsslError]]:
    """Train in other processes; those that fail do not stop the others, and are yielded."""
    done = 0
    with Workers(num_jobs, retire_above_bytes=KEEP_BYTES) as workers:
        function: Callable[[tuple[StudyTraining, int]], MedsslError | None] = train_silently
        tasks = [(training, max(1, torch.get_num_threads() // num_jobs)) for training in trainings]
        for outcome in workers.map(function, tasks, timeout_s=NO_LIMIT, should_stop=lambda: stop.is_set):
            training, _ = outcome.task
            done += 1
            failure = outcome.result
            if outcome.failure:
                failure = StorageError("E_WORKER_CRASH", f"its process {outcome.failure}")
            talk.note(f"{training.root.name} {'is done' if failure is None else f'failed: {failure}'}")
            talk.progress("trainings", done, len(trainings))
            if failure is not None:
                yield training, failure
    if stop.is_set:
        stop.raise_interrupted(f"stopped after {done} of {len(trainings)} trainings")


def train_silently(task: tuple[StudyTraining, int]) -> MedsslError | None:
    """Train and test in this process, with so many threads; what it is refused with comes back as a value."""
    training, num_threads = task
    torch.set_num_threads(num_threads)
    try:
        with stop_on_signals() as stop:
            train_one(training, Silence(), stop)
    except MedsslError as error:
        return error
    return None


def train_one(training: StudyTraining, talk: Talk, stop: StopRequest) -> None:
    """Train and test, or go on where an earlier call stopped."""
    cache = Cache.open(training.cache)
    encoder = None if training.init is None else load_encoder(training.init)
    choices = replace(training.choices, encoder=encoder)
    finetune(training.recipe, cache, training.root, choices, device=training.device, talk=talk)
    path = scores_path(training.root)
    if path.is_file():
        return
    subject = subject_of_run(training.root, cache, split="test", device=training.device)

    def stop_between_cases(*_: object) -> None:
        if stop.is_set:
            stop.raise_interrupted("stopped in an evaluation")

    results = subject.score(cache, split="test", talk=talk, on_case=stop_between_cases)
    with storage_errors("the results"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path.parent / "scores.csv", results.csv.encode())
    write_atomic(path, dump(results.document).encode())


def scores_path(root: Path) -> Path:
    """Where the document of a run's evaluation lies; it is there when all of the training is done."""
    return root / "evaluation-test" / "scores.json"


def read_scores(root: Path) -> dict[str, Any]:
    """The document of a run's evaluation."""
    scores: dict[str, Any] = json.loads(scores_path(root).read_bytes())
    return scores
