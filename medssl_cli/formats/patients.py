"""Whose image a file is, where nothing but its name and folders can say so.

The number of a name that says it is the one with a word for persons (`patient07`, `sub-01`, `case_3`), else the first
that belongs to no sequence, scanner, visit, date or part (`T1_001`, `3T_007`, `scan1_07`). What is in doubt groups too
much: that costs data, while grouping too little leaks patients between splits.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path, PurePath
from typing import Final

from medssl_cli.base.errors import UsageError
from medssl_cli.formats.layouts import ImageFile
from medssl_cli.formats.name_words import MODALITY_WORDS
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import stem_of

MAX_NAME: Final = 1024
_PUBLISHED: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(brats1[5-9]_.+)_\d+(?:_(?:flair|t1|t1ce|t2|seg))?",  # the last number is the scan
        r"(brats-[a-z]+-\d{4,5})-\d{3}(?:-.*)?",  # BraTS 2023: the last number is the time point
        r"(brats20\d\d_(?:training_|validation_)?\d+)(?:_.*)?",
        r"((?:ct|mr)_(?:train|test)_\d{4})(?:_.*)?",  # MM-WHS: CT and MR are of different persons
        r"(tcga-\w\w-\w{4})(?:-.*)?",
        r"(sub-[a-z0-9]+)(?:_.*)?",
        r"((?=.*\d)[0-9a-f]{16,64})",  # digests, as in VinDr-CXR
    )
)
_NOBODY: Final = re.compile(r"im[-_]?\d+(?:[-_]\d+)*|\d+(?:\.\d+){3,}|vsd\.brain.*\.\d+", re.IGNORECASE)
"""Names that programs give to slices and series: OsiriX's `IM-0001-0002`, UIDs, files of the Virtual Skeleton Database
(BraTS 2013 and 2015, ISLES 2015: `VSD.Brain.XX.O.MR_T1.70616`)."""
_TOKEN: Final = re.compile(r"(?P<letters>[^\W\d_]*)(?P<digits>\d*)(?P<rest>[^\W_]*)")
_LEFT_OUT: Final = re.compile(
    r"(?<![^\W_])(?:\d(?:\.\d+)?t|(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01]))(?![^\W_])",
    re.IGNORECASE,
)
"""Field strengths (`3T`, `1.5T`) and dates."""
_PERSONS: Final = frozenset({
    "patient", "pat", "pt", "subject", "subj", "sub", "case", "person", "proband", "pid", "id", "mrn",
})  # fmt: skip
_PLACES: Final = frozenset({
    "site", "center", "centre", "hospital", "cohort", "group", "batch", "set", "subset", "part", "dataset",
    "task",
})  # fmt: skip
"""Their number tells where a person is from: it is kept, and the person's is still to come."""
_SETS: Final = frozenset({
    "brats", "flare", "kits", "lits", "amos",
})  # fmt: skip
"""Public data sets, with a year or a case behind them."""
_NAMES_OF_FILES: Final = frozenset({
    "img", "image", "images", "volume", "vol", "scan", "study", "exam", "series", "file", "picture", "pic", "ct",
    "mr", "mri", "pet", "pt", "us", "xr", "cr", "dx",
})  # fmt: skip
"""Their number counts files, if nothing better is there."""
_COUNTED: Final = frozenset({
    "visit", "vis", "v", "ses", "sess", "session", "tp", "timepoint", "time", "t", "run", "acq", "frame", "phase",
    "echo", "slice", "day", "week", "month", "year", "followup", "fu", "bl", "baseline", "rep", "repeat", "fold",
    "dyn", "view", "lesion", "nodule", "tumor", "tumour", "roi", "label", "mask", "crop", "patch",
})  # fmt: skip
"""Visits and parts: neither they nor their number say who it is."""
_KINDS: Final = frozenset({
    "mprage", "mp2rage", "swi", "bold", "dti", "dce", "dsc", "tof", "stir", "mra", "asl", "rest", "pre", "post",
    "contrast", "native", "arterial", "portal", "venous", "delayed", "axial", "sagittal", "coronal", "ax", "sag",
    "cor", "left", "right", "lh", "rh", "anat", "func", "fmap", "perf", "reg", "registered", "coreg", "resampled",
    "norm", "n4", "bet",
})  # fmt: skip
"""Sequences, phases, sides, steps of processing: a number behind them is not theirs."""
_NOTHING: Final = _COUNTED | _KINDS
_FEW_DIGITS: Final = 3
_CROWD: Final = 5
_OTHER_NAMES: Final = 3
"""So many files of one patient, under so many names that have only a number in common, are worth a second look."""


class _Rank(IntEnum):
    """How well a number says whose image it is."""

    FILE = 1
    NUMBER = 2
    PERSON = 3


@dataclass(frozen=True)
class _Unit:
    """A number of a name, with the words that belong to it."""

    rank: _Rank
    text: str
    letters: str
    digits: str


