"""Options of `medssl ingest` about what it stores, and about a PACS."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli.reading_options import ACCEPTED

PACS = "A PACS as source (dicomweb://HOST/PATH)"

InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="PATHS...", help="Folders, files, zip archives: DICOM, NIfTI, X-rays; or dicomweb://HOST."),
]
DemographicsOption = Annotated[
    bool, typer.Option("--keep-demographics", help="Store sex, and age in 5-year steps.", rich_help_panel=ACCEPTED)
]
StructuresOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Structures of DICOM SEG and RTSTRUCT: only these, numbered so.", rich_help_panel=ACCEPTED
    ),
]
FractionOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Threshold for a fractional DICOM SEG.", rich_help_panel=ACCEPTED),
]
PredictionsOption = Annotated[
    bool,
    typer.Option("--predictions", help="Take what medssl infer wrote as labels, too.", rich_help_panel=ACCEPTED),
]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="YYYY-MM-DD", help="First study date.", rich_help_panel=PACS)
]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="YYYY-MM-DD", help="Last study date.", rich_help_panel=PACS)
]
PatientsOption = Annotated[
    Path | None, typer.Option("--patients", help="File of PatientIDs, one a line.", rich_help_panel=PACS)
]
CaOption = Annotated[Path | None, typer.Option("--ca-bundle", help="Certificates to trust, PEM.", rich_help_panel=PACS)]
