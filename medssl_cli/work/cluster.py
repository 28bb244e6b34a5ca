"""The work of `medssl_cli.work.workers` on a Dask cluster: `pip install 'medssl[cluster]'`.

A task runs in a supervised child process of a Dask worker, so that what it does to its process, and its limits of time
and memory, mean the same as on one machine. All machines see the same files under the same paths.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from medssl_cli import __version__
from medssl_cli.base.errors import StorageError, UsageError
from medssl_cli.work.workers import DIED, Outcome, Workers

if TYPE_CHECKING:
    from distributed import Client, Future

Task = TypeVar("Task")
Result = TypeVar("Result")

CONNECT_TIMEOUT_S: Final = 20.0
LOST_AFTER_S: Final = 60.0
FETCH_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.5
AHEAD: Final = 2
AT_WORK: Final = frozenset({"executing", "long-running"})
"""States of a task on a Dask worker in which somebody waits for it."""
UNWANTED: Final = "unwanted"
_CHILDREN: Final = "medssl_children"


def cluster_workers(address: str, *, memory_limit_bytes: int | None = None) -> "ClusterWorkers":
    """Connect to the scheduler of a Dask cluster.

    Args:
        address: As `dask scheduler` prints it: "tcp://host:8786".
        memory_limit_bytes: Address-space limit of each child process on the workers.

    Raises:
        UsageError: `E_USAGE`, the extra "cluster" is not installed or the address is none.
        StorageError: `E_CLUSTER`, nobody answers, there are no workers, or they have another medssl.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "E_USAGE", "Dask is not installed", hint="run: pip install 'medssl[cluster]', on the workers too"
        ) from error
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except ValueError as error:
        raise UsageError("E_USAGE", "--cluster is no address", hint="like tcp://host:8786") from error
    except OSError as error:
        raise _lost(f"no Dask scheduler answers within {CONNECT_TIMEOUT_S:g} s") from error
    try:
        _check_workers(client)
    except BaseException:
        client.close()
        raise
    return ClusterWorkers(client, memory_limit_bytes=memory_limit_bytes)


def _lost(message: str) -> StorageError:
    hint = "check the address, the scheduler's log and the workers; then run the command again, it goes on"
    return StorageError("E_CLUSTER", message, hint=hint)


def _check_workers(client: "Client") -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_TIMEOUT_S)
        versions = set(client.run(_version).values())
    except TimeoutError as error:
        raise _lost(f"the Dask cluster has had no workers for {CONNECT_TIMEOUT_S:g} s") from error
    except Exception as error:  # a worker's own exception, of whatever kind, comes back here
        raise _lost(f"the Dask workers cannot run medssl ({type(error).__name__})") from error
    if versions != {__version__}:
        raise _lost(f"the Dask workers do not all have medssl {__version__}")


def _version() -> str:
    return __version__


class ClusterWorkers:
    """The interface of `Workers` over the workers of a Dask cluster; use it as a context manager.

    Args:
        client: Client of the cluster; closed with this.
        memory_limit_bytes: Address-space limit of each child process.
    """

    def __init__(self, client: "Client", *, memory_limit_bytes: int | None = None) -> None:
        self._client = client
        self._memory_limit_bytes = memory_limit_bytes

    def __enter__(self) -> "ClusterWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child processes on the workers and leave the cluster."""
        with contextlib.suppress(Exception):
            self._client.run(_dismiss_children)
        self._client.close()

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Iterable[Task],
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Outcome[Task, Result], None, None]:
        """As `Workers.map`. The task of a Dask worker that is lost goes to another one as the scheduler decides.

        Raises:
            StorageError: `E_CLUSTER`, the scheduler or, for a minute, all workers are gone.
        """
        source = iter(tasks)
        pending: dict[Future[Any], Task] = {}
        limit, last_seen = self._num_slots(), time.monotonic()
        is_exhausted = False
        try:
            while not should_stop():
                while not is_exhausted and len(pending) < limit:
                    for task in source:
                        pending[self._submit(function, task, timeout_s)] = task
                        break
                    else:
                        is_exhausted = True
                if not pending:
                    return
                for future in self._finished(pending):
                    if (outcome := _outcome(pending[future], future)) is not None:
                        del pending[future]
                        last_seen = time.monotonic()
                        yield outcome
                if num_slots := self._num_slots():
                    limit, last_seen = num_slots, time.monotonic()
                elif time.monotonic() - last_seen > LOST_AFTER_S:
                    raise _lost(f"the Dask cluster has had no workers for {LOST_AFTER_S:g} s")
        finally:
            with contextlib.suppress(Exception):
                self._client.cancel(list(pending), force=True)

    def _num_slots(self) -> int:
        """Tasks to have in the cluster's hands at a time; 0 without workers."""
        try:
            return AHEAD * int(sum(self._client.nthreads().values()))
        except (OSError, RuntimeError, TimeoutError) as error:
            raise _lost("the Dask scheduler is gone") from error

    def _finished(self, pending: "Iterable[Future[Any]]") -> "list[Future[Any]]":
        """Futures that are done, after at most `POLL_S`."""
        from distributed import wait

        with contextlib.suppress(TimeoutError), self._client.as_current():
            return list(wait(list(pending), timeout=POLL_S, return_when="FIRST_COMPLETED").done)
        return []

    def _submit(self, function: Callable[[Any], Any], task: Any, timeout_s: float) -> "Future[Any]":
        return self._client.submit(_run_in_child, function, task, timeout_s, self._memory_limit_bytes, pure=False)


def _outcome(task: Task, future: "Future[Any]") -> Outcome[Task, Any] | None:
    """None if the result went missing with its worker; the scheduler lets another one do the task again."""
    if future.status == "error":
        name = type(future.exception()).__name__
        return Outcome(task, None, f"{DIED} (with its Dask worker)" if name == "KilledWorker" else name)
    if future.status != "finished":
        raise _lost("the Dask scheduler lost a task")
    try:
        result, failure = future.result(timeout=FETCH_TIMEOUT_S)
    except TimeoutError:
        return None
    return Outcome(task, result, failure)


def _run_in_child(
    function: Callable[[Any], Any], task: Any, timeout_s: float, memory_limit_bytes: int | None
) -> tuple[Any, str]:
    """On a Dask worker: let a supervised child of this thread do the task; nothing is raised, for Dask would log it.

    A task that nobody waits for any more, because the command was stopped or killed, ends with its child: the same
    command may be started again at once.
    """
    from distributed import get_worker

    dask_worker = get_worker()
    key = dask_worker.get_current_task()

    def is_unwanted() -> bool:
        known = dask_worker.state.tasks.get(key)
        return known is None or known.state not in AT_WORK

    children: dict[tuple[int, int | None], Workers] = dask_worker.__dict__.setdefault(_CHILDREN, {})
    runner = children.setdefault(
        (threading.get_ident(), memory_limit_bytes), Workers(1, memory_limit_bytes=memory_limit_bytes)
    )
    try:
        for outcome in runner.map(function, [task], timeout_s=timeout_s, should_stop=is_unwanted):
            return outcome.result, outcome.failure
    except Exception as error:  # noqa: BLE001 - Dask logs what is raised together with the task, which names files
        return None, type(error).__name__
    return None, UNWANTED


def _dismiss_children(dask_worker: Any) -> None:
    """On a Dask worker: end all child processes; those that are at work too."""
    for runner in dask_worker.__dict__.pop(_CHILDREN, {}).values():
        runner.close()
