"""Tables of findings or boxes: one row says something about one file, study, series or patient.

Which columns are taken, and nothing else is ever stored:

* The key: the most specific of the columns with a known name (`SOPInstanceUID`, then `file`, `SeriesInstanceUID`,
  `StudyInstanceUID`, `PatientID`), else of those whose values name images at hand, or the one that a user names. A row
  whose other keys name other images is refused.
* Findings: see `formats.labels.findings`. -1 (uncertain, as in CheXpert), `NA`, `nan` and empty fields say nothing.
  Where no column is one of findings, a column such as `Finding Labels`, `label` or `diagnosis` of names with `|`
  between them; every other name of the table is then absent, "No Finding" means none.
* Boxes: `x, y, w, h`, `x, y, width, height`, `x_min, y_min, x_max, y_max` and other spellings
  (`formats.labels.columns`), in pixel edges of the picture; its size from further columns, or 1024 x 1024 in the table
  of NIH ChestX-ray14. A table of boxes never gives findings, but for a column of 0 and 1 that says one thing about each
  picture (`Target`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import FindingsLabel, Reading, Reference, RefusedRow, num_shared_folders, refusals
from medssl_cli.formats.labels.columns import (
    LEVELS,
    BoxColumns,
    KeyColumns,
    Level,
    box_columns,
    column_of,
    is_keyed,
    key_columns,
    names_column,
    plain,
    reader_column,
)
from medssl_cli.formats.labels.csv_rows import HEAD_BYTES, Table, decoded, header_of, read_rows
from medssl_cli.formats.labels.findings import FindingColumns, finding_columns, findings_of_rows, is_unknown
from medssl_cli.formats.labels.readers import Saying, averaged, united
from medssl_cli.formats.labels.table_boxes import BoxTable, read_boxes
from medssl_cli.formats.source import Source, read_head
from medssl_cli.formats.table_choice import Readers, TableChoice

NIH_SIDE: Final = 1024
_SPLITS: Final = frozenset(("split", "fold", "subset"))
_NIH: Final = frozenset(("imageindex", "findinglabel"))


def read_table(
    source: Source,
    *,
    known: Mapping[str, Set[str]] | None = None,
    choice: TableChoice | None = None,
    is_named: bool = True,
) -> Reading:
    """Read a table.

    Args:
        source: CSV with comma, semicolon or tab.
        known: Names, UIDs and patients of the images at hand (`name_key` of each), by level, to recognise a key column
            by its values where no column has a known name.
        choice: Choice of the user.
        is_named: The user has named the file itself: it must label something.

    Returns:
        One label for each key, with what was refused or left out.

    Raises:
        InputError: `E_LABEL_FORMAT`: no key, nothing to take, or no table; `E_NAME_COLLISION`; `E_TOO_BIG`;
            `S_SIDECAR` instead, if nobody has named the file, nor a column, and no column has the name of a key, or
            one says to which part of a split each row belongs; or what `read_bytes` raises.
    """
    choice = choice or TableChoice()
    try:
        return _read(source, known or {}, choice)
    except InputError as error:
        has_choice = choice.key_column is not None or choice.label_columns is not None
        is_certain = is_named or has_choice or _is_about_images(source)
        if is_certain or error.code not in ("E_LABEL_FORMAT", "E_NAME_COLLISION", "E_TOO_BIG"):
            raise
        raise InputError("S_SIDECAR", "a table that labels no image") from None


def _read(source: Source, known: Mapping[str, Set[str]], choice: TableChoice) -> Reading:
    table = read_rows(source)
    keys = key_columns(table, known, choice.key_column)
    references = _references(table, keys)
    columns = box_columns(table)
    if columns is None:
        reading = _findings(table, keys, references, choice)
    else:
        reading = _boxes(table, keys, columns, references, choice)
    return replace(reading, refused=(*table.refused, *reading.refused))


def _is_about_images(source: Source) -> bool:
    """Whether the header of a table, whatever its rows are like, has the name of a key and does not only split."""
    try:
        header = header_of(decoded(read_head(source, HEAD_BYTES), is_whole=False))
    except InputError:
        return False
    return is_keyed(header) and not any(plain(name) in _SPLITS for name in header)


def _references(table: Table, keys: KeyColumns) -> list[Reference | RefusedRow]:
    """Whom each row is about."""
    names = [row.fields[keys.column] for row in table.rows if row.fields[keys.column]]
    num_shared = num_shared_folders(names) if keys.level in ("name", "any") else 0
    found: list[Reference | RefusedRow] = []
    for row in table.rows:
        value = row.fields[keys.column]
        if is_unknown(value):
            found.append(RefusedRow(row.line, "E_LABEL_FORMAT", "a row without a key"))
            continue
        others = {level: row.fields[column] for column, level in keys.others if not is_unknown(row.fields[column])}
        also = _reference(others) if others else None
        found.append(replace(_reference(_words(value, keys.level)), num_shared=num_shared, also=also))
    return found


def _words(value: str, level: Level) -> dict[Level, str]:
    return dict.fromkeys(LEVELS, value) if level == "any" else {level: value}


def _reference(words: Mapping[Level, str]) -> Reference:
    return Reference(
        sop_uids=frozenset((words["sop"],)) if "sop" in words else frozenset(),
        series_uid=words.get("series"),
        name=words.get("name"),
        study=words.get("study"),
        patient=words.get("patient"),
    )


def _findings(
    table: Table, keys: KeyColumns, references: Sequence[Reference | RefusedRow], choice: TableChoice
) -> Reading:
    reader = reader_column(table)
    taken = keys.all | ({reader} if reader is not None else set())
    columns = finding_columns(table, taken, choice.label_columns)
    if not columns.values and columns.names is None and not columns.refused:
        raise InputError(
            "E_LABEL_FORMAT",
            f"none of {len(table.header)} columns holds findings",
            hint="write 0, 1 or a number between them, or name the columns with --label-column",
        )
    return _grouped(table, columns, reader, references, choice.readers)


def _grouped(
    table: Table,
    columns: FindingColumns,
    reader: int | None,
    references: Sequence[Reference | RefusedRow],
    readers: Readers,
) -> Reading:
    """Findings of each key out of all of its rows, which must not contradict each other."""
    refused: list[RefusedRow] = []
    groups: dict[Reference, list[Saying]] = defaultdict(list)
    rows = findings_of_rows(table, columns)
    for row, reference, findings in zip(table.rows, references, rows, strict=True):
        if isinstance(reference, RefusedRow):
            refused.append(reference)
        elif isinstance(findings, RefusedRow):
            refused.append(findings)
        else:
            groups[reference].append(Saying(row.line, "" if reader is None else row.fields[reader], findings))
    labels: list[FindingsLabel] = []
    num_silent = num_read = 0
    for reference, said in groups.items():
        lines = tuple(one.line for one in said)
        is_read = readers == "fuse" and len({one.reader for one in said}) > 1
        together = averaged(said) if is_read else united(said)
        if isinstance(together, RefusedRow):
            refused += refusals(together, lines)
        elif together:
            num_read += is_read
            labels.append(FindingsLabel(reference, together, lines))
        else:
            num_silent += len(lines)
    notes = [*columns.notes, *([("W_READERS_FUSED", f"of {num_read} images or patients")] if num_read else [])]
    return Reading(tuple(labels), (*columns.refused, *refused), tuple(notes), num_silent)


def _boxes(
    table: Table,
    keys: KeyColumns,
    columns: BoxColumns,
    references: Sequence[Reference | RefusedRow],
    choice: TableChoice,
) -> Reading:
    """Boxes, and findings where a column says one thing about each picture."""
    reader = reader_column(table)
    taken = {*keys.all, *columns.places, *(columns.size or ()), *([reader] if reader is not None else [])}
    names = _box_names(table, taken, choice.label_columns)
    taken |= {names} if names is not None else set()
    wanted = choice.label_columns
    if wanted is not None:
        wanted = tuple(name for name in wanted if column_of(table.header, name) != names)
    found = finding_columns(table, taken, wanted, has_boxes=True)
    whole = _of_whole_pictures(table, found, references)
    present = next(iter(whole.values.items())) if names is None and len(whole.values) == 1 else None
    plain_names = set(map(plain, table.header))
    size = choice.box_size or ((NIH_SIDE, NIH_SIDE) if plain_names >= _NIH else None)
    boxes = read_boxes(BoxTable(table, columns, names, present, reader, choice.readers, size), references)
    labels, refused, notes = boxes.labels, boxes.refused, boxes.notes
    if whole.values:
        findings = _grouped(table, whole, None, references, "keep")
        labels += findings.labels
    return Reading(labels, (*found.refused, *refused), (*whole.notes, *notes), boxes.num_silent)


def _box_names(table: Table, taken: Set[int], wanted: Sequence[str] | None) -> int | None:
    """The column that says what boxes hold: one of names, not of 0 and 1."""
    columns = [column_of(table.header, name) for name in wanted] if wanted is not None else []
    column = names_column(table, taken) if wanted is None else None
    for candidate in columns if column is None else [column]:
        if candidate not in finding_columns(table, taken, [table.header[candidate]], has_boxes=True).values:
            return candidate
    return None


def _of_whole_pictures(
    table: Table, found: FindingColumns, references: Sequence[Reference | RefusedRow]
) -> FindingColumns:
    """Columns of findings without those that say different things in rows of one picture: they are about boxes."""
    values: dict[tuple[int, Reference], str] = {}
    about_boxes: set[int] = set()
    for row, reference in zip(table.rows, references, strict=True):
        for column in found.values:
            if isinstance(reference, Reference):
                text = row.fields[column]
                if values.setdefault((column, reference), text) != text:
                    about_boxes.add(column)
    notes = found.notes
    if about_boxes:
        listed = ", ".join(str(column + 1) for column in sorted(about_boxes))
        notes += (("W_LABEL_NOT_TAKEN", f"columns {listed} are about boxes, not about pictures"),)
    kept = {column: name for column, name in found.values.items() if column not in about_boxes}
    return replace(found, values=kept, notes=notes)
