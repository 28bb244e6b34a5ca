"""`medssl infer`. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.cli.options import DeviceOption, JsonOption, ModelsOption, QuietOption, models_folder
from medssl_cli.cli.terminal import Terminal, result

if TYPE_CHECKING:
    from medssl_cli.deploy.infer import InferReport


def infer(
    scans: Annotated[list[Path], typer.Argument(help="NIfTI files, DICOM series folders, or folders of many.")],
    task: Annotated[str, typer.Option("--task", "-t", help="Name of an installed model, or a path to a model.onnx.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, or for one scan the mask's file; default ./medssl-out.")
    ] = None,
    models: ModelsOption = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace outputs that exist and differ.")] = False,
    preview: Annotated[bool, typer.Option(help="Also draw a picture of each result.")] = True,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Segment scans: a mask on each scan's own grid, NIfTI and for DICOM input also DICOM SEG.

    Examples:

        medssl infer scan.nii.gz --task heart-seg

        medssl infer ./dicom-series -o out --task heart-seg --device cpu
    """
    from medssl_cli.cli.preview import draw_preview
    from medssl_cli.deploy.infer import infer as run_infer
    from medssl_cli.deploy.store import ModelStore, resolve_model
    from medssl_cli.errors import Exit, NothingUsableError

    store = ModelStore(models_folder(models))
    model = resolve_model(task, store)
    terminal = Terminal(quiet=quiet)
    terminal.note(f"model {model} · output {out or 'medssl-out'} · device {device}")
    with terminal.running():
        report = run_infer(
            scans,
            model,
            out=out,
            device=device,
            overwrite=overwrite,
            preview=draw_preview if preview else None,
            progress=terminal.progress,
        )
    result(report.document(), as_json=json, text=_text(report))
    if report.exit_code == Exit.NOTHING:
        hints = [scan.hint for scan in report.results if scan.hint]
        raise NothingUsableError(
            "E_NOTHING_USABLE",
            f"none of {len(report.results)} scans got a mask",
            hint=hints[0] if len(report.results) == 1 and hints else f"the report says why: {report.path}",
        )
    if report.exit_code:
        raise typer.Exit(int(report.exit_code))


def _text(report: "InferReport") -> str:
    lines = []
    for scan in report.results:
        if scan.status != "done":
            lines.append(f"{scan.name}: {scan.status} {scan.code}: {scan.message}")
            continue
        volumes = ", ".join(f"{name} {volume:.1f} mL" for name, volume in scan.volumes_ml.items())
        warnings = f" [{', '.join(scan.warnings)}]" if scan.warnings else ""
        lines.append(f"{scan.name}: {volumes or 'nothing found'}{warnings}")
        lines += [f"  {report.folder / name}" for name in scan.outputs]
    lines.append(f"report: {report.path}")
    return "\n".join(lines)
