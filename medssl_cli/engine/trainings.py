"""Several fine-tunings of one command: one after another, side by side in other processes, or on other machines.

Each has a run folder of its own. What is done is opened first, so that another recipe or other images are refused
before anything is trained; it is not trained again, and what was stopped goes on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import torch

from medssl_cli.base.errors import MedsslError, StorageError
from medssl_cli.base.signals import StopRequest, stop_on_signals
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.cache.store import Cache
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.devices import resolve_device
from medssl_cli.engine.finetune import FinetuneSummary, finetune
from medssl_cli.engine.live_page import Outlets
from medssl_cli.engine.weights import load_encoder
from medssl_cli.recipe import TaskRecipe
from medssl_cli.work.workers import TaskMap, Workers

Result = TypeVar("Result")

NO_LIMIT: Final = float("inf")
KEEP_BYTES: Final = 2**33
"""Memory that a process may hold between two trainings."""


@dataclass(frozen=True)
class SeparateTraining(ABC, Generic[Result]):
    """One of several fine-tunings, as another process or machine gets it.

    Args:
        name: Name in messages.
        recipe: How to train.
        cache: Folder of the cache.
        root: Folder of the run.
        choices: Who is learnt from, without weights.
        init: Where the weights come from; None for from scratch.
        device: Device to train on.
    """

    name: str
    recipe: TaskRecipe
    cache: Path
    root: Path
    choices: Choices
    init: Path | None
    device: str

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """Whether nothing of it is left to do."""

    @abstractmethod
    def train(self, talk: Talk, stop: StopRequest) -> Result:
        """Do all of it, or what an earlier call left of it.

        Args:
            talk: Told how it goes.
            stop: Whether to stop between parts that do not look for signals themselves.
        """

    def told(self, result: Result) -> str:
        """What to say of its end behind its name."""
        return "is done"

    def finetune(self, talk: Talk, outlets: Outlets | None = None) -> FinetuneSummary:
        """The fine-tuning itself."""
        encoder = None if self.init is None else load_encoder(self.init)
        choices = replace(self.choices, encoder=encoder)
        cache = Cache.open(self.cache)
        return finetune(self.recipe, cache, self.root, choices, device=self.device, talk=talk, outlets=outlets)


@dataclass(frozen=True)
class Places:
    """Where several trainings are done.

    Args:
        num_jobs: Trainings at once, each in a process of its own; 1 for all in this process.
        cluster: Connects to other machines that do them instead.
    """

    num_jobs: int = 1
    cluster: Callable[[], AbstractContextManager[TaskMap]] | None = None

    def check(self, device: str) -> None:
        """Refuse a device that is not there; of other machines nobody here knows what they have.

        Raises:
            UsageError: `E_DEVICE`.
        """
        if self.cluster is None:
            resolve_device(device)


def train_all(trainings: Sequence[SeparateTraining[Result]], *, places: Places, talk: Talk) -> list[Result]:
    """Do what is not done yet.

    Args:
        trainings: All of a command, with different names.
        places: Where they are done. Of several at once, each has its share of the cores and one of the CUDA devices.
        talk: Told how it goes; trainings elsewhere say nothing themselves.

    Raises:
        MedsslError: The first failure; of trainings elsewhere once all have ended.
        InterruptedCleanlyError: A signal; the same call goes on.
    """
    with stop_on_signals() as stop:
        if places.num_jobs == 1 and places.cluster is None:
            return list(_one_by_one(trainings, stop, talk))
        found, failures = _elsewhere(trainings, places, stop, talk)
    for training in trainings:
        if (error := failures.get(training.name)) is not None:
            raise _named(error, training)
    return [found[training.name] for training in trainings]


def _one_by_one(trainings: Sequence[SeparateTraining[Result]], stop: StopRequest, talk: Talk) -> Iterator[Result]:
    for done, training in enumerate(trainings):
        _stop_if_asked(stop, done, len(trainings))
        talk.note(f"training {done + 1} of {len(trainings)}: {training.name}")
        yield training.train(talk, stop)


def _stop_if_asked(stop: StopRequest, done: int, total: int) -> None:
    if stop.is_set:
        stop.raise_interrupted(f"stopped after {done} of {total} trainings")


def _elsewhere(
    trainings: Sequence[SeparateTraining[Result]], places: Places, stop: StopRequest, talk: Talk
) -> tuple[dict[str, Any], dict[str, MedsslError]]:
    """Results and failures by name; trainings that fail do not stop the others."""
    found: dict[str, Any] = dict(_opened(trainings, places, stop))
    waiting = [training for training in trainings if training.name not in found]
    talk.note(f"{len(waiting)} of {len(trainings)} trainings are to be done")
    failures: dict[str, MedsslError] = {}
    if not waiting:
        return found, failures
    orders = [_order(training, place, places) for place, training in enumerate(waiting)]
    with _connected(waiting, places) as workers:
        for outcome in workers.map(train_silently, orders, timeout_s=NO_LIMIT, should_stop=lambda: stop.is_set):
            training, ended = outcome.task[0], outcome.result
            if outcome.failure:
                ended = StorageError("E_WORKER_CRASH", f"its process {outcome.failure}")
            if isinstance(ended, MedsslError):
                failures[training.name] = ended
                talk.note(f"{training.name} failed: {ended}")
            else:
                found[training.name] = ended
                talk.note(f"{training.name} {training.told(found[training.name])}")
            talk.progress("trainings", len(found) + len(failures), len(trainings))
        _stop_if_asked(stop, len(found), len(trainings))
    return found, failures


def _opened(
    trainings: Sequence[SeparateTraining[Result]], places: Places, stop: StopRequest
) -> Iterator[tuple[str, Result]]:
    """Results of what is done, read in this process, which need not have the device of other machines."""
    for training in trainings:
        try:
            if training.is_done:
                here = training if places.cluster is None else replace(training, device="cpu")
                yield training.name, here.train(Silence(), stop)
        except MedsslError as error:
            raise _named(error, training) from error


def _named(error: MedsslError, training: SeparateTraining[Any]) -> MedsslError:
    return type(error)(error.code, f"{training.name}: {error.message}", hint=error.hint)


def _order(training: SeparateTraining[Result], place: int, places: Places) -> tuple[SeparateTraining[Result], int]:
    """A training with paths and a device that hold elsewhere, and its number of threads."""
    moved = replace(
        training,
        cache=training.cache.absolute(),
        root=training.root.absolute(),
        init=training.init and training.init.absolute(),
        device=training.device if places.cluster is not None else _dealt(training.device, place),
    )
    return moved, max(1, torch.get_num_threads() // places.num_jobs)


def _dealt(device: str, place: int) -> str:
    """The CUDA device of one of several trainings; all others share the one there is."""
    if ":" in device or not resolve_device(device).startswith("cuda"):
        return device
    return f"cuda:{place % torch.cuda.device_count()}"


def _connected(trainings: Sequence[SeparateTraining[Any]], places: Places) -> AbstractContextManager[TaskMap]:
    """What does the trainings: no process outlives one on CUDA, whose memory the next one on that device needs."""
    if places.cluster is not None:
        return places.cluster()
    is_cpu = all(resolve_device(training.device) == "cpu" for training in trainings)
    return Workers(places.num_jobs, retire_above_bytes=KEEP_BYTES if is_cpu else 0)


def train_silently(order: tuple[SeparateTraining[Result], int]) -> Result | MedsslError:
    """Train in this process, with so many threads; what it is refused with comes back as a value."""
    training, num_threads = order
    torch.set_num_threads(num_threads)
    try:
        with stop_on_signals() as stop:
            return training.train(Silence(), stop)
    except MedsslError as error:
        return error
