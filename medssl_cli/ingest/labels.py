"""Annotations of an ingest: which images they belong to, and what the child processes do with them.

The parent reads every annotation file in a child (`read_annotations`), finds images for what it holds (`match`), has it
stored in children (`store_annotations`), and makes one answer for each file of masks (`verdict`) and a `Tally` of each
file of rows. References in the clear live in memory only.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.cache.annotations import add_boxes, add_findings
from medssl_cli.cache.items import Box
from medssl_cli.cache.store import Cache
from medssl_cli.formats.labels import AnnotationKind, BoxLabel, FindingsLabel, Flaw, Label, MaskLabel, Reading
from medssl_cli.formats.labels.boxes import PictureBoxes, on_copy, upright
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table_choice import TableChoice
from medssl_cli.imaging.volume import Volume
from medssl_cli.ingest.drawn_on import ImagesOfMask, images_drawn_on
from medssl_cli.ingest.failures import Failure, as_values
from medssl_cli.ingest.known_images import KnownImage
from medssl_cli.ingest.matching import Index
from medssl_cli.ingest.spellings import PARTS_OF_ONE, parts_of_one
from medssl_cli.ingest.tasks import StoredImage, StoredLabel

PAIRS_PER_TASK: Final = 256
DRAWN_ON_IMAGES: Final = ("seg", "rtstruct", "lidc")
_ANOTHER_GRID: Final = ("E_LABEL_GRID_MISMATCH", "E_CONTOUR")


@dataclass(frozen=True)
class Choice:
    """What a user wants from annotations.

    Args:
        label_set: Name under which they are stored.
        structures: Structures of segmentations and structure sets: these only; the first becomes value 1.
        fraction: Share of the maximum from which on a fractional segmentation counts.
        table: What the columns of tables are.
    """

    label_set: str = "seg"
    structures: tuple[str, ...] | None = None
    fraction: float | None = None
    table: TableChoice = field(default_factory=TableChoice)


@dataclass(frozen=True)
class ReadTask:
    """Read one file of annotations.

    Args:
        source: The file.
        kind: Which reader (`formats.labels.recognise`).
        choice: Choice of the user.
        known: `names_of` the images at hand, for tables whose key column has no known name.
        is_named: The user has named the file itself, not a folder that it lies in.
    """

    source: Source
    kind: AnnotationKind
    choice: Choice = field(default_factory=Choice)
    known: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_named: bool = True


@dataclass(frozen=True)
class Annotation:
    """One label of a file; masks are left in the file and read again where they are put on a grid.

    Args:
        sources: Sources of a mask: which of its sources (`MaskLabel.sources`) are meant; None: all its marks.
        flaws: What there is to say about whose it is.
    """

    source: Source
    kind: AnnotationKind
    index: int
    label: Label
    sources: frozenset[int] | None = None
    flaws: tuple[Flaw, ...] = ()

    @property
    def rows(self) -> frozenset[int]:
        """Rows of the file that give it; a label without rows counts as one of its own."""
        label_rows = () if isinstance(self.label, MaskLabel) else self.label.rows
        return frozenset(label_rows or (-1 - self.index,))


@dataclass(frozen=True)
class AnnotationFile:
    """What a file holds, and what of it was refused or left out when it was read."""

    annotations: tuple[Annotation, ...]
    reading: Reading

    @property
    def num_rows(self) -> int:
        """Number of rows of all labels and of what was refused; a row that gives several labels counts once."""
        rows = {row for annotation in self.annotations for row in annotation.rows}
        refused = [one.row for one in self.reading.refused if one.code != "E_LABEL_COLUMN"]
        return len(rows | set(filter(None, refused))) + refused.count(0) + self.reading.num_silent


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
        num_unmatched: Number, for each file, of its labels, of its rows, or of the images that they were drawn on, that
            are not here.
        undecided: Annotations with the images that they may belong to: to one of them.
        refused: Annotations of which nobody can tell which images they mean, and why.
    """

    pairs: tuple[tuple[Annotation, StoredImage], ...]
    num_unmatched: Mapping[Source, int]
    undecided: tuple[tuple[Annotation, tuple[StoredImage, ...]], ...] = ()
    refused: tuple[tuple[Annotation, Failure], ...] = ()

    def tasks(self, cache_root: Path, choice: Choice, *, dry_run: bool = False) -> list[AnnotationTask]:
        """Work for children: all labels of an item in order, so that the first of two wins whatever the number of
        workers; masks item by item, boxes and findings by the hundred."""
        masks: dict[str, list[tuple[Annotation, StoredImage]]] = defaultdict(list)
        small: dict[str, list[tuple[Annotation, StoredImage]]] = defaultdict(list)
        for pair in self.pairs:
            (masks if isinstance(pair[0].label, MaskLabel) else small)[pair[1].item_id].append(pair)
        batches: list[list[tuple[Annotation, StoredImage]]] = list(masks.values())
        batch: list[tuple[Annotation, StoredImage]] = []
        for pairs in small.values():
            batch += pairs
            if len(batch) >= PAIRS_PER_TASK:
                batches.append(batch)
                batch = []
        return [AnnotationTask(tuple(pairs), cache_root, choice, dry_run) for pairs in (*batches, batch) if pairs]


