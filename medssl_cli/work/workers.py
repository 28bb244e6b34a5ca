"""One way to map work over items: supervised child processes, where a dead or hung child costs its own item only.

Every child has a pipe of its own and one task at a time, so nothing that happens to one can reach another. The same
function over the same tasks runs on a Dask cluster: see `medssl_cli.work.cluster`.
"""

import contextlib
import math
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from medssl_cli.base.errors import MedsslError
from medssl_cli.work.child import OUT_OF_MEMORY as OUT_OF_MEMORY

Task = TypeVar("Task")
Result = TypeVar("Result")

TIMED_OUT: Final = "timed out"
DIED: Final = "died"
RETIRE_ABOVE_BYTES: Final = 640 * 2**20
START_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.5
DYING_S: Final = 5.0
STOP_TIMEOUT_S: Final = 10.0
MAX_FAILED_STARTS: Final = 3
_END: Final[Any] = object()


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """What became of one task: a result, or why there is none.

    Args:
        task: As given.
        result: None if there is a failure (or if the function returned None).
        failure: Empty, `TIMED_OUT`, `OUT_OF_MEMORY`, the name of an exception's class, or a text that starts with
            `DIED` and tells the signal or the exit status: "died (signal 9)".
    """

    task: Task
    result: Result | None
    failure: str = ""


