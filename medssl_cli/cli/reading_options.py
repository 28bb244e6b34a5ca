"""Options of every command that reads images: what is accepted, and what is repaired. Each is a field of `Policy`."""

from enum import StrEnum
from typing import Annotated

import typer

ACCEPTED = "What is accepted"
REPAIRS = "Repairs (each is recorded)"


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


ChannelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--channel",
        metavar="WORD[=PATH]",
        help="Channel of a file or folder, or of images without one: flair=PATH, t1ce; may be repeated.",
        rich_help_panel=ACCEPTED,
    ),
]
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
    bool, typer.Option("--split-4d", help="Take each image of a 4D file by itself.", rich_help_panel=ACCEPTED)
]
StackOption = Annotated[
    bool,
    typer.Option(
        "--stack-pictures", help="Take numbered pictures of a folder as one volume.", rich_help_panel=ACCEPTED
    ),
]
MinSlicesOption = Annotated[
    int, typer.Option(min=1, help="Fewest slices that make a volume.", rich_help_panel=ACCEPTED)
]
BurnedInOption = Annotated[
    BurnedIn | None,
    typer.Option(
        help="Pictures that may carry writing: accept takes PNG, JPEG and TIFF, accept-risk ultrasound too.",
        rich_help_panel=ACCEPTED,
    ),
]
HeaderlessOption = Annotated[
    bool, typer.Option("--allow-headerless", help="Try DICOM without its signature.", rich_help_panel=ACCEPTED)
]
DetachedOption = Annotated[
    bool, typer.Option("--allow-detached", help="Read .nhdr and .mhd with their data file.", rich_help_panel=ACCEPTED)
]
MaxGibOption = Annotated[
    float, typer.Option("--max-volume-gib", min=0.001, help="Largest decoded image.", rich_help_panel=ACCEPTED)
]
