"""`dataset.json` and its relatives: which files are images, which labels, which belong together, what values mean.

Read are the descriptions of the Medical Segmentation Decathlon, of nnU-Net 1 and 2 (`channel_names`, `dataset`,
regions, `ignore`) and the lists of MONAI's tutorials (`dataset_0.json`, `datalist.json`, `brats21_folds.json`,
`train.json`). Paths are relative to the file; those of another machine count from the folder on that is there, and a
name counts without its suffix and without the number of a channel.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Final

from medssl_cli.base.classes import MAX_CLASSES, NOT_JUDGED
from medssl_cli.base.errors import InputError
from medssl_cli.base.names import unique_names
from medssl_cli.formats.name_words import channel_word, known_modality
from medssl_cli.formats.source import Source, place_of, read_bytes
from medssl_cli.formats.table import stem_of

MAX_JSON_BYTES: Final = 64 * 2**20
MAX_VALUE: Final = 65_535
CHANNEL: Final = re.compile(r"_\d{4}$")
_NAME: Final = re.compile(
    r"(?:(?:dataset|datalist)(?:[_-]?\w+)?|(?:\w+[_-])?(?:data_list|folds?|splits?|training|train|cases))\.json",
    re.IGNORECASE,
)
_LISTS: Final = ("training", "train", "validation", "val", "test", "testing")
_DRIVE: Final = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Listed:
    """One entry of a description: files of one case as they are written.

    Args:
        images: Several for several channels, in their order.
        label: None for an image without one.
    """

    images: tuple[str, ...]
    label: str | None = None


@dataclass(frozen=True)
class DatasetJson:
    """What a description declares.

    Args:
        folder: Where it lies.
        classes: Names of label values, `class_2` for one that only regions name; empty if it declares none.
        modalities: DICOM modality of each channel, where it is known.
        has_channels: File names must end in a channel number (nnU-Net 2).
        ignore: Value of voxels that nobody judged (nnU-Net 2); it is no class.
        channels: Word of each channel, where it is known.
        listed: Which files belong together.
        name: Name of the data set.
        fault: Code with which its labels are refused; "" if they can be named.
        regions: Values of each region by its name, regions of one value left out: they are classes.
    """

    folder: Path
    classes: dict[int, str]
    modalities: dict[int, str]
    has_channels: bool = False
    ignore: int | None = None
    channels: dict[int, str] | None = None
    listed: tuple[Listed, ...] = ()
    name: str = ""
    fault: str = ""
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def modality_of(self, stem: str) -> str | None:
        """Modality of an image of its own, where all are of one.

        AMOS declares CT and holds MR from number 501 on (Ji et al., NeurIPS 2022, data sheet).
        """
        number = re.fullmatch(r"amos_(\d{4})", stem) if self.name.upper().startswith("AMOS") else None
        if number and int(number[1]) > 500:
            return "MR"
        return next(iter(self.modalities.values())) if len(self.modalities) == 1 else None


def is_description(name: str) -> bool:
    """Whether a file of that name may describe a data set."""
    return _NAME.fullmatch(name) is not None


def read_dataset_json(source: Source) -> DatasetJson | None:
    """A data set's description; None if the file is something else or unreadable."""
    try:
        document = json.loads(read_bytes(source, max_bytes=MAX_JSON_BYTES))
        return _description(document, place_of(source).parent)
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _description(document: dict[str, Any], folder: Path) -> DatasetJson | None:
    listed = tuple(_listed(document))
    labels = document.get("labels", {} if listed else None)
    channels = document.get("channel_names", document.get("modality", {}))
    if not (isinstance(labels, dict) and isinstance(channels, dict)):
        return None
    names = {int(key) if str(key).isdigit() else at: str(name) for at, (key, name) in enumerate(channels.items())}
    if len(names) > 1 and 0 not in names:
        names = {}  # numbers of files begin at 0: whether these count from 1 or leave one out, nobody says
    modalities = {index: modality for index, name in names.items() if (modality := known_modality(name))}
    classes, regions, ignore, fault = _classes(labels)
    return DatasetJson(
        folder,
        classes,
        modalities,
        has_channels="channel_names" in document,
        ignore=ignore,
        channels=_channels(names),
        listed=listed,
        name=str(document.get("name", "")),
        fault=fault,
        regions=regions,
    )


def _channels(names: dict[int, str]) -> dict[int, str]:
    """Word of each channel; a number where the name has none, or the word of another (`T1 in phase`, `T1 out`)."""
    words = {index: channel_word(name) for index, name in names.items()}
    times = Counter(words.values())
    return {index: word if word and times[word] == 1 else f"c{index}" for index, word in words.items()}


