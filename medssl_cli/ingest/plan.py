"""From an arrangement of files to the tasks of the child processes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final

from medssl_cli.formats.cases import example_below
from medssl_cli.formats.given_channels import GivenChannels
from medssl_cli.formats.layouts import Arrangement, ImageFile, LabelFile
from medssl_cli.formats.partners import numbered
from medssl_cli.formats.patients import one_by_number, patient_of_study, patients_of
from medssl_cli.formats.picture_stacks import PictureStack, stacks_of
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import image_formats
from medssl_cli.ingest.options import IngestOptions
from medssl_cli.ingest.report import ReportBuilder
from medssl_cli.ingest.tasks import ImageTask, LabelTask, StoredImage

if TYPE_CHECKING:
    from medssl_cli.formats.series import SeriesPart

VOLUMETRIC: Final = ("CT", "MR", "PT")


def plan_files(
    images: Iterable[ImageFile],
    arrangement: Arrangement,
    roots: Sequence[Path],
    cache_root: Path,
    options: IngestOptions,
    builder: ReportBuilder,
) -> list[ImageTask]:
    """A task for each image that is a file of its own.

    Args:
        images: Images to be read.
        arrangement: All files of the input: names are compared to tell patients apart.
        roots: The inputs.
        cache_root: Folder of an existing cache.
        options: Options of the ingest.
        builder: Knows the kind of each file.
    """
    images = list(images)
    own = {image.source for image in images}
    images, stacks = _stacked(images, options.policy, builder)
    known = [image for image in arrangement.images if image.source not in own]
    patients = patients_of([*images, *known], roots, options.patient_pattern)
    crowd = one_by_number(images, patients) if options.patient_pattern is None else set()
    given = options.given
    modalities = {image.source: image.modality or options.modality or "unknown" for image in images}
    slices = _slices([image for image in images if image.source not in stacks], modalities, builder)
    return [
        ImageTask(
            stacks.get(image.source, image.source),
            builder.kind(image.source),
            cache_root,
            options.policy,
            modality=modalities[image.source],
            patient=patients[image.source],
            stem=image.stem,
            channel=image.channel if image.parts else given.channel_of(image.source, image.channel),
            parts=image.parts,
            example=_example(image, set(roots), given),
            notes=(
                *(("W_CHANNELS",) if image.has_siblings else ()),
                *(("W_PICTURE_SLICE",) if image.source in slices else ()),
                *(("W_ONE_PATIENT",) if image.source in crowd else ()),
            ),
            partners=() if image.source in stacks else image.partners,
            dry_run=options.dry_run,
        )
        for image in images
    ]


def patients_of_studies(
    parts: Iterable["SeriesPart"], roots: Sequence[Path], options: IngestOptions
) -> dict[str, str | None]:
    """Patients of DICOM studies whose headers name none, by what the user says about names of files.

    Args:
        parts: Images of all series.
        roots: The inputs.
        options: Options of the ingest.

    Returns:
        By study; nothing without a pattern.
    """
    studies: dict[str, list[Source]] = defaultdict(list)
    for part in parts if options.patient_pattern is not None else ():
        if part.identity.patient is None:
            studies[part.identity.study] += part.sources
    pattern = options.patient_pattern or ""
    return {study: patient_of_study(sources, roots, pattern) for study, sources in studies.items()}


def _stacked(
    images: list[ImageFile], policy: Policy, builder: ReportBuilder
) -> tuple[list[ImageFile], dict[Source, PictureStack]]:
    """Images with one for each stack of pictures, called after its folder; and the stacks by their first pictures."""
    if not policy.stack_pictures:
        return images, {}
    formats = image_formats()
    pictures = [image.source for image in images if formats[builder.kind(image.source)].is_flat]
    stacks = {stack.sources[0]: stack for stack in stacks_of(pictures, min_slices=policy.min_slices)}
    inner = {source for stack in stacks.values() for source in stack.sources[1:]}
    kept = [image for image in images if image.source not in inner]
    named = [_of_folder(image, stacks[image.source].folder) if image.source in stacks else image for image in kept]
    return named, stacks


def _of_folder(image: ImageFile, folder: PurePath) -> ImageFile:
    """A stack of pictures in `patient/scan`, where both are numbers, is the patient's."""
    patient = folder.parent.name if folder.name.isdecimal() and folder.parent.name.isdecimal() else None
    return ImageFile(image.source, folder.name, image.modality, patient=image.patient or patient)


def _example(image: ImageFile, roots: set[Path], given: GivenChannels) -> str | None:
    """What the case of an image is called, if a layout or the user says that it is one of several channels."""
    place = given.at(image.source)
    if place is not None and not image.parts:
        return example_below(image.source, {place[1]}, image.stem, place[0])
    if image.example is not None or not given.of_all or image.channel is not None or image.parts:
        return image.example
    return example_below(image.source, roots, image.stem, given.of_all)


def _slices(images: Iterable[ImageFile], modalities: Mapping[Source, str], builder: ReportBuilder) -> set[Source]:
    """Pictures that may be slices of a volume: by their modality, or by their numbers where nobody knows it."""
    formats = image_formats()
    pictures = [image for image in images if formats[builder.kind(image.source)].is_flat]
    unknown = [image for image in pictures if modalities[image.source] == "unknown"]
    in_a_row = numbered((image.source, place_of(image.source).parent.parts, image.stem) for image in unknown)
    return in_a_row | {image.source for image in pictures if modalities[image.source] in VOLUMETRIC}


def label_tasks(
    labels: Iterable[LabelFile],
    stored: Mapping[Source, tuple[StoredImage, ...]],
    cache_root: Path,
    options: IngestOptions,
    builder: ReportBuilder,
) -> tuple[list[LabelTask], list[LabelFile], dict[Source, int]]:
    """A task for all label maps of one item, so that no two processes change one record.

    Args:
        labels: Label maps and the files of their images.
        stored: What became of those files.
        cache_root: Folder of an existing cache.
        options: Options of the ingest.
        builder: Knows the kind of each file.

    Returns:
        Tasks, labels without an image, and for each other label the number of items that it belongs to.
    """
    by_item: dict[str, list[tuple[LabelFile, StoredImage]]] = defaultdict(list)
    orphans: list[LabelFile] = []
    num_items: dict[Source, int] = {}
    for label in labels:
        images = {image.item_id: image for source in label.images for image in stored.get(source, ())}
        for image in images.values():
            by_item[image.item_id].append((label, image))
        if images:
            num_items[label.source] = len(images)
        else:
            orphans.append(label)
    tasks = [
        LabelTask(
            tuple((label, builder.kind(label.source)) for label, _ in members),
            members[0][1],
            cache_root,
            options.label_set,
            options.policy,
            options.overlap,
            dry_run=options.dry_run,
        )
        for members in by_item.values()
    ]
    return tasks, orphans, num_items
