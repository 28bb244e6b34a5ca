"""What a user says about tables of labels."""

from dataclasses import dataclass
from typing import Literal

Readers = Literal["fuse", "keep"]


@dataclass(frozen=True)
class TableChoice:
    """What the columns of a table are, where their names do not say it, and what several readers become.

    Args:
        key_column: Name of the column that says whose a row is.
        label_columns: Names of the columns of findings, or of the one of names.
        readers: What becomes of the boxes of several readers.
    """

    key_column: str | None = None
    label_columns: tuple[str, ...] | None = None
    readers: Readers = "fuse"
