"""Options of `medssl ingest`: what the columns of tables of labels are."""

from enum import StrEnum
from typing import Annotated

import typer

TABLES = "Tables of labels"


class Readers(StrEnum):
    """What becomes of the boxes and findings of several readers."""

    fuse = "fuse"
    keep = "keep"


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
