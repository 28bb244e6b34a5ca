"""One ingest as it goes: what it may do, what it has done so far, and what it reports and remembers of that."""

import signal
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from medssl_cli.cache.folder import CacheFolder
from medssl_cli.formats.source import Source
from medssl_cli.ingest.known_files import KnownFiles
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import IngestReport, ReportBuilder
from medssl_cli.ingest.task_runner import TaskRunner

if TYPE_CHECKING:
    from medssl_cli.imaging.planes import Planes

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

    def holds_series(self, series: str, num_instances: int) -> bool:
        """Whether a series of so many instances was retrieved before, and all that came of it is there."""
        items = self.known.retrieved_items(series, num_instances)
        return items is not None and all(self.cache.item_directory(item).is_dir() for item in items)

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
