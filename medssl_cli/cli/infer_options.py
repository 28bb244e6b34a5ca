"""Options of `medssl infer`; some are of `medssl listen`, too."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.base.errors import UsageError

if TYPE_CHECKING:
    from medssl_cli.deploy.mask_files import Output

MANY = "Many scans"

ScansArgument = Annotated[list[Path] | None, typer.Argument(help="Files, folders, zip archives: what ingest takes.")]
TaskOption = Annotated[str, typer.Option("--task", "-t", help="Name of an installed model, or a path to a model.onnx.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder, or for one scan the mask's file; default ./medssl-out.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or openvino. Never falls back silently.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="On the CPU; default: all cores.")]
MaxRamOption = Annotated[
    float | None, typer.Option("--max-ram", min=0.1, metavar="GIB", help="Most memory; default: of what is free.")
]
TileTimeoutOption = Annotated[
    float | None, typer.Option(min=1, metavar="SECONDS", help="Longest time for one call of the network.")
]
EveryTileOption = Annotated[
    bool, typer.Option("--every-tile", help="Ask about each constant tile again; the answers are the same.")
]
OverwriteOption = Annotated[
    bool, typer.Option(help="Replace what medssl made from another content or by another model.")
]
PreviewOption = Annotated[bool, typer.Option(help="Also draw a picture of each result.")]
PageOption = Annotated[bool, typer.Option("--page", help="Also write one HTML page: tables, slices, pictures.")]
FormatsOption = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="DICOM objects of DICOM scans, beside the other files: seg, rtstruct, sr; or none. For seg also "
        "seg-deflated, seg-labelmap, seg-labelmap-rle, seg-labelmap-deflated: smaller, and fewer viewers know them.",
    ),
]
ProbabilitiesOption = Annotated[
    bool, typer.Option("--probabilities", help="Also write the probability of every class at every voxel of a mask.")
]
DryRunOption = Annotated[bool, typer.Option(help="Say what would be done, write nothing.")]
PlanOption = Annotated[bool, typer.Option("--plan", help="Say what memory each scan would take, write nothing.")]
SeriesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|UID|RULE",
        help="Only these; a rule: modality=CT,slices>=40,thickness<=2.5,contrast=no,description=*chest*,newest.",
    ),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="Scans at a time, each in a process.", rich_help_panel=MANY)
]
OverlapOption = Annotated[
    bool,
    typer.Option(help="Read the next scan and write the last while the network works.", rich_help_panel=MANY),
]
ClusterOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler whose workers do them.", rich_help_panel=MANY)
]
PartOption = Annotated[
    str | None, typer.Option(metavar="K/N", help="Only this part; other machines do the rest.", rich_help_panel=MANY)
]
WatchOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Do what arrives here, until stopped.", rich_help_panel=MANY)
]
SettleOption = Annotated[
    float,
    typer.Option(min=0, metavar="SECONDS", help="With --watch: how long it stays the same.", rich_help_panel=MANY),
]
LogFileOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Add a line for each result here.", rich_help_panel=MANY)
]
StowOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Send DICOM outputs to dicomweb://HOST/PATH, too.", rich_help_panel=MANY),
]
CaOption = Annotated[Path | None, typer.Option("--ca-bundle", help="Certificates to trust, PEM.", rich_help_panel=MANY)]


def outputs_of(formats: str, *, probabilities: bool = False) -> "tuple[Output, ...]":
    """What `--formats` and `--probabilities` ask for: files that are always written, and others by their names.

    Raises:
        UsageError: `E_USAGE`.
    """
    from medssl_cli.formats.seg_storage import SegStorage

    segs: tuple[Output, ...] = tuple(storage.value for storage in SegStorage)
    objects: tuple[Output, ...] = (*segs, "rtstruct", "sr")
    words = [] if formats == "none" else [word.strip() for word in formats.split(",")]
    unknown = [word for word in words if word not in objects]
    if unknown:
        raise UsageError("E_USAGE", f"--formats knows no {unknown[0]!r}", hint=f"{', '.join(objects)}, or none")
    if len(set(segs) & set(words)) > 1:
        raise UsageError(
            "E_USAGE", "--formats names several kinds of seg, and a scan gets one", hint="choose one of them"
        )
    more: tuple[Output, ...] = ("probabilities",) if probabilities else ()
    return ("nifti", *(word for word in objects if word in words), "preview", *more)


def objects_of(formats: str) -> "tuple[Output, ...]":
    """What `--formats` of a service asks for; something has to be sent.

    Raises:
        UsageError: `E_USAGE`.
    """
    outputs = outputs_of(formats)
    if formats == "none":
        raise UsageError("E_USAGE", "nothing would be sent", hint="--formats seg, sr, or both")
    return outputs