def _classes(labels: dict[str, Any]) -> tuple[dict[int, str], dict[str, tuple[int, ...]], int | None, str]:
    """Names by value, values by region, the value of `ignore`, and a code if two names cannot be told apart.

    Both directions occur: `{"1": "liver"}` (MSD, nnU-Net 1) and `{"liver": 1}` (nnU-Net 2). A region is a list of
    values (nnU-Net 2, "Region-based training"): its values are declared, but only a region of one value names it.
    `regions_class_order` says in which order nnU-Net paints regions into one label map, and nothing about names.
    """
    is_by_value = all(str(key).isdigit() for key in labels)
    named: dict[int, str] = {}
    regions: dict[str, tuple[int, ...]] = {}
    declared: set[int] = set()
    ignore: int | None = None
    for key, content in labels.items():
        name, values = (str(content), key) if is_by_value else (str(key), content)
        numbers = [int(value) for value in (values if isinstance(values, list) else [values])]
        if name.lower() == NOT_JUDGED and len(numbers) == 1:
            ignore = numbers[0]
            continue
        declared.update(numbers)
        inside = tuple(sorted({*numbers} - {0}))
        if len(inside) > 1:
            regions[name] = inside
        elif inside and not isinstance(values, list):
            named[inside[0]] = name
        elif inside:
            named.setdefault(inside[0], name)
    if len(regions) > MAX_CLASSES:
        raise ValueError("more regions than a network has outputs")
    if any(not 0 <= value <= MAX_VALUE for value in declared):
        raise ValueError("a value that no label map holds")
    try:
        safe = unique_names([*named.values(), *regions])
    except InputError as error:
        return {}, {}, ignore, error.code
    names = dict(zip(named, safe, strict=False))
    classes = {value: names.get(value, f"class_{value}") for value in sorted(declared - {0})}
    return classes, dict(zip(safe[len(named) :], regions.values(), strict=True)), ignore, ""


def _listed(document: dict[str, Any]) -> Iterator[Listed]:
    """Entries of all lists, and of nnU-Net 2's `dataset`; what has another form is passed over."""
    cases = document.get("dataset")
    entries = [*cases.values()] if isinstance(cases, dict) else []
    for key in _LISTS:
        found = document.get(key)
        entries += found if isinstance(found, list) else []
    for entry in entries:
        if isinstance(entry, str):
            yield Listed((entry,))
        elif isinstance(entry, dict):
            images = _texts(entry.get("image", entry.get("images")))
            labels = _texts(entry.get("label", entry.get("mask", entry.get("seg"))))
            if images:
                yield Listed(images, labels[0] if len(labels) == 1 else None)


def _texts(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else [value]
    return tuple(text for text in texts if isinstance(text, str) and text)


class Files:
    """The files of an input, to find those that descriptions list.

    Args:
        sources: All of them.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._by_place: dict[str, list[Source]] = defaultdict(list)
        self._by_stem: dict[tuple[str, str], list[Source]] = defaultdict(list)
        self._by_channels: dict[tuple[str, str], list[Source]] = defaultdict(list)
        for source in sources:
            place = place_of(source)
            parent, stem = str(place.parent), stem_of(place.name).lower()
            self._by_place[str(place)].append(source)
            self._by_stem[parent, stem].append(source)
            if CHANNEL.search(stem):
                self._by_channels[parent, CHANNEL.sub("", stem)].append(source)

    def find(self, folder: PurePath, written: str) -> tuple[Source, ...]:
        """Files that a written path means: one, or all channels of an image; none if there is nothing like it."""
        parts = [part for part in _DRIVE.sub("", written.replace("\\", "/")).split("/") if part not in ("", ".")]
        while parts[:1] == [".."]:
            folder, parts = folder.parent, parts[1:]
        for first in range(len(parts)):
            place = folder.joinpath(*parts[first:])
            key = str(place.parent), stem_of(place.name).lower()
            for known in (self._by_place.get(str(place)), self._by_stem.get(key), self._by_channels.get(key)):
                if known:
                    return tuple(known)
        return ()


@dataclass(frozen=True)
class Listing:
    """What descriptions list, as sources.

    Args:
        labels: Labels with their images and the description.
        images: Images with their channel, None for the only one of a case.
        cases: Images that are listed as channels, with the first of their case.
        faults: Labels that cannot be believed, with a code.
    """

    labels: dict[Source, tuple[tuple[Source, ...], DatasetJson]] = field(default_factory=dict)
    images: dict[Source, int | None] = field(default_factory=dict)
    cases: dict[Source, Source] = field(default_factory=dict)
    faults: dict[Source, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Sequence[Source], datasets: Sequence[DatasetJson]) -> "Listing":
        """Look up everything that is listed; entries of files that are not there say nothing."""
        listing = cls()
        if not any(dataset.listed for dataset in datasets):
            return listing
        files = Files(sources)
        for dataset in datasets:
            for entry in dataset.listed:
                found = [files.find(dataset.folder, written) for written in entry.images]
                images = tuple(dict.fromkeys(source for channel in found for source in channel))
                labels = files.find(dataset.folder, entry.label) if entry.label else ()
                is_case = len(entry.images) > 1
                for index, channel in enumerate(found):
                    listing.images.update(dict.fromkeys(channel, index if is_case else None))
                if is_case and images:
                    listing.cases.update(dict.fromkeys(images, images[0]))
                for label in set(labels) - set(images):
                    known, _ = listing.labels.setdefault(label, (images, dataset))
                    if known != images or len(labels) > 1:
                        listing.faults[label] = "E_LABEL_AMBIGUOUS"
        for label in listing.labels.keys() & listing.images.keys():
            listing.faults[label] = "E_LABEL_AMBIGUOUS"
        return listing

    def __contains__(self, source: Source) -> bool:
        return source in self.labels or source in self.images
