"""Findings of a table: which of its columns they are in, and what each row says.

A column is one of findings if all of its filled fields are 0, 1, numbers between them, true or false, and it is not
named after persons, times or technique. Where that holds for half of the fields and not for all, the column is refused:
it is never half taken. All other columns are left out, and counted.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.base.names import is_safe_name, unique_names
from medssl_cli.formats.labels import MAX_FINDINGS, RefusedRow, parsed_number
from medssl_cli.formats.labels.columns import (
    NAMES,
    column_of,
    is_about_persons_or_technique,
    is_text_of_places,
    names_column,
    plain,
)
from medssl_cli.formats.labels.csv_rows import Row, Table

NOTHING: Final = frozenset(("nofinding", "nofindings", "normal", "healthy"))
"""Names that say that nothing was found, as `plain`."""
_UNKNOWN: Final = frozenset(
    # What pandas, R, SQL and people write where a value is missing.
    ("", "na", "n/a", "n.a.", "nan", "-nan", "<na>", "#n/a", "#na", "null", "none", "nil", "unknown", ".", "-", "?")
)
_WORDS: Final = {"true": 1.0, "false": 0.0}
_LISTS_OF_FINDINGS: Final = ("findinglabels", "findinglabel")
_QUOTED: Final = re.compile(r"""'[^']*'|"[^"]*\"""")
_MAX_LISTED: Final = 10


