"""`medssl weights`: encoders of other projects in, ours out."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.cli.boundary import guarded
from medssl_cli.cli.options import JsonOption
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import announce, result, table

if TYPE_CHECKING:
    from medssl_cli.engine.weights.importing import Report

app = typer.Typer(help="Import published weights, and export ours for MONAI and nnU-Net.", no_args_is_help=True)
ALWAYS = ("loaded", "missing", "of another shape", "unexpected")
MAX_NAMES = 12


@app.command("import")
@guarded
def import_weights(
    file: Annotated[Path, typer.Argument(help="Weights of another project: .pt, .pth or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; `medssl finetune --init` takes it.")],
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            help="auto, voco-b, voco-l, voco-h, vocomni-b, -l, -h, swinunetr, nnunet-plain, nnunet-resenc, resnet.",
        ),
    ] = "auto",
    branch: Annotated[str, typer.Option(help="student or teacher, where the file holds both.")] = "",
    in_channels: Annotated[int, typer.Option(min=1, help="Channels of your images.")] = 1,
    axes: Annotated[
        str, typer.Option(help="Arrays of the weights: xyz (as here, VoComni) or zyx (nnU-Net's own, pictures).")
    ] = "xyz",
    allow_partial: Annotated[bool, typer.Option(help="Let weights that the file lacks be random.")] = False,
    json: JsonOption = False,
) -> None:
    """Turn weights of another project into an encoder, and say what became of every tensor.

    The file is read by a child process that takes tensors and nothing else: no file can run code.

    Examples:

        medssl weights import VoCo_B_SSL_head.pt runs/voco-b --as voco-b

        medssl weights import checkpoint_final.pth runs/nnunet --as nnunet-resenc --axes zyx
    """
    from medssl_cli.engine.weights import importing

    def show(report: "Report") -> None:
        if json:
            result(report.document(), as_json=True, text="")
        else:
            _show(report)

    announce(f"file {file} · as {kind} · out {out}")
    wishes = importing.Wishes(kind, branch, in_channels, axes, allow_partial)
    importing.import_weights(file, outside_caches(out), wishes, show=show)
    announce(f"next: medssl finetune --task TASK --init {out}")


@app.command("export")
@guarded
def export_weights(
    source: Annotated[Path, typer.Argument(help="Run of `medssl pretrain`, or a folder of `medssl weights import`.")],
    out: Annotated[Path, typer.Argument(help="File to write: .safetensors, .pt or .pth.")],
    target: Annotated[str, typer.Option("--as", help="monai-swinunetr or nnunet.")] = "monai-swinunetr",
    out_channels: Annotated[int, typer.Option(min=1, help="Classes of the network, background included.")] = 2,
    json: JsonOption = False,
) -> None:
    """Write an encoder as a whole network of MONAI or nnU-Net; what pre-training has not learnt is random.

    Examples:

        medssl weights export runs/voco swinunetr.safetensors --out-channels 14

        medssl weights export runs/mine nnunet.pth --as nnunet
    """
    from medssl_cli.engine.weights.exporting import export_weights as write

    done = write(source, outside_caches(out), target=target, out_channels=out_channels)
    text = f"{done.path}: {done.num_tensors} tensors, {done.num_fresh} of them random\nsha256 {done.sha256}"
    text += "" if done.plan is None else f"\nplan: {done.plan}"
    document = {**asdict(done), "path": str(done.path), "plan": done.plan and str(done.plan)}
    result(document, as_json=json, text=text)


def _show(report: "Report") -> None:
    """The report as a table and, where something is amiss, names."""
    groups = {
        "loaded": report.loaded,
        "adapted to the image's channels": report.adapted,
        "missing": report.missing,
        "of another shape": report.misshapen,
        "unexpected": report.unexpected,
        "decoder, kept apart": report.decoder,
        "projector, kept apart": report.projector,
    }
    counts = {what: len(names) for what, names in groups.items()}
    counts |= {"other names of the same": report.num_aliases, "other branch": report.num_dropped}
    rows = [(what, str(count)) for what, count in counts.items() if count or what in ALWAYS]
    table(report.backbone["name"], ("what", "tensors"), rows)
    typer.echo(f"{report.num_covered} of {report.num_parameters} parameters ({100 * report.coverage:.2f} %)")
    for what in ("missing", "of another shape", "unexpected"):
        names = groups[what]
        more = [f"... and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
        typer.echo("\n".join(f"{what}: {line}" for line in (*names[:MAX_NAMES], *more)), nl=bool(names))
    known = f" ({report.published_as})" if report.published_as else ""
    digests = [f"file    sha256 {report.source_sha256}{known}"]
    digests += [f"encoder sha256 {report.encoder_sha256}"] if report.encoder_sha256 else []
    typer.echo("\n".join([*digests, *(f"note: {note}" for note in report.notes)]))
