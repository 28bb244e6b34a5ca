"""The last stage of an ingest: labels that are files of their own kind find their images."""

from collections.abc import Container, Mapping, Sequence
from typing import Final

from medssl_cli.cache.store import Cache
from medssl_cli.engine.ingest.crew import Crew
from medssl_cli.engine.ingest.failures import Failure, crash
from medssl_cli.engine.ingest.labels import (
    AnnotationFile,
    Choice,
    ReadTask,
    match,
    names_of,
    read_annotations,
    store_annotations,
)
from medssl_cli.engine.ingest.matching import KnownImage
from medssl_cli.engine.ingest.tally import Tally
from medssl_cli.engine.ingest.tasks import StoredLabel
from medssl_cli.formats.labels import AnnotationKind
from medssl_cli.formats.source import Source

TIMEOUT_S: Final = 600.0


def store_all(
    kinds: Mapping[Source, AnnotationKind],
    images: Sequence[KnownImage],
    crew: Crew,
    cache: Cache,
    choice: Choice,
    *,
    named: Container[Source] = (),
    dry_run: bool,
) -> int:
    """Read annotations, find their images in this run or in the cache, store them and settle their files.

    Args:
        kinds: Files of annotations.
        images: Of this run.
        crew: Does the work.
        cache: Where images of earlier runs are.
        choice: Of the user.
        named: Files that the user has named themselves.
        dry_run: Judge only.

    Returns:
        Number of labels newly stored.
    """
    files = _read_all(kinds, images, crew, choice, named)
    if crew.stop.is_set:
        return 0
    tallies = {source: _tally(kinds[source], file) for source, file in files.items()}
    matches = match([annotation for file in files.values() for annotation in file.annotations], images, cache)
    for source, number in matches.num_unmatched.items():
        tallies[source].num_unmatched = number
    for annotation, failure in matches.refused:
        tallies[annotation.source].refuse(failure, annotation.label.rows)
    num_new = 0
    for store in crew.map(
        "labels", store_annotations, matches.tasks(cache.root, choice, dry_run=dry_run), timeout_s=TIMEOUT_S
    ):
        results = store.result or [crash(store.failure)] * len(store.task.pairs)
        for (annotation, image), answer in zip(store.task.pairs, results, strict=True):
            if isinstance(answer, StoredLabel):
                tallies[annotation.source].store(answer, image.item_id)
                num_new += answer.is_new and not dry_run
            elif answer.is_fatal:
                crew.refuse([annotation.source], answer)
            else:
                tallies[annotation.source].refuse(answer, annotation.label.rows)
    if not crew.stop.is_set:
        for source, tally in tallies.items():
            if tally.items or tally.refused or _is_certain(source, kinds[source], named):
                _settle(source, tally, crew)
            else:
                crew.ledger.refuse([source], "S_SIDECAR", "")
    return num_new


def _read_all(
    kinds: Mapping[Source, AnnotationKind],
    images: Sequence[KnownImage],
    crew: Crew,
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
    for outcome in crew.map("annotations", read_annotations, tasks, timeout_s=TIMEOUT_S):
        result = outcome.result if outcome.result is not None else crash(outcome.failure)
        source = outcome.task.source
        if isinstance(result, Failure) and result.code == "E_LABEL_FORMAT":
            is_certain = _is_certain(source, outcome.task.kind, named)
            crew.refuse([source], result if is_certain else Failure("S_SIDECAR", ""))
        elif isinstance(result, Failure):
            crew.refuse([source], result)
        else:
            files[source] = result
    return {source: files[source] for source in kinds if source in files}


def _is_certain(source: Source, kind: AnnotationKind, named: Container[Source]) -> bool:
    """Whether a file is one of labels: text files that nobody has named may be anything, such as lists of persons."""
    return source in named or kind not in ("table", "luna") or not source.name.lower().endswith((".tsv", ".txt"))


def _tally(kind: AnnotationKind, file: AnnotationFile) -> Tally:
    """Books of a file that was read and not yet stored."""
    reading = file.reading
    return Tally(kind, file.num_rows, list(reading.refused), list(reading.notes), reading.num_silent)


def _settle(source: Source, tally: Tally, crew: Crew) -> None:
    """Book what became of a file; where a part of it was refused, as several entries."""
    identifier = crew.ledger.file_id(source)
    outcomes = tally.outcomes()
    if len(outcomes) > 1:
        crew.ledger.share([source])
    for outcome in outcomes:
        crew.ledger.settle([source], outcome.state, id=identifier, **outcome.arguments)
