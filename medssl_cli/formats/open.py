"""The one way to images, for whoever wants them: every format, with the same repairs, refusals and notes.

A file is opened by its kind, which `discover` says; DICOM files are put together first (`formats.series`), and their
parts are opened here as well.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medssl_cli.base.errors import InputError
from medssl_cli.formats.discover import HEAD_BYTES
from medssl_cli.formats.image_notes import notes_about
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.picture_stacks import PictureStack, read_stack
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.sniff import sniff
from medssl_cli.formats.source import Member, Source, read_head
from medssl_cli.formats.table import Announced, image_formats

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart


@dataclass(frozen=True)
class Surroundings:
    """What is known about a file from elsewhere. It counts for what the file does not say itself.

    Args:
        modality: Modality of its images.
        modalities: Modalities of each of several images of the file, "" where it is `modality`; they count if they are
            as many.
        patient: Whose it is, in the clear; None if nothing says.
        study: The best substitute for a study; "" for the name of the file.
        notes: `W_` codes that its place gives rise to.
    """

    modality: str = "unknown"
    modalities: tuple[str, ...] = ()
    patient: str | None = None
    study: str = ""
    notes: tuple[str, ...] = ()


NOTHING_KNOWN = Surroundings()


def open_images(
    source: "Source | SeriesPart | PictureStack",
    policy: Policy = STRICT,
    *,
    kind: str = "",
    around: Surroundings = NOTHING_KNOWN,
    is_label: bool = False,
) -> list[LoadedImage]:
    """Read all images of a file, or the one of a series part; none if one of them cannot be trusted.

    Args:
        source: A file, or the slices or pictures that make one image.
        policy: What is accepted and repaired.
        kind: Kind of a file, as `discover` says; by default its first bytes are looked at.
        around: What else is known about a file.
        is_label: It is a label map: nothing is resampled, filled in or noted about its values.

    Raises:
        InputError: It cannot be trusted.
        ValueError: No file of the kind is an image by itself.
    """
    if isinstance(source, PictureStack):
        stack = read_stack(source, modality=around.modality, policy=policy)
        return [_with_notes(_placed(stack, around, around.modality), around.notes)]
    if not isinstance(source, Path | Member):
        from medssl_cli.formats.dicom import read_series

        return [_with_notes(read_series(source, policy), ())]
    kind = kind or sniff(read_head(source, HEAD_BYTES), source.name, policy)[0]
    read = image_formats()[kind].read if kind in image_formats() else None
    if read is None:
        raise ValueError(f"no file of the kind {kind!r} is an image by itself")
    images = read(source, modality=around.modality, policy=policy, is_label=is_label)
    if is_label:
        return list(images)
    modalities = around.modalities if len(around.modalities) == len(images) else ("",) * len(images)
    placed = [_placed(image, around, modality) for image, modality in zip(images, modalities, strict=True)]
    return [_with_notes(image, around.notes) for image in placed]


def count_images(source: Source, kind: str, policy: Policy = STRICT) -> int:
    """How many images a file gives, by its header alone; 1 where the reader will refuse it."""
    count = image_formats()[kind].count
    return 1 if count is None else count(source, policy)


def announced(source: "Source | SeriesPart | PictureStack", kind: str, policy: Policy = STRICT) -> Announced | None:
    """What headers announce about an image, so that one which cannot fit is refused before its voxels are read.

    Args:
        source: A file, or what makes one image.
        kind: Kind of the file or files.
        policy: What is accepted and repaired.

    Returns:
        None where only reading tells, and where reading will say what is wrong.
    """
    tell = image_formats()[kind].announced
    if tell is None or isinstance(source, PictureStack):
        return None
    try:
        return tell(source, policy)
    except InputError:
        return None


def files_of(source: "Source | SeriesPart | PictureStack", kind: str, policy: Policy = STRICT) -> tuple[Source, ...]:
    """All files that an image is read from, whether they are there or not; of a header also the one with its voxels.

    Raises:
        InputError: The codes of reading files.
    """
    if not isinstance(source, Path | Member):
        return source.sources
    companions = image_formats()[kind].companions
    return (source, *(companions(source, policy) if companions is not None else ()))


def needs_decoder(source: "Source | SeriesPart | PictureStack", kind: str) -> bool:
    """Whether foreign code decodes the voxels, which belongs into a process of its own."""
    if isinstance(source, Path | Member):
        return image_formats()[kind].has_foreign_decoder
    if isinstance(source, PictureStack):
        return True
    from medssl_cli.formats import dicom

    return dicom.needs_decoder(source)


def value_names(source: Source, kind: str) -> dict[int, str]:
    """Names that a label map gives to its own values; empty if its format has none.

    Raises:
        InputError: They contradict each other, and the codes of reading files.
    """
    names = image_formats()[kind].value_names
    return {} if names is None else dict(names(source))


def _placed(image: LoadedImage, around: Surroundings, modality: str) -> LoadedImage:
    """An image with what its surroundings say about it, as far as it does not say it itself."""
    if image.states_modality:
        return image
    identity = replace(image.identity, patient=around.patient, study=around.study or image.identity.study)
    volume = image.volume
    if modality not in ("", volume.modality):
        volume = replace(volume, modality=modality, units="HU" if modality == "CT" else "a.u.")
    return replace(image, identity=identity, volume=volume)


def _with_notes(image: LoadedImage, notes: tuple[str, ...]) -> LoadedImage:
    """An image with notes from elsewhere and those that its voxels give rise to, each once."""
    return replace(image, warnings=tuple(dict.fromkeys((*image.warnings, *notes, *notes_about(image)))))
