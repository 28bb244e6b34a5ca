"""Tables of findings or boxes: one row says something about one file, study, series or patient.

Which columns are taken, and nothing else is ever stored:

* The key: the first column with a known name (`Image Index`, `file`, `StudyInstanceUID`, `PatientID`, ...), else the
  one whose values name most of the images at hand.
* Findings: every column whose filled fields are all 0, 1, numbers between them, true or false; -1 (uncertain, as in
  CheXpert) and empty fields say nothing. Columns named after persons, times and technique (age, sex, date, view, ...)
  are never taken. Where there is no such column: one column `Finding Labels`, `findings`, `label`, `diagnosis` or
  `class` of names with `|` between them; every other name of the table is then absent, "No Finding" means none.
* Boxes: columns `x, y, w, h` (pixel edges) with a column of names, for pictures of the size in the columns
  `width, height`, or 1024 x 1024 in the table of NIH ChestX-ray14, whose boxes are for that size.
"""

import re
from collections import defaultdict
from collections.abc import Set
from typing import Final

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import (
    MAX_FINDINGS,
    MAX_MARKS,
    BoxLabel,
    FindingsLabel,
    Reference,
    name_key,
    parsed_number,
)
from medssl_cli.formats.labels.boxes import MAX_PIXEL, PictureBoxes, checked_rectangle
from medssl_cli.formats.labels.csv_rows import read_rows
from medssl_cli.formats.source import Source
from medssl_cli.names import is_safe_name, safe_name

NIH_SIDE: Final = 1024
KEYS: Final[dict[str, str]] = {
    "imageindex": "name", "image": "name", "imageid": "name", "imagename": "name", "imagepath": "name",
    "file": "name", "filename": "name", "filepath": "name", "path": "name", "dicomid": "name", "dicom": "name",
    "sopinstanceuid": "sop", "seriesinstanceuid": "series", "seriesuid": "series", "series": "series",
    "studyinstanceuid": "study", "studyuid": "study", "study": "study", "studyid": "study",
    "patientid": "patient", "patient": "patient", "subjectid": "patient", "subject": "patient",
    "participantid": "patient",
}  # fmt: skip
_NAMES: Final = ("findinglabels", "findinglabel", "findings", "finding", "labels", "label", "diagnosis", "class")
_NEVER: Final = frozenset((
    "age", "sex", "gender", "birth", "dob", "race", "ethnicity", "height", "weight", "smoker", "patient", "subject",
    "date", "time", "visit", "follow", "id", "no", "number", "index", "name", "site", "study", "series",
    "view", "position", "projection", "size", "width", "rows", "columns", "spacing", "x", "y", "w", "h",
    "fold", "split", "set", "train", "test", "val", "valid", "validation",
))  # fmt: skip
_NOTHING: Final = frozenset(("no finding", "no findings", "normal", "none", "healthy", "nofinding", ""))
_WORDS: Final = {"true": 1.0, "false": 0.0}
_BOX: Final = (("x", "bboxx", "xmin"), ("y",), ("w",), ("h",))


def is_table(header: list[str]) -> bool:
    """Whether a table with these columns may hold findings or boxes: one column is a known key."""
    return any(_plain(name) in KEYS for name in header)


def read_table(source: Source, *, known: Set[str] = frozenset()) -> tuple[FindingsLabel | BoxLabel, ...]:
    """Read a table.

    Args:
        source: CSV with comma, semicolon or tab.
        known: Names, UIDs and patients of the images at hand (`name_key` of each), to recognise a key column by its
            values where no column has a known name.

    Returns:
        One label for each key.

    Raises:
        InputError: `E_LABEL_FORMAT`: no key, nothing to take, or rows that contradict each other; `E_TOO_BIG`; or what
            `read_bytes` raises.
    """
    header, rows = read_rows(source)
    key, level = _key_column(header, rows, known)
    if (columns := _box_columns(header)) is not None:
        return _boxes(header, rows, key, level, columns)
    return _findings(header, rows, key, level)


def _key_column(header: list[str], rows: list[list[str]], known: Set[str]) -> tuple[int, str]:
    """Column that says whose the row is, and on which level."""
    for index, name in enumerate(header):
        if _plain(name) in KEYS:
            return index, KEYS[_plain(name)]
    hits = [sum(name_key(row[index]) in known for row in rows) for index in range(len(header))]
    if not any(hits):
        raise InputError("E_LABEL_FORMAT", f"none of {len(header)} columns names a file, series, study or patient")
    return hits.index(max(hits)), "any"


def _reference(value: str, level: str) -> Reference:
    value = value.strip()
    if not value:
        raise InputError("E_LABEL_FORMAT", "a row without a key")
    if level == "sop":
        return Reference(sop_uids=frozenset((value,)))
    if level == "any":
        return Reference(name=value, series_uid=value, study=value, patient=value)
    if level == "name":
        return Reference(name=value)
    return Reference(**{"series_uid" if level == "series" else level: value})  # type: ignore[arg-type]


