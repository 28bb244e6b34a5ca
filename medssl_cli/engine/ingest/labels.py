"""Annotations of an ingest: which images they belong to, and what the child processes do with them.

The parent reads every annotation file in a child (`read_annotations`), finds images for what it holds (`match`), has it
stored in children (`store_annotations`) and makes one answer for each file of it (`verdict`). References in the clear
live in memory only.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from medssl_cli.cache.annotations import add_boxes, add_findings
from medssl_cli.cache.items import Box
from medssl_cli.cache.store import Cache
from medssl_cli.engine.ingest.failures import Failure, as_values
from medssl_cli.engine.ingest.homes import homes_of
from medssl_cli.engine.ingest.matching import Index, KnownImage
from medssl_cli.engine.ingest.tasks import StoredImage, StoredLabel
from medssl_cli.formats.labels import AnnotationKind, BoxLabel, FindingsLabel, Label, MaskLabel
from medssl_cli.formats.source import Source
from medssl_cli.imaging.volume import Volume

PAIRS_PER_TASK: Final = 256
DRAWN_ON_IMAGES: Final = ("seg", "rtstruct", "lidc")
_ANOTHER_GRID: Final = ("E_LABEL_GRID_MISMATCH", "E_CONTOUR")


@dataclass(frozen=True)
class Choice:
    """What a user wants from annotations.

    Args:
        label_set: Name under which they are stored.
        structures: Of segmentations and structure sets: these only; the first becomes value 1.
        fraction: From which share of the maximum on a fractional segmentation counts.
    """

    label_set: str = "seg"
    structures: tuple[str, ...] | None = None
    fraction: float | None = None


@dataclass(frozen=True)
class ReadTask:
    """Read one file of annotations.

    Args:
        source: The file.
        kind: Which reader (`formats.labels.recognise`).
        choice: Of the user.
        known: `names_of` the images at hand, for tables whose key column has no known name.
    """

    source: Source
    kind: AnnotationKind
    choice: Choice = field(default_factory=Choice)
    known: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Annotation:
    """One label of a file; masks are left in the file and read again where they are put on a grid.

    Args:
        sources: Of a mask: which of its sources (`MaskLabel.sources`) are meant; None: all its marks.
    """

    source: Source
    kind: AnnotationKind
    index: int
    label: Label
    sources: frozenset[int] | None = None


@dataclass(frozen=True)
class AnnotationTask:
    """Put annotations on their images' grids and into the cache."""

    pairs: tuple[tuple[Annotation, StoredImage], ...]
    cache_root: Path
    choice: Choice = field(default_factory=Choice)
    dry_run: bool = False


@dataclass(frozen=True)
class FitTask:
    """Find out which of several images an annotation fits."""

    annotation: Annotation
    images: tuple[StoredImage, ...]
    choice: Choice = field(default_factory=Choice)


@dataclass(frozen=True)
class Matches:
    """What `match` found.

    Args:
        pairs: Annotations with their images; one annotation may have several.
        num_unmatched: For each file, how many of its labels, or of the images that they were drawn on, are not here.
        undecided: Annotations with the images that they may belong to: to one of them.
        refused: Annotations that mark several images and do not say which mark belongs to which.
    """

    pairs: tuple[tuple[Annotation, StoredImage], ...]
    num_unmatched: Mapping[Source, int]
    undecided: tuple[tuple[Annotation, tuple[StoredImage, ...]], ...] = ()
    refused: tuple[Annotation, ...] = ()

    def tasks(self, cache_root: Path, choice: Choice, *, dry_run: bool = False) -> list[AnnotationTask]:
        """Work for children: all masks of an item in order, so that the first of two wins whatever the number of
        workers; boxes and findings by the hundred."""
        by_item: dict[str, list[tuple[Annotation, StoredImage]]] = defaultdict(list)
        for pair in self.pairs:
            if isinstance(pair[0].label, MaskLabel):
                by_item[pair[1].item_id].append(pair)
        masks = map(tuple, by_item.values())
        small = [pair for pair in self.pairs if not isinstance(pair[0].label, MaskLabel)]
        batches = [tuple(small[first : first + PAIRS_PER_TASK]) for first in range(0, len(small), PAIRS_PER_TASK)]
        return [AnnotationTask(pairs, cache_root, choice, dry_run) for pairs in (*masks, *batches)]


@as_values
def read_annotations(task: ReadTask) -> tuple[Annotation, ...]:
    """What one file holds, in a child."""
    labels = _read(task.source, task.kind, task.choice, task.known)
    return tuple(
        Annotation(
            task.source, task.kind, index, replace(label, painter=None) if isinstance(label, MaskLabel) else label
        )
        for index, label in enumerate(labels)
    )


