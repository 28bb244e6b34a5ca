"""One ingest: discover, read headers, group, judge and store images, then what is known about them.

The work is done in child processes, which publish items themselves; this process keeps the books. A kill at any
moment costs nothing: the same command finds what is stored and goes on.
"""

import contextlib
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medssl_cli.cache.store import Cache
from medssl_cli.engine.ingest.annotations import store_all
from medssl_cli.engine.ingest.crew import Crew, crash
from medssl_cli.engine.ingest.known_files import Fate, KnownFiles
from medssl_cli.engine.ingest.labels import Choice
from medssl_cli.engine.ingest.matching import KnownImage
from medssl_cli.engine.ingest.options import IngestOptions, PacsSource
from medssl_cli.engine.ingest.plan import label_tasks, plan_files
from medssl_cli.engine.ingest.report import IngestReport, Ledger, State
from medssl_cli.engine.ingest.space import require_space
from medssl_cli.engine.ingest.tasks import (
    Failure,
    ImageTask,
    LabelObject,
    StoredImage,
    StoredLabel,
    read_header_batch,
    store_images,
    store_labels,
)
from medssl_cli.formats.archives import default_budget
from medssl_cli.formats.discover import Found, classify, discover
from medssl_cli.formats.labels import AnnotationKind
from medssl_cli.formats.labels.recognise import annotation_kind
from medssl_cli.formats.layouts import DatasetJson, LabelFile, arrange, read_dataset_json
from medssl_cli.formats.source import Source, place_of

if TYPE_CHECKING:
    from medssl_cli.engine.ingest.retrieve import RetrievedSeries, Spool

HEADERS_PER_TASK: Final = 64
HEADERS_TIMEOUT_S: Final = 120.0
STORE_TIMEOUT_S: Final = 600.0
SECOND_TRY_AFTER_S: Final = 2.0
VOXEL_KINDS: Final = ("nifti", "nrrd", "metaimage", "picture")
TEXT_KINDS: Final = ("json", "csv", "xml")


@dataclass
class _Inputs:
    """What was found, by kind."""

    sources: dict[str, list[Source]] = field(default_factory=lambda: defaultdict(list))
    unchanged: list[Found] = field(default_factory=list)
    datasets: list[DatasetJson] = field(default_factory=list)
    redescribed: set[Path] = field(default_factory=set)


