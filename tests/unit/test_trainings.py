"""Several trainings of one command: what is done, refused, stopped and dealt, with trainings that train nothing."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from medssl_cli.base.errors import GateError, InterruptedCleanlyError, MedsslError, StorageError, UsageError
from medssl_cli.base.signals import StopRequest
from medssl_cli.base.talk import Silence, Talk
from medssl_cli.engine import trainings
from medssl_cli.engine.choices import Choices
from medssl_cli.engine.trainings import Places, SeparateTraining, train_all
from medssl_cli.recipe import TaskRecipe
from medssl_cli.work.workers import DIED, Outcome
from tests.elsewhere import ElsewhereTasks

ELSEWHERE = Places(cluster=ElsewhereTasks)


@dataclass(frozen=True)
class NotedTraining(SeparateTraining[str]):
    """A training that leaves a file with its device; its name says what else it does."""

    @property
    def is_done(self) -> bool:
        return (self.root / "done").is_file()

    def train(self, talk: Talk, stop: StopRequest) -> str:
        if self.name.startswith("refused"):
            raise GateError("E_DIVERGED", "no step is finite")
        if not self.is_done:
            if self.name.startswith("signal"):
                os.kill(os.getpid(), signal.SIGTERM)
            self.root.mkdir(parents=True)
            (self.root / "done").write_text(f"{self.device} {os.fspath(self.cache)} {torch.get_num_threads()}")
        return f"of {self.name}"


class NotedTalk(Silence):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def named(folder: Path, *names: str, device: str = "cpu") -> list[SeparateTraining[str]]:
    recipe = cast("TaskRecipe", None)
    return [NotedTraining(name, recipe, Path("cache"), folder / name, Choices(), None, device) for name in names]


@pytest.mark.parametrize("places", [Places(), ELSEWHERE], ids=["here", "elsewhere"])
def test_results_come_in_order_and_nothing_is_done_twice(tmp_path: Path, places: Places) -> None:
    talk = NotedTalk()
    asked = named(tmp_path, "b", "a", "c")

    assert train_all(asked[:2], places=places, talk=Silence()) == ["of b", "of a"]
    before = (tmp_path / "a" / "done").stat().st_mtime_ns
    assert train_all(asked, places=places, talk=talk) == ["of b", "of a", "of c"]

    assert (tmp_path / "a" / "done").stat().st_mtime_ns == before
    said = ["1 of 3 trainings are to be done", "c is done"]
    assert talk.notes == (
        said if places is ELSEWHERE else [f"training {n} of 3: {t.name}" for n, t in enumerate(asked, 1)]
    )


def test_nobody_is_asked_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    asked = named(tmp_path, "a", "b")
    train_all(asked, places=ELSEWHERE, talk=Silence())

    def gone() -> ElsewhereTasks:
        raise StorageError("E_CLUSTER", "nobody answers")

    assert train_all(asked, places=Places(cluster=gone), talk=Silence()) == ["of a", "of b"]


def test_elsewhere_a_failure_stops_no_other_and_is_named(tmp_path: Path) -> None:
    talk = NotedTalk()

    with pytest.raises(GateError, match="refused-1: no step is finite"):
        train_all(named(tmp_path, "refused-1", "a", "refused-2", "b"), places=ELSEWHERE, talk=talk)

    assert [path.parent.name for path in sorted(tmp_path.glob("*/done"))] == ["a", "b"]
    assert "refused-2 failed: E_DIVERGED: no step is finite" in talk.notes


def test_what_is_done_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "refused").mkdir()
    (tmp_path / "refused" / "done").touch()

    with pytest.raises(GateError, match="refused: no step is finite"):
        train_all(named(tmp_path, "a", "refused"), places=ELSEWHERE, talk=Silence())

    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("places", [Places(), ELSEWHERE], ids=["here", "elsewhere"])
def test_a_signal_ends_it_after_the_training_at_hand_and_it_goes_on(tmp_path: Path, places: Places) -> None:
    asked = named(tmp_path, "a", "signal", "c")

    with pytest.raises(InterruptedCleanlyError, match="stopped after 2 of 3 trainings"):
        train_all(asked, places=places, talk=Silence())

    assert not (tmp_path / "c").exists()
    assert train_all(asked, places=places, talk=Silence()) == ["of a", "of signal", "of c"]


def test_a_process_that_dies_fails_its_training(tmp_path: Path) -> None:
    class DyingTasks(ElsewhereTasks):
        """Processes that all die."""

        def map(self, function: Any, tasks: Any, **_: Any) -> Iterator[Outcome[Any, Any]]:
            yield from (Outcome(task, None, f"{DIED} (signal 9)") for task in tasks)

    with pytest.raises(StorageError, match=r"E_WORKER_CRASH: a: its process died \(signal 9\)"):
        train_all(named(tmp_path, "a"), places=Places(cluster=DyingTasks), talk=Silence())


def test_trainings_at_once_are_dealt_to_the_cuda_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices, three jobs, one training done: each of the others has a share of the threads and a device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    kept = []
    monkeypatch.setattr(
        trainings, "Workers", lambda number, *, retire_above_bytes: kept.append(retire_above_bytes) or ElsewhereTasks()
    )
    asked = named(tmp_path, "done", "a", "b", "c", device="cuda")
    asked[2] = replace(asked[2], device="cuda:1")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "done").touch()

    train_all(asked, places=Places(num_jobs=3), talk=Silence())

    devices = {path.parent.name: path.read_text().split()[0] for path in tmp_path.glob("?/done")}
    assert devices == {"a": "cuda:0", "b": "cuda:1", "c": "cuda:0"}
    assert kept == [0]  # what a process holds of one device would be missed by the next training there


def test_of_other_machines_the_device_is_not_known_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (asked,) = named(tmp_path, "a", device="cuda")

    with pytest.raises(UsageError, match="E_DEVICE"):
        Places().check("cuda")
    ELSEWHERE.check("cuda")
    train_all([asked], places=ELSEWHERE, talk=Silence())

    device, cache, _ = (tmp_path / "a" / "done").read_text().split()
    assert (device, cache) == ("cuda", os.fspath(Path("cache").absolute()))


def test_a_refusal_keeps_its_kind_on_the_way(tmp_path: Path) -> None:
    refused = trainings.train_silently((named(tmp_path, "refused")[0], 1))

    assert isinstance(refused, MedsslError)
    assert refused.code == "E_DIVERGED"
