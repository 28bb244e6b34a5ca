"""Files in, a cache out. Running it again stores nothing and writes nothing."""

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
from typing import Final

from medssl_cli.base.errors import InterruptedCleanlyError, MedsslError, StorageError, UsageError
from medssl_cli.base.files import json_bytes, require_place_for_file, storage_errors, write_json
from medssl_cli.base.signals import stop_on_signals
from medssl_cli.cache.folder import CacheFolder
from medssl_cli.cache.marker import MARKER
from medssl_cli.cache.publish import publish_first
from medssl_cli.ingest.events import EventLog
from medssl_cli.ingest.known_files import FILE_NAME, KnownFiles
from medssl_cli.ingest.options import IngestOptions, PacsSource, Progress
from medssl_cli.ingest.report import IngestReport, ReportBuilder
from medssl_cli.ingest.run import IngestRun
from medssl_cli.ingest.settle import wait_until_settled
from medssl_cli.ingest.task_runner import TaskRunner
from medssl_cli.work.workers import TaskMap, Workers, available_cores

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
                    run.run(paths)
                if pacs is not None and not stop.is_set:
                    run.run_pacs(pacs)
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


def _require_sound(paths: Sequence[Path], cache_root: Path, options: IngestOptions, *, has_pacs: bool) -> None:
    """Refuse what cannot be done before anything is.

    Raises:
        UsageError: `E_USAGE`, `E_OUTPUT_SPECIAL`.
    """
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
