"""Tables for spreadsheets: text that others chose is text there, and never a formula."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

_STARTS_OF_FORMULAS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a cell that spreadsheets compute, those of full width too."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines of CSV.

    Args:
        rows: Cells; a text that a spreadsheet would take for a formula gets an apostrophe in front, a number does not.
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_inert(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _inert(cell: object) -> object:
    """A cell that says what it says, and does nothing."""
    if not isinstance(cell, str):
        return cell
    is_formula = cell.startswith(_STARTS_OF_FORMULAS) and not _is_number(cell)
    one_kind_of_line = cell.replace("\r\n", "\n").replace("\r", "\n")  # "\r" alone would not be quoted
    return f"'{one_kind_of_line}" if is_formula else one_kind_of_line


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
