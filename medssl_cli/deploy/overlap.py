"""Three consecutive scans at once: one is written, one is computed, and one is read, each in a thread of its own.

What is decided about a scan is decided in its turn: only its reading comes earlier, and only its writing later. Results
are recorded in the order of the scans. Where memory does not hold several scans, each waits for the one before.
"""

import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Self

from medssl_cli.deploy.job import Job
from medssl_cli.deploy.memory_plan import MemoryPlan
from medssl_cli.deploy.scan_stages import Answered
from medssl_cli.deploy.scan_task import ScanTask


class ScanOverlap:
    """The threads beside the one that calls the network.

    Args:
        job: What is the same for all scans.
        is_wanted: Whether scans may overlap; else everything is done at once, in the caller's thread.
    """

    def __init__(self, job: Job, *, is_wanted: bool) -> None:
        self._job = job
        self._pools = (
            [ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("read", "write")] if is_wanted else []
        )
        self._writing: Future[None] | None = None
        self._written: ScanTask | None = None

    @classmethod
    @contextmanager
    def of(cls, job: Job, *, is_wanted: bool) -> Iterator[Self]:
        """Threads inside the block; at its end all that was begun is finished."""
        overlap = cls(job, is_wanted=is_wanted)
        try:
            yield overlap
        finally:
            for pool in overlap._pools:
                pool.shutdown(cancel_futures=True)
            job.model.beside_bytes = 0

    def begin(self, task: ScanTask, next_task: ScanTask | None) -> None:
        """Before a scan is answered for: let the scan before be written on if there is room, and the next one be read.

        Args:
            task: The scan whose turn it is.
            next_task: The one after it.
        """
        if not self._pools:
            return
        if self._written is not None:
            plan = task.announced_plan()
            if plan is None or task.may_meet(self._written) or not self._has_room(plan):
                self.wait()
        self._job.model.beside_bytes = self._writing_bytes
        task.before_network = lambda plan: self._before_network(plan, next_task)

    def finish(self, task: ScanTask, answered: Answered | None, work: Callable[[], None]) -> None:
        """Do what is to be done with an answer, once all answers before are done.

        Args:
            task: The scan.
            answered: Answer of the network, if there is one.
            work: Writes and records.
        """
        if not self._pools:
            work()
            return
        self.wait()
        if answered is not None:
            self._written, self._held_bytes = task, answered.writing_bytes
        self._writing = self._pools[1].submit(contextvars.copy_context().run, work)

    def wait(self) -> None:
        """Wait for what is written; what went wrong there is raised here."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
        self._written, self._held_bytes, self._job.model.beside_bytes = None, 0.0, 0.0

    @property
    def _writing_bytes(self) -> float:
        return self._held_bytes if self._writing is not None and not self._writing.done() else 0.0

    def _needed(self, plan: MemoryPlan) -> float:
        """What a scan takes, with a model that was not called yet at its largest."""
        return plan.needed_bytes + max(0.0, self._job.model.expected_bytes - plan.model_bytes)

    def _has_room(self, plan: MemoryPlan, more_bytes: float = 0.0) -> bool:
        """Whether a scan fits beside the one that is written, and more."""
        needed = self._needed(plan) + self._writing_bytes + more_bytes
        return needed <= self._job.model.limits.max_ram_bytes

    def _before_network(self, plan: MemoryPlan, next_task: ScanTask | None) -> None:
        """Read the next scan while the network works on this one, if there is room for both."""
        model = self._job.model
        if not self._has_room(plan):
            self.wait()
        model.beside_bytes = self._writing_bytes
        next_plan = None if next_task is None else next_task.announced_plan()
        if next_task is not None and next_plan is not None and self._has_room(plan, next_plan.reading_bytes):
            model.beside_bytes += next_plan.reading_bytes
            next_task.ahead = self._pools[0].submit(contextvars.copy_context().run, next_task.read)
