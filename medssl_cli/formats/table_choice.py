"""What a user says about tables of labels, and about the pictures that boxes were drawn on."""

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
        box_size: Columns and rows of the pictures that boxes were drawn on, where the file of boxes does not say them.
        are_copies_stretched: Copies of another aspect ratio than those pictures were stretched, neither padded nor cut.
    """

    key_column: str | None = None
    label_columns: tuple[str, ...] | None = None
    readers: Readers = "fuse"
    box_size: tuple[int, int] | None = None
    are_copies_stretched: bool = False
