"""One way to map work over items: supervised child processes, where a dead or hung child costs its own item only."""

import os
import sys
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Task, Result]):
    """What became of one task: a result, or why there is none ("died", "timed out", or an exception's class)."""

    task: Task
    result: Result | None
    failure: str = ""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def supervised_map(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    num_workers: int,
    timeout_s: float,
    memory_limit_bytes: int | None = None,
) -> Generator[Outcome[Task, Result], None, None]:
    """Apply a picklable function to every task in child processes and yield outcomes as they finish.

    Args:
        function: Importable by name; it should return its own failures as values.
        tasks: Consumed lazily, a few per worker ahead.
        num_workers: Child processes.
        timeout_s: A child that works longer on one task is killed; the task's failure is "timed out".
        memory_limit_bytes: Address-space limit of a child.
    """
    from pebble import ProcessPool

    pool = ProcessPool(
        max_workers=num_workers,
        context=get_context("spawn"),
        initializer=_start_child,
        initargs=[memory_limit_bytes],
    )
    pending: dict[Future[Any], Task] = {}
    source = iter(tasks)
    try:
        while True:
            while len(pending) < 2 * num_workers and (task := next(source, _END)) is not _END:
                pending[pool.schedule(function, args=[task], timeout=timeout_s)] = task
            if not pending:
                break
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(pending.pop(future), future)
    finally:
        pool.stop()
        pool.join()


_END: Any = object()


def _outcome(task: Task, future: Future[Result]) -> Outcome[Task, Result]:
    error = future.exception()
    if error is None:
        return Outcome(task, future.result())
    name = type(error).__name__
    return Outcome(task, None, {"ProcessExpired": "died", "TimeoutError": "timed out"}.get(name, name))


def _start_child(memory_limit_bytes: int | None) -> None:
    """Run in each child: no core dumps, a memory limit, and death with the parent."""
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
