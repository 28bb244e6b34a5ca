"""Files in which others have written down who trains, validates and tests: read as names, part by part.

Taken are nnU-Net's `splits_final.json`, JSON with lists for training, validation and test (of names or of entries with
an `image`, as the Decathlon and MONAI write them, with or without a `fold`), tables with a column for the part or the
fold, and plain lists of names, which say nothing about their part: `test=test_list.txt`. Where nothing but nnU-Net's
rule was published, `nnunet=dataset.json` makes its folds of the names of a list.
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from medssl_cli.base.errors import InputError, UsageError
from medssl_cli.base.files import read_regular
from medssl_cli.base.plain_json import parse_json
from medssl_cli.cache.splits import NUM_FOLDS
from medssl_cli.formats.labels.csv_rows import Table, decoded, read_rows
from medssl_cli.formats.table import stem_of

PartName = Literal["train", "val", "test"]
PARTS: Final[dict[str, PartName]] = {
    **dict.fromkeys(("train", "training", "tr", "trainval"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "va", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
NAME_COLUMNS: Final = (
    "name", "case", "caseid", "scanid", "image", "imageid", "imagename", "imageindex", "file", "filename", "path",
    "seriesuid", "seriesinstanceuid", "id", "patient", "patientid", "subject", "subjectid", "participantid",
)  # fmt: skip
PATIENT_COLUMNS: Final = ("patientid", "patient")
PART_COLUMNS: Final = ("split", "part", "set", "subset", "partition")
FOLD_COLUMNS: Final = ("fold", "foldid", "kfold")
IMAGE_KEYS: Final = ("image", "name", "case", "id", "label")
RULE: Final = "nnunet"
RULE_SEED: Final = 12345
MAX_BYTES: Final = 64 * 2**20
MAX_NAMES: Final = 2_000_000
MAX_NAME: Final = 1024
HINT: Final = "docs/guides/folds.md shows the files that are taken"


@dataclass(frozen=True)
class NamedParts:
    """Names of those who train, validate and test; None of a part that nobody has named.

    Args:
        train: Names of cases, as the file writes them.
        val: The same.
        test: The same.
    """

    train: tuple[str, ...] | None = None
    val: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None

    def named(self) -> Iterator[tuple[PartName, tuple[str, ...]]]:
        """The parts that are named."""
        found: tuple[tuple[PartName, tuple[str, ...] | None], ...] = (
            ("train", self.train), ("val", self.val), ("test", self.test),
        )  # fmt: skip
        yield from ((part, names) for part, names in found if names is not None)


@dataclass(frozen=True)
class SplitFile:
    """What the files of a split say.

    Args:
        folds: One entry for each fold that they name, one where they name none.
        content: All of their bytes, for a digest.
    """

    folds: tuple[NamedParts, ...]
    content: bytes = field(repr=False)

    @property
    def num_folds(self) -> int | None:
        """How many folds the files name; None where they leave validation open, so that a rule makes the folds."""
        return None if self.folds[0].val is None else len(self.folds)

    def parts(self, fold: int) -> NamedParts:
        """Who trains, validates and tests in a fold.

        Raises:
            UsageError: `E_SPLIT_FILE`, the files name fewer folds.
        """
        if self.num_folds is None:
            return self.folds[0]
        if fold >= len(self.folds):
            raise UsageError(
                "E_SPLIT_FILE",
                f"fold {fold} is asked for, the split file names {len(self.folds)}",
                hint=f"medssl finetune --fold takes 0 to {len(self.folds) - 1} here",
            )
        return self.folds[fold]


def read_split(given: Sequence[str]) -> SplitFile:
    """What `--split-file` names.

    Args:
        given: `FILE`, or `PART=FILE` for a list of names of one part.

    Raises:
        UsageError: `E_SPLIT_FILE`, a file is not to be read, or says nothing about a split; a part is named twice.
    """
    whole: tuple[NamedParts, ...] = ()
    lists: dict[PartName, tuple[str, ...]] = {}
    content = []
    for text in given:
        word, separator, rest = text.partition("=")
        part = PARTS.get(word.lower()) if separator else None
        is_rule = bool(separator) and word.lower() == RULE
        path = Path(rest if part or is_rule else text)
        data = _bytes_of(path)
        content += [(RULE if is_rule else part or "").encode(), data]
        if part is None and whole:
            raise _refused("two files name all parts", hint="give one of them, or PART=FILE for lists of names")
        if part in lists:
            raise _refused(f"two files name the part {part}")
        if part is None:
            whole = folds_by_rule(_training_names(path, data)) if is_rule else _folds_of(path, data)
        else:
            lists[part] = _list_of(path, data)
    folds = tuple(replace(parts, **lists) for parts in whole or (NamedParts(),))
    for parts in folds:
        if sum(len(names) for _, names in parts.named()) > MAX_NAMES:
            raise _refused(f"more than {MAX_NAMES} names")
        if not any(names for _, names in parts.named()):
            raise _refused("the split file names nobody")
    return SplitFile(folds, b"\0".join(content))


def folds_by_rule(names: Sequence[str]) -> tuple[NamedParts, ...]:
    """nnU-Net's five folds: names without suffix, sorted as text, shuffled by its seed, cut into five.

    What scikit-learn's `KFold(5, shuffle=True, random_state=12345)` gives for the sorted names.

    Raises:
        UsageError: `E_SPLIT_FILE`, fewer than five names.
    """
    stems = {stem_of(re.split(r"[\\/]", name)[-1]).removesuffix("_0000") for name in names}
    ordered = np.array(sorted(stems), dtype=object)
    if len(ordered) < NUM_FOLDS:
        raise _refused(f"{len(ordered)} names make no {NUM_FOLDS} folds")
    places = np.arange(len(ordered))
    np.random.RandomState(RULE_SEED).shuffle(places)
    parts = [ordered[np.sort(part)].tolist() for part in np.array_split(places, NUM_FOLDS)]
    return tuple(
        NamedParts(tuple(name for other in parts if other is not part for name in other), tuple(part)) for part in parts
    )


def _training_names(path: Path, data: bytes) -> tuple[str, ...]:
    """Names of a list, or of the training list of a description such as `dataset.json`."""
    document = _json_of(path, data) if data.lstrip()[:1] == b"{" else None
    if document is None:
        return _list_of(path, data)
    names = _parts_of(document).get("train")
    if names is None:
        raise _refused(f"{path.name} has no list for training")
    return names


def _bytes_of(path: Path) -> bytes:
    try:
        data = read_regular(path, max_bytes=MAX_BYTES)
    except FileNotFoundError as error:
        raise _refused(f"there is no split file {path.name}", hint="check the spelling of the path") from error
    except ValueError as error:
        raise _refused(f"{path.name} is {error}") from error
    except OSError as error:
        raise _refused(f"{path.name} cannot be read ({type(error).__name__})") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise _refused(f"{path.name} begins like UTF-16 and is not", hint="save it as UTF-8") from error
    return data.removeprefix(codecs.BOM_UTF8)


def _folds_of(path: Path, data: bytes) -> tuple[NamedParts, ...]:
    """The folds of a file that names all parts."""
    if data.lstrip()[:1] not in (b"[", b"{"):
        return _folds_of_table(path)
    document = _json_of(path, data)
    if isinstance(document, dict):
        return _folds_of_lists(document)
    if not document or not all(isinstance(entry, dict) and _parts_of(entry) for entry in document):
        raise _refused(f"{path.name} is a list, and not of folds", hint="a list of names needs its part: test=FILE")
    return tuple(NamedParts(**_parts_of(entry)) for entry in document)


def _folds_of_lists(document: Mapping[str, Any]) -> tuple[NamedParts, ...]:
    """The parts of a JSON object; entries with a `fold` make as many folds as there are numbers."""
    parts = _parts_of(document)
    entries = [entry for key, value in document.items() if PARTS.get(key) == "train" for entry in _listed(value)]
    folds = [_fold_number(entry["fold"]) for entry in entries if isinstance(entry, dict) and "fold" in entry]
    if not folds or "val" in parts:
        return (NamedParts(**parts),)
    if len(folds) < len(entries):
        raise _refused(f"{len(entries) - len(folds)} of {len(entries)} entries have no fold")
    return _numbered(parts["train"], folds, parts.get("test"))


def _folds_of_table(path: Path) -> tuple[NamedParts, ...]:
    """The parts or folds of a table."""
    table = _table_of(path)
    column = {_plain(name): place for place, name in reversed(list(enumerate(table.header)))}
    place = {kind: next((column[name] for name in names if name in column), None)
             for kind, names in (("part", PART_COLUMNS), ("fold", FOLD_COLUMNS))}  # fmt: skip
    names = _names_of(table, path)
    if place["part"] is None and place["fold"] is None:
        raise _refused(
            f"{path.name} has no column for the part or the fold",
            hint=f"call it {PART_COLUMNS[0]} or {FOLD_COLUMNS[0]}",
        )
    words = [PARTS.get(_cell(row.fields, place["part"]).lower()) for row in table.rows]
    folds = [_cell(row.fields, place["fold"]) for row in table.rows]
    if place["part"] is None:
        words = [PARTS.get(fold.lower(), "train") for fold in folds]
    by_part: dict[str, tuple[str, ...]] = {
        part: tuple(name for name, word in zip(names, words, strict=True) if word == part)
        for part in ("train", "val", "test")
        if part in words
    }
    if place["fold"] is None or "val" in by_part:
        if None in words:
            raise _refused(f"{words.count(None)} of {len(words)} rows say neither train, val nor test")
        return (NamedParts(**by_part),)
    in_folds = [_fold_number(fold) for fold, word in zip(folds, words, strict=True) if word == "train"]
    return _numbered(by_part.get("train", ()), in_folds, by_part.get("test"))


def _numbered(names: Sequence[str], folds: Sequence[int], test: tuple[str, ...] | None) -> tuple[NamedParts, ...]:
    """A fold for each number: those who have it validate, the others train."""
    pairs = list(zip(names, folds, strict=True))
    numbers = sorted(set(folds))
    if len(numbers) < 2:
        raise _refused(f"{len(numbers)} folds leave nobody to train or nobody to validate on")
    return tuple(
        NamedParts(
            tuple(name for name, own in pairs if own != number),
            tuple(name for name, own in pairs if own == number),
            test,
        )
        for number in numbers
    )


def _list_of(path: Path, data: bytes) -> tuple[str, ...]:
    """The names of a file about one part."""
    if data.lstrip()[:1] in (b"[", b"{"):
        document = _json_of(path, data)
        found = [name for entry in _listed(document) if (name := _name_of(entry))]
        if not isinstance(document, list):
            raise _refused(f"{path.name} is no list of names", hint="give it without a part if it names all parts")
        return tuple(found)
    try:
        lines = [line.strip() for line in decoded(data).splitlines()]
    except InputError as error:
        raise _refused(f"{path.name}: {error.message}") from error
    head = next((line for line in lines if line), "")
    if any(_plain(word) in NAME_COLUMNS for word in re.split(r"[,;\t]", head)) and re.search(r"[,;\t]", head):
        return tuple(_names_of(_table_of(path), path))
    is_header = _plain(head) in NAME_COLUMNS
    names = [line for line in lines if line and not line.startswith("#")][is_header:]
    return tuple(name for name in names if _checked(name))


def _table_of(path: Path) -> Table:
    try:
        table = read_rows(path)
    except InputError as error:
        raise _refused(f"{path.name}: {error.message}") from error
    if table.refused:
        first = table.refused[0]
        raise _refused(f"{len(table.refused)} rows of {path.name} do not fit its header, the first in line {first.row}")
    return table


def _names_of(table: Table, path: Path) -> list[str]:
    """The name of each row; of a scan also the patient before it, for scans may be numbered by patient."""
    column = {_plain(name): place for place, name in reversed(list(enumerate(table.header)))}
    word = next((name for name in NAME_COLUMNS if name in column), None)
    if word is None:
        raise _refused(f"{path.name} has no column for names", hint=f"call it {NAME_COLUMNS[0]}")
    patient = next((column[name] for name in PATIENT_COLUMNS if name in column and name != word), None)
    names = [row.fields[column[word]] for row in table.rows]
    if word != "scanid" or patient is None:
        return [_checked(name) for name in names]
    return [_checked(f"{row.fields[patient]}/{name}") for row, name in zip(table.rows, names, strict=True)]


def _json_of(path: Path, data: bytes) -> Any:
    try:
        return parse_json(data, are_keys_unique=True)
    except ValueError as error:
        raise _refused(f"{path.name} is no JSON: {error}") from error


def _parts_of(document: Mapping[str, Any]) -> dict[PartName, tuple[str, ...]]:
    """The lists of a JSON object whose keys are words for parts."""
    found: dict[PartName, tuple[str, ...]] = {}
    for key, value in document.items():
        part = PARTS.get(key.lower())
        if part is None or not isinstance(value, list):
            continue
        if part in found:
            raise _refused(f"two lists name the part {part}")
        found[part] = tuple(_name_of(entry) for entry in value)
    return found


def _name_of(entry: Any) -> str:
    """The name of one entry: a text, or an object with an image or the images of its channels."""
    if isinstance(entry, dict):
        entry = next((entry[key] for key in IMAGE_KEYS if entry.get(key)), None)
    if isinstance(entry, list) and entry:
        entry = entry[0]
    if isinstance(entry, int) and not isinstance(entry, bool):
        entry = str(entry)
    if not isinstance(entry, str) or not entry.strip():
        raise _refused("an entry of the split file is no name and has no image")
    return _checked(entry.strip())


def _checked(name: str) -> str:
    if len(name) > MAX_NAME:
        raise _refused(f"a name of {len(name)} characters")
    return name


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _fold_number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NAME:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.0)?", value):
        return int(value.partition(".")[0])
    raise _refused("a fold of the split file is no number from 0 on")


def _cell(fields: Sequence[str], place: int | None) -> str:
    return "" if place is None else fields[place]


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name.strip().lower())


def _refused(what: str, *, hint: str = HINT) -> UsageError:
    return UsageError("E_SPLIT_FILE", what, hint=hint)
