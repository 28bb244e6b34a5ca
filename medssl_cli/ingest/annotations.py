"""The last stage of an ingest: labels that are files of their own kind find their images."""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from medssl_cli.cache.store import Cache
from medssl_cli.formats.labels import AnnotationKind
from medssl_cli.formats.source import Source
from medssl_cli.ingest.failures import Failure, crash
from medssl_cli.ingest.known_images import KnownImage, names_of
from medssl_cli.ingest.labels import (
    DRAWN_ON_IMAGES,
    Annotation,
    AnnotationFile,
    Choice,
    FitTask,
    Matches,
    ReadTask,
    fit_annotation,
    match,
    read_annotations,
    store_annotations,
    the_image,
    verdict,
)
from medssl_cli.ingest.report import State
from medssl_cli.ingest.tally import FileOutcome, Tally
from medssl_cli.ingest.task_runner import TaskRunner
from medssl_cli.ingest.tasks import StoredImage, StoredLabel

TIMEOUT_S: Final = 600.0


@dataclass
class _MaskTally:
    """What became of one file of masks.

    Args:
        answers: Outcomes of all pairs of its labels with images.
        num_unmatched: How many of its labels have no image.
        item: The first that anything was stored with or refused for.
    """

    answers: list[StoredLabel | Failure] = field(default_factory=list)
    num_unmatched: int = 0
    item: str | None = None

    def add(self, annotation: Annotation, image: StoredImage | None, answer: StoredLabel | Failure) -> None:
        """An answer for a label and an image, if it came so far as to have one."""
        self.answers.append(answer)
        self.item = self.item or (image.item_id if image is not None else None)

    def outcomes(self) -> list[FileOutcome]:
        """Entries for the report."""
        summary = verdict(self.answers, self.num_unmatched)
        if isinstance(summary, Failure):
            return [FileOutcome("quarantined", summary.code, summary.message, summary.hint)]
        state: State = "accepted" if summary.is_new else "duplicate"
        stored = FileOutcome(state, message=summary.message, item=self.item, warnings=summary.warnings)
        parts = [FileOutcome("quarantined", part.code, part.message, part.hint, self.item) for part in summary.refused]
        return [stored, *parts]


def store_all(
    kinds: Mapping[Source, AnnotationKind],
    images: Sequence[KnownImage],
    runner: TaskRunner,
    cache: Cache,
    choice: Choice,
    *,
    named: Container[Source] = (),
    recalled: Callable[[Sequence[Annotation]], Sequence[KnownImage]] = lambda annotations: (),
    dry_run: bool,
) -> int:
    """Read annotations, find their images in this run or in the cache, store them and settle their files.

    Args:
        kinds: Files of annotations.
        images: Images of this run.
        runner: Does the work.
        cache: Where images of earlier runs are.
        choice: Choice of the user.
        named: Files that the user has named themselves.
        recalled: Gives images of the input that were not read again, because nothing has changed, and that annotations
            may mean.
        dry_run: Judge only.

    Returns:
        Number of labels newly stored.
    """
    files = _read_all(kinds, images, runner, choice, named)
    if runner.stop.is_set:
        return 0
    tallies = {source: _tally_of(kinds[source], file) for source, file in files.items()}
    annotations = [annotation for file in files.values() for annotation in file.annotations]
    matches = match(annotations, [*images, *recalled(annotations)], cache)
    for source, number in matches.num_unmatched.items():
        tallies[source].num_unmatched = number
    matches = _decided(matches, tallies, runner, choice)
    num_new = 0
    for store in runner.map(
        "labels", store_annotations, matches.tasks(cache.root, choice, dry_run=dry_run), timeout_s=TIMEOUT_S
    ):
        results = store.result or [crash(store.failure)] * len(store.task.pairs)
        for (annotation, image), answer in zip(store.task.pairs, results, strict=True):
            if isinstance(answer, Failure) and answer.is_fatal:
                runner.refuse([annotation.source], answer)
            tallies[annotation.source].add(annotation, image, answer)
            num_new += isinstance(answer, StoredLabel) and answer.is_new and not dry_run
    if not runner.stop.is_set:
        for source, tally in tallies.items():
            if isinstance(tally, Tally) and tally.is_silent and not _is_certain(source, tally.kind, named):
                runner.builder.refuse([source], "S_SIDECAR", "")
            else:
                _settle(source, tally.outcomes(), runner)
    return num_new


def _read_all(
    kinds: Mapping[Source, AnnotationKind],
    images: Sequence[KnownImage],
    runner: TaskRunner,
    choice: Choice,
    named: Container[Source],
) -> dict[Source, AnnotationFile]:
    """What the files hold, in the order that they were found in; those that cannot be read are refused."""
    names = names_of(images) if "table" in kinds.values() else {}
    tasks = [
        ReadTask(source, kind, choice, names if kind == "table" else {}, is_named=source in named)
        for source, kind in kinds.items()
    ]
    files: dict[Source, AnnotationFile] = {}
    for outcome in runner.map("annotations", read_annotations, tasks, timeout_s=TIMEOUT_S):
        result = outcome.result if outcome.result is not None else crash(outcome.failure)
        source = outcome.task.source
        if isinstance(result, Failure) and result.code == "E_LABEL_FORMAT":
            is_certain = _is_certain(source, outcome.task.kind, named)
            runner.refuse([source], result if is_certain else Failure("S_SIDECAR", ""))
        elif isinstance(result, Failure):
            runner.refuse([source], result)
        else:
            files[source] = result
    return {source: files[source] for source in kinds if source in files}


def _is_certain(source: Source, kind: AnnotationKind, named: Container[Source]) -> bool:
    """Whether a file is one of labels: text files that nobody has named may be anything, such as lists of persons."""
    return source in named or kind not in ("table", "luna") or not source.name.lower().endswith((".tsv", ".txt"))


def _tally_of(kind: AnnotationKind, file: AnnotationFile) -> _MaskTally | Tally:
    """Tally of a file that was read and not yet stored."""
    reading = file.reading
    if kind in DRAWN_ON_IMAGES:
        return _MaskTally()
    return Tally(kind, file.num_rows, list(reading.refused), list(reading.notes), reading.num_silent)


def _decided(
    matches: Matches, tallies: Mapping[Source, _MaskTally | Tally], runner: TaskRunner, choice: Choice
) -> Matches:
    """Matches without doubt: of several images the one that an annotation fits; refusals go into the report."""
    for annotation, failure in matches.refused:
        tallies[annotation.source].add(annotation, None, failure)
    pairs = list(matches.pairs)
    tasks = [FitTask(annotation, images, choice) for annotation, images in matches.undecided]
    for outcome in runner.map("labels", fit_annotation, tasks, timeout_s=TIMEOUT_S):
        task = outcome.task
        found = crash(outcome.failure) if outcome.result is None else the_image(task.images, outcome.result)
        if isinstance(found, Failure):
            tallies[task.annotation.source].add(task.annotation, None, found)
        else:
            pairs.append((task.annotation, found))
    order = {source: number for number, source in enumerate(tallies)}
    pairs.sort(key=lambda pair: (order[pair[0].source], pair[0].index))
    return replace(matches, pairs=tuple(pairs), undecided=(), refused=())


def _settle(source: Source, outcomes: Sequence[FileOutcome], runner: TaskRunner) -> None:
    """Report what became of a file; what was refused of a file that was taken counts no file."""
    identifier = runner.builder.file_id(source)
    for number, outcome in enumerate(outcomes):
        sources = [source] if number == 0 else []
        runner.builder.settle(sources, outcome.state, id=identifier, **outcome.arguments)
