"""Files in, a cache out: discover, read headers, group, judge and store images, then their labels.

The work is done in child processes, which publish items themselves; this process keeps the books. A kill at any
moment costs nothing: the same command finds what is stored and goes on.
"""

import contextlib
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar, get_args

from medssl_cli.cache.items import Modality, check_label_set
from medssl_cli.cache.store import MARKER, Cache
from medssl_cli.engine.ingest_report import IngestReport, Ledger, State
from medssl_cli.engine.ingest_tasks import (
    Failure,
    ImageTask,
    LabelTask,
    StoredImage,
    StoredLabel,
    read_headers,
    store_image,
    store_labels,
)
from medssl_cli.engine.signals import StopRequest, stop_on_signals
from medssl_cli.errors import StorageError, UsageError
from medssl_cli.files import write_json
from medssl_cli.formats.discover import discover
from medssl_cli.formats.layouts import Arrangement, DatasetJson, LabelFile, arrange, read_dataset_json
from medssl_cli.formats.patients import patient_from_name, patients_from_places
from medssl_cli.parallel import Outcome, available_cores, supervised_map

HEADERS_PER_TASK: Final = 64
HEADERS_TIMEOUT_S: Final = 120.0
STORE_TIMEOUT_S: Final = 600.0
MEMORY_LIMIT_BYTES: Final = 32 * 2**30
Progress = Callable[[str, int, int | None], None]
Task = TypeVar("Task")
Result = TypeVar("Result")


