"""Rows of a table of text: comma, semicolon or tab; UTF-8 or Latin-1; bounded."""

import csv
import io
from typing import Final

from medssl_cli.errors import InputError
from medssl_cli.formats.source import Source, read_bytes

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_ROWS: Final = 2_000_000
MAX_COLUMNS: Final = 1_000
_DELIMITERS: Final = ",;\t"


def read_rows(source: Source) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table; every row has as many fields as the header. Empty lines are left out.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TOO_BIG`, or what `read_bytes` raises.
    """
    content = decoded(read_bytes(source, max_bytes=MAX_FILE_BYTES))
    header = header_of(content)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=_delimiter(content), strict=True)
    rows: list[list[str]] = []
    try:
        next(reader)
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputError(
                    "E_LABEL_FORMAT", f"line {reader.line_num} has {len(row)} fields, the header {len(header)}"
                )
            rows.append(row)
            if len(rows) > MAX_ROWS:
                raise InputError("E_TOO_BIG", f"more than {MAX_ROWS} rows")
    except csv.Error as error:
        raise InputError("E_LABEL_FORMAT", f"line {reader.line_num} is not a row of a table") from error
    return header, rows


def header_of(content: str) -> list[str]:
    """Names of the columns in the first line of a table.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TOO_BIG`.
    """
    line = content[: MAX_COLUMNS * 256].split("\n", 1)[0]
    try:
        header = next(csv.reader([line], delimiter=_delimiter(content), strict=True), [])
    except csv.Error as error:
        raise InputError("E_LABEL_FORMAT", "the first line is not a row of names") from error
    if not 2 <= len(header) <= MAX_COLUMNS:
        raise InputError("E_LABEL_FORMAT", f"a table of {len(header)} columns; 2 to {MAX_COLUMNS} are possible")
    return [name.strip() for name in header]


def decoded(data: bytes) -> str:
    """Text of a table: UTF-8 with or without a mark, else Latin-1.

    Raises:
        InputError: `E_LABEL_FORMAT`, it holds zero bytes: no text.
    """
    if b"\0" in data:
        raise InputError("E_LABEL_FORMAT", "the table is not text of 8-bit characters")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _delimiter(content: str) -> str:
    """The one that is most frequent in the first line."""
    line = content[: MAX_COLUMNS * 256].split("\n", 1)[0]
    return max(_DELIMITERS, key=line.count)