def patient_from_name(name: str, pattern: str | None = None) -> str | None:
    """The part of a name that says whose image it is.

    Args:
        name: Name of a file without suffixes, or of a folder.
        pattern: Regular expression, searched; its first group, or the whole match, is the patient. By default the
            words up to and including the number that says it: `patient001_frame01` is `patient001`, `T1_001` is `001`.

    Returns:
        None if the pattern does not match, or no number says it.

    Raises:
        UsageError: `E_USAGE`, the pattern is not a regular expression.
    """
    if pattern is None:
        unit = _unit_of(name)
        return unit.text if unit else None
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UsageError("E_USAGE", f"--patient-pattern is not a regular expression: {error}") from error
    if not found:
        return None
    return str(found[1] if found.re.groups else found[0]) or None


def _unit_of(name: str) -> _Unit | None:
    """The number of a name that says whose image it is."""
    name = name[:MAX_NAME]
    if match := next(filter(None, (pattern.fullmatch(name) for pattern in _PUBLISHED)), None):
        return _Unit(_Rank.PERSON, match[1], "", "")
    if _NOBODY.fullmatch(name):
        return None
    units = list(_units(_LEFT_OUT.sub(lambda match: "\0" * len(match[0]), name)))
    if person := next((unit for unit in units if unit.rank is _Rank.PERSON), None):
        return person
    for index, unit in enumerate(units):
        later = units[index + 1 :]
        if unit.rank is _Rank.NUMBER:
            return unit
        named = next((one for one in later if one.rank is _Rank.NUMBER and one.letters), None)
        if len(unit.digits) >= _FEW_DIGITS:
            return named or unit
        if not later:
            return unit
    return None


def _units(name: str) -> Iterable[_Unit]:
    """Numbers of a name that may say it, in order, each with the words before it that say something."""
    start, word = -1, ""  # where the words begin that belong to the next number, and the last of them
    of_set: _Unit | None = None
    for match in _TOKEN.finditer(name):
        token, letters, digits = match[0].lower(), match["letters"].lower(), match["digits"]
        if not token:
            continue
        is_joined = name[match.start() - 1 : match.start()] != "\0"
        if not is_joined:
            start = -1
        owner = letters or (word if start >= 0 else "")
        begin = start if start >= 0 else match.start()
        if not digits:
            is_kept = token not in MODALITY_WORDS and token not in _NOTHING
            start, word = (begin if is_kept else -1), token
        elif token in MODALITY_WORDS or letters in _NOTHING or (not letters and word in _COUNTED):
            start, word = -1, ""
        elif owner in _PLACES or owner in _SETS:
            of_set = _Unit(_Rank.NUMBER, name[begin : match.end()], owner, digits) if owner in _SETS else of_set
            start, word = begin, ""
        else:
            is_modality = letters in MODALITY_WORDS or (not letters and word in MODALITY_WORDS)
            is_person = owner in _PERSONS or word in _PERSONS
            is_file = owner in _NAMES_OF_FILES or is_modality
            is_number = not is_file or (is_modality and len(digits) >= _FEW_DIGITS)
            rank = _Rank.PERSON if is_person else _Rank.NUMBER if is_number else _Rank.FILE
            first = match.start("digits") if is_modality else begin
            yield _Unit(rank, name[first : match.end("digits")], "" if is_modality else owner, digits)
            start, word, of_set = -1, "", None
    if of_set:
        yield of_set


def _says_nothing(folder: str) -> bool:
    """Whether a folder is named after a sequence, a visit or a scanner only."""
    words = [match[0].lower() for match in _TOKEN.finditer(_LEFT_OUT.sub("", folder)) if match[0]]
    letters = [_TOKEN.match(word)["letters"] for word in words]  # type: ignore[index]
    pairs = zip(words, letters, strict=True)
    return all(word in MODALITY_WORDS or letter in _NOTHING or letter in MODALITY_WORDS for word, letter in pairs)


def patients_from_places(places: Iterable[PurePath], pattern: str | None = None) -> dict[PurePath, str | None]:
    """Patients of the files below one input folder.

    A pattern is tried on the name, then on the whole place. Without one, what says it best decides: a word for persons
    in the name, then in a folder, then another number. But where names repeat in more folders than there are names, as
    in `STS_001/PET` and `STS_004/PET`, folders go first; so they do in as many folders, if no name has a number.

    Args:
        places: Folders below the input and name without suffixes.
        pattern: See `patient_from_name`.

    Returns:
        By place. If the default rule puts several files all into one patient, and no word says that it is a person,
        it has failed, and all are None.
    """
    unique = list(dict.fromkeys(places))
    if pattern is not None:
        return {
            place: patient_from_name(place.name, pattern) or patient_from_name(str(place), pattern) for place in unique
        }
    folders: dict[str, set[PurePath]] = defaultdict(set)
    for place in unique:
        folders[place.name].add(place.parent)
    num_folders = len({place.parent for place in unique})
    is_repeated = any(len(parents) > 1 for parents in folders.values())
    known = {word: _unit_of(word) for word in {word for place in unique for word in place.parts}}
    has_number = any((unit := known[name]) and unit.rank > _Rank.FILE for name in folders)
    are_folders_first = is_repeated and num_folders >= len(folders) + has_number
    units = {place: _unit_of_place(place, known, are_folders_first=are_folders_first) for place in unique}
    patients = {place: unit.text if unit else None for place, unit in units.items()}
    is_sure = all(unit and unit.rank is _Rank.PERSON for unit in units.values())
    if len(patients) > 1 and len(set(patients.values())) == 1 and not is_sure:
        return dict.fromkeys(patients)
    return patients


