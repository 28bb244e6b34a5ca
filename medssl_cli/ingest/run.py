"""One ingest: discover, settle what has not changed, and hand what is left to the stages of work.

The work is done in child processes, which publish items themselves; this process keeps the report. A kill at any
moment costs nothing: the same command finds what is stored and goes on. Where all files are known from an earlier
ingest, nothing is imported that could read one.
"""

import contextlib
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.cache.folder import CacheFolder
from medssl_cli.formats.archives import default_budget
from medssl_cli.formats.discover import discover
from medssl_cli.formats.source import Source
from medssl_cli.ingest.inputs import Inputs
from medssl_cli.ingest.known_files import KnownFiles
from medssl_cli.ingest.options import IngestOptions, PacsSource
from medssl_cli.ingest.report import IngestReport, ReportBuilder
from medssl_cli.ingest.task_runner import TaskRunner

if TYPE_CHECKING:
    from medssl_cli.imaging.planes import Planes
    from medssl_cli.ingest.retrieve import DownloadFolder, RetrievedSeries

_UNSETTLED: Final = ("E_LABEL_WITHOUT_IMAGE", "E_LABEL_AMBIGUOUS")
"""What other files may settle: the same label is judged again in the next run."""


@dataclass
class IngestRun:
    """One run: its options and its report."""

    cache: CacheFolder
    builder: ReportBuilder
    known: KnownFiles
    options: IngestOptions
    runner: TaskRunner
    num_images: int = 0
    num_labels: int = 0
    unremembered: set[Source] = field(default_factory=set)
    planes: "dict[str, Planes]" = field(default_factory=dict)

    def run(self, paths: Sequence[Path]) -> None:
        """Do everything, or as much as a stop request leaves time for."""
        inputs = self._discover(paths)
        judgements = self.known.judgements(lambda item: self.cache.item_directory(item).is_dir())
        if not inputs.has_news({source for judgement in judgements for source in judgement.sources}):
            for judgement in judgements:
                self.builder.recall(judgement.entry, judgement.sources)
            return
        from medssl_cli.ingest.stages import Stages

        Stages(self, inputs, [path.resolve() for path in paths]).run(judgements)

    def run_pacs(self, source: PacsSource) -> None:
        """Retrieve series after series and do with each what `run` does with folders."""
        from medssl_cli.formats.dicomweb import Pacs
        from medssl_cli.ingest.retrieve import DownloadFolder, retrieve_all

        pacs = Pacs(
            source.url,
            source.credentials,
            source.ca_bundle,
            patience=source.patience,
            is_stopped=lambda: self.runner.stop.is_set,
        )
        downloads = DownloadFolder(self.cache.root / "spool", self.cache.pseudonyms)
        results = retrieve_all(
            pacs,
            source.query,
            downloads,
            is_held=self._is_held,
            stop=self.runner.stop,
            progress=self.runner.progress,
            settle_s=source.settle_s,
        )
        with contextlib.closing(pacs), contextlib.closing(results):
            self._take(results, downloads)

    def _take(self, results: "Iterable[RetrievedSeries]", downloads: "DownloadFolder") -> None:
        for series in results:
            if series.folder is None:
                items = self.known.retrieved_items(series.key, series.num_instances)
                self.builder.note_series(series.key, series.num_instances, series.failure, items[0] if items else None)
                continue
            first = len(self.builder.judged)
            self.run([series.folder])
            self.unremembered.update(series.files)
            if self.runner.stop.is_set:
                return
            judged = self.builder.judged[first:]
            self.known.record_retrieved(
                series.key, series.num_instances, {entry.item for entry, _ in judged if entry.item}
            )
            downloads.discard(series)

    def _is_held(self, series: str, num_instances: int) -> bool:
        items = self.known.retrieved_items(series, num_instances)
        return items is not None and all(self.cache.item_directory(item).is_dir() for item in items)

    def _discover(self, paths: Sequence[Path]) -> Inputs:
        inputs = Inputs(self.builder, self.options.policy, default_budget(self.cache.root))
        peek = None if self.options.reread else self.known.peek
        for found in discover(
            paths, inputs.policy, peek=peek, max_archive_bytes=inputs.max_archive_bytes, leave_out=self.cache.root
        ):
            inputs.add(found)
            self.runner.progress("discover", self.builder.seen, None)
            if self.runner.stop.is_set:
                break
        return inputs

    def remember(self) -> None:
        """Note what became of the files, for the next ingest."""
        self.known.record(
            (entry, sources, self.builder.kind(sources[0]))
            for entry, sources in self.builder.judged
            if sources and entry.code not in _UNSETTLED and sources[0] not in self.unremembered
        )

    def report(self, started: datetime, duration_s: float) -> IngestReport:
        """What the run did."""
        everything = self.builder.everything
        return IngestReport(
            entries=tuple(entry for entry, _ in everything),
            seen=self.builder.seen,
            not_reached=self.builder.num_open,
            num_images=self.num_images,
            num_labels=self.num_labels,
            key_id=self.cache.pseudonyms.key_id,
            policy=self.options.recorded,
            started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            duration_s=duration_s,
            dry_run=self.options.dry_run,
            key_is_ephemeral=self.cache.key_is_ephemeral,
            interrupted_by=signal.Signals(self.runner.stop.signal_number).name
            if self.runner.stop.signal_number
            else None,
            sources=everything,
            planes=self.planes,
        )
