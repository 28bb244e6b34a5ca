"""Files in, a cache out: discover, settle what has not changed, and hand what is left to the stages of work.

The work is done in child processes, which publish items themselves; this process keeps the report. A kill at any
moment costs nothing: the same command finds what is stored and goes on. Where all files are known from an earlier
ingest, nothing is imported that could read one. Running it again stores nothing and writes nothing.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.base.errors import InterruptedCleanlyError, MedsslError, StorageError, UsageError
from medssl_cli.base.files import json_bytes, remove_temporaries, require_place_for_file, storage_errors, write_json
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.cache.folder import CacheFolder
from medssl_cli.cache.marker import MARKER
from medssl_cli.cache.publish import publish_first
from medssl_cli.formats.archives import default_budget
from medssl_cli.formats.discover import discover
from medssl_cli.ingest.events import EventLog
from medssl_cli.ingest.inputs import Inputs
from medssl_cli.ingest.known_files import FILE_NAME, KnownFiles
from medssl_cli.ingest.options import IngestOptions, PacsSource, Progress
from medssl_cli.ingest.report import IngestReport, ReportBuilder
from medssl_cli.ingest.run import IngestRun
from medssl_cli.ingest.settle import wait_until_settled
from medssl_cli.ingest.task_runner import TaskRunner
from medssl_cli.work.workers import TaskMap, Workers, available_cores

if TYPE_CHECKING:
    from medssl_cli.ingest.retrieve import RetrievedSeries

MEMORY_LIMIT_BYTES: Final = 32 * 2**30


def ingest(
    paths: Sequence[Path],
    cache_root: Path,
    options: IngestOptions | None = None,
    *,
    pacs: PacsSource | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring every image and label under some paths into a cache.

    Running it again stores nothing and writes no report: a report's name in `reports/` depends on the input and on
    what became of it, and an existing one is left alone. A run that stored something always keeps a report of its own.

    Args:
        paths: Files and folders.
        cache_root: The cache; made if it does not exist.
        options: All of them have defaults.
        pacs: A PACS, and which of its series.
        progress: Called with a stage's name, how much of it is done, and of how much.

    Raises:
        UsageError: An option or path is wrong; nothing was done.
        StorageError: `E_IO`, the cache cannot be written; `E_NO_SPACE`, it could not hold the images.
        InterruptedCleanlyError: A signal asked to stop (`KeyboardInterrupt` for Ctrl-C), what is stored stays; or
            `E_NOT_SETTLED`.
    """
    options = options or IngestOptions()
    _require_sound(paths, cache_root, options, has_pacs=pacs is not None)
    started, clock = datetime.now(UTC), time.monotonic()
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(_cache_for(cache_root.resolve(), options))
        stop = stack.enter_context(stop_on_signals())
        events = stack.enter_context(EventLog(None if options.dry_run else cache.root / "reports"))
        workers = stack.enter_context(_workers(options))
        builder = ReportBuilder(cache.pseudonyms, events.add)
        runner = TaskRunner(workers, builder, stop, progress or (lambda stage, done, total: None))
        known = KnownFiles(cache.root / FILE_NAME, cache.pseudonyms, options.rules)
        run = IngestRun(cache, builder, known, options, runner)
        failure: MedsslError | None = None
        with contextlib.nullcontext() if options.dry_run else cache.writing():
            try:
                if paths:
                    say = partial(runner.progress, "waiting", 0, None)
                    wait_until_settled(paths, options.settle_s, cache.root, lambda: stop.is_set, say)
                    _ingest_folders(run, paths)
                if pacs is not None and not stop.is_set:
                    _ingest_pacs(run, pacs)
            except (StorageError, InterruptedCleanlyError) as error:
                failure = error
            except UsageError as error:
                if error.code != "E_PACS_DENIED":
                    raise
                failure = error
            if not options.dry_run and (stop.is_set or runner.has_lost_children):
                cache.rebuild()
        report = run.report(started, time.monotonic() - clock)
        if not options.dry_run:
            run.remember()
        report = replace(report, written=_write_report(report, cache, events, options))
        if failure is not None:
            raise failure
        if stop.is_set:
            stop.raise_interrupted(f"{report.not_reached} of {report.seen} files are left")
    return report


def _ingest_folders(run: IngestRun, paths: Sequence[Path]) -> None:
    """Do everything, or as much as a stop request leaves time for."""
    inputs = _discovered(run, paths)
    judgements = run.known.judgements(lambda item: run.cache.item_directory(item).is_dir())
    if not inputs.has_news({source for judgement in judgements for source in judgement.sources}):
        for judgement in judgements:
            run.builder.recall(judgement.entry, judgement.sources)
        return
    from medssl_cli.ingest.stages import Stages

    Stages(run, inputs, [path.resolve() for path in paths]).run(judgements)


