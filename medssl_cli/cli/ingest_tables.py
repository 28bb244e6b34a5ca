"""Options of `medssl ingest`: what the columns of tables of labels are, and what boxes were drawn on."""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.base.errors import UsageError
from medssl_cli.cli.ingest_inputs import names_of

if TYPE_CHECKING:
    from medssl_cli.formats.table_choice import TableChoice

TABLES = "Tables of labels"


class Readers(StrEnum):
    """What becomes of the boxes and findings of several readers."""

    fuse = "fuse"
    keep = "keep"


class Copies(StrEnum):
    """Ways in which copies of pictures with boxes were resized."""

    proportional = "proportional"
    stretched = "stretched"


KeyColumnOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of tables that names file or patient.", rich_help_panel=TABLES),
]
LabelColumnOption = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Columns of tables to take as labels, no others.", rich_help_panel=TABLES),
]
ReadersOption = Annotated[
    Readers, typer.Option(help="Choice for tables: what several readers say of one image.", rich_help_panel=TABLES)
]
BoxSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Pixels of the pictures that boxes were drawn on, if unsaid.", rich_help_panel=TABLES
    ),
]
CopiesOption = Annotated[
    Copies, typer.Option(help="How smaller copies of pictures with boxes were made.", rich_help_panel=TABLES)
]


def table_choice(
    key_column: str | None, label_column: str | None, readers: Readers, box_size: str | None, box_copies: Copies
) -> "TableChoice":
    """What the user says about tables and boxes.

    Raises:
        UsageError: `E_USAGE`, a size that is none.
    """
    from medssl_cli.formats.table_choice import TableChoice

    sides = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", box_size or "", flags=re.ASCII)
    if box_size is not None and sides is None:
        raise UsageError("E_USAGE", "--box-size is columns and rows in pixels, such as 1024x1024")
    size = (int(sides[1]), int(sides[2])) if sides else None
    return TableChoice(key_column, names_of(label_column), readers.value, size, box_copies is Copies.stretched)
