"""`medssl infer`. Imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.cli import ingest_options as choices
from medssl_cli.cli.options import DeviceOption, JsonOption, ModelsOption, QuietOption, models_folder
from medssl_cli.cli.terminal import Terminal, result

if TYPE_CHECKING:
    from medssl_cli.deploy.infer import InferReport

MAX_LINES = 40


def infer(
    scans: Annotated[list[Path], typer.Argument(help="Files, folders, zip archives: what ingest takes.")],
    task: Annotated[str, typer.Option("--task", "-t", help="Name of an installed model, or a path to a model.onnx.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, or for one scan the mask's file; default ./medssl-out.")
    ] = None,
    models: ModelsOption = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[
        bool, typer.Option(help="Replace what medssl made from another content or by another model.")
    ] = False,
    preview: Annotated[bool, typer.Option(help="Also draw a picture of each result.")] = True,
    series: Annotated[
        list[str] | None, typer.Option(metavar="NAME|UID", help="Only this scan or series; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, write nothing.")] = False,
    gaps: choices.GapsOption = choices.Gaps.refuse,
    tilt: choices.TiltOption = choices.Resample.refuse,
    shear: choices.ShearOption = choices.Resample.refuse,
    nifti_affine: choices.NiftiAffineOption = choices.NiftiAffine.agree,
    assume_orientation: choices.OrientationOption = None,
    nonfinite: choices.NonfiniteOption = choices.Nonfinite.refuse,
    split_4d: choices.SplitOption = False,
    min_slices: choices.MinSlicesOption = 4,
    allow_headerless: choices.HeaderlessOption = False,
    allow_detached: choices.DetachedOption = False,
    max_volume_gib: choices.MaxGibOption = 8.0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Segment scans: a mask on each scan's own grid, NIfTI and for DICOM input also DICOM SEG.

    Whatever happens to one scan costs that scan only; typed again, the command does what is left.

    Examples:

        medssl infer scan.nii.gz --task heart-seg

        medssl infer ./dicom-series -o out --task heart-seg --device cpu
    """
    from medssl_cli.cli.preview import draw_preview
    from medssl_cli.deploy.infer import infer as run_infer
    from medssl_cli.deploy.store import ModelStore, resolve_model
    from medssl_cli.engine.signals import stop_on_signals
    from medssl_cli.formats.policy import Policy

    model = resolve_model(task, ModelStore(models_folder(models)))
    terminal = Terminal(quiet=quiet)
    terminal.note(f"model {model} · output {out or 'medssl-out'} · device {device}")
    policy = Policy(
        gaps.value, tilt.value, shear.value, nifti_affine.value, assume_orientation, nonfinite.value, split_4d,
        min_slices, allow_headerless=allow_headerless, allow_detached=allow_detached,
        max_volume_bytes=int(max_volume_gib * 2**30),
    )  # fmt: skip
    with terminal.running(), stop_on_signals() as stop:
        report = run_infer(
            scans,
            model,
            out=out,
            device=device,
            overwrite=overwrite,
            preview=draw_preview if preview else None,
            progress=terminal.progress,
            policy=policy,
            only_series=series or (),
            dry_run=dry_run,
            is_stopped=lambda: stop.is_set,
        )
    result(report.document(), as_json=json, text=_text(report))
    if stop.is_set:
        stop.raise_interrupted(f"{report.count('done')} scans are done, {report.not_reached} are left")
    _finish(report)


def _finish(report: "InferReport") -> None:
    from medssl_cli.errors import Exit, NothingUsableError

    if report.exit_code == Exit.NOTHING:
        hints = [scan.hint for scan in report.results if scan.status == "refused"]
        told = hints[0] if len(report.results) == 1 and hints else f"the report says why: {report.path}"
        hint = "the list above says why" if report.is_dry_run else told
        raise NothingUsableError("E_NOTHING_USABLE", f"none of {len(report.results)} scans got a mask", hint=hint)
    if report.exit_code:
        raise typer.Exit(int(report.exit_code))


def _text(report: "InferReport") -> str:
    lines = []
    skipped = [scan for scan in report.results if scan.status == "skipped"]
    for scan in [*(scan for scan in report.results if scan.status != "skipped"), *skipped[:MAX_LINES]]:
        if scan.status in ("refused", "skipped"):
            lines.append(f"{scan.name}: {scan.status} {scan.code}: {scan.message}".rstrip(": "))
            continue
        volumes = ", ".join(f"{name} {volume:.1f} mL" for name, volume in scan.volumes_ml.items())
        notes = (*scan.warnings, *(("done before",) if scan.resumed else ()))
        told = f" [{', '.join(notes)}]" if notes else ""
        lines.append(f"{scan.name}: {'to do' if scan.status == 'pending' else volumes or 'nothing found'}{told}")
        lines += [f"  {report.folder / name}" for name in scan.outputs]
    if len(skipped) > MAX_LINES:
        lines.append(f"... and {len(skipped) - MAX_LINES} files more that are no scans")
    lines.append("nothing is written" if report.is_dry_run else f"report: {report.path}")
    return "\n".join(lines)
