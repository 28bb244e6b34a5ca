"""What one input does to its process, here or on a cluster, costs that input only (reliability C8, H5, H6)."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import MedsslError
from medssl_cli.work.workers import Outcome, Workers
from tests.environment import ENVIRONMENT

pytestmark = pytest.mark.usefixtures("cold_children")
HANG_S = 600.0
LIMIT_BYTES = 4 << 30
ITEMS = range(1, 9)
Run = Callable[..., dict[int, Outcome[Any, Any]]]


COMMAND_ON_CLUSTER = """
import sys
from medssl_cli.work.cluster import cluster_workers
from tests.faults.test_workers import tell_and_hang

with cluster_workers(sys.argv[1]) as workers:
    list(workers.map(tell_and_hang, [sys.argv[2]], timeout_s=600.0))
"""


class CodecError(BaseException):
    """Like a panic of a decoder written in Rust: no Exception, and it cannot be sent anywhere."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


class Unreadable:
    """Can be sent, and cannot be rebuilt on the other side."""

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise LookupError("on the other side")


def at_item_3(deed: Callable[[], Any]) -> Callable[[int], Any]:
    """A decoder that does something terrible at item 3 of 8."""
    return lambda item: deed() if item == 3 else item * item


def kill_itself(item: int) -> int:
    return at_item_3(lambda: os.kill(os.getpid(), signal.SIGKILL))(item)


def crash_in_c(item: int) -> int:
    return at_item_3(lambda: ctypes.string_at(0))(item)


def abort_in_c(item: int) -> int:
    return at_item_3(os.abort)(item)


def hang(item: int) -> int:
    return at_item_3(lambda: time.sleep(HANG_S))(item)


def hang_in_c(item: int) -> int:
    """Holds the interpreter's lock, so that no Python code of this process runs again."""
    return at_item_3(lambda: ctypes.PyDLL(None).sleep(int(HANG_S)))(item)


def allocate(item: int) -> int:
    return at_item_3(lambda: len(bytearray(2 * LIMIT_BYTES)))(item)


def panic(item: int) -> int:
    def deed() -> None:
        raise CodecError

    return at_item_3(deed)(item)


def leave(item: int) -> int:
    def deed() -> None:
        raise SystemExit(0)

    return at_item_3(deed)(item)


def return_what_cannot_be_sent(item: int) -> Any:
    return at_item_3(CodecError)(item)


def return_what_cannot_be_rebuilt(item: int) -> Any:
    return at_item_3(Unreadable)(item)


def die_once(task: tuple[str, int]) -> int:
    """The first attempt dies; the second finds the mark that the first left."""
    mark, item = Path(task[0]), task[1]
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def note_and_die(task: tuple[str, int]) -> None:
    """Notes when it began and, if it lives, when it ended; items 1 and 2 die."""
    path, item = task
    with Path(path).open("a") as notes:
        notes.write(f"+{item} ")
        notes.flush()
        if item <= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        notes.write(f"-{item} ")


def process_of(_item: int) -> int:
    return os.getpid()


def tell_and_hang(path: str) -> None:
    """Says which process it is, and is never done."""
    Path(f"{path}.new").write_text(str(os.getpid()))
    Path(f"{path}.new").rename(path)
    time.sleep(HANG_S)


def wait_for(is_true: Callable[[], bool]) -> None:
    """As long as it takes, within a minute."""
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def failures(found: dict[int, Outcome[Any, Any]]) -> dict[int, str]:
    return {item: outcome.failure for item, outcome in found.items() if outcome.failure}