@dataclass
class IngestRun:
    """One run: its options, its books, and the stages in order."""

    cache: Cache
    ledger: Ledger
    known: KnownFiles
    options: IngestOptions
    crew: Crew
    num_images: int = 0
    num_labels: int = 0
    stored: dict[Source, tuple[StoredImage, ...]] = field(default_factory=dict)
    images: list[KnownImage] = field(default_factory=list)
    annotations: dict[Source, AnnotationKind] = field(default_factory=dict)
    unremembered: set[Source] = field(default_factory=set)

    def run(self, paths: Sequence[Path]) -> None:
        """Do everything, or as much as a stop request leaves time for."""
        inputs = self._discover(paths)
        roots = [path.resolve() for path in paths]
        series = self._series(inputs, roots)
        files = [source for kind in VOXEL_KINDS for source in inputs.sources[kind]]
        arrangement = arrange([*files, *self.stored], inputs.datasets, roots=roots)
        images = [image for image in arrangement.images if image.source not in self.stored]
        tasks = [*series, *plan_files(images, arrangement, roots, self.cache.root, self.options, self.ledger)]
        if not self.options.dry_run:
            require_space(tasks, self.cache)
        self._store_images(tasks)
        for source, code in arrangement.skipped:
            self.ledger.refuse([source], code, "")
        self._store_labels([label for label in arrangement.labels if label.source not in self.stored])
        annotations, self.annotations = self.annotations, {}
        self.unremembered.update(annotations)
        if not self.crew.stop.is_set:
            self.num_labels += store_all(
                annotations,
                self.images,
                self.crew,
                self.cache,
                Choice(self.options.label_set, self.options.structures, self.options.seg_fraction),
                dry_run=self.options.dry_run,
            )

    def run_pacs(self, source: PacsSource) -> None:
        """Retrieve series after series and do with each what `run` does with folders."""
        from medssl_cli.engine.ingest.retrieve import Spool, retrieve_all
        from medssl_cli.formats.dicomweb import Pacs

        pacs = Pacs(
            source.url,
            source.credentials,
            source.ca_bundle,
            patience=source.patience,
            is_stopped=lambda: self.crew.stop.is_set,
        )
        spool = Spool(self.cache.root / "spool", self.cache.pseudonyms)
        results = retrieve_all(
            pacs,
            source.query,
            spool,
            is_held=self._is_held,
            stop=self.crew.stop,
            progress=self.crew.progress,
            settle_s=source.settle_s,
        )
        with contextlib.closing(pacs), contextlib.closing(results):
            self._take(results, spool)

    def _take(self, results: "Iterable[RetrievedSeries]", spool: "Spool") -> None:
        for series in results:
            if series.folder is None:
                items = self.known.retrieved_items(series.key, series.num_instances)
                self.ledger.note_series(series.key, series.num_instances, series.failure, items[0] if items else None)
                continue
            first = len(self.ledger.judged)
            self.run([series.folder])
            self.unremembered.update(series.files)
            self.images.clear()
            if self.crew.stop.is_set:
                return
            judged = self.ledger.judged[first:]
            self.known.record_retrieved(
                series.key, series.num_instances, {entry.item for entry, _ in judged if entry.item}
            )
            spool.discard(series)

    def _is_held(self, series: str, num_instances: int) -> bool:
        items = self.known.retrieved_items(series, num_instances)
        return items is not None and all(self.cache.item_directory(item).is_dir() for item in items)

    def remember(self) -> None:
        """Note what became of the files, for the next ingest."""
        self.known.record(
            (entry, sources, self.ledger.kind(sources[0]))
            for entry, sources in self.ledger.judged
            if sources and entry.code != "E_LABEL_WITHOUT_IMAGE" and sources[0] not in self.unremembered
        )

    def report(self, started: datetime, duration_s: float) -> IngestReport:
        """What the run did."""
        everything = self.ledger.everything
        return IngestReport(
            entries=tuple(entry for entry, _ in everything),
            seen=self.ledger.seen,
            not_reached=self.ledger.num_open,
            num_images=self.num_images,
            num_labels=self.num_labels,
            key_id=self.cache.pseudonyms.key_id,
            policy=self.options.recorded,
            started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
            duration_s=duration_s,
            dry_run=self.options.dry_run,
            key_is_ephemeral=self.cache.key_is_ephemeral,
            interrupted_by=signal.Signals(self.crew.stop.signal_number).name if self.crew.stop.signal_number else None,
            sources=everything,
        )

    @property
    def _budget(self) -> int:
        """What an archive may unpack to."""
        return default_budget(self.cache.root)

    def _discover(self, paths: Sequence[Path]) -> _Inputs:
        inputs = _Inputs()
        peek = None if self.options.reread else self.known.peek
        for found in discover(
            paths, self.options.policy, peek=peek, max_archive_bytes=self._budget, leave_out=self.cache.root
        ):
            self.ledger.open(found)
            self._sort(found, inputs)
            self.crew.progress("discover", self.ledger.seen, None)
            if self.crew.stop.is_set:
                break
        return inputs

    def _sort(self, found: Found, inputs: _Inputs) -> None:
        is_description = found.source.name == "dataset.json"
        if found.kind == "known":
            inputs.unchanged.append(found)
            if is_description and (dataset := read_dataset_json(found.source)):
                inputs.datasets.append(dataset)
        elif found.kind == "other":
            self.ledger.refuse([found.source], found.code, "")
        elif is_description and (dataset := read_dataset_json(found.source)):
            inputs.datasets.append(dataset)
            inputs.redescribed.add(dataset.folder)
            self.ledger.refuse([found.source], "S_SIDECAR", "")
        elif found.kind in TEXT_KINDS and (kind := annotation_kind(found.source, found.kind)):
            self.annotations[found.source] = kind
        elif found.kind in TEXT_KINDS:
            self.ledger.refuse([found.source], "S_SIDECAR", "")
        else:
            inputs.sources[found.kind].append(found.source)

    def _series(self, inputs: _Inputs, roots: Sequence[Path]) -> list[ImageTask]:
        """Tasks for all DICOM images; files that have not changed are settled, unless what they depend on has."""
        fates = self.known.fates(lambda item: self.cache.item_directory(item).is_dir())
        fates = [fate for fate in fates if not _is_below(fate, inputs.redescribed)]
        self._open_again(inputs, {source for fate in fates for source in fate.sources})
        outdated = _labels_of_new_images(inputs, fates, roots)
        fates = [fate for fate in fates if outdated.isdisjoint(fate.sources)]
        self._open_again(inputs, {source for fate in fates for source in fate.sources})
        headers = self._headers(inputs.sources["dicom"])
        changed = {self.ledger.series_id(header.SeriesInstanceUID) for header in headers}
        for fate in fates:
            if fate.entry.id in changed:
                headers += self._headers(fate.sources)
            else:
                self._recall(fate)
        return self._series_tasks(headers)

    def _open_again(self, inputs: _Inputs, settled: Container[Source]) -> None:
        """Look at unchanged files after all, but for those that are settled."""
        unchanged, inputs.unchanged = inputs.unchanged, []
        budget = self._budget
        for found in unchanged:
            if not isinstance(found.source, Path) or found.source in settled:
                inputs.unchanged.append(found)
                continue
            self.ledger.withdraw(found)
            for again in classify(found.source, found.root, self.options.policy, max_archive_bytes=budget):
                self.ledger.open(again)
                self._sort(again, inputs)

    def _recall(self, fate: Fate) -> None:
        self.ledger.recall(fate.entry, fate.sources)
        if fate.entry.item is not None and fate.kind in VOXEL_KINDS:
            image = StoredImage.of(self.cache.record(fate.entry.item))
            self.stored |= dict.fromkeys(fate.sources, (image,))

    def _headers(self, sources: Sequence[Source]) -> list[Any]:
        """Headers of DICOM files; refusals are booked. A batch whose child died is read file by file."""
        headers: list[Any] = []
        again: list[Source] = []
        for pending, size in ((sources, HEADERS_PER_TASK), (again, 1)):
            tasks = [
                (tuple(pending[first : first + size]), self.options.policy) for first in range(0, len(pending), size)
            ]
            outcomes = self.crew.map(
                "headers", read_header_batch, tasks, timeout_s=HEADERS_TIMEOUT_S, sizes=lambda task: len(task[0])
            )
            for outcome in outcomes:
                batch = outcome.task[0]
                if outcome.result is None and size > 1:
                    again += batch
                elif outcome.result is None:
                    self.crew.refuse(batch, crash(outcome.failure))
                else:
                    for source, result in zip(batch, outcome.result, strict=True):
                        if isinstance(result, Failure):
                            self.crew.refuse([source], result)
                        elif isinstance(result, LabelObject):
                            self.annotations[source] = result.kind
                        else:
                            headers += result
        return headers

    def _series_tasks(self, headers: list[Any]) -> list[ImageTask]:
        """Group slices into images; refusals are booked."""
        if self.crew.stop.is_set or not headers:
            return []
        from medssl_cli.formats.dicom import group_headers

        series_of = {header.source: header.SeriesInstanceUID for header in headers}
        parts, refusals = group_headers(headers, self.options.policy)
        groups: Counter[Source] = Counter()
        for part in parts:
            groups.update({header.source for header in part.headers})
        groups.update(source for refusal in refusals for source in refusal.files)
        self.ledger.share(source for source, number in groups.items() if number > 1)
        for refusal in refusals:
            members: dict[str, list[Source]] = defaultdict(list)
            for source in refusal.files:
                members[series_of[source]].append(source)
            for uid, sources in members.items():
                identifier = self.ledger.series_id(uid)
                self.ledger.refuse(sources, refusal.code, refusal.message, refusal.hint, id=identifier)
        return [
            ImageTask(part, "dicom", self.cache.root, self.options.policy, dry_run=self.options.dry_run)
            for part in parts
        ]

    def _store_images(self, tasks: Sequence[ImageTask], *, is_second_try: bool = False) -> None:
        """Store all images, and keep where those of files went, for their labels."""
        changed: list[ImageTask] = []
        for outcome in self.crew.map("images", store_images, tasks, timeout_s=STORE_TIMEOUT_S):
            task = outcome.task
            sources, identifier = [task.source], ""
            if task.kind == "dicom":
                sources = sorted({header.source for header in task.source.headers}, key=str)
                identifier = self.ledger.series_id(task.source.identity.series.partition("#")[0])
            result = outcome.result if outcome.result is not None else crash(outcome.failure)
            if isinstance(result, Failure):
                if result.code == "E_CHANGED_DURING_READ" and not is_second_try and _can_be_read_again(task):
                    changed.append(task)
                else:
                    self.crew.refuse(sources, result, id=identifier)
                continue
            identifier = identifier or self.ledger.file_id(sources[0])
            if len(result) > 1:
                self.ledger.share(sources)
            for image in result:
                self.num_images += image.is_new and not self.options.dry_run
                state: State = "accepted" if image.is_new else "duplicate"
                self.ledger.settle(
                    sources, state, id=identifier, message=image.message, item=image.item_id, warnings=image.warnings
                )
            self._keep(task, result)
        if changed:
            self._try_again(changed)

    def _try_again(self, tasks: Sequence[ImageTask]) -> None:
        """Once more, a little later: images of which a file changed while it was read; series from their headers on."""
        until = time.monotonic() + SECOND_TRY_AFTER_S
        while time.monotonic() < until and not self.crew.stop.is_set:
            time.sleep(0.05)
        slices = {header.source for task in tasks if task.kind == "dicom" for header in task.source.headers}
        series = self._series_tasks(self._headers(sorted(slices, key=str)))
        self._store_images([*series, *(task for task in tasks if task.kind != "dicom")], is_second_try=True)

    def _keep(self, task: ImageTask, images: tuple[StoredImage, ...]) -> None:
        """What labels need to find their images."""
        if task.kind == "dicom":
            self.images += [KnownImage.of_series(image, task.source.headers) for image in images]
        else:
            self.images += [KnownImage.of_file(image, task.source, task.patient) for image in images]
            self.stored[task.source] = images

    def _store_labels(self, labels: Sequence[LabelFile]) -> None:
        """Store label maps; all labels of one item are one task, so no two processes change one record."""
        tasks, orphans, num_items = label_tasks(labels, self.stored, self.cache.root, self.options, self.ledger)
        for label in orphans:
            what = "its image was refused" if label.images else "no image belongs to it"
            self.ledger.refuse([label.source], "E_LABEL_WITHOUT_IMAGE", what)
        answers: dict[Source, list[StoredLabel | Failure]] = defaultdict(list)
        for outcome in self.crew.map("labels", store_labels, tasks, timeout_s=STORE_TIMEOUT_S):
            results = outcome.result or [crash(outcome.failure)] * len(outcome.task.labels)
            for (label, _), result in zip(outcome.task.labels, results, strict=True):
                answers[label.source].append(result)
                if len(answers[label.source]) == num_items[label.source]:
                    self._settle_label(label.source, answers[label.source], outcome.task.image.item_id)

    def _settle_label(self, source: Source, answers: Sequence[StoredLabel | Failure], item_id: str) -> None:
        """One state for a label file, whatever the number of channels that it belongs to."""
        good = [answer for answer in answers if isinstance(answer, StoredLabel)]
        num_new = sum(answer.is_new for answer in good)
        self.num_labels += 0 if self.options.dry_run else num_new
        bad = [answer for answer in answers if isinstance(answer, Failure)]
        if not good or any(answer.is_fatal for answer in bad):
            self.crew.refuse([source], bad[0])
            return
        state: State = "accepted" if num_new else "duplicate"
        warnings = (*good[0].warnings, *(("W_LABEL_UNMATCHED",) if bad else ()))
        self.ledger.settle([source], state, item=item_id, warnings=warnings)


def _can_be_read_again(task: ImageTask) -> bool:
    """Whether an image can be judged again by itself: a part of a series cannot."""
    return task.kind != "dicom" or "#" not in task.source.identity.series


def _is_below(fate: Fate, folders: set[Path]) -> bool:
    """Whether the file of a fate lies below one of some folders, whose description is new."""
    return bool(folders) and fate.kind in VOXEL_KINDS and not folders.isdisjoint(place_of(fate.sources[0]).parents)


def _labels_of_new_images(inputs: _Inputs, fates: Sequence[Fate], roots: Sequence[Path]) -> set[Source]:
    """Unchanged label maps of images that are new or have changed: what became of them is no longer true."""
    new = [source for kind in VOXEL_KINDS for source in inputs.sources[kind]]
    known = [source for fate in fates if fate.kind in VOXEL_KINDS for source in fate.sources]
    if not new or not known:
        return set()
    labels = arrange([*new, *known], inputs.datasets, roots=roots).labels
    are_new = set(new)
    return {label.source for label in labels if label.source not in are_new and not are_new.isdisjoint(label.images)}
