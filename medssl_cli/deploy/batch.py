"""All scans of one call, one after the other or several at a time, and the report about them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medssl_cli.base.files import remove_temporaries
from medssl_cli.deploy.found import Findings, Reject, Scan
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.result_list import ResultList
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.scan_orders import ModelSetup, results_of_orders
from medssl_cli.deploy.scan_task import Job, ScanTask, StoppedError, not_done
from medssl_cli.work.workers import TaskMap

Deliver = Callable[[ScanResult], ScanResult]
"""What is done with a result before it is recorded; it returns the result with what there is to say about that."""


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
        num_done = 0
        for result in self._outcomes(found.scans):
            told = self._delivered(result)
            self._add(told)
            if not result.resumed or told is not result:
                self._record()
            num_done += 1
        is_stale = _staleness(self.results, found.roots) if is_all and not job.is_stopped() else None
        self._record(is_stale, is_last=self.is_last)
        return self._summary(len(found.scans) - num_done)

    def _outcomes(self, scans: Sequence[Scan]) -> Iterator[ScanResult]:
        """Results until all is done or a stop is requested."""
        tasks = (self._task(scan.loaded) for scan in scans)
        if self.workers is not None and not self.job.dry_run:
            yield from results_of_orders(tasks, self.setup, self.workers, is_stopped=self.job.is_stopped)
            return
        for number, task in enumerate(tasks, start=1):
            if self.job.is_stopped():
                return
            try:
                result = task.outcome(f"{number}/{len(scans)}")
            except StoppedError:
                return
            yield result

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