@as_values
def read_annotations(task: ReadTask) -> AnnotationFile:
    """What one file holds, in a child."""
    reading = _read(task.source, task.kind, task.choice, task.known, is_named=task.is_named)
    annotations = tuple(
        Annotation(
            task.source, task.kind, index, replace(label, painter=None) if isinstance(label, MaskLabel) else label
        )
        for index, label in enumerate(reading.labels)
    )
    return AnnotationFile(annotations, replace(reading, labels=()))


def match(annotations: Iterable[Annotation], images: Sequence[KnownImage], cache: Cache | None = None) -> Matches:
    """Find the images of annotations.

    Args:
        annotations: Annotations of all files.
        images: Images of this run, in the clear.
        cache: Where labels that arrive after their images find them, by pseudonym; None for a dry run without one.
    """
    index = Index(images, cache)
    pairs: list[tuple[Annotation, StoredImage]] = []
    undecided: list[tuple[Annotation, tuple[StoredImage, ...]]] = []
    refused: list[tuple[Annotation, Failure]] = []
    num_unmatched: dict[Source, int] = defaultdict(int)
    unmatched: dict[Source, set[int]] = defaultdict(set)
    for annotation in annotations:
        try:
            if annotation.kind in DRAWN_ON_IMAGES:
                found = _images_drawn_on(annotation, index)
                flaws = found.flaws_of_patient(index, annotation.label.reference)
                parts = [(replace(annotation, sources=part.sources, flaws=flaws), part.images) for part in found.parts]
                pairs += [(part, own[0]) for part, own in parts if len(own) == 1]
                undecided += [pair for pair in parts if len(pair[1]) > 1]
                num_unmatched[annotation.source] += found.num_unknown or not parts
                continue
            images_of_it = _images_of(annotation, index)
        except InputError as error:
            refused.append((annotation, Failure(error.code, error.message, error.hint)))
            continue
        pairs += [(annotation, image) for image in images_of_it]
        if not images_of_it:
            unmatched[annotation.source] |= annotation.rows
    parts_only = parts_of_one((one.source, one.label, image.item_id) for one, image in pairs)
    refused += [(pairs[position][0], PARTS_OF_ONE) for position in sorted(parts_only)]
    pairs = [pair for position, pair in enumerate(pairs) if position not in parts_only]
    counted = {source: number for source, number in num_unmatched.items() if number}
    counted |= {source: len(rows) for source, rows in unmatched.items()}
    return Matches(tuple(pairs), counted, tuple(undecided), tuple(refused))


def _images_drawn_on(annotation: Annotation, index: Index) -> ImagesOfMask:
    """Images that a label was drawn on, mark by mark."""
    sources = annotation.label.sources if isinstance(annotation.label, MaskLabel) else ()
    found = images_drawn_on(index, annotation.label.reference, sources)
    if found.is_ambiguous:
        raise InputError("E_LABEL_AMBIGUOUS", "it marks several images, and some marks do not name theirs")
    return found