def _unit_of_place(place: PurePath, known: Mapping[str, _Unit | None], *, are_folders_first: bool) -> _Unit | None:
    """The best number of the name and of the outermost folders; where folders go first, also their words."""
    name = known[place.name]
    units = [unit for part in place.parts[:-1] if (unit := known[part]) and unit.rank > _Rank.FILE]
    folder = max(units, key=lambda unit: unit.rank, default=None)
    if not are_folders_first:
        return folder if folder and (name is None or folder.rank > name.rank) else name
    words = "/".join(part for part in place.parts[:-1] if not _says_nothing(part))
    is_file_only = name is None or name.rank is _Rank.FILE
    return folder or (_Unit(_Rank.FILE, words, "", "") if words and is_file_only else name)


def patients_of(
    images: Sequence[ImageFile], roots: Sequence[Path], pattern: str | None = None
) -> dict[Source, str | None]:
    """Patients of images that do not name theirs themselves: by layout, or by names and folders.

    Args:
        images: As `layouts.arrange` found them.
        roots: The inputs. Neither they nor the folders above them count, an input archive's name included; an archive
            further below is a folder.
        pattern: See `patient_from_name`; goes before what the layout says.

    Returns:
        By source; None where nothing says whose image it is.

    Raises:
        UsageError: `E_USAGE`, the pattern is not a regular expression.
    """
    inputs = set(roots)
    patients: dict[Source, str | None] = {}
    below: dict[Path, dict[Source, PurePath]] = defaultdict(dict)
    for image in images:
        if image.patient is not None and pattern is None:
            patients[image.source] = image.patient
            continue
        place = place_of(image.source)
        root = next((folder for folder in reversed(place.parents) if folder in inputs), place.parent)
        below[root][image.source] = place.relative_to(root).parent / image.stem
    for places in below.values():
        found = patients_from_places(places.values(), pattern)
        patients |= {source: found[place] for source, place in places.items()}
    return patients


def patient_of_study(sources: Iterable[Source], roots: Sequence[Path], pattern: str) -> str | None:
    """Patient of a DICOM study whose files name none, by a pattern of the user.

    Args:
        sources: All of its files.
        roots: The inputs; see `patients_of`.
        pattern: See `patient_from_name`; tried on the name of each file, then on its place below the input.

    Returns:
        None if the pattern does not match, or if the files match it in different ways: no study is parted.
    """
    files = [ImageFile(source, stem_of(place_of(source).name)) for source in sources]
    found = {*patients_of(files, roots, pattern).values()}
    return found.pop() if len(found) == 1 else None


def one_by_number(images: Iterable[ImageFile], patients: Mapping[Source, str | None]) -> set[Source]:
    """Files that are one patient's only because their otherwise different names share a number.

    Args:
        images: As `layouts.arrange` found them.
        patients: What `patients_of` says of them without a pattern.
    """
    members: dict[str, dict[Source, frozenset[str]]] = defaultdict(dict)
    for image in images:
        unit, patient = _unit_of(image.stem), patients[image.source]
        is_by_number = image.patient is None and unit is not None and unit.rank is not _Rank.PERSON
        if is_by_number and unit is not None and unit.text == patient:
            members[patient][image.source] = _other_names(image.stem.replace(unit.text, "\0", 1))
    return {
        source
        for found in members.values()
        if len(found) >= _CROWD and len({*found.values()}) >= _OTHER_NAMES
        for source in found
    }


def _other_names(rest: str) -> frozenset[str]:
    """Words and numbered words of a name, without those of sequences, scanners, visits, sides and parts."""
    known = {*MODALITY_WORDS, *_NOTHING, *_PERSONS, *_PLACES, *_NAMES_OF_FILES}
    tokens = [match for match in _TOKEN.finditer(rest[:MAX_NAME]) if len(match["letters"]) > 1]
    words = {match["letters"].lower() for match in tokens}
    return frozenset(words - known) | {unit.text for unit in _units(rest) if unit.rank is _Rank.NUMBER and unit.letters}