def _findings(header: list[str], rows: list[list[str]], key: int, level: str) -> tuple[FindingsLabel, ...]:
    columns = [index for index in range(len(header)) if index != key and _is_finding(header[index], rows, index)]
    by_row = _numeric_findings(header, rows, columns) if columns else _named_findings(rows, _names_column(header, key))
    found: dict[str, tuple[Reference, dict[str, float]]] = {}
    num_conflicts = 0
    for row, findings in zip(rows, by_row, strict=True):
        reference = _reference(row[key], level)
        earlier = found.setdefault(row[key].strip(), (reference, findings))
        num_conflicts += earlier[1] != findings
    if num_conflicts:
        raise InputError(
            "E_LABEL_FORMAT",
            f"{num_conflicts} rows contradict an earlier row of the same key",
            hint="one row for each file, series, study or patient",
        )
    return tuple(FindingsLabel(reference, findings) for reference, findings in found.values() if findings)


def _is_finding(name: str, rows: list[list[str]], column: int) -> bool:
    """Whether a column is a finding: named like one, and 0, 1 or between in every filled field."""
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))
    if not words or words & _NEVER or _plain(name) in KEYS or _plain(name) == "nofinding":
        return False
    fields = [row[column].strip() for row in rows]
    filled = [text for text in fields if text]
    return bool(filled) and all(_finding(text) is not None for text in filled)


def _finding(text: str) -> float | None:
    """0 to 1, or -1; None for anything else."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        number = parsed_number(text)
    except InputError:
        return None
    return number if 0 <= number <= 1 or number == -1 else None


def _numeric_findings(header: list[str], rows: list[list[str]], columns: list[int]) -> list[dict[str, float]]:
    names = [safe_name(header[index]) for index in columns]
    if len(columns) > MAX_FINDINGS or len(set(names)) != len(names):
        raise InputError(
            "E_LABEL_FORMAT", f"{len(columns)} findings, more than {MAX_FINDINGS} or not of different names"
        )
    result = []
    for row in rows:
        said = ((name, _finding(row[index].strip())) for name, index in zip(names, columns, strict=True))
        result.append({name: value for name, value in said if value is not None and value >= 0})
    return result


def _named_findings(rows: list[list[str]], column: int) -> list[dict[str, float]]:
    split = [[part.strip() for part in row[column].split("|")] for row in rows]
    names = sorted({part for parts in split for part in parts if part.lower() not in _NOTHING})
    if not names or len(names) > MAX_FINDINGS or not all(map(is_safe_name, names)):
        raise InputError(
            "E_LABEL_FORMAT",
            f"{len(names)} different names of findings; 1 to {MAX_FINDINGS} of plain letters are possible",
            hint="free text is not stored: give names with | between them",
        )
    return [{name: float(name in parts) for name in names} for parts in split]


def _names_column(header: list[str], key: int) -> int:
    for wanted in _NAMES:
        for index, name in enumerate(header):
            if index != key and _plain(name) == wanted:
                return index
    raise InputError("E_LABEL_FORMAT", f"none of {len(header)} columns holds findings")


def _box_columns(header: list[str]) -> tuple[int, int, int, int] | None:
    """Columns of left, top, width and height; None if the table has no boxes."""
    plain = [_plain(name) for name in header]
    found = [next((plain.index(name) for name in names if name in plain), None) for names in _BOX]
    x, y, w, h = found
    return None if x is None or y is None or w is None or h is None else (x, y, w, h)


def _boxes(
    header: list[str], rows: list[list[str]], key: int, level: str, columns: tuple[int, int, int, int]
) -> tuple[BoxLabel, ...]:
    plain = [_plain(name) for name in header]
    sizes = (plain.index("width"), plain.index("height")) if {"width", "height"} <= set(plain) else None
    if sizes is None and not {"imageindex", "findinglabel"} <= set(plain):
        raise InputError(
            "E_LABEL_FORMAT", "boxes for pictures of unknown size", hint="add columns width and height, in pixels"
        )
    name = _names_column(header, key)
    kinds = {row[name].strip() for row in rows}
    if len(kinds) > MAX_FINDINGS or not all(map(is_safe_name, kinds)):
        raise InputError(
            "E_LABEL_FORMAT", f"{len(kinds)} different names of boxes, or names of other signs than letters"
        )
    found: dict[str, list[tuple[str, tuple[float, float, float, float]]]] = defaultdict(list)
    size_of: dict[str, tuple[int, int]] = {}
    for row in rows:
        left, top, width, height = (parsed_number(row[index], limit=MAX_PIXEL) for index in columns)
        picture = row[key].strip()
        found[picture].append((row[name].strip(), checked_rectangle(left, top, width, height)))
        size = (_side(row[sizes[0]]), _side(row[sizes[1]])) if sizes else (NIH_SIDE, NIH_SIDE)
        if size_of.setdefault(picture, size) != size or len(found[picture]) > MAX_MARKS:
            raise InputError(
                "E_LABEL_FORMAT", f"rows of one picture disagree on its size, or more than {MAX_MARKS} boxes"
            )
    return tuple(
        BoxLabel(
            _reference(picture, level),
            PictureBoxes(tuple(box for _, box in boxes), tuple(kind for kind, _ in boxes)),
            size=size_of[picture],
        )
        for picture, boxes in found.items()
    )


def _side(text: str) -> int:
    number = parsed_number(text, limit=32_767)
    if number < 1 or number != int(number):
        raise InputError("E_LABEL_FORMAT", "a picture of an impossible size")
    return int(number)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
