"""Which images may belong together by their places alone: equal names in neighbouring folders, one name and a word,
numbers in a row.

Nothing here opens a file. A label map that no name gives away is found by its voxels (`imaging/label_like.py`); only
files with a partner are looked at for that.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from medssl_cli.formats.name_words import MODALITY_WORDS, NAMED_IMAGE, SPLITS, core_of
from medssl_cli.formats.source import Source

MAX_KINDS: Final = 8
"""So many folders side by side may hold different things of one case; more are patients."""
MAX_PARTNERS: Final = 8
_LEVELS: Final = 3
_SMALL_FOLDER: Final = 16
_LEAST_SLICES: Final = 8
_MOST_GAPS: Final = 1.5
_NUMBERED: Final = re.compile(r"(\D*)(\d{1,9})")
_DIGITS: Final = re.compile(r"\d+")
_LAST_WORD: Final = re.compile(r"(?:(.+)[_\-. ])?([^\W\d_]+)")
_FIRST_WORD: Final = re.compile(r"([^\W\d_]+)[_\-. ](.+)")

Slot = tuple[int, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Image:
    """An image's place.

    Args:
        source: The file.
        folder: Parts of its folder.
        floor: How many of them lie above the input.
        stem: Its name in small letters, without suffix and channel number.
    """

    source: Source
    folder: tuple[str, ...]
    floor: int
    stem: str


class Neighbours:
    """Images by their folders, and which folders differ in one part of their path only.

    Args:
        images: Images of an input.
    """

    def __init__(self, images: Iterable[Image]) -> None:
        self._stems: dict[tuple[str, ...], dict[str, list[Source]]] = defaultdict(lambda: defaultdict(list))
        self._slots: dict[Slot, list[tuple[str, ...]]] = defaultdict(list)
        self._cores: dict[tuple[str, ...], dict[str, list[Source]]] = {}
        floors: dict[tuple[str, ...], int] = {}
        for image in images:
            self._stems[image.folder][image.stem].append(image.source)
            floors[image.folder] = image.floor
        for folder, floor in floors.items():
            for index in range(max(floor, len(folder) - _LEVELS), len(folder)):
                self._slots[index, folder[:index], folder[index + 1 :]].append(folder)

    def of_label(self, folder: tuple[str, ...], index: int, stem: str) -> tuple[tuple[Source, ...], bool]:
        """Images of a label's name in folders beside a folder of labels, or in the folder above it.

        Args:
            folder: Parts of the label's folder.
            index: Which of them says that it holds labels.
            stem: The label's name in small letters.

        Returns:
            The images, and whether they are of one case: of one folder, or of folders named after channels.
        """
        beside = [*self._slots.get((index, folder[:index], folder[index + 1 :]), ())]
        above = folder[:index] + folder[index + 1 :]
        found = {one: images for one in (*beside, above) if (images := self._named(one, stem))}
        words = [one[index].lower() for one in found if len(one) > index]
        is_one_case = len(found) < 2 or (len(words) == len(found) and all(word in MODALITY_WORDS for word in words))
        return tuple(source for images in found.values() for source in images), is_one_case

    def _named(self, folder: tuple[str, ...], stem: str) -> list[Source]:
        stems = self._stems.get(folder)
        if stems is None or stem in stems:
            return [] if stems is None else stems[stem]
        if folder not in self._cores:
            cores: dict[str, list[Source]] = defaultdict(list)
            for name, sources in stems.items():
                cores[core_of(name, "image")] += sources
            self._cores[folder] = cores
        return self._cores[folder].get(core_of(stem, "label"), [])

    def partners(self) -> dict[Source, tuple[Source, ...]]:
        """Images that a file may be a label map of, if its voxels look like one; files without any are left out."""
        found: dict[Source, dict[Source, None]] = defaultdict(dict)
        for (index, _, _), folders in self._slots.items():
            for one, others in self._in_folders(index, folders):
                found[one].update(dict.fromkeys(others))
        for stems in self._stems.values():
            for name, names in _in_one_folder(stems):
                others = [other for stem in names for other in stems[stem]]
                for source in stems[name]:
                    found[source].update(dict.fromkeys(others))
        return {source: tuple(those) for source, those in found.items() if 0 < len(those) <= MAX_PARTNERS}

    def _in_folders(self, index: int, folders: Sequence[tuple[str, ...]]) -> Iterable[tuple[Source, list[Source]]]:
        """Files of one name in folders side by side; folders that differ in their numbers are of several patients."""
        kinds = {folder: _DIGITS.sub("", folder[index].lower()) for folder in folders}
        if not 2 <= len(set(kinds.values())) <= MAX_KINDS or all(kind in SPLITS for kind in kinds.values()):
            return
        by_stem: dict[str, list[tuple[str, Source]]] = defaultdict(list)
        for folder, kind in kinds.items():
            for stem, sources in self._stems[folder].items():
                by_stem[stem] += [(kind, source) for source in sources]
        for members in by_stem.values():
            if 2 <= len(members) <= MAX_PARTNERS + 1:
                for kind, source in members:
                    yield source, [other for another, other in members if another != kind]


def numbered(images: Iterable[tuple[Source, tuple[str, ...], str]]) -> set[Source]:
    """Files that are numbered as the slices of a stack are: eight or more of a folder, hardly a number left out.

    Args:
        images: Source, parts of the folder and name without suffix of each.
    """
    runs: dict[tuple[tuple[str, ...], str], list[tuple[int, Source]]] = defaultdict(list)
    for source, folder, stem in images:
        if match := _NUMBERED.fullmatch(stem):
            runs[folder, match[1]].append((int(match[2]), source))
    found: set[Source] = set()
    for members in runs.values():
        numbers = [number for number, _ in members]
        if len(members) >= _LEAST_SLICES and max(numbers) - min(numbers) < _MOST_GAPS * len(members):
            found.update(source for _, source in members)
    return found


def _in_one_folder(stems: Mapping[str, object]) -> Iterable[tuple[str, list[str]]]:
    """For `X_word`: `X`, `X_other`; for `word_X`: `X`, `other_X`; in a small folder for `word`: `other`."""
    groups: dict[tuple[str, bool], list[str]] = defaultdict(list)
    suspects: list[tuple[str, tuple[str, bool]]] = []
    for stem in stems:
        for is_last, pattern in ((True, _LAST_WORD), (False, _FIRST_WORD)):
            if match := pattern.fullmatch(stem):
                rest, word = (match[1] or "", match[2]) if is_last else (match[2], match[1])
                if rest or len(stems) <= _SMALL_FOLDER:
                    groups[rest, is_last].append(stem)
                    if word not in MODALITY_WORDS and word not in NAMED_IMAGE:
                        suspects.append((stem, (rest, is_last)))
    for stem, key in suspects:
        others = [other for other in groups[key] if other != stem] if len(groups[key]) <= MAX_PARTNERS + 1 else []
        yield stem, [*others, *([key[0]] if key[0] in stems else [])]
