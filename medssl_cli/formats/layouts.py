"""The folder layouts in which people keep images and labels.

Known: `images/` beside `labels/` (or `masks/`, `segmentations/`), `imagesTr/` beside `labelsTr/` (and `Ts`, `Val`); a
`dataset.json` of the Medical Segmentation Decathlon or of nnU-Net (version 1 and 2, channels `_0000`, `_0001`, ...);
BIDS (`bids.py`); label maps beside their image (`beside.py`); one file per organ in `segmentations/` beside the only
image of a folder, as TotalSegmentator's. A zip archive counts as a folder.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from medssl_cli.errors import InputError
from medssl_cli.formats.beside import images_of_mask, is_mask_name, known_modality, modality_of_stem
from medssl_cli.formats.bids import BidsName, parse_place
from medssl_cli.formats.source import Source, place_of, read_bytes, stem_of
from medssl_cli.names import safe_name

__all__ = ["Arrangement", "DatasetJson", "ImageFile", "LabelFile", "arrange", "known_modality", "read_dataset_json"]

MAX_JSON_BYTES: Final = 64 * 2**20
_IMAGE_FOLDER: Final = re.compile(r"images?(?P<subset>tr|ts|val)?", re.IGNORECASE)
_LABEL_FOLDER: Final = re.compile(r"(labels?|masks?|segmentations?)(?P<subset>tr|ts|val)?", re.IGNORECASE)
_ORGAN_FOLDER: Final = re.compile(r"segmentations?", re.IGNORECASE)
_CHANNEL: Final = re.compile(r"_\d{4}$")
_SLICER_LABEL: Final = ".seg.nrrd"


@dataclass(frozen=True)
class ImageFile:
    """An image and what its surroundings say about it.

    Args:
        source: Where it is.
        stem: Its name without suffixes, and without its channel number if it has one.
        modality: If the surroundings say it.
        patient: If the layout says it (BIDS), in the clear.
    """

    source: Source
    stem: str
    modality: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """A label map and the images that it may belong to; each must still lie on the same grid.

    Args:
        source: Where it is.
        images: Several for several channels; none if it has lost its image.
        classes: Names of its values, if declared.
        class_name: It marks this one class with any value but 0; files of the same image with class names make up one
            label set.
    """

    source: Source
    images: tuple[Source, ...]
    classes: dict[int, str] | None = None
    class_name: str | None = None


@dataclass(frozen=True)
class Arrangement:
    """Images and labels of an input, and the files that a layout says are neither, with a code."""

    images: list[ImageFile] = field(default_factory=list)
    labels: list[LabelFile] = field(default_factory=list)
    skipped: list[tuple[Source, str]] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetJson:
    """What a `dataset.json` declares: names of label values, the modality of each channel, and whether file names
    must end in a channel number (nnU-Net 2)."""

    folder: Path
    classes: dict[int, str]
    modalities: dict[int, str]
    has_channels: bool = False


def read_dataset_json(source: Source) -> DatasetJson | None:
    """A data set's description; None if the file is something else or unreadable."""
    try:
        document = json.loads(read_bytes(source, max_bytes=MAX_JSON_BYTES))
        labels = document["labels"]
        channels = document.get("channel_names", document.get("modality", {}))
        if not (isinstance(labels, dict) and isinstance(channels, dict)):
            return None
        modalities = {int(index): known_modality(str(name)) for index, name in channels.items()}
        known = {index: name for index, name in modalities.items() if name}
        return DatasetJson(place_of(source).parent, _classes(labels), known, has_channels="channel_names" in document)
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _classes(labels: dict[str, Any]) -> dict[int, str]:
    """Both directions occur: `{"1": "liver"}` (MSD, nnU-Net 1) and `{"liver": 1}` (nnU-Net 2); regions are left out."""
    is_by_value = all(str(key).isdigit() for key in labels)
    pairs = [(key, name) if is_by_value else (name, key) for key, name in labels.items()]
    return {int(value): safe_name(str(name)) for value, name in pairs if not isinstance(value, list) and int(value)}


def arrange(
    sources: Iterable[Source], datasets: Iterable[DatasetJson] = (), *, roots: Iterable[Path] = ()
) -> Arrangement:
    """Tell images from labels and find which belong together.

    Args:
        sources: Files of one image or label map each: NIfTI, NRRD, MetaImage, pictures.
        datasets: Descriptions found beside them; the nearest one above a file counts.
        roots: The inputs. Folders above them do not count: a home directory may be called anything.
    """
    top = set(roots)
    arrangement = Arrangement()
    by_bids: list[tuple[Source, BidsName]] = []
    files: list[_File] = []
    folders: dict[str, _Folder] = {}
    for source in sources:
        place = place_of(source)
        parent, stem = str(place.parent), stem_of(place.name)
        if place in top:
            folder = _folder(place, top)
        else:
            folder = folders.get(parent) or folders.setdefault(parent, _folder(place, top))
        is_paired = folder.is_label or folder.is_in_images
        if not is_paired and (name := parse_place(place, stem, folder.floor)):
            by_bids.append((source, name))
        else:
            files.append(_File(source, place, parent, stem, folder))
    _arrange_bids(by_bids, arrangement)
    _arrange_folders(files, {dataset.folder: dataset for dataset in datasets}, arrangement)
    return arrangement