@dataclass(frozen=True)
class FindingColumns:
    """Where a table holds its findings.

    Args:
        values: Columns of numbers, with the names of their findings.
        names: A column of lists of names.
        refused: Columns that are of findings but for some of their fields.
        notes: What is not taken, and names that were changed.
    """

    values: Mapping[int, str]
    names: int | None = None
    refused: tuple[RefusedRow, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RowFindings:
    """What one row of a table says.

    Args:
        findings: Findings by name: 1 present, 0 absent, between them a probability.
        listed: The names that its list holds; None if it has no list, or one that does not know.
    """

    findings: dict[str, float]
    listed: frozenset[str] | None = None


def is_unknown(text: str) -> bool:
    """Whether a field says that its value is not known."""
    return text.lower() in _UNKNOWN


def number_in(text: str, table: Table, *, limit: float = 1e6) -> float:
    """A number in a field of a table.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    return _number(text, has_decimal_commas=table.has_decimal_commas, limit=limit)


def _number(text: str, *, has_decimal_commas: bool, limit: float = 1e6) -> float:
    if has_decimal_commas and re.fullmatch(r"[+-]?\d*,\d+", text, flags=re.ASCII):
        text = text.replace(",", ".")
    return parsed_number(text, limit=limit)


def finding_columns(
    table: Table, taken: Set[int], wanted: Sequence[str] | None = None, *, has_boxes: bool = False
) -> FindingColumns:
    """Tell columns of findings from the others.

    Args:
        table: All of it.
        taken: Columns that are something else: keys, boxes, readers.
        wanted: Names of the columns to take, where a user gave them.
        has_boxes: A column of names says what boxes hold, not what was found.

    Raises:
        InputError: `E_LABEL_FORMAT`, a wanted column is not there, or there are too many; `E_NAME_COLLISION`.
    """
    chosen = None if wanted is None else {column_of(table.header, name) for name in wanted}
    judged: dict[int, str | RefusedRow] = {
        column: _judged(table, column, is_wanted=chosen is not None)
        for column in range(len(table.header))
        if column not in taken and (chosen is None or column in chosen)
    }
    named = names_column(table, taken)
    for column, judgement in judged.items():
        if isinstance(judgement, RefusedRow) and named is not None and _numbers(table, column, named):
            judged[column] = "numbers of what another column names"
    columns = [column for column, judgement in judged.items() if judgement == "findings"]
    names = None if has_boxes else _names_column(table, taken, judged, chosen)
    if len(columns) > MAX_FINDINGS:
        raise InputError("E_LABEL_FORMAT", f"{len(columns)} findings, more than {MAX_FINDINGS}")
    written = [table.header[column] for column in columns]
    if len(set(written)) != len(written):
        raise InputError("E_NAME_COLLISION", "several columns have the same name")
    stored = unique_names(written)
    left_out = {column: str(why) for column, why in judged.items() if column != names and isinstance(why, str)}
    notes = _left_out(left_out, len(table.header))
    if num_changed := sum(before != after for before, after in zip(written, stored, strict=True)):
        notes.append(("W_NAME_CHANGED", f"of {num_changed} of {len(stored)} columns"))
    refused = tuple(one for one in judged.values() if isinstance(one, RefusedRow))
    return FindingColumns(dict(zip(columns, stored, strict=True)), names, refused, tuple(notes))


def findings_of_rows(table: Table, columns: FindingColumns) -> list[RowFindings | RefusedRow]:
    """What each row says; what it does not know is not among it.

    Raises:
        InputError: `E_LABEL_FORMAT`, the column of names holds free text.
    """
    names = _names_of(table, columns.names) if columns.names is not None else []
    found: list[RowFindings | RefusedRow] = []
    for row in table.rows:
        said = {name: _finding(row.fields[column], table) for column, name in columns.values.items()}
        findings = {name: value for name, value in said.items() if value is not None and value >= 0}
        listed = {} if columns.names is None else _listed(row, columns.names, names)
        if listed is None or any(findings.get(name, value) != value for name, value in listed.items()):
            found.append(RefusedRow(row.line, "E_LABEL_FORMAT", "the row contradicts itself"))
        else:
            present = frozenset(name for name, value in listed.items() if value) if listed else None
            found.append(RowFindings(findings | listed, present))
    return found


def _judged(table: Table, column: int, *, is_wanted: bool) -> str | RefusedRow:
    """`findings`, why a column is none, or why it is refused."""
    name = table.header[column]
    if not is_wanted and not plain(name):
        return "without a name"
    if not is_wanted and plain(name) not in NAMES and is_about_persons_or_technique(name):
        return "named after persons, times or technique"
    filled = [row for row in table.rows if not is_unknown(row.fields[column])]
    if not filled:
        return "without a value"
    bad = [row for row in filled if _finding(row.fields[column], table) is None]
    if not bad:
        return "findings"
    if 2 * len(bad) > len(filled):
        return "of other values than 0 to 1"
    said = f"column {column + 1} holds something else than 0 to 1 in {len(bad)} of {len(filled)} fields"
    return RefusedRow(bad[0].line, "E_LABEL_COLUMN", said)


def _numbers(table: Table, column: int, named: int) -> bool:
    """Whether one column numbers what another one names: each number has one name, and each name one number."""
    pairs = {(row.fields[column], row.fields[named]) for row in table.rows}
    return len(pairs) > 1 and len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


def _names_column(
    table: Table, taken: Set[int], judged: Mapping[int, str | RefusedRow], chosen: Set[int] | None
) -> int | None:
    """The column of names, if it is to be taken: beside columns of numbers only if it cannot be anything else."""
    if chosen is not None:
        others = [column for column in chosen if judged.get(column) == "of other values than 0 to 1"]
        if len(others) > 1:
            raise InputError("E_LABEL_FORMAT", f"{len(others)} columns of names of findings; one is possible")
        return others[0] if others else None
    column = names_column(table, taken)
    if column is None or judged[column] != "of other values than 0 to 1":
        return None
    has_values = "findings" in judged.values()
    is_of_lists = plain(table.header[column]) in _LISTS_OF_FINDINGS or _has_lists(table, column)
    return column if is_of_lists or not has_values else None


def _left_out(reasons: Mapping[int, str], num_columns: int) -> list[tuple[str, str]]:
    """A note on the columns that are no findings, by number: their names could be anybody's."""
    by_reason: dict[str, list[int]] = {}
    for column, reason in sorted(reasons.items()):
        if reason != "findings":
            by_reason.setdefault(reason, []).append(column + 1)
    if not by_reason:
        return []
    said = [
        f"{', '.join(map(str, some[:_MAX_LISTED]))}{' ...' if len(some) > _MAX_LISTED else ''} {reason}"
        for reason, some in by_reason.items()
    ]
    number = sum(map(len, by_reason.values()))
    return [("W_LABEL_NOT_TAKEN", f"{number} of {num_columns} columns are no findings: {', '.join(said)}")]


def _finding(text: str, table: Table) -> float | None:
    """0 to 1, or -1 (uncertain, as in CheXpert); None for anything else."""
    return _finding_of(text, table.has_decimal_commas)


@lru_cache(maxsize=4096)
def _finding_of(text: str, has_decimal_commas: bool) -> float | None:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        number = _number(text, has_decimal_commas=has_decimal_commas)
    except InputError:
        return None
    return number if 0 <= number <= 1 or number == -1 else None


def _has_lists(table: Table, column: int) -> bool:
    """Whether all filled fields of a column are lists of names in brackets."""
    return all(_in_brackets(row.fields[column]) is not None for row in table.rows if not is_unknown(row.fields[column]))


def _parts(text: str) -> set[str]:
    """The names of a list: with `|` between them, or in brackets and quotes as Python writes lists (PadChest)."""
    names = _in_brackets(text)
    return {part.strip() for part in (text.split("|") if names is None else names)}


def _in_brackets(text: str) -> list[str] | None:
    """The names of `['one', "two"]`; None for anything else."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    inside = text[1:-1]
    return [name[1:-1] for name in _QUOTED.findall(inside)] if not _QUOTED.sub("", inside).strip(" ,") else None


def _names_of(table: Table, column: int) -> list[str]:
    """Every name in a column, but for those that say that nothing was found."""
    parts = {part for row in table.rows for part in _parts(row.fields[column])}
    names = sorted(part for part in parts if not is_unknown(part) and plain(part) not in NOTHING)
    if len(names) > MAX_FINDINGS or not all(map(is_finding_name, names)) or len(parts) == len(names) == 0:
        raise InputError(
            "E_LABEL_FORMAT",
            f"{len(names)} different names of findings; 1 to {MAX_FINDINGS} of plain letters are possible",
            hint="free text is not stored: give names with | between them",
        )
    refuse_spellings(names)
    return names


def refuse_spellings(names: Iterable[str]) -> None:
    """Refuse names that differ in case, blanks and underscores only: what is called so would be absent where it is
    called otherwise.

    Raises:
        InputError: `E_NAME_COLLISION`.
    """
    written = set(names)
    different = {"".join(name.casefold().replace("_", " ").split()) for name in written}
    if len(different) < len(written):
        number = len(written) - len(different)
        raise InputError(
            "E_NAME_COLLISION",
            f"{number} of {len(written)} names differ from another one in case, blanks or underscores only",
            hint="spell what is meant by them in one way in all rows",
        )


def is_finding_name(name: str) -> bool:
    """Whether a word of a table may name a finding: letters of any script, no sign that only free text has, no box."""
    return is_safe_name(name) and any(map(str.isalpha, name)) and not is_text_of_places(name)


def _listed(row: Row, column: int, names: Sequence[str]) -> dict[str, float] | None:
    """What a list of names says about all names; None if it says that nothing was found, and something."""
    known = {part for part in _parts(row.fields[column]) if not is_unknown(part)}
    if not known:
        return {}
    listed = {part for part in known if plain(part) not in NOTHING}
    if listed and listed != known:
        return None
    return {name: float(name in listed) for name in names}
