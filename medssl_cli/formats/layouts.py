"""The folder layouts in which people keep images and labels.

In this order: pairs as a `dataset.json` lists them (`dataset_json.py`); folders of images beside folders of labels
(`images/` and `labels/`, `imagesTr` and `labelsTr`, `img` and `gt`, `train_images` and `train_masks`), where names are
equal but for a channel number or a word (`img0001`, `label0001`); BIDS (`bids.py`); label maps beside their image
(`mask_names.py`); one file per organ in `segmentations/` beside the only image of a folder, as TotalSegmentator's. A
zip archive counts as a folder. What no name says, `partners.py` leaves to the voxels.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Final

from medssl_cli.formats.arrangement import Arrangement, ImageFile, LabelFile
from medssl_cli.formats.bids import BidsName, parse_place
from medssl_cli.formats.cases import Hint, arrange_bids, example_of, hint_of, name_cases, truth_folder
from medssl_cli.formats.dataset_json import CHANNEL, DatasetJson, Listing, read_dataset_json
from medssl_cli.formats.mask_names import images_of_mask, is_mask_name, vote_of
from medssl_cli.formats.name_words import channel_of_stem, core_of, folder_role, modality_of_channel, modality_of_stem
from medssl_cli.formats.partners import Image, Neighbours
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import stem_of
from medssl_cli.formats.wholes import copies

__all__ = ["Arrangement", "DatasetJson", "ImageFile", "LabelFile", "arrange", "read_dataset_json"]

_ORGAN_FOLDERS: Final = ("segmentation", "segmentations")
_SLICER_LABEL: Final = ".seg.nrrd"
_ARCHIVE: Final = ".zip"
_COMPOUND_LEVELS: Final = 2
"""How far above a file a name of several words still says that a folder holds labels: projects have long names."""


def arrange(
    sources: Iterable[Source], datasets: Iterable[DatasetJson] = (), *, roots: Iterable[Path] = ()
) -> Arrangement:
    """Tell images from labels and find which belong together.

    Args:
        sources: Files of one image or label map each: NIfTI, NRRD, MetaImage, pictures.
        datasets: Descriptions found beside them; the nearest one above a file counts, of several in one folder the
            first that declares classes.
        roots: The inputs. Folders above them do not count: a home directory may be called anything.
    """
    top = set(roots)
    placed = [(source, place_of(source), stem_of(place_of(source).name)) for source in sources]
    left_out = copies(placed)
    placed = [each for each in placed if each[0] not in left_out]
    descriptions = sorted(datasets, key=lambda dataset: not dataset.classes)
    listing = Listing.of([source for source, _, _ in placed], descriptions)
    arrangement = Arrangement(skipped=[*left_out.items()])
    by_bids: list[tuple[Source, BidsName]] = []
    files: list[_File] = []
    folders: dict[str, _Folder] = {}
    for source, place, stem in placed:
        parent = str(place.parent)
        if place in top:
            folder = _folder(place, top)
        else:
            folder = folders.get(parent) or folders.setdefault(parent, _folder(place, top))
        is_paired = folder.is_label or folder.is_in_images or source in listing
        if not is_paired and (name := parse_place(place, stem, folder.floor)):
            by_bids.append((source, name))
        else:
            files.append(_File(source, place, parent, stem, folder))
    arrange_bids(by_bids, arrangement)
    nearest = {dataset.folder: dataset for dataset in reversed(descriptions)}
    _Folders(files, nearest, listing).arrange(arrangement)
    name_cases(arrangement)
    return arrangement


class _Folders:
    """Files that names and folders sort, and not BIDS.

    Args:
        files: All of them.
        datasets: Descriptions by their folder.
        listing: What they list.
    """

    def __init__(self, files: Sequence["_File"], datasets: Mapping[Path, DatasetJson], listing: Listing) -> None:
        self._files, self._datasets, self._listing = files, datasets, listing
        self._beside = _beside([file for file in files if file.source not in listing])
        self._by_key: dict[tuple[str, str], list[Source]] = defaultdict(list)
        self._by_core: dict[tuple[str, str], list[Source]] = defaultdict(list)
        self._by_folder: dict[str, list[_File]] = defaultdict(list)
        self._label_keys = {file.key for file in files if file.folder.is_label}
        self._numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
        for file in files:
            if CHANNEL.search(file.stem):
                self._numbers[file.folder.key, CHANNEL.sub("", file.stem)].add(int(file.stem[-4:]))
        self._labelled = {image for found in self._beside.values() for image in found}

    def arrange(self, arrangement: Arrangement) -> None:
        """Add them to an arrangement."""
        images = [(file, self._image(file)) for file in self._files if not self._is_label(file)]
        neighbours = Neighbours(
            Image(file.source, file.place.parent.parts, file.folder.floor, image.stem.lower()) for file, image in images
        )
        partners = neighbours.partners()
        for _, image in images:
            is_free = image.source not in self._listing and image.channel is None
            found = partners.get(image.source, ()) if is_free else ()
            arrangement.images.append(replace(image, partners=found) if found else image)
        arrangement.labels.extend(self._label(file, neighbours) for file in self._files if self._is_label(file))

    def _is_label(self, file: "_File") -> bool:
        if file.source in self._listing:
            return file.source in self._listing.labels
        return file.folder.is_label or file.source in self._beside

    def _image(self, file: "_File") -> ImageFile:
        """What is known about an image; it can be found by its name from now on."""
        dataset = self._nearest(file)
        short = file.folder.key, CHANNEL.sub("", file.stem) or file.stem
        is_declared = short in self._label_keys or bool(dataset and self._are_channels(dataset, short))
        named = channel_of_stem(file.stem)
        if named and file.key not in self._label_keys and (file.folder.key, named[0]) in self._label_keys:
            self._add((file.folder.key, named[0]), file)
            hint = Hint(named[1], file.place.parent, named[0])
            modality = modality_of_channel(hint.channel)
            return ImageFile(file.source, hint.case, modality, channel=hint.channel, example=hint.example)
        is_channel = short != file.key and file.key not in self._label_keys and is_declared
        key = short if is_channel else file.key
        self._add(key, file)
        number = int(file.stem[-4:]) if is_channel else self._listing.images.get(file.source)
        if number is not None:
            return self._channel(file, key[1], number, dataset)
        stated = dataset.modality_of(file.stem) if dataset else None
        is_labelled = file.source in self._labelled
        modality = stated or modality_of_stem(file.stem, is_last_word_enough=is_labelled)
        parts = _parts(dataset)
        example = example_of(file.place.parent, file.stem) if parts else None
        return ImageFile(file.source, file.stem, modality, parts=parts, example=example)

    def _channel(self, file: "_File", stem: str, number: int, dataset: DatasetJson | None) -> ImageFile:
        """One of several images of a case, by its number."""
        first = self._listing.cases.get(file.source)
        is_numbered = first is None or stem != file.stem
        place = file.place.parent / stem if is_numbered or first is None else place_of(first)
        example = example_of(place.parent, stem if is_numbered else stem_of(place.name))
        if dataset is None and self._numbers.get((file.folder.key, stem)) == {0}:
            return ImageFile(file.source, stem)  # FLARE writes `_0000` behind the only image of a case
        word = (dataset.channels or {}).get(number) if dataset else None
        named = hint_of(file.place, file.stem) if word is None else None
        if named is not None:  # lists of paths whose names say what the list does not
            modality = modality_of_channel(named.channel)
            return ImageFile(file.source, named.case, modality, channel=named.channel, example=named.example)
        modality = dataset.modalities.get(number) if dataset else None
        return ImageFile(file.source, stem, modality, channel=word or f"c{number}", example=example)

    def _add(self, key: tuple[str, str], file: "_File") -> None:
        self._by_key[key].append(file.source)
        self._by_core[key[0], core_of(key[1], "image")].append(file.source)
        self._by_folder[file.parent].append(file)

    def _are_channels(self, dataset: DatasetJson, short: tuple[str, str]) -> bool:
        """Whether names end in channel numbers: by declaration, or because there is one file for each channel."""
        count = len(dataset.channels or ())
        return dataset.has_channels or (count > 1 and self._numbers.get(short) == {*range(count)})

    def _label(self, file: "_File", neighbours: Neighbours) -> LabelFile:
        images: tuple[Source, ...] = ()
        dataset, fault, organ = self._nearest(file), "", None
        if file.source in self._listing:
            images, dataset = self._listing.labels[file.source]
            fault = self._listing.faults.get(file.source, "")
        elif file.source in self._beside:
            images = self._beside[file.source]
        else:
            images, fault = self._in_folders(file, neighbours)
            if not images and not fault and file.place.parent.name.lower() in _ORGAN_FOLDERS:
                images = _only_image(self._by_folder.get(str(file.place.parent.parent), ()))
                organ = file.stem if images else None
        if dataset is None or organ is not None:
            return LabelFile(file.source, tuple(images), class_name=organ, set_name=vote_of(file.stem), fault=fault)
        return LabelFile(
            file.source,
            tuple(images),
            dataset.classes or None,
            ignore=dataset.ignore,
            fault=fault or dataset.fault,
            regions=dataset.regions,
        )

    def _in_folders(self, file: "_File", neighbours: Neighbours) -> tuple[tuple[Source, ...], str]:
        """Images of a file in a folder of labels: of its name, of its name but for a word, in other folders beside."""
        if found := self._by_key.get(file.key):
            return tuple(found), ""
        if found := self._by_core.get((file.folder.key, core_of(file.stem, "label"))):
            return tuple(found), "" if len(found) == 1 else "E_LABEL_AMBIGUOUS"
        parts, index = file.place.parent.parts, file.folder.index
        images, is_one_case = neighbours.of_label(parts, index, file.stem.lower())
        return images, "" if is_one_case else "E_LABEL_AMBIGUOUS"

    def _nearest(self, file: "_File") -> DatasetJson | None:
        if not self._datasets:
            return None
        return next((self._datasets[folder] for folder in file.place.parents if folder in self._datasets), None)


def _parts(dataset: DatasetJson | None) -> tuple[tuple[str, str], ...]:
    """Modality and channel of each image of a 4D file: what a description of several channels declares."""
    channels = (dataset.channels or {}) if dataset else {}
    if dataset is None or len(channels) < 2 or sorted(channels) != list(range(len(channels))):
        return ()
    return tuple((dataset.modalities.get(index, ""), channels[index]) for index in range(len(channels)))


def _beside(files: Sequence["_File"]) -> dict[Source, tuple[Source, ...]]:
    """Files that their names make label maps of others in the same folder, or of none."""
    folders: dict[str, dict[str, list[_File]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        if not file.folder.is_label and not file.is_slicer_label:
            folders[file.parent][file.stem.lower()].append(file)
    beside: dict[Source, tuple[Source, ...]] = _truths(files)
    for file in files:
        if file.folder.is_label or file.source in beside:
            continue
        stems = folders.get(file.parent, {})
        lower = file.stem.lower()
        names = (lower,) if file.is_slicer_label and lower in stems else images_of_mask(lower, stems)
        if names or file.is_slicer_label or (is_mask_name(lower) and not file.folder.is_in_images):
            beside[file.source] = tuple(image.source for name in names for image in stems[name])
    return {label: tuple(image for image in images if image not in beside) for label, images in beside.items()}


def _truths(files: Sequence["_File"]) -> dict[Source, tuple[Source, ...]]:
    """Label maps of the Virtual Skeleton Database, with all images of their case."""
    truths = {file.source: folder for file in files if (folder := truth_folder(file.place, file.stem))}
    images: dict[PurePath, list[Source]] = defaultdict(list)
    for file in files if truths else ():
        hint = hint_of(file.place, file.stem)
        if hint is not None and file.source not in truths:
            images[hint.folder].append(file.source)
    return {source: tuple(images.get(folder, ())) for source, folder in truths.items()}


def _only_image(files: Sequence["_File"]) -> tuple[Source, ...]:
    """The only image of a folder, or the only one that is named after its modality."""
    named = [file for file in files if modality_of_stem(file.stem)]
    chosen = files if len(files) == 1 else named
    return (chosen[0].source,) if len(chosen) == 1 else ()


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
        index: Which of its parts says so.
    """

    key: str
    is_label: bool
    is_in_images: bool
    floor: int
    index: int = 0


def _folder(place: Path, roots: set[Path]) -> _Folder:
    """The folder of a file."""
    parts = place.parent.parts
    floor = min((_depth(root, place) for root in (place, *place.parents) if root in roots), default=0)
    for index in range(len(parts) - 1, floor - 1, -1):
        role = folder_role(_unpacked(parts[index]))
        is_near = index >= len(parts) - _COMPOUND_LEVELS
        if role is not None and (is_near or "_" not in role.key):
            is_own = index > floor and parts[index - 1].lower() == f"{parts[index].lower()}{_ARCHIVE}"
            above = parts[: index - is_own]  # an archive that holds one folder of its own name stands for the folder
            key = PurePath(*above, role.key, *parts[index + 1 :])
            return _Folder(str(key), role.is_label, not role.is_label, floor, index)
    return _Folder(str(place.parent), False, False, floor)


def _unpacked(name: str) -> str:
    """The name of a folder, or of the folder that an archive stands for."""
    return name[: -len(_ARCHIVE)] if name.lower().endswith(_ARCHIVE) else name


def _depth(root: Path, place: Path) -> int:
    """Index of the root's own name among the folders above a file; of the file's folder if the root is the file."""
    return len(root.parts) - (2 if root == place else 1)