def _arrange_bids(files: Sequence[tuple[Source, BidsName]], arrangement: Arrangement) -> None:
    images: dict[object, list[Source]] = defaultdict(list)
    for source, name in files:
        if name.is_derived:
            arrangement.skipped.append((source, "S_DERIVED"))
        elif not name.is_label:
            images[name.key].append(source)
            stem = stem_of(place_of(source).name)
            arrangement.images.append(ImageFile(source, stem, name.modality, name.subject))
    for source, name in files:
        if name.is_label:
            arrangement.labels.append(LabelFile(source, tuple(images.get(name.key, ())) if name.key else ()))


def _arrange_folders(files: Sequence["_File"], datasets: dict[Path, DatasetJson], arrangement: Arrangement) -> None:
    beside = _beside(files)
    labelled = {image for found in beside.values() for image in found}
    label_keys = {file.key for file in files if file.folder.is_label}
    images: dict[tuple[str, str], list[Source]] = defaultdict(list)
    folders: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        if file.folder.is_label or file.source in beside:
            continue
        dataset = _nearest(file.place, datasets)
        short = file.folder.key, _CHANNEL.sub("", file.stem) or file.stem
        is_declared = short in label_keys or bool(dataset and dataset.has_channels)
        is_channel = short != file.key and file.key not in label_keys and is_declared
        images[short if is_channel else file.key].append(file.source)
        folders[file.parent].append(file)
        arrangement.images.append(
            _image_file(file, dataset, is_channel=is_channel, is_labelled=file.source in labelled)
        )
    for file in files:
        if not (file.folder.is_label or file.source in beside):
            continue
        found: tuple[Source, ...] = beside[file.source] if file.source in beside else tuple(images.get(file.key, ()))
        dataset, organ = _nearest(file.place, datasets), None
        if not found and file.folder.is_label and _ORGAN_FOLDER.fullmatch(file.place.parent.name):
            found = _only_image(folders.get(str(file.place.parent.parent), ()))
            organ = safe_name(file.stem) if found else None
        classes = dataset.classes if dataset and dataset.classes and organ is None else None
        arrangement.labels.append(LabelFile(file.source, found, classes, organ))


def _beside(files: Sequence["_File"]) -> dict[Source, tuple[Source, ...]]:
    """Files that their names make label maps of others in the same folder, or of none."""
    folders: dict[str, dict[str, list[_File]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        if not file.folder.is_label and not file.is_slicer_label:
            folders[file.parent][file.stem.lower()].append(file)
    beside: dict[Source, tuple[Source, ...]] = {}
    for file in files:
        if file.folder.is_label:
            continue
        stems = folders.get(file.parent, {})
        lower = file.stem.lower()
        names = (lower,) if file.is_slicer_label and lower in stems else images_of_mask(lower, stems)
        if names or file.is_slicer_label or (is_mask_name(lower) and not file.folder.is_in_images):
            beside[file.source] = tuple(image.source for name in names for image in stems[name])
    return {label: tuple(image for image in images if image not in beside) for label, images in beside.items()}


def _only_image(files: Sequence["_File"]) -> tuple[Source, ...]:
    """The only image of a folder, or the only one that is named after its modality."""
    named = [file for file in files if modality_of_stem(file.stem)]
    chosen = files if len(files) == 1 else named
    return (chosen[0].source,) if len(chosen) == 1 else ()


def _nearest(path: Path, by_folder: dict[Path, DatasetJson]) -> DatasetJson | None:
    return next((by_folder[folder] for folder in path.parents if folder in by_folder), None) if by_folder else None


def _image_file(file: "_File", dataset: DatasetJson | None, *, is_channel: bool, is_labelled: bool) -> ImageFile:
    modalities = dataset.modalities if dataset else {}
    if is_channel:
        return ImageFile(file.source, _CHANNEL.sub("", file.stem), modalities.get(int(file.stem[-4:])))
    declared = next(iter(modalities.values())) if len(modalities) == 1 else None
    modality = declared or modality_of_stem(file.stem, is_last_word_enough=is_labelled)
    return ImageFile(file.source, file.stem, modality)


@dataclass(frozen=True, slots=True)
class _File:
    """A file in its folder.

    Args:
        source: The file.
        place: Where it lies.
        parent: The folder, as text.
        stem: Its name without suffixes.
        folder: What the folder's name says.
    """

    source: Source
    place: Path
    parent: str
    stem: str
    folder: "_Folder"

    @property
    def key(self) -> tuple[str, str]:
        """What it shares with its image or label."""
        return self.folder.key, self.stem

    @property
    def is_slicer_label(self) -> bool:
        """By the double suffix of 3D Slicer's segmentations."""
        return self.place.name.lower().endswith(_SLICER_LABEL)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder of files.

    Args:
        key: Its path, with the word for images or labels replaced.
        is_label: It is or lies in a folder of labels.
        is_in_images: It is or lies in a folder of images.
        floor: How many of its outermost parts lie above the input.
    """

    key: str
    is_label: bool
    is_in_images: bool
    floor: int


def _folder(place: Path, roots: set[Path]) -> _Folder:
    """The folder of a file."""
    parts = place.parent.parts
    floor = min((_depth(root, place) for root in (place, *place.parents) if root in roots), default=0)
    for index in range(len(parts) - 1, floor - 1, -1):
        for pattern, is_label in ((_LABEL_FOLDER, True), (_IMAGE_FOLDER, False)):
            if match := pattern.fullmatch(parts[index]):
                subset = f"*{(match['subset'] or '').lower()}"
                key = PurePath(*parts[:index], subset, *parts[index + 1 :])
                return _Folder(str(key), is_label, not is_label, floor)
    return _Folder(str(place.parent), False, False, floor)


def _depth(root: Path, place: Path) -> int:
    """Index of the root's own name among the folders above a file; of the file's folder if the root is the file."""
    return len(root.parts) - (2 if root == place else 1)
