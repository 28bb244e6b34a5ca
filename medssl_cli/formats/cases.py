"""Which images are channels of one case, and what the case is called.

A description or BIDS says it. Elsewhere several images are channels of one case if they share a label map, or if they
lie in one folder and their names are equal but for the word of a channel (`X_flair`, `X_t1ce`; `X-t1n`, `X-t2f`). A
case is called after its name and the two folders above it, so that its images find together when they come in one
after the other, from wherever the folders are mounted.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final

from medssl_cli.formats.arrangement import Arrangement, ImageFile, LabelFile
from medssl_cli.formats.bids import BidsName, set_names
from medssl_cli.formats.name_words import (
    CHANNELS,
    channel_of_stem,
    channel_word,
    modality_of_channel,
    modality_of_stem,
    same_channel,
)
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import stem_of

_LEVELS: Final = 2
_SKELETON: Final = re.compile(
    r"(?:vsd|smir)\.brain[^.]*(?:\..+)?\.(?:(?:mr|ct)_(?P<channel>[a-z0-9]+)|ot)\.\d+", re.IGNORECASE
)
"""Files of the Virtual Skeleton Database, each in a folder of its own name: images `VSD.Brain.XX.O.MR_Flair.70616` and
label maps `VSD.Brain_3more.XX.O.OT.54517` (BraTS 2013 and 2015, ISLES 2015 to 2018)."""
_VISITS: Final = frozenset({"t1", "t2"})
"""`P1_t1` and `P1_t2` alone may be two visits."""


def example_of(folder: PurePath, case: str) -> str:
    """What a case is called, in the clear.

    Args:
        folder: Where its images lie.
        case: Its name there; "" if it is called after the folder.
    """
    names = [part for part in folder.parts if part != folder.anchor]
    return "/".join((*names[-_LEVELS:], case))


@dataclass(frozen=True)
class Hint:
    """What a name says about an image, if the image is one of several of its case.

    Args:
        channel: A word of the closed list.
        folder: Where the images of the case lie.
        case: Its name in the folder; "" if it is called after the folder.
    """

    channel: str
    folder: PurePath
    case: str

    @property
    def example(self) -> str:
        """What the case is called."""
        return example_of(self.folder, self.case)


def hint_of(place: PurePath, stem: str) -> Hint | None:
    """The channel and case that a name states; None if its last word is no channel.

    Args:
        place: The file.
        stem: Its name without suffixes.
    """
    if match := _SKELETON.fullmatch(stem):
        channel = channel_word(match["channel"] or "")
        return Hint(channel, _skeleton_case(place), "") if channel else None
    found = channel_of_stem(stem)
    return Hint(found[1], place.parent, found[0]) if found else None


def truth_folder(place: PurePath, stem: str) -> PurePath | None:
    """Folder of the case of a label map of the Virtual Skeleton Database; None of anything else."""
    match = _SKELETON.fullmatch(stem)
    return _skeleton_case(place) if match and match["channel"] is None else None


def _skeleton_case(place: PurePath) -> PurePath:
    """The nearest folder that holds more than one file."""
    return next((folder for folder in place.parents if not _SKELETON.fullmatch(folder.name)), place.parent)


def _hint_of_folder(place: PurePath, stem: str) -> Hint | None:
    """The same of a file in a folder that is named after a channel, as `flair/P1`."""
    channel = channel_word(place.parent.name)
    return Hint(channel, place.parent.parent, stem) if channel else None


def example_below(source: Source, roots: set[Path], stem: str, channel: str) -> str:
    """What the case of an image is called whose channel the user has named: its place below the input.

    Images of one case have equal places below the folders of their channels.

    Args:
        source: The image.
        roots: The inputs.
        stem: Its name, with or without the word of the channel at its end.
        channel: As the user has named it.
    """
    place = place_of(source)
    root = next((folder for folder in reversed(place.parents) if folder in roots), place.parent)
    found = channel_of_stem(stem)
    case = found[0] if found and found[1] == channel else stem
    return (place.parent.relative_to(root) / case).as_posix()


def hint_of_folder(folder: PurePath) -> Hint | None:
    """The channel of a folder that is called like one, `CASE/flair`, whose case is the folder above it."""
    channel = same_channel(folder.name)
    return Hint(channel, folder.parent, "") if channel in CHANNELS else None


def name_cases(arrangement: Arrangement) -> None:
    """Give the images of an arrangement that are channels of one case their channels and the name of the case."""
    images = {image.source: image for image in arrangement.images}
    hints = {
        source: hint
        for source, image in images.items()
        if image.channel is None and not image.parts and (hint := hint_of(place_of(source), image.stem))
    }
    labelled = [label.images for label in arrangement.labels if len(label.images) > 1]
    groups = [*labelled, *_of_one_example(arrangement.images), *_of_one_name(hints)]
    siblings = {source for group in groups for source in group}
    for index, image in enumerate(arrangement.images):
        if image.source in siblings:
            hint = hints.get(image.source) or _hint_of_folder(place_of(image.source), image.stem)
            arrangement.images[index] = _as_channel(image, hint)


def _of_one_example(images: Iterable[ImageFile]) -> list[list[Source]]:
    examples: dict[tuple[str | None, str], list[Source]] = defaultdict(list)
    for image in images:
        if image.example is not None:
            examples[image.patient, image.example].append(image.source)
    return [sources for sources in examples.values() if len(sources) > 1]


def _of_one_name(hints: dict[Source, Hint]) -> list[list[Source]]:
    """Images whose names are equal but for the word of a channel."""
    cases: dict[tuple[PurePath, str], dict[Source, str]] = defaultdict(dict)
    for source, hint in hints.items():
        cases[hint.folder, hint.case.lower()][source] = hint.channel
    return [[*case] for case in cases.values() if len({*case.values()}) > 1 and not {*case.values()} <= _VISITS]


def _as_channel(image: ImageFile, hint: Hint | None) -> ImageFile:
    if hint is None or image.channel is not None or image.parts:
        return replace(image, has_siblings=True)
    return replace(
        image,
        has_siblings=True,
        channel=hint.channel,
        stem=hint.case or image.stem,
        modality=image.modality or modality_of_channel(hint.channel) or modality_of_stem(image.stem),
        example=image.example or hint.example,
    )


def arrange_bids(files: Sequence[tuple[Source, BidsName]], arrangement: Arrangement) -> None:
    """Add the files of BIDS to an arrangement."""
    images: dict[object, list[Source]] = defaultdict(list)
    labels: dict[PurePath, list[BidsName]] = defaultdict(list)
    for source, name in files:
        if name.is_derived:
            arrangement.skipped.append((source, "S_DERIVED"))
        elif name.is_label:
            labels[name.dataset].append(name)
        else:
            for key in name.keys:
                images[key].append(source)
            stem = stem_of(place_of(source).name)
            channel = name.channel if name.channel in CHANNELS else None
            arrangement.images.append(
                ImageFile(source, stem, name.modality, name.subject, channel, example=name.example)
            )
    sets = {dataset: set_names(names) for dataset, names in labels.items()}
    for source, name in files:
        if name.is_label:
            found = tuple(images.get(name.keys[0], ()))
            set_name = sets[name.dataset][name.family]
            label = LabelFile(source, found, class_name=name.class_name, set_name=set_name, names_below=name.top)
            arrangement.labels.append(label)