@pytest.fixture
def run() -> Run:
    """Items 1 to 8 through two supervised children."""

    def run(function: Callable[[int], Any], *, timeout_s: float = 60.0) -> dict[int, Outcome[Any, Any]]:
        with Workers(2, memory_limit_bytes=LIMIT_BYTES) as workers:
            found = list(workers.map(function, ITEMS, timeout_s=timeout_s))
        assert sorted(outcome.task for outcome in found) == list(ITEMS)  # one outcome per item
        return {outcome.task: outcome for outcome in found}

    return run


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        (kill_itself, "died (signal 9)"),
        (crash_in_c, "died (signal 11)"),
        (abort_in_c, "died (signal 6)"),
        (allocate, "out of memory"),
        (panic, "CodecError"),
        (leave, "SystemExit"),
        (return_what_cannot_be_sent, "TypeError"),
        (return_what_cannot_be_rebuilt, "LookupError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_seven_results_and_one_failure(run: Run, function: Callable[[int], Any], failure: str) -> None:
    found = run(function)

    assert failures(found) == {3: failure}
    assert [found[item].result for item in ITEMS if item != 3] == [item * item for item in ITEMS if item != 3]


@pytest.mark.parametrize("function", [hang, hang_in_c], ids=["in python", "in c"])
def test_a_hung_child_is_killed(run: Run, function: Callable[[int], Any]) -> None:
    found = run(function, timeout_s=2.0)  # far above what the others take

    assert failures(found) == {3: "timed out"}


def test_a_task_whose_child_died_is_tried_once_more(tmp_path: Path) -> None:
    tasks = [(str(tmp_path / "mark"), item) for item in ITEMS]
    with Workers(2) as workers:
        found = list(workers.map(die_once, tasks, timeout_s=60))

    assert sorted(outcome.result for outcome in found) == [item * item for item in ITEMS]


def test_the_second_try_is_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with Workers(2) as workers:
        found = list(workers.map(note_and_die, [(str(notes), item) for item in range(1, 6)], timeout_s=60))

    assert sorted(outcome.task[1] for outcome in found if outcome.failure) == [1, 2]
    assert notes.read_text().split()[-2:] in (["+1", "+2"], ["+2", "+1"])  # after all others had ended


def test_no_core_is_dumped_and_no_child_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    run(abort_in_c)
    with Workers(2) as workers:
        children = {outcome.result for outcome in workers.map(process_of, ITEMS, timeout_s=60)}

    assert list(tmp_path.iterdir()) == []
    assert children
    assert not any(is_alive(child) for child in children)


@pytest.fixture(scope="module")
def cluster_address() -> Iterator[str]:
    """A local Dask cluster of two worker processes."""
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def on_cluster(cluster_address: str) -> Run:
    """Items 1 to 8 through a Dask cluster."""
    from medssl_cli.work.cluster import cluster_workers

    def run(function: Callable[[int], Any], *, timeout_s: float = 60.0) -> dict[int, Outcome[Any, Any]]:
        with cluster_workers(cluster_address, memory_limit_bytes=LIMIT_BYTES) as workers:
            found = list(workers.map(function, ITEMS, timeout_s=timeout_s))
        assert sorted(outcome.task for outcome in found) == list(ITEMS)
        return {outcome.task: outcome for outcome in found}

    return run


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        (kill_itself, "died (signal 9)"),
        (allocate, "out of memory"),
        (panic, "CodecError"),
        (return_what_cannot_be_sent, "TypeError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_cluster_gives_the_same_outcomes(
    run: Run, on_cluster: Run, function: Callable[[int], Any], failure: str
) -> None:
    found = on_cluster(function)

    assert failures(found) == {3: failure}
    assert found == run(function)


def test_a_hung_task_on_a_cluster_is_killed(on_cluster: Run) -> None:
    assert failures(on_cluster(hang, timeout_s=2.0)) == {3: "timed out"}


def test_a_task_whose_child_died_on_a_cluster_is_tried_once_more(cluster_address: str, tmp_path: Path) -> None:
    from medssl_cli.work.cluster import cluster_workers

    tasks = [(str(tmp_path / "mark"), item) for item in ITEMS]
    with cluster_workers(cluster_address) as workers:
        found = list(workers.map(die_once, tasks, timeout_s=60))

    assert sorted(outcome.result for outcome in found) == [item * item for item in ITEMS]


def test_a_task_on_a_cluster_ends_with_the_command_that_waits_for_it(cluster_address: str, tmp_path: Path) -> None:
    """The command is killed: it can cancel nothing, and started again it must meet no training of its own."""
    command = [sys.executable, "-c", COMMAND_ON_CLUSTER, cluster_address, str(tmp_path / "number")]
    with subprocess.Popen(command, env=ENVIRONMENT) as killed:
        wait_for((tmp_path / "number").is_file)
        child = int((tmp_path / "number").read_text())
        assert is_alive(child)
        killed.kill()

    wait_for(lambda: not is_alive(child))


def test_a_cluster_that_does_not_answer_is_e_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    from medssl_cli.work import cluster

    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 1.0)
    with pytest.raises(MedsslError) as caught:
        cluster.cluster_workers("tcp://127.0.0.1:9")

    assert caught.value.code == "E_CLUSTER"


def test_a_cluster_that_loses_its_workers_is_e_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    from medssl_cli.work import cluster

    monkeypatch.setattr(cluster, "LOST_AFTER_S", 1.0)
    monkeypatch.setattr(cluster, "FETCH_TIMEOUT_S", 2.0)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as local:
        command = [sys.executable, "-m", "dask", "worker", local.scheduler_address, "--no-nanny", "--nthreads", "1"]
        worker = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with cluster.cluster_workers(local.scheduler_address) as workers:
                outcomes = workers.map(hang, ITEMS, timeout_s=HANG_S)
                assert next(outcomes).failure == ""
                worker.kill()
                with pytest.raises(MedsslError) as caught:
                    list(outcomes)
        finally:
            worker.kill()
            worker.wait()

    assert caught.value.code == "E_CLUSTER"
