"""The last stage of an ingest: labels that are files of their own kind find their images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from medssl_cli.cache.store import Cache
from medssl_cli.engine.ingest.crew import Crew
from medssl_cli.engine.ingest.failures import Failure, crash
from medssl_cli.engine.ingest.labels import (
    Annotation,
    Choice,
    FitTask,
    Matches,
    ReadTask,
    fit_annotation,
    match,
    names_of,
    read_annotations,
    store_annotations,
    the_image,
    verdict,
)
from medssl_cli.engine.ingest.matching import KnownImage
from medssl_cli.engine.ingest.report import State
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
    recalled: Callable[[Sequence[Annotation]], Sequence[KnownImage]] = lambda annotations: (),
    dry_run: bool,
) -> int:
    """Read annotations, find their images in this run or in the cache, store them and settle their files.

    Args:
        kinds: Files of annotations.
        images: Of this run.
        crew: Does the work.
        cache: Where images of earlier runs are.
        choice: Of the user.
        recalled: Gives images of the input that were not read again, because nothing has changed, and that annotations
            may mean.
        dry_run: Judge only.

    Returns:
        Number of labels newly stored.
    """
    names = names_of(images)
    tasks = [ReadTask(source, kind, choice, names) for source, kind in kinds.items()]
    annotations: list[Annotation] = []
    for outcome in crew.map("annotations", read_annotations, tasks, timeout_s=TIMEOUT_S):
        result = outcome.result if outcome.result is not None else crash(outcome.failure)
        if isinstance(result, Failure):
            crew.refuse([outcome.task.source], result)
        else:
            annotations += result
    if crew.stop.is_set:
        return 0
    matches = match(annotations, [*images, *recalled(annotations)], cache)
    answers: dict[Source, list[StoredLabel | Failure]] = {label.source: [] for label in annotations}
    matches = _decided(matches, answers, crew, choice)
    if crew.stop.is_set:
        return 0
    items: dict[Source, str] = {}
    for store in crew.map(
        "labels", store_annotations, matches.tasks(cache.root, choice, dry_run=dry_run), timeout_s=TIMEOUT_S
    ):
        results = store.result or [crash(store.failure)] * len(store.task.pairs)
        for (annotation, image), answer in zip(store.task.pairs, results, strict=True):
            answers[annotation.source].append(answer)
            items.setdefault(annotation.source, image.item_id)
    if crew.stop.is_set:
        return 0
    num_new = 0
    for source, given in answers.items():
        summary = verdict(given, matches.num_unmatched.get(source, 0))
        if isinstance(summary, Failure):
            crew.refuse([source], summary)
            continue
        num_new += sum(isinstance(answer, StoredLabel) and answer.is_new and not dry_run for answer in given)
        state: State = "accepted" if summary.is_new else "duplicate"
        item, identifier = items[source], crew.ledger.file_id(source)
        crew.ledger.settle([source], state, item=item, message=summary.message, warnings=summary.warnings)
        for part in summary.refused:
            crew.ledger.settle(
                [], "quarantined", id=identifier, code=part.code, message=part.message, hint=part.hint, item=item
            )
    return num_new


def _decided(
    matches: Matches, answers: dict[Source, list[StoredLabel | Failure]], crew: Crew, choice: Choice
) -> Matches:
    """Matches without doubt: of several images the one that an annotation fits; refusals are added to the answers."""
    for annotation in matches.refused:
        answers[annotation.source].append(
            Failure("E_LABEL_AMBIGUOUS", "it marks several images, and some marks do not name theirs")
        )
    pairs = list(matches.pairs)
    tasks = [FitTask(annotation, images, choice) for annotation, images in matches.undecided]
    for outcome in crew.map("labels", fit_annotation, tasks, timeout_s=TIMEOUT_S):
        task = outcome.task
        found = crash(outcome.failure) if outcome.result is None else the_image(task.images, outcome.result)
        if isinstance(found, Failure):
            answers[task.annotation.source].append(found)
        else:
            pairs.append((task.annotation, found))
    order = {source: number for number, source in enumerate(answers)}
    pairs.sort(key=lambda pair: (order[pair[0].source], pair[0].index))
    return replace(matches, pairs=tuple(pairs), undecided=(), refused=())
