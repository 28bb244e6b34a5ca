"""The folder layouts in which people keep images and labels.

Known: `images/` beside `labels/`, `imagesTr/` beside `labelsTr/` (and `Ts`, `Val`), and a `dataset.json` of the
Medical Segmentation Decathlon or of nnU-Net (version 1 and 2, channels `_0000`, `_0001`, ...).
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from medssl_cli.formats.nifti import stem_of

MAX_JSON_BYTES: Final = 64 * 2**20
_IMAGE_FOLDER = re.compile(r"images?(tr|ts|val)?", re.IGNORECASE)
_LABEL_FOLDER = re.compile(r"labels?(tr|ts|val)?", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")
_MODALITIES: Final = {
    "ct": "CT", "mr": "MR", "mri": "MR", "cinemri": "MR", "t1": "MR", "t1w": "MR", "t1c": "MR", "t1ce": "MR",
    "t1gd": "MR", "t2": "MR", "t2w": "MR", "flair": "MR", "adc": "MR", "dwi": "MR", "pd": "MR", "pet": "PT", "pt": "PT",
}  # fmt: skip


@dataclass(frozen=True)
class ImageFile:
    """An image and what its surroundings say about it."""

    path: Path
    stem: str
    modality: str | None = None


@dataclass(frozen=True)
class LabelFile:
    """A label map, its images (several for several channels), and the names of its values if declared."""

    path: Path
    images: tuple[Path, ...]
    classes: dict[int, str] | None = None


@dataclass(frozen=True)
class Arrangement:
    """Images and labels of an input."""

    images: list[ImageFile] = field(default_factory=list)
    labels: list[LabelFile] = field(default_factory=list)


@dataclass(frozen=True)
class DatasetJson:
    """What a `dataset.json` declares: names of label values, the modality of each channel, and whether file names
    must end in a channel number (nnU-Net 2)."""

    folder: Path
    classes: dict[int, str]
    modalities: dict[int, str]
    has_channels: bool = False


def read_dataset_json(path: Path) -> DatasetJson | None:
    """A data set's description; None if the file is something else or unreadable."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        document = json.loads(path.read_bytes())
        labels = document["labels"]
        channels = document.get("channel_names", document.get("modality", {}))
        if not (isinstance(labels, dict) and isinstance(channels, dict)):
            return None
        modalities = {int(index): known_modality(str(name)) for index, name in channels.items()}
        known = {index: name for index, name in modalities.items() if name}
        return DatasetJson(path.parent, _classes(labels), known, has_channels="channel_names" in document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _classes(labels: dict[str, Any]) -> dict[int, str]:
    """Both directions occur: `{"1": "liver"}` (MSD, nnU-Net 1) and `{"liver": 1}` (nnU-Net 2); regions are left out."""
    is_by_value = all(str(key).isdigit() for key in labels)
    pairs = [(key, name) if is_by_value else (name, key) for key, name in labels.items()]
    return {int(value): _class_name(str(name)) for value, name in pairs if not isinstance(value, list) and int(value)}


def _class_name(name: str) -> str:
    """A class name becomes part of records and reports: letters, digits, space and `-_.+/` only, 64 at most."""
    return re.sub(r"[^\w .+/-]", "", name, flags=re.ASCII).strip()[:64] or "unnamed"


def known_modality(name: str) -> str:
    """DICOM modality of a channel's free-text name, or "" if it says nothing."""
    word = name.strip().lower()
    return _MODALITIES.get(word, "MR" if re.match(r"(mri?|t1|t2|flair)\b", word) else "")


def arrange(paths: Iterable[Path], datasets: Iterable[DatasetJson] = (), *, roots: Iterable[Path] = ()) -> Arrangement:
    """Tell images from labels and find which belong together.

    Args:
        paths: NIfTI files.
        datasets: Descriptions found beside them; the nearest one above a file counts.
        roots: The inputs. Folders above them do not count: a home directory may be called anything.
    """
    top = list(roots)
    places = {path: _place(path, top) for path in paths}
    by_folder = {dataset.folder: dataset for dataset in datasets}
    label_keys = {place.key for place in places.values() if place.is_label}
    images: dict[PurePath, list[Path]] = {}
    arrangement = Arrangement()
    for path, place in places.items():
        if place.is_label:
            continue
        dataset = _nearest(path, by_folder)
        key = place.key
        short = key.with_name(_CHANNEL.sub("", key.name) or key.name)
        is_channel = (
            short != key and key not in label_keys and (short in label_keys or bool(dataset and dataset.has_channels))
        )
        images.setdefault(short if is_channel else key, []).append(path)
        arrangement.images.append(_image_file(path, dataset, is_channel=is_channel))
    for path, place in places.items():
        if place.is_label:
            dataset = _nearest(path, by_folder)
            classes = dataset.classes if dataset and dataset.classes else None
            arrangement.labels.append(LabelFile(path, tuple(images.get(place.key, ())), classes))
    return arrangement


def _nearest(path: Path, by_folder: dict[Path, DatasetJson]) -> DatasetJson | None:
    return next((by_folder[folder] for folder in path.parents if folder in by_folder), None)


def _image_file(path: Path, dataset: DatasetJson | None, *, is_channel: bool) -> ImageFile:
    stem = stem_of(path.name)
    modalities = dataset.modalities if dataset else {}
    if is_channel:
        return ImageFile(path, _CHANNEL.sub("", stem), modalities.get(int(stem[-4:])))
    return ImageFile(path, stem, next(iter(modalities.values())) if len(modalities) == 1 else None)


@dataclass(frozen=True)
class _Place:
    """Whether a file is a label, and a key that it shares with its image: the path with the folder word replaced."""

    is_label: bool
    key: PurePath


def _place(path: Path, roots: list[Path]) -> _Place:
    parts = path.parent.parts
    floor = min((_depth(root, path) for root in roots if path.is_relative_to(root)), default=0)
    stem = stem_of(path.name)
    for index in range(len(parts) - 1, floor - 1, -1):
        for pattern, is_label in ((_LABEL_FOLDER, True), (_IMAGE_FOLDER, False)):
            if match := pattern.fullmatch(parts[index]):
                subset = f"*{(match[1] or '').lower()}"
                return _Place(is_label, PurePath(*parts[:index], subset, *parts[index + 1 :], stem))
    return _Place(False, path.parent / stem)


def _depth(root: Path, path: Path) -> int:
    """Index of the root's own name among the folders above a file; of the file's folder if the root is the file."""
    return len(root.parts) - (2 if root == path else 1)