def match(annotations: Iterable[Annotation], images: Sequence[KnownImage], cache: Cache | None = None) -> Matches:
    """Find the images of annotations.

    Args:
        annotations: Of all files.
        images: Of this run, in the clear.
        cache: Where labels that arrive after their images find them, by pseudonym; None for a dry run without one.
    """
    index = Index(images, cache)
    pairs: list[tuple[Annotation, StoredImage]] = []
    undecided: list[tuple[Annotation, tuple[StoredImage, ...]]] = []
    refused: list[Annotation] = []
    num_unmatched: dict[Source, int] = defaultdict(int)
    for annotation in annotations:
        if annotation.kind in DRAWN_ON_IMAGES:
            sources = annotation.label.sources if isinstance(annotation.label, MaskLabel) else ()
            found = homes_of(index, annotation.label.reference, sources)
            parts = [(replace(annotation, sources=home.sources), home.images) for home in found.homes]
            pairs += [(part, home[0]) for part, home in parts if len(home) == 1]
            undecided += [pair for pair in parts if len(pair[1]) > 1]
            refused += [annotation] * found.is_ambiguous
            num_unmatched[annotation.source] += found.num_unknown or not (parts or found.is_ambiguous)
            continue
        size = annotation.label.size if isinstance(annotation.label, BoxLabel) else None
        images_of_it = index.find(annotation.label.reference, size)
        pairs += [(annotation, image) for image in images_of_it]
        num_unmatched[annotation.source] += not images_of_it
    unmatched = {source: number for source, number in num_unmatched.items() if number}
    return Matches(tuple(pairs), unmatched, tuple(undecided), tuple(refused))


def fit_annotation(task: FitTask) -> list[int | Failure]:
    """How an annotation fits each of several images: how many of its parts do not, or why nothing does; in a child."""
    annotation = task.annotation
    labels = _read_again((annotation, task.choice))
    if isinstance(labels, Failure):
        return [labels] * len(task.images)
    return [_fit((labels[annotation.index], annotation.sources, image)) for image in task.images]


@as_values
def _read_again(arguments: tuple[Annotation, Choice]) -> Sequence[Label]:
    annotation, choice = arguments
    return _read(annotation.source, annotation.kind, choice, frozenset())


@as_values
def _fit(arguments: tuple[Label, frozenset[int] | None, StoredImage]) -> int:
    label, sources, image = arguments
    if isinstance(label, MaskLabel):
        return sum(flaw.is_refusal for flaw in label.on_grid(image.shape, image.affine, sources).flaws)
    if isinstance(label, BoxLabel):
        return label.to_grid(image.shape, image.affine).num_outside
    raise AssertionError("findings fit every image")


def the_image(images: Sequence[StoredImage], fits: Sequence[int | Failure]) -> StoredImage | Failure:
    """The one image that an annotation fits.

    Args:
        images: That it may belong to.
        fits: `fit_annotation` for each of them.

    Returns:
        The image that takes more of it than all others; otherwise `E_LABEL_AMBIGUOUS`, or why it fits none.
    """
    failures = [failure for failure in fits if isinstance(failure, Failure)]
    in_its_place = [failure for failure in failures if failure.code not in _ANOTHER_GRID]
    missing = [number for number in fits if isinstance(number, int)]
    if in_its_place or not missing:
        return (in_its_place or failures)[0]
    best = [image for image, number in zip(images, fits, strict=True) if number == min(missing)]
    if len(best) > 1:
        return Failure("E_LABEL_AMBIGUOUS", f"it fits {len(best)} of {len(images)} images that it may belong to")
    return best[0]


def names_of(images: Iterable[KnownImage]) -> frozenset[str]:
    """Whatever a table may call the images by."""
    return frozenset(name for image in images for name in image.all_names)


def store_annotations(task: AnnotationTask) -> list[StoredLabel | Failure]:
    """Put annotations into the cache, or say why not, one answer for each pair; in a child."""
    return [_store((task, annotation, image)) for annotation, image in task.pairs]


