"""All scans of one call, one after the other or several at a time, and the report about them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medssl_cli.base.files import remove_temporaries
from medssl_cli.deploy.found import Findings, Reject, Scan
from medssl_cli.deploy.job import Job, StoppedError
from medssl_cli.deploy.overlap import ScanOverlap
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.result_list import ResultList
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.scan_orders import ModelSetup, results_of_orders
from medssl_cli.deploy.scan_stages import Answered
from medssl_cli.deploy.scan_task import ScanTask, not_done
from medssl_cli.work.workers import TaskMap

Deliver = Callable[[ScanResult], ScanResult]
"""What is done with a result before it is recorded; it returns the result with what there is to say about that."""

MANY: Final = 200
"""Results of earlier calls that are recorded together."""


@dataclass
class Batch:
    """All scans of one call.

    Args:
        job: What is the same for all.
        report: The report of the output folder.
        setup: How other processes open the model.
        workers: Other processes, that do several scans at a time; None: this one does them one after the other.
        deliver: Gets every result that is done; None: nobody waits for it.
        say: Told of every result when it is recorded.
        overlap: The next scan is read and the last one written while the network works, where memory allows it.
        is_last: The report is complete when this call ends.
        results: So far.
        unrecorded: Those that the report's file does not hold yet.
    """

    job: Job
    report: ReportFile
    setup: ModelSetup
    workers: TaskMap | None = None
    deliver: Deliver | None = None
    say: Callable[[ScanResult], None] = lambda result: None
    overlap: bool = True
    is_last: bool = True
    results: ResultList = field(default_factory=ResultList)
    unrecorded: list[ScanResult] = field(default_factory=list)

    def run(self, found: Findings, *, is_all: bool) -> InferReport:
        """Do everything, or as much as a stop request leaves time for.

        Args:
            found: What the inputs hold.
            is_all: Nothing of it was left out by choice.
        """
        job = self.job
        if job.where.folder.is_dir() and not job.dry_run:
            remove_temporaries(job.where.folder)
        for one in found.rejects:
            self._add(self._rejected(one))
        self._record()
        if self.workers is not None and not job.dry_run:
            self._do_elsewhere(found.scans, self.workers)
        else:
            self._do_here(found.scans)
        is_stale = _staleness(self.results, found.roots) if is_all and not job.is_stopped() else None
        self._record(is_stale, is_last=self.is_last)
        return self._summary(len(found.scans) + len(found.rejects) - len(self.results))

    def _do_elsewhere(self, scans: Sequence[Scan], workers: TaskMap) -> None:
        """Scans that other processes do, in the order in which they are ready."""
        tasks = (self._task(scan.loaded) for scan in scans)
        for result in results_of_orders(tasks, self.setup, workers, is_stopped=self.job.is_stopped):
            self._conclude(result)

    def _do_here(self, scans: Sequence[Scan]) -> None:
        """Scans in their order, until all is done or a stop is requested."""
        tasks = (self._task(scan.loaded) for scan in scans)
        has_next = self.overlap and len(scans) > 1 and not self.job.dry_run
        with ScanOverlap.of(self.job, is_wanted=has_next) as overlap:
            task, number = next(tasks, None), 1
            while task is not None and not self.job.is_stopped():
                next_task = next(tasks, None)
                overlap.begin(task, next_task)
                try:
                    asked = task.answered(f"{number}/{len(scans)}")
                except StoppedError:
                    break
                if isinstance(asked, ScanResult):
                    overlap.finish(task, None, functools.partial(self._conclude, asked))
                else:
                    overlap.finish(task, asked, functools.partial(self._write, task, asked))
                del asked
                task, number = next_task, number + 1
            overlap.wait()

    def _write(self, task: ScanTask, answered: Answered) -> None:
        self._conclude(task.written(answered))

    def _conclude(self, result: ScanResult) -> None:
        """Deliver a result and record it."""
        told = self._delivered(result)
        self._add(told)
        if not result.resumed or told is not result or len(self.unrecorded) >= MANY:
            self._record()

    def _task(self, scan: Scan) -> ScanTask:
        return ScanTask(self.job, scan, ScanResult.of(scan, self.job.model.bundle.task))

    def _delivered(self, result: ScanResult) -> ScanResult:
        is_wanted = self.deliver is not None and result.status == "done" and not self.job.dry_run
        return self.deliver(result) if self.deliver is not None and is_wanted else result

    def _add(self, result: ScanResult) -> None:
        self.results.append(result)
        self.unrecorded.append(result)
        self.say(result)

    def _record(self, is_stale: Callable[[ScanResult], bool] | None = None, *, is_last: bool = False) -> None:
        if not self.job.dry_run:
            self.report.record(self._summary().header, self.unrecorded, is_stale=is_stale, is_last=is_last)
            self.unrecorded = []

    def _summary(self, not_reached: int = 0) -> InferReport:
        model, where = self.job.model, self.job.where
        return InferReport(
            task=model.bundle.task,
            model_sha256=model.sha256,
            device=model.device,
            intended_use=model.bundle.intended_use,
            folder=where.folder,
            path=where.report,
            results=self.results,
            not_reached=not_reached,
            is_dry_run=self.job.dry_run,
        )

    def _rejected(self, one: Reject) -> ScanResult:
        return not_done(ScanResult.of(one, self.job.model.bundle.task), one.code, one.message, one.hint)


def _staleness(results: ResultList, roots: Sequence[Path]) -> Callable[[ScanResult], bool]:
    """Which entries a call has proved wrong: refusals below its inputs that it does not give any more."""

    def is_stale(entry: ScanResult) -> bool:
        if entry.status == "done" or entry.outputs or results.tells_of(entry):
            return False
        return any(Path(entry.path).is_relative_to(root) for root in roots)

    return is_stale
