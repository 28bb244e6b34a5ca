"""Options of `medssl ingest` for what an image is among others: its channel, its labels."""

from enum import StrEnum
from typing import Annotated

import typer

from medssl_cli.cli.reading_options import ACCEPTED


class Overlap(StrEnum):
    """Who has voxels that several structures mark."""

    settle = "settle"
    first = "first"
    last = "last"
    smallest = "smallest"
    parts = "parts"
    refuse = "refuse"


OverlapOption = Annotated[
    Overlap,
    typer.Option(
        help="Who has voxels that files of organs share; settle: the last by name, if each keeps half.",
        rich_help_panel=ACCEPTED,
    ),
]
ModalityOption = Annotated[
    str | None, typer.Option(help="Modality of files that do not say: CT, MR, DX ...; of a PACS: which series.")
]