def verdict(answers: Sequence[StoredLabel | Failure], num_unmatched: int) -> StoredLabel | Failure:
    """One answer for a file of annotations.

    Args:
        answers: Of all pairs of its labels with images.
        num_unmatched: How many of its labels have no image.

    Returns:
        Whether anything is new, all warnings, with `W_LABEL_UNMATCHED` if some labels have no image, and what was
        refused beside what was stored. If nothing was stored, the first failure, with how many there are;
        `E_LABEL_WITHOUT_IMAGE` if no label has an image.
    """
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    good = [answer for answer in answers if isinstance(answer, StoredLabel)]
    first = next((failure for failure in failures if failure.is_fatal), None)
    if first is None and failures and not good:
        first = failures[0]
    if first is not None:
        share = f" ({len(failures)} of {len(answers)} labels)" if len(answers) > 1 else ""
        return replace(first, message=first.message + share)
    if not answers:
        return Failure(
            "E_LABEL_WITHOUT_IMAGE", f"none of {num_unmatched} labels names one image of the input or the cache"
        )
    found = dict.fromkeys(code for answer in good for code in answer.warnings)
    said = list(dict.fromkeys(answer.message for answer in good if answer.message))
    if num_unmatched:
        found["W_LABEL_UNMATCHED"] = None
        said.append(f"W_LABEL_UNMATCHED: {num_unmatched} labels, or images that they were drawn on, are not here")
    refused = (*(part for answer in good for part in answer.refused), *failures)
    return StoredLabel(any(answer.is_new for answer in good), tuple(found), "; ".join(said), tuple(refused))


def _read(source: Source, kind: AnnotationKind, choice: Choice, known: frozenset[str]) -> Sequence[Label]:
    if kind == "seg":
        from medssl_cli.formats.labels.seg import read_seg

        return (read_seg(source, structures=choice.structures, fraction=choice.fraction),)
    if kind == "rtstruct":
        from medssl_cli.formats.labels.rtstruct import read_rtstruct

        return (read_rtstruct(source, structures=choice.structures),)
    if kind == "lidc":
        from medssl_cli.formats.labels.lidc import read_lidc

        return read_lidc(source)
    if kind == "luna":
        from medssl_cli.formats.labels.luna import read_luna

        return read_luna(source)
    if kind == "coco":
        from medssl_cli.formats.labels.coco import read_coco

        return read_coco(source)
    from medssl_cli.formats.labels.table import read_table

    return read_table(source, known=known)


@as_values
def _store(arguments: tuple[AnnotationTask, Annotation, StoredImage]) -> StoredLabel:
    task, annotation, image = arguments
    label = annotation.label
    if isinstance(label, MaskLabel):
        return _store_mask(task, annotation, image)
    if isinstance(label, BoxLabel):
        return _store_boxes(task, label, image)
    return _store_findings(task, label, image)


def _store_mask(task: AnnotationTask, annotation: Annotation, image: StoredImage) -> StoredLabel:
    label = _read(annotation.source, annotation.kind, task.choice, frozenset())[annotation.index]
    if not isinstance(label, MaskLabel):
        raise AssertionError("the file changed its kind")
    painting = label.on_grid(image.shape, image.affine, annotation.sources)
    notes = [flaw for flaw in painting.flaws if not flaw.is_refusal]
    found = [flaw.code for flaw in notes] + ([] if painting.labels.any() else ["W_EMPTY_LABEL"])
    volume = Volume(painting.labels[None], image.affine)
    is_new = Cache(task.cache_root).add_label(
        image.item_id, task.choice.label_set, volume, painting.classes, dry_run=task.dry_run
    )
    refused = tuple(Failure(flaw.code, flaw.text, flaw.hint) for flaw in painting.flaws if flaw.is_refusal)
    said = [f"{flaw.code}: {flaw.text}" for flaw in notes]
    if refused:
        said.insert(0, f"{len(painting.classes)} classes stored, {len(refused)} structures refused")
    return StoredLabel(is_new, tuple(dict.fromkeys(found)), "; ".join(said), refused)


def _store_boxes(task: AnnotationTask, label: BoxLabel, image: StoredImage) -> StoredLabel:
    placed = label.to_grid(image.shape, image.affine)
    boxes = [Box.model_validate(vars(mark)) for mark in placed.boxes]
    found = ("W_LABEL_UNMATCHED",) if placed.num_outside else ()
    cache = Cache(task.cache_root)
    return StoredLabel(add_boxes(cache, image.item_id, task.choice.label_set, boxes, dry_run=task.dry_run), found)


def _store_findings(task: AnnotationTask, label: FindingsLabel, image: StoredImage) -> StoredLabel:
    cache = Cache(task.cache_root)
    is_new = add_findings(cache, image.item_id, task.choice.label_set, label.findings, dry_run=task.dry_run)
    return StoredLabel(is_new, ())