def _images_of(annotation: Annotation, index: Index) -> list[StoredImage]:
    """Images that a label belongs to."""
    label, near = annotation.label, place_of(annotation.source).parent
    is_of_picture = isinstance(label, BoxLabel) and isinstance(label.placer, PictureBoxes)
    found = index.find(
        label.reference,
        label.size if isinstance(label, BoxLabel) else None,
        near,
        is_whole=isinstance(label, FindingsLabel),
    )
    if is_of_picture and len(found) > 1:
        raise InputError("E_LABEL_AMBIGUOUS", f"boxes of one picture, and {len(found)} images that are meant")
    return found


def fit_annotation(task: FitTask) -> list[int | Failure]:
    """How an annotation fits each of several images: how many of its parts do not, or why nothing does; in a child."""
    annotation = task.annotation
    labels = _read_again((annotation, task.choice))
    if isinstance(labels, Failure):
        return [labels] * len(task.images)
    return [_fit((labels.labels[annotation.index], annotation.sources, image)) for image in task.images]


@as_values
def _read_again(arguments: tuple[Annotation, Choice]) -> Reading:
    annotation, choice = arguments
    return _read(annotation.source, annotation.kind, choice, {})


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


def store_annotations(task: AnnotationTask) -> list[StoredLabel | Failure]:
    """Put annotations into the cache, or say why not, one answer for each pair; in a child."""
    return [_store((task, annotation, image)) for annotation, image in task.pairs]


def verdict(answers: Sequence[StoredLabel | Failure], num_unmatched: int) -> StoredLabel | Failure:
    """One answer for a file of masks.

    Args:
        answers: Outcomes of all pairs of its labels with images.
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


def _read(
    source: Source, kind: AnnotationKind, choice: Choice, known: Mapping[str, frozenset[str]], *, is_named: bool = True
) -> Reading:
    if kind == "seg":
        from medssl_cli.formats.labels.seg import read_seg

        return Reading((read_seg(source, structures=choice.structures, fraction=choice.fraction),))
    if kind == "rtstruct":
        from medssl_cli.formats.labels.rtstruct import read_rtstruct

        return Reading((read_rtstruct(source, structures=choice.structures),))
    if kind == "lidc":
        from medssl_cli.formats.labels.lidc import read_lidc

        return Reading(tuple(read_lidc(source)))
    if kind == "luna":
        from medssl_cli.formats.labels.luna import read_luna

        return read_luna(source)
    if kind == "coco":
        from medssl_cli.formats.labels.coco import read_coco

        return read_coco(source, default_size=choice.table.box_size)
    from medssl_cli.formats.labels.table import read_table

    return read_table(source, known=known, choice=choice.table, is_named=is_named)


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
    label = _read(annotation.source, annotation.kind, task.choice, {}).labels[annotation.index]
    if not isinstance(label, MaskLabel):
        raise AssertionError("the file changed its kind")
    painting = label.on_grid(image.shape, image.affine, annotation.sources)
    notes = [flaw for flaw in (*annotation.flaws, *painting.flaws) if not flaw.is_refusal]
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
    label = upright(label, image.orientation, image.shape)
    scaled = on_copy(label, image.shape, is_stretched=task.choice.table.are_copies_stretched)
    placed = scaled.to_grid(image.shape, image.affine)
    boxes = [Box.model_validate(vars(mark)) for mark in placed.boxes]
    found = ("W_LABEL_UNMATCHED",) * bool(placed.num_outside) + ("W_BOXES_SCALED",) * bool(scaled.size != label.size)
    said = f"from {_size(label.size)} to {_size(scaled.size)} pixels" if scaled.size != label.size else ""
    cache = Cache(task.cache_root)
    is_new = add_boxes(cache, image.item_id, task.choice.label_set, boxes, dry_run=task.dry_run)
    return StoredLabel(is_new, found, said)


def _size(size: tuple[int, int] | None) -> str:
    return "an unknown size" if size is None else f"{size[0]} x {size[1]}"


def _store_findings(task: AnnotationTask, label: FindingsLabel, image: StoredImage) -> StoredLabel:
    cache = Cache(task.cache_root)
    is_new = add_findings(cache, image.item_id, task.choice.label_set, label.findings, dry_run=task.dry_run)
    return StoredLabel(is_new, ())
