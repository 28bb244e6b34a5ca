"""Options of `medssl ingest`: what is accepted, and what is repaired."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ACCEPTED = "What is accepted"
REPAIRS = "Repairs (each is recorded in the image)"
PACS = "A PACS as source (dicomweb://HOST/PATH)"


class Gaps(StrEnum):
    """What to do with missing slices."""

    refuse = "refuse"
    interpolate = "interpolate"


class Resample(StrEnum):
    """What to do with grids that are not upright."""

    refuse = "refuse"
    resample = "resample"


class NiftiAffine(StrEnum):
    """Which of two affines counts."""

    agree = "agree"
    sform = "sform"
    qform = "qform"


class Nonfinite(StrEnum):
    """What to do with NaN and infinite voxels."""

    refuse = "refuse"
    background = "background"


class BurnedIn(StrEnum):
    """Pictures that may carry writing."""

    refuse = "refuse"
    accept = "accept"
    accept_risk = "accept-risk"


GapsOption = Annotated[Gaps, typer.Option(help="Missing slices: interpolate them.", rich_help_panel=REPAIRS)]
TiltOption = Annotated[
    Resample, typer.Option(help="Gantry tilt: resample onto an upright grid.", rich_help_panel=REPAIRS)
]
ShearOption = Annotated[
    Resample, typer.Option(help="Axes that are not orthogonal: resample onto a grid.", rich_help_panel=REPAIRS)
]
NiftiAffineOption = Annotated[
    NiftiAffine, typer.Option(help="Which counts where sform and qform disagree.", rich_help_panel=REPAIRS)
]
OrientationOption = Annotated[
    str | None,
    typer.Option(metavar="RAS", help="Axes of images that do not say how they lie.", rich_help_panel=REPAIRS),
]
NonfiniteOption = Annotated[
    Nonfinite, typer.Option(help="NaN and infinite voxels: give them the minimum.", rich_help_panel=REPAIRS)
]
SplitOption = Annotated[
    bool, typer.Option("--split-4d", help="Store each image of a 4D NIfTI file.", rich_help_panel=ACCEPTED)
]
MinSlicesOption = Annotated[
    int, typer.Option(min=1, help="Fewest slices that make a volume.", rich_help_panel=ACCEPTED)
]
BurnedInOption = Annotated[
    BurnedIn | None,
    typer.Option(
        help="Pictures that may carry writing. Needed for PNG, JPEG and TIFF; accept-risk takes ultrasound too.",
        rich_help_panel=ACCEPTED,
    ),
]
HeaderlessOption = Annotated[
    bool, typer.Option("--allow-headerless", help="Try DICOM without its signature.", rich_help_panel=ACCEPTED)
]
DetachedOption = Annotated[
    bool, typer.Option("--allow-detached", help="Read .nhdr and .mhd with their data file.", rich_help_panel=ACCEPTED)
]
DemographicsOption = Annotated[
    bool, typer.Option("--keep-demographics", help="Store sex, and age in 5-year steps.", rich_help_panel=ACCEPTED)
]
MaxGibOption = Annotated[
    float, typer.Option("--max-volume-gib", min=0.001, help="Largest decoded image.", rich_help_panel=ACCEPTED)
]
StructuresOption = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Of DICOM SEG and RTSTRUCT: only these, numbered so.", rich_help_panel=ACCEPTED),
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