def ingest(
    paths: Sequence[Path],
    cache_root: Path,
    *,
    label_set: str = "seg",
    modality: str | None = None,
    patient_pattern: str | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    report_path: Path | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Bring every image and label under some paths into a cache.

    Running it again stores nothing and writes no report: a report's name in `reports/` depends on the input and on
    what became of it, and an existing one is left alone.

    Args:
        paths: Files and folders.
        cache_root: The cache; made if it does not exist.
        label_set: Name under which labels are stored.
        modality: Of NIfTI files that no `dataset.json` describes.
        patient_pattern: Regular expression for the patient part of NIfTI file names; see `patients_from_places`.
        workers: Child processes; as many as cores by default.
        dry_run: Judge everything, write nothing.
        report_path: Write the report here as well, always.
        progress: Called with a stage's name, how much of it is done, and of how much.

    Raises:
        UsageError: An option or path is wrong; nothing was done.
        StorageError: `E_IO`, the cache cannot be written.
        InterruptedCleanlyError: A signal asked to stop (`KeyboardInterrupt` for Ctrl-C); what is stored stays.
    """
    _check_options(label_set, modality, patient_pattern)
    started, clock = datetime.now(UTC), time.monotonic()
    with _cache_for(cache_root, dry_run=dry_run) as cache, stop_on_signals() as stop:
        run = _Ingest(
            cache=cache,
            ledger=Ledger(cache.pseudonyms),
            stop=stop,
            label_set=label_set,
            modality=modality,
            patient_pattern=patient_pattern,
            workers=workers or available_cores(),
            dry_run=dry_run,
            progress=progress or (lambda stage, done, total: None),
        )
        with contextlib.nullcontext() if dry_run else cache.writing():
            run.run(paths)
            if not dry_run and (stop.is_set or run.has_lost_children):
                cache.rebuild()
        report = IngestReport(
            entries=tuple(sorted(run.ledger.entries, key=lambda entry: (entry.id, entry.code))),
            seen=run.ledger.seen,
            not_reached=run.ledger.num_open,
            num_images=run.num_images,
            num_labels=run.num_labels,
            key_id=cache.pseudonyms.key_id,
            policy={
                "label_set": label_set,
                "modality": modality,
                "has_patient_pattern": patient_pattern is not None,
                "repairs": [],
            },
            started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            duration_s=time.monotonic() - clock,
            dry_run=dry_run,
            interrupted_by=signal.Signals(stop.signal_number).name if stop.signal_number else None,
            files=run.ledger.files,
        )
        _write_report(report, cache, report_path)
        if stop.is_set:
            stop.raise_interrupted(f"{report.not_reached} of {report.seen} files are left")
    return report


def _check_options(label_set: str, modality: str | None, patient_pattern: str | None) -> None:
    try:
        check_label_set(label_set)
    except ValueError as error:
        raise UsageError("E_USAGE", str(error)) from error
    if modality is not None and modality not in get_args(Modality):
        raise UsageError("E_USAGE", f"unknown modality {modality!r}", hint=f"one of {', '.join(get_args(Modality))}")
    if patient_pattern is not None:
        patient_from_name("", patient_pattern)


@contextlib.contextmanager
def _cache_for(root: Path, *, dry_run: bool) -> Iterator[Cache]:
    """The cache; for a dry run without one, an empty one with a key of its own that is thrown away."""
    if not dry_run:
        yield Cache.open_or_create(root)
    elif (root / MARKER).is_file():
        yield Cache(root)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield Cache.open_or_create(Path(scratch))


def _write_report(report: IngestReport, cache: Cache, report_path: Path | None) -> None:
    document = report.to_json()
    if report_path is not None:
        write_json(report_path, document)
    if report.dry_run or not report.seen:
        return
    target = cache.root / "reports" / f"ingest-{report.fingerprint[:16]}.json"
    if report.num_images or report.num_labels or not target.exists():
        target.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(target, document)


@dataclass
class _Ingest:
    """One run: its options, its books, and the stages in order."""

    cache: Cache
    ledger: Ledger
    stop: StopRequest
    label_set: str
    modality: str | None
    patient_pattern: str | None
    workers: int
    dry_run: bool
    progress: Progress
    num_images: int = 0
    num_labels: int = 0
    has_lost_children: bool = False

    def run(self, paths: Sequence[Path]) -> None:
        """Do everything, or as much as a stop request leaves time for."""
        dicom, nifti, datasets = self._discover(paths)
        roots = [path.resolve() for path in paths]
        arrangement = arrange(nifti, datasets, roots=roots)
        series = self._series(dicom)
        stored = self._store_images([*series, *self._nifti_tasks(arrangement, roots)])
        if not self.stop.is_set:
            self._store_labels(arrangement.labels, stored)

    def _discover(self, paths: Sequence[Path]) -> tuple[list[Path], list[Path], list[DatasetJson]]:
        by_kind: dict[str, list[Path]] = defaultdict(list)
        datasets: list[DatasetJson] = []
        for found in discover(paths):
            self.ledger.open(found)
            if found.kind == "other":
                self.ledger.refuse([found.path], found.code, "")
            elif found.kind == "json":
                if found.path.name == "dataset.json" and (dataset := read_dataset_json(found.path)):
                    datasets.append(dataset)
                self.ledger.refuse([found.path], "S_SIDECAR", "")
            else:
                by_kind[found.kind].append(found.path)
            self.progress("discover", self.ledger.seen, None)
            if self.stop.is_set:
                break
        return by_kind["dicom"], by_kind["nifti"], datasets

    def _map(
        self,
        stage: str,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        timeout_s: float,
        sizes: Callable[[Task], int] = lambda task: 1,
    ) -> Iterator[Outcome[Task, Result]]:
        """Outcomes until all are there or a stop is requested; nothing is started where there is nothing to do."""
        if not tasks or self.stop.is_set:
            return
        done, total = 0, sum(map(sizes, tasks))
        self.progress(stage, 0, total)
        outcomes = supervised_map(
            function,
            tasks,
            num_workers=min(self.workers, len(tasks)),
            timeout_s=timeout_s,
            memory_limit_bytes=MEMORY_LIMIT_BYTES,
        )
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                self.has_lost_children |= bool(outcome.failure)
                yield outcome
                done += sizes(outcome.task)
                self.progress(stage, done, total)
                if self.stop.is_set:
                    return

    def _series(self, files: Sequence[Path]) -> list[ImageTask]:
        """Read all DICOM headers and group them into images; refusals are booked."""
        headers: list[Any] = []
        again: list[Path] = []
        for pending, size in ((files, HEADERS_PER_TASK), (again, 1)):
            tasks = [tuple(pending[first : first + size]) for first in range(0, len(pending), size)]
            for outcome in self._map("headers", read_headers, tasks, timeout_s=HEADERS_TIMEOUT_S, sizes=len):
                if outcome.result is None and size > 1:
                    again += outcome.task
                elif outcome.result is None:
                    self._refuse(outcome.task, _crash(outcome.failure))
                else:
                    headers += self._booked(outcome.task, outcome.result)
        if self.stop.is_set or not headers:
            return []
        from medssl_cli.formats.dicom import group_headers

        series_of = {header.source: header.SeriesInstanceUID for header in headers}
        parts, refusals = group_headers(headers)
        for refusal in refusals:
            groups: dict[str, list[Path]] = defaultdict(list)
            for path in refusal.files:
                groups[series_of[path]].append(path)
            for uid, members in groups.items():
                identifier = self.ledger.series_id(uid)
                self.ledger.refuse(members, refusal.code, refusal.message, refusal.hint, id=identifier)
        return [ImageTask(part, self.cache.root, dry_run=self.dry_run) for part in parts]

    def _booked(self, paths: Sequence[Path], results: Sequence[Any]) -> list[Any]:
        headers = []
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, Failure):
                self._refuse([path], result)
            else:
                headers.append(result)
        return headers

    def _nifti_tasks(self, arrangement: Arrangement, roots: Sequence[Path]) -> list[ImageTask]:
        below: dict[Path, dict[Path, PurePath]] = defaultdict(dict)
        for image in arrangement.images:
            root = next((root for root in roots if image.path.is_relative_to(root)), image.path.parent)
            below[root][image.path] = image.path.relative_to(root).parent / image.stem
        patients: dict[Path, str | None] = {}
        for places in below.values():
            found = patients_from_places(places.values(), self.patient_pattern)
            patients |= {path: found[place] for path, place in places.items()}
        return [
            ImageTask(
                image.path,
                self.cache.root,
                modality=image.modality or self.modality or "unknown",
                patient=patients[image.path],
                stem=image.stem,
                dry_run=self.dry_run,
            )
            for image in arrangement.images
        ]

    def _store_images(self, tasks: Sequence[ImageTask]) -> dict[Path, StoredImage]:
        """Store all images; returns those that came from NIfTI files, for their labels."""
        stored: dict[Path, StoredImage] = {}
        for outcome in self._map("images", store_image, tasks, timeout_s=STORE_TIMEOUT_S):
            source = outcome.task.source
            files = [source] if isinstance(source, Path) else [header.source for header in source.headers]
            identifier = "" if isinstance(source, Path) else self.ledger.series_id(source.identity.series)
            result = outcome.result if outcome.result is not None else _crash(outcome.failure)
            if isinstance(result, Failure):
                self._refuse(files, result, id=identifier)
                continue
            self.num_images += result.is_new and not self.dry_run
            state: State = "accepted" if result.is_new else "duplicate"
            self.ledger.settle(files, state, id=identifier, item=result.item_id, warnings=result.warnings)
            if isinstance(source, Path):
                stored[source] = result
        return stored

    def _store_labels(self, labels: Sequence[LabelFile], stored: dict[Path, StoredImage]) -> None:
        """Store labels; all labels of one item are one task, so no two processes change one record."""
        by_item: dict[str, list[tuple[LabelFile, StoredImage]]] = defaultdict(list)
        answers: dict[Path, list[StoredLabel | Failure]] = defaultdict(list)
        num_items: dict[Path, int] = {}
        for label in labels:
            images = {stored[path].item_id: stored[path] for path in label.images if path in stored}
            for image in images.values():
                by_item[image.item_id].append((label, image))
            if not images:
                what = "its image was refused" if label.images else "no file of the same name lies in images/"
                self.ledger.refuse([label.path], "E_LABEL_WITHOUT_IMAGE", what)
            num_items[label.path] = len(images)
        tasks = [
            LabelTask(
                tuple((label.path, label.classes) for label, _ in members),
                members[0][1],
                self.cache.root,
                self.label_set,
                dry_run=self.dry_run,
            )
            for members in by_item.values()
        ]
        for outcome in self._map("labels", store_labels, tasks, timeout_s=STORE_TIMEOUT_S):
            results = outcome.result or [_crash(outcome.failure)] * len(outcome.task.labels)
            for (path, _), result in zip(outcome.task.labels, results, strict=True):
                answers[path].append(result)
                if len(answers[path]) == num_items[path]:
                    self._settle_label(path, answers[path], outcome.task.image.item_id)

    def _settle_label(self, path: Path, answers: Sequence[StoredLabel | Failure], item_id: str) -> None:
        """One state for a label file, whatever the number of channels that it belongs to."""
        good = [answer for answer in answers if isinstance(answer, StoredLabel)]
        num_new = sum(answer.is_new for answer in good)
        self.num_labels += 0 if self.dry_run else num_new
        bad = [answer for answer in answers if isinstance(answer, Failure)]
        if bad:
            self._refuse([path], bad[0])
            return
        state: State = "accepted" if num_new else "duplicate"
        self.ledger.settle([path], state, item=item_id, warnings=good[0].warnings)

    def _refuse(self, files: Iterable[Path], failure: Failure, *, id: str = "") -> None:
        if failure.is_fatal:
            raise StorageError(failure.code, failure.message, hint=failure.hint)
        self.ledger.refuse(list(files), failure.code, failure.message, failure.hint, id=id)


def _crash(failure: str) -> Failure:
    """What the end of a child means for its task: a decoder that died or hung, or a fault of ours (its class)."""
    if failure in ("died", "timed out"):
        return Failure("E_DECODER_CRASH", f"the process that read it {failure}")
    return Failure("E_WORKER_CRASH", f"the process that read it failed with {failure}", "please report this")
