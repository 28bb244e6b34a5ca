"""Rows of a table of text, as programs and people save them; bounded.

Comma, semicolon or tab, also announced by a first line `sep=;` as Excel writes it. UTF-8 with or without a mark, UTF-16
with one, else Windows-1252. A row that does not fit the header costs itself, not the table.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import RefusedRow
from medssl_cli.formats.source import Source, read_bytes

MAX_FILE_BYTES: Final = 256 * 2**20
HEAD_BYTES: Final = 64 * 1024
"""Holds every header that is taken."""
MAX_ROWS: Final = 2_000_000
MAX_COLUMNS: Final = 1_000
DELIMITERS: Final = ",;\t"
_WIDE: Final = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SAMPLE_ROWS: Final = 20


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        line: Its first line in the file, from 1.
        fields: As many as the header has, stripped of blanks.
    """

    line: int
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A header and its rows.

    Args:
        header: Names of the columns, stripped of blanks; some may be empty, the last is not.
        rows: All that fit the header; rows of empty fields are left out.
        refused: The others.
        has_decimal_commas: Whether a comma in a field may be a decimal sign: it does not separate the fields.
    """

    header: tuple[str, ...]
    rows: tuple[Row, ...]
    refused: tuple[RefusedRow, ...] = ()
    has_decimal_commas: bool = False


def read_rows(source: Source) -> Table:
    """Header and rows of a table.

    Empty names at the end of the header, and empty fields beyond it, are separators that a program wrote once too
    often: they are cut off.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TOO_BIG`, or what `read_bytes` raises.
    """
    content = decoded(read_bytes(source, max_bytes=MAX_FILE_BYTES))
    delimiter = _announced(content) or _likely_delimiter(content)
    records = _records(content, delimiter)
    header = _header(records)
    rows: list[Row] = []
    refused: list[RefusedRow] = []
    for line, written in records:
        fields = _fitted(written, len(header))
        if fields is None:
            said = f"the row has {len(written)} fields, the header {len(header)}"
            refused.append(RefusedRow(line, "E_LABEL_FORMAT", said))
        elif any(fields):
            rows.append(Row(line, fields))
        if len(rows) + len(refused) > MAX_ROWS:
            raise InputError("E_TOO_BIG", f"more than {MAX_ROWS} rows")
    return Table(header, tuple(rows), tuple(refused), has_decimal_commas=delimiter != ",")


def header_of(content: str) -> tuple[str, ...]:
    """Names of the columns of a table, from all of it or its beginning.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    return _header(_records(content, _announced(content) or _likely_delimiter(content)))


def decoded(data: bytes, *, is_whole: bool = True) -> str:
    """Text of a table.

    Args:
        data: Its bytes.
        is_whole: Or only its beginning, which may end within a character.

    Raises:
        InputError: `E_LABEL_FORMAT`, it holds zero bytes and is not UTF-16: no text.
    """
    wide = next((encoding for mark, encoding in _WIDE.items() if data.startswith(mark)), None)
    if wide is None and b"\0" in data:
        # Written without a mark: the first two characters are ASCII, so every second byte is zero.
        wide = "utf-16-le" if data[1:4:2] == b"\0\0" else "utf-16-be" if data[0:3:2] == b"\0\0" else None
        if wide is None:
            raise InputError(
                "E_LABEL_FORMAT", "the table is not text: it holds zero bytes", hint="save the table as CSV, UTF-8"
            )
    for encoding in (wide,) if wide else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            return codecs.getincrementaldecoder(encoding)().decode(data, final=is_whole)
        except UnicodeDecodeError:
            continue
    raise InputError("E_LABEL_FORMAT", "the table begins like UTF-16 and is not")


def _header(records: Iterator[tuple[int, list[str]]]) -> tuple[str, ...]:
    _, names = next(records, (1, []))
    header = [name.strip() for name in names]
    while header and not header[-1]:
        header.pop()
    if not 2 <= len(header) <= MAX_COLUMNS:
        raise InputError("E_LABEL_FORMAT", f"a table of {len(header)} columns; 2 to {MAX_COLUMNS} are possible")
    return tuple(header)


def _records(content: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, and its fields; the header is the first, empty lines are left out."""
    stream = io.StringIO(content, newline="")
    num_before = int(bool(_announced(content) and stream.readline()))
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    end = num_before
    try:
        for fields in reader:
            begin, end = end + 1, reader.line_num + num_before
            if fields:
                yield begin, fields
    except csv.Error as error:
        raise InputError("E_LABEL_FORMAT", f"line {reader.line_num + num_before} is not a row of a table") from error


def _announced(content: str) -> str:
    """The separator that a first line `sep=;` names; "" without one."""
    match = re.match(r"sep=([,;\t|])[ ,;\t\"]*(?:\r?\n|\r)", content[:64], flags=re.IGNORECASE)
    return match[1] if match else ""


def _likely_delimiter(content: str) -> str:
    """The one that cuts the first rows into most fields without cutting them into more than the header has."""

    def num_fields(delimiter: str) -> tuple[int, int]:
        sample: list[int] = []
        try:
            for fields in csv.reader(io.StringIO(content[: MAX_COLUMNS * 256], newline=""), delimiter=delimiter):
                sample += [len(fields)] if fields else []
                if len(sample) > _SAMPLE_ROWS:
                    break
        except csv.Error:
            return (0, 0)
        header, *rows = sample or [0]
        return (sum(min(header, number) - 1 for number in rows), header)

    return max(DELIMITERS, key=num_fields)


def _fitted(fields: list[str], number: int) -> tuple[str, ...] | None:
    """Fields of a row as many as the header has; None if that cannot be."""
    stripped = tuple(field.strip() for field in fields)
    if len(stripped) < number or any(stripped[number:]):
        return None
    return stripped[:number]