class TaskMap(Protocol):
    """What child processes on this machine and a cluster have in common."""

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = ...,
    ) -> Generator[Outcome[Task, Result], None, None]:
        """Outcomes in the order in which they are ready."""


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (a container's limit)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cores(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, math.ceil(min(cores, quota)))


def _quota_cores(root: Path, membership: Path) -> float:
    """The smallest CPU quota from a process's control group up to the root; infinite if there is none.

    Version 2 keeps "quota period" in `cpu.max`, version 1 two files below `cpu/`; microseconds, "max" or -1 without.
    """
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            version_1 = "cpu" in controllers.split(",")
            if controllers and not version_1:
                continue
            top = root / "cpu" if version_1 else root
            place = top / group.strip("/")
            for folder in (place, *place.parents):
                if folder.is_relative_to(top):
                    found.append(_quota_of(folder))
    return min(quota for quota in found if quota > 0)


def _quota_of(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        return int((folder / "cpu.cfs_quota_us").read_text()) / int((folder / "cpu.cfs_period_us").read_text())
    return math.inf


def supervised_map(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    num_workers: int,
    timeout_s: float,
    memory_limit_bytes: int | None = None,
) -> Generator[Outcome[Task, Result], None, None]:
    """`Workers.map` with children of its own, for a single stage of work."""
    with Workers(num_workers, memory_limit_bytes=memory_limit_bytes) as workers:
        yield from workers.map(function, tasks, timeout_s=timeout_s)


class Workers:
    """Child processes that stay warm from one stage of work to the next; use it as a context manager.

    A child is started when there is a first task for it, has no core dumps, one thread per library, silent standard
    streams (libraries quote what they read), and dies with this process. One that holds more than
    `retire_above_bytes` after a task is replaced.

    Args:
        num_workers: Child processes.
        memory_limit_bytes: Address-space limit of each.
        retire_above_bytes: Resident memory that a child may keep between tasks.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        memory_limit_bytes: int | None = None,
        retire_above_bytes: int = RETIRE_ABOVE_BYTES,
    ) -> None:
        self._num_workers = num_workers
        self._limits = (memory_limit_bytes or 0, retire_above_bytes)
        self._children: list[_Child] = []
        self._is_mapping = False
        self._failed_starts = 0

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all children now."""
        for child in tuple(self._children):
            self._dismiss(child)

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Outcome[Task, Result], None, None]:
        """Apply a function to every task and yield outcomes as they are ready.

        The task of a child that died is tried once more after all others, while no other child works; if that kills
        a child again, it has failed. Closing the generator ends the children that are at work.

        Args:
            function: Importable by name; it should return its own failures as values.
            tasks: Consumed lazily, one per child and one ahead.
            timeout_s: A child that works longer on one task is killed; that task is not tried again.
            should_stop: Asked at least every half second; what is in flight is dropped when it says so.

        Raises:
            MedsslError: `E_WORKER_CRASH`, children die before they can take a task.
            RuntimeError: Another map of these workers is not finished.
        """
        if self._is_mapping:
            raise RuntimeError("one map at a time")
        self._is_mapping = True
        limit = min(self._num_workers, len(tasks)) if isinstance(tasks, Sized) else self._num_workers
        queue: _Queue[Task] = _Queue(iter(tasks))
        try:
            while not should_stop() and (queue.is_open or self._busy()):
                outcomes = list(self._assign(function, queue, timeout_s, limit))
                self._wait()
                for child in tuple(self._children):
                    outcomes += self._collect(child, queue)
                outcomes += self._assign(function, queue, timeout_s, limit)
                yield from outcomes
        finally:
            for child in self._busy():
                self._dismiss(child)
            self._is_mapping = False

    def _busy(self) -> list["_Child"]:
        return [child for child in self._children if child.task is not _END]

    def _assign(
        self, function: Callable[[Any], Any], queue: "_Queue[Task]", timeout_s: float, limit: int
    ) -> Iterator[Outcome[Any, Any]]:
        """Give tasks to the children that wait for one; yields those that cannot be sent."""
        while queue.is_open and len(self._children) < limit:
            self._children.append(_Child.start(*self._limits))
        for child in tuple(self._children):
            while child.is_ready and child.task is _END:
                task = queue.take(is_alone=not self._busy())
                if task is _END:
                    return
                try:
                    message = ForkingPickler.dumps((function, task))
                except Exception as error:  # noqa: BLE001 - objects may refuse to be sent in any way they like
                    yield Outcome(task, None, type(error).__name__)
                    continue
                child.give(task, message, timeout_s)

    def _wait(self) -> None:
        deadline = min((child.deadline for child in self._children), default=0.0)
        wait([child.pipe for child in self._children], max(0.0, min(POLL_S, deadline - time.monotonic())))

    def _collect(self, child: "_Child", queue: "_Queue[Task]") -> Iterator[Outcome[Any, Any]]:
        """What a child has to say, or what became of it."""
        task = child.task
        try:
            if child.pipe.poll():
                kind, value, is_heavy = ForkingPickler.loads(child.pipe.recv_bytes())
            elif time.monotonic() > child.deadline:
                kind, value, is_heavy = "late", TIMED_OUT, True
            else:
                return
        except (EOFError, OSError):
            kind, value, is_heavy = "dead", "", True
        except Exception as error:  # noqa: BLE001 - a result may fail to be rebuilt in any way it likes
            kind, value, is_heavy = "failure", type(error).__name__, True
        child.rest()
        if is_heavy:
            status = self._dismiss(child, grace_s=DYING_S if kind == "dead" else 0.0)
        if kind == "ready":
            child.is_ready, self._failed_starts = True, 0
        elif task is _END:
            self._count_failed_start(child)
        elif kind == "result":
            yield Outcome(task, value)
        elif kind != "dead":
            yield Outcome(task, None, value)
        elif not queue.put_back(task):
            yield Outcome(task, None, f"{DIED} ({status})")

    def _count_failed_start(self, child: "_Child") -> None:
        """A ready child that dies without a task is no failed start."""
        self._failed_starts += not child.is_ready
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise MedsslError(
                "E_WORKER_CRASH",
                f"{self._failed_starts} worker processes in a row died before their first task",
                hint="is there enough memory? try fewer processes at a time",
            )

    def _dismiss(self, child: "_Child", *, grace_s: float = 0.0) -> str:
        self._children.remove(child)
        return child.end(grace_s=grace_s)


@dataclass
class _Queue(Generic[Task]):
    """Tasks still to be given out; those that killed a child come last, and alone."""

    source: Iterator[Task]
    upcoming: Any = _END
    suspects: deque[Task] = field(default_factory=deque)
    retried: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.upcoming = next(self.source, _END)

    @property
    def is_open(self) -> bool:
        return self.upcoming is not _END or bool(self.suspects)

    def take(self, *, is_alone: bool) -> Any:
        if self.upcoming is not _END:
            task, self.upcoming = self.upcoming, next(self.source, _END)
            return task
        if self.suspects and is_alone:
            self.retried = [self.suspects.popleft()]
            return self.retried[0]
        return _END

    def put_back(self, task: Task) -> bool:
        """False if the task had its second chance."""
        if self.retried and self.retried[0] is task:
            return False
        self.suspects.append(task)
        return True


@dataclass
class _Child:
    """A child process seen from here: its pipe, and what it does until when."""

    process: "subprocess.Popen[bytes]"
    pipe: Connection
    deadline: float
    is_ready: bool = False
    task: Any = _END

    @classmethod
    def start(cls, memory_limit_bytes: int, retire_above_bytes: int) -> "_Child":
        process, pipe = start_child("medssl_cli.work.child", memory_limit_bytes, retire_above_bytes)
        return cls(process, pipe, time.monotonic() + START_TIMEOUT_S)

    def give(self, task: Any, message: Any, timeout_s: float) -> None:
        """Send a task; a child that is dead already is noticed when it is asked."""
        self.task, self.deadline = task, time.monotonic() + timeout_s
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(message)

    def rest(self) -> None:
        self.task, self.deadline = _END, math.inf

    def end(self, *, grace_s: float = 0.0) -> str:
        """As `end_child`."""
        self.pipe.close()
        return end_child(self.process, grace_s=grace_s)


def start_child(module: str, *numbers: int, keep: Sequence[int] = ()) -> "tuple[subprocess.Popen[bytes], Connection]":
    """Start a process with silent standard streams that calls `serve` of a module.

    Args:
        module: Whose `serve(descriptor, parent, *numbers)` is called with a socket and this process's number.
        numbers: Further arguments.
        keep: Open files that the child inherits under the same numbers.

    Returns:
        The process, and this end of its socket.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = ", ".join(map(str, (theirs.fileno(), os.getpid(), *numbers)))
        setting = f"import sys; sys.path[:] = {sys.path!r}; from {module} import serve"
        process = subprocess.Popen(
            [sys.executable, "-c", f"{setting}; serve({arguments})"],
            pass_fds=[theirs.fileno(), *keep],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return process, Connection(ours.detach())


def end_child(process: "subprocess.Popen[bytes]", *, grace_s: float = 0.0) -> str:
    """Kill a child, if it is not dead already.

    Args:
        process: The child.
        grace_s: How long one that is dying by itself may take, so that its own status is seen.

    Returns:
        Its signal or exit status.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    status = process.returncode
    return "stuck" if status is None else f"signal {-status}" if status < 0 else f"exit status {status}"
