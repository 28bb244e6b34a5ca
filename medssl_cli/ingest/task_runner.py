"""Work for child processes with its progress, until all is done or a stop is requested."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from medssl_cli.base.errors import StorageError
from medssl_cli.base.signals import StopRequest
from medssl_cli.formats.source import Source
from medssl_cli.ingest.failures import Failure
from medssl_cli.ingest.options import Progress
from medssl_cli.ingest.report import ReportBuilder
from medssl_cli.work.workers import Outcome, TaskMap

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class TaskRunner:
    """Child processes, who may stop them, and the report that their failures go to.

    Args:
        workers: Workers on this machine or a cluster.
        builder: Builder of the ingest.
        stop: Set by a signal.
        progress: Called with a stage's name, how much of it is done, and of how much.
        has_lost_children: Whether any child died or failed.
    """

    workers: TaskMap
    builder: ReportBuilder
    stop: StopRequest
    progress: Progress
    has_lost_children: bool = False

    def map(
        self,
        stage: str,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        timeout_s: float,
        sizes: Callable[[Task], int] = lambda task: 1,
    ) -> Iterator[Outcome[Task, Result]]:
        """Outcomes as they come; nothing is started where there is nothing to do."""
        if not tasks or self.stop.is_set:
            return
        done, total = 0, sum(map(sizes, tasks))
        self.progress(stage, 0, total)
        outcomes = self.workers.map(function, tasks, timeout_s=timeout_s, should_stop=lambda: self.stop.is_set)
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                self.has_lost_children |= bool(outcome.failure)
                yield outcome
                done += sizes(outcome.task)
                self.progress(stage, done, total)
                if self.stop.is_set:
                    return

    def refuse(self, sources: Iterable[Source], failure: Failure, *, id: str = "") -> None:
        """Report a failure.

        Raises:
            StorageError: The disk is at fault, not the input.
        """
        if failure.is_fatal:
            raise StorageError(failure.code, failure.message, hint=failure.hint)
        self.builder.refuse(list(sources), failure.code, failure.message, failure.hint, id=id)
