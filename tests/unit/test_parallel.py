"""Supervised children: whatever one task does to its process, the others get their results."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medssl_cli.base.errors import MedsslError
from medssl_cli.work.workers import Outcome, Workers, _quota_cores, available_cores, supervised_map
from tests.environment import ENVIRONMENT

pytestmark = pytest.mark.usefixtures("cold_children")
HANG_S = 600.0
PARENT = """
import sys
from tests.unit.test_parallel import tell_and_hang
from medssl_cli.work.workers import supervised_map

if __name__ == "__main__":
    list(supervised_map(tell_and_hang, [sys.argv[1]], num_workers=1, timeout_s=600))
"""


def misbehave(task: str) -> str:
    """Does what the task's name says."""
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(3)
    if task == "hang":
        time.sleep(HANG_S)
    if task == "raise":
        raise LookupError("no such thing")
    if task == "unpicklable":
        return lambda: None  # type: ignore[return-value]
    if task == "eat":
        return str(len(bytearray(8 << 30)))
    return task.upper()


def process_of(_task: int) -> int:
    return os.getpid()


def square(task: int) -> int:
    return task * task


def tell_and_hang(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(HANG_S)


def outcomes(tasks: list[str], *, timeout_s: float = HANG_S, memory: int | None = None) -> dict[str, Outcome[str, str]]:
    found = list(supervised_map(misbehave, tasks, num_workers=1, timeout_s=timeout_s, memory_limit_bytes=memory))
    assert sorted(outcome.task for outcome in found) == sorted(tasks)  # one outcome per task, none lost, none twice
    return {outcome.task: outcome for outcome in found}


def test_every_task_gets_its_own_result() -> None:
    found = {outcome.task: outcome.result for outcome in supervised_map(square, range(20), num_workers=2, timeout_s=60)}

    assert found == {task: task * task for task in range(20)}


def test_no_tasks_no_outcomes() -> None:
    assert list(supervised_map(square, [], num_workers=1, timeout_s=60)) == []


def test_death_and_exceptions_cost_their_own_task_only() -> None:
    found = outcomes(["a", "die", "b", "exit", "c", "raise", "d", "unpicklable", "e"])

    assert {task: outcome.failure for task, outcome in found.items() if outcome.result is None}.items() >= {
        ("die", "died (signal 9)"),
        ("exit", "died (exit status 3)"),
        ("raise", "LookupError"),
    }
    assert found["unpicklable"].failure
    assert [found[task].result for task in "abcde"] == ["A", "B", "C", "D", "E"]


def test_a_hung_child_is_killed_and_the_rest_goes_on() -> None:
    # The limit is far above what the other tasks take, and far below what the hung one would.
    found = outcomes(["a", "hang", "b"], timeout_s=1.5)

    assert found["hang"].failure == "timed out"
    assert (found["a"].result, found["b"].result) == ("A", "B")


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are enforced on Linux")
def test_a_child_that_asks_for_too_much_memory_fails_alone() -> None:
    found = outcomes(["a", "eat", "b"], memory=4 << 30)

    assert found["eat"].failure == "out of memory"
    assert (found["a"].result, found["b"].result) == ("A", "B")


def test_tasks_are_taken_a_few_at_a_time() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for task in range(1000):
            taken.append(task)
            yield task

    first = next(supervised_map(square, source(), num_workers=1, timeout_s=60))

    assert first.result == first.task**2
    assert len(taken) <= 4


def test_work_happens_in_other_processes() -> None:
    found = {outcome.result for outcome in supervised_map(process_of, range(3), num_workers=1, timeout_s=60)}

    assert found
    assert os.getpid() not in found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    note = tmp_path / "child"
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(note)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    child = int(note.read_text())

    parent.kill()
    parent.wait()

    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_children_stay_warm_between_stages() -> None:
    with Workers(1) as workers:
        first, second = ({outcome.result for outcome in workers.map(process_of, [0, 1], timeout_s=60)} for _ in "ab")

    assert first == second
    assert len(first) == 1


def test_a_child_that_keeps_much_memory_is_replaced() -> None:
    with Workers(1, retire_above_bytes=1) as workers:
        found = {outcome.result for outcome in workers.map(process_of, range(3), timeout_s=60)}

    assert len(found) == 3


def test_a_stage_that_is_left_early_does_not_disturb_the_next() -> None:
    with Workers(2) as workers:
        stage = workers.map(misbehave, ["a", "hang"], timeout_s=HANG_S)
        assert next(stage).result == "A"
        with pytest.raises(RuntimeError, match="one map"):
            next(workers.map(square, [1], timeout_s=60))
        stage.close()

        assert [outcome.result for outcome in workers.map(square, [3], timeout_s=60)] == [9]


def test_work_ends_when_it_is_asked_to_stop() -> None:
    asked = iter([False, False, True])
    with Workers(1) as workers:
        found = list(workers.map(misbehave, ["hang", "a"], timeout_s=HANG_S, should_stop=lambda: next(asked)))

    assert found == []


def test_a_child_that_is_killed_while_it_waits_is_replaced() -> None:
    with Workers(1) as workers:
        (first,) = workers.map(process_of, [0], timeout_s=60)
        assert first.result is not None
        os.kill(first.result, signal.SIGKILL)
        (second,) = workers.map(process_of, [0], timeout_s=60)

    assert second.result not in (None, first.result)


def test_large_tasks_and_results_pass() -> None:
    size = 3_000_000  # far beyond a socket's buffer in both directions
    found = list(supervised_map(misbehave, ["x" * size], num_workers=1, timeout_s=60))

    assert found[0].result == "X" * size


def test_children_that_cannot_start_are_an_error_and_not_an_endless_loop() -> None:
    with pytest.raises(MedsslError) as caught:
        list(supervised_map(square, [1], num_workers=1, timeout_s=60, memory_limit_bytes=1 << 20))

    assert caught.value.code == "E_WORKER_CRASH"


def test_cores_are_those_that_this_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),  # the parent's limit holds
        ("0::/\n", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/\n", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/\n", {"cpu.max": "nonsense"}, float("inf")),
        ("0::/\n", {}, float("inf")),
        (
            "4:cpu,cpuacct:/job\n1:name=systemd:/\n",
            {"cpu/job/cpu.cfs_quota_us": "50000", "cpu/job/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
    ],
    ids=["v2-parent", "v2", "v2-unlimited", "v2-damaged", "none", "v1", "v1-unlimited"],
)
def test_a_containers_quota_counts(tmp_path: Path, membership: str, files: dict[str, str], cores: float) -> None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "membership").write_text(membership)

    assert _quota_cores(root, tmp_path / "membership") == cores