def _discovered(run: IngestRun, paths: Sequence[Path]) -> Inputs:
    inputs = Inputs(run.builder, run.options.policy, default_budget(run.cache.root))
    peek = None if run.options.reread else run.known.peek
    for found in discover(
        paths, inputs.policy, peek=peek, max_archive_bytes=inputs.max_archive_bytes, leave_out=run.cache.root
    ):
        inputs.add(found)
        run.runner.progress("discover", run.builder.seen, None)
        if run.runner.stop.is_set:
            break
    return inputs


def _ingest_pacs(run: IngestRun, source: PacsSource) -> None:
    """Retrieve series after series and do with each what is done with folders."""
    from medssl_cli.formats.dicomweb import Pacs
    from medssl_cli.ingest.retrieve import DownloadFolder, retrieve_all

    runner = run.runner
    pacs = Pacs(
        source.url,
        source.credentials,
        source.ca_bundle,
        patience=source.patience,
        is_stopped=lambda: runner.stop.is_set,
    )
    downloads = DownloadFolder(run.cache.root / "spool", run.cache.pseudonyms)
    results = retrieve_all(
        pacs,
        source.query,
        downloads,
        is_held=run.holds_series,
        stop=runner.stop,
        progress=runner.progress,
        settle_s=source.settle_s,
    )
    with contextlib.closing(pacs), contextlib.closing(results):
        for series in results:
            if not _ingest_series(run, series):
                return
            if series.folder is not None:
                downloads.discard(series)


def _ingest_series(run: IngestRun, series: "RetrievedSeries") -> bool:
    """Take in one series, or note why it has not come; False if a stop request was quicker."""
    known, builder = run.known, run.builder
    if series.folder is None:
        items = known.retrieved_items(series.key, series.num_instances)
        builder.note_series(series.key, series.num_instances, series.failure, items[0] if items else None)
        return True
    first = len(builder.judged)
    _ingest_folders(run, [series.folder])
    run.unremembered.update(series.files)
    if run.runner.stop.is_set:
        return False
    stored = {entry.item for entry, _ in builder.judged[first:] if entry.item}
    known.record_retrieved(series.key, series.num_instances, stored)
    return True


def _require_sound(paths: Sequence[Path], cache_root: Path, options: IngestOptions, *, has_pacs: bool) -> None:
    """Refuse what cannot be done before anything is."""
    if has_pacs and options.dry_run:
        raise UsageError("E_USAGE", "a dry run writes nothing, so it cannot retrieve from a PACS")
    if any(path.resolve().is_relative_to(cache_root.resolve()) for path in paths):
        raise UsageError(
            "E_USAGE", "an input is the cache itself or lies in it", hint="name the scans, or another --cache"
        )
    if options.report_path is not None:
        require_place_for_file(options.report_path)


@contextlib.contextmanager
def _cache_for(root: Path, options: IngestOptions) -> Iterator[CacheFolder]:
    """The cache; for a dry run without one, an empty one with a key of its own that is thrown away."""
    if not options.dry_run:
        yield CacheFolder.open_or_create(root, key_file=options.key_file)
    elif (root / MARKER).is_file():
        yield CacheFolder.open(root, key_file=options.key_file)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield CacheFolder.open_or_create(Path(scratch))


def _workers(options: IngestOptions) -> AbstractContextManager[TaskMap]:
    if options.cluster is not None:
        from medssl_cli.work.cluster import cluster_workers

        return cluster_workers(options.cluster, memory_limit_bytes=MEMORY_LIMIT_BYTES)
    return Workers(options.workers or available_cores(), memory_limit_bytes=MEMORY_LIMIT_BYTES)


def _write_report(report: IngestReport, cache: CacheFolder, events: EventLog, options: IngestOptions) -> Path | None:
    """The place of a new report in the cache, or of one that was left without its page; None where all is there."""
    document = report.to_json()
    if options.report_path is not None:
        write_json(options.report_path, document, is_output=True)
    if report.dry_run or not report.seen:
        return None
    folder = cache.root / "reports"
    with storage_errors("the report"):
        folder.mkdir(mode=0o700, exist_ok=True)
    remove_temporaries(folder)
    target, is_new = _publish(report, folder, json_bytes(document))
    events.close_as(target.with_suffix(".jsonl") if is_new else None)
    return target if is_new or not target.with_suffix(".html").exists() else None


def _publish(report: IngestReport, folder: Path, data: bytes) -> tuple[Path, bool]:
    """A name that no other report has: of runs over the same input, each that stored something keeps its own.

    Returns:
        The place, and whether it was written; not if nothing was stored and a report of the same outcome is there.
    """
    stem = f"ingest-{report.fingerprint[:16]}"
    target = folder / f"{stem}.json"
    is_new = publish_first(target, data)
    for number in itertools.count(2):
        if is_new or not (report.num_images or report.num_labels):
            break
        target = folder / f"{stem}-{number}.json"
        is_new = publish_first(target, data)
    return target, is_new
