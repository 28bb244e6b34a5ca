"""`medssl infer`. Imports no torch."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import reading_options as choices
from medssl_cli.cli.infer_output import finish, report_text
from medssl_cli.cli.options import DeviceOption, JsonOption, ModelsOption, QuietOption, bytes_of, models_folder
from medssl_cli.cli.terminal import Terminal, result


def infer(
    task: Annotated[str, typer.Option("--task", "-t", help="Name of an installed model, or a path to a model.onnx.")],
    scans: Annotated[list[Path] | None, typer.Argument(help="Files, folders, zip archives: what ingest takes.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder, or for one scan the mask's file; default ./medssl-out.")
    ] = None,
    models: ModelsOption = None,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="On the CPU; default: all cores.")] = None,
    max_ram_gib: Annotated[
        float | None,
        typer.Option("--max-ram", min=0.1, metavar="GIB", help="Most memory; default: 80 % of what is free."),
    ] = None,
    tile_timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Longest time for one call of the network.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace what medssl made from another content or by another model.")
    ] = False,
    preview: Annotated[bool, typer.Option(help="Also draw a picture of each result.")] = True,
    series: Annotated[
        list[str] | None, typer.Option(metavar="NAME|UID", help="Only this scan or series; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what would be done, write nothing.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what memory each scan would take, write nothing.")] = False,
    channel: choices.ChannelsOption = None,
    gaps: choices.GapsOption = choices.Gaps.refuse,
    tilt: choices.TiltOption = choices.Resample.refuse,
    shear: choices.ShearOption = choices.Resample.refuse,
    nifti_affine: choices.NiftiAffineOption = choices.NiftiAffine.agree,
    assume_orientation: choices.OrientationOption = None,
    nonfinite: choices.NonfiniteOption = choices.Nonfinite.refuse,
    split_4d: choices.SplitOption = False,
    min_slices: choices.MinSlicesOption = 4,
    burned_in: choices.BurnedInOption = choices.BurnedIn.accept_risk,
    allow_headerless: choices.HeaderlessOption = False,
    allow_detached: choices.DetachedOption = False,
    stack_pictures: choices.StackOption = False,
    max_volume_gib: choices.MaxGibOption = 8.0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask a model about scans or pictures: masks, findings or boxes, by what the model answers with.

    Masks lie on each scan's own grid, NIfTI and for DICOM input also DICOM SEG; classes that overlap get a NIfTI file
    each. Findings (probabilities) and boxes (in a picture's pixels, in a volume RAS mm) are JSON for each image, and
    findings.csv, boxes.csv or candidates.csv (LPS mm, as LUNA16) for all, with operating points. Images of one case are
    put together by the layouts that ingest knows.

    Whatever happens to one scan costs that scan only; typed again, the command does what is left.

    Examples:

        medssl infer scan.nii.gz --task heart-seg

        medssl infer ./dicom-series -o out --task heart-seg --device cpu

        medssl infer ./radiographs -o out --task xray-abnormal

        medssl infer --channel flair=p1/a.nii.gz --channel t1ce=p1/b.nii.gz --task brain-tumour
    """
    from medssl_cli.base.signals import stop_on_signals
    from medssl_cli.cli.preview import draw_preview
    from medssl_cli.deploy.infer import infer as run_infer
    from medssl_cli.deploy.model_store import ModelStore, resolve_model
    from medssl_cli.formats.policy import Policy

    model = resolve_model(task, ModelStore(models_folder(models)))
    terminal = Terminal(quiet=quiet)
    terminal.note(f"model {model} · output {out or 'medssl-out'} · device {device}")
    policy = Policy(
        gaps.value, tilt.value, shear.value, nifti_affine.value, assume_orientation, nonfinite.value, split_4d,
        min_slices, burned_in.value if burned_in else None, allow_headerless, allow_detached,
        max_volume_bytes=bytes_of(max_volume_gib), stack_pictures=stack_pictures,
    )  # fmt: skip
    with terminal.running(), stop_on_signals() as stop:
        report = run_infer(
            scans or (),
            model,
            out=out,
            device=device,
            threads=threads,
            max_ram_bytes=None if max_ram_gib is None else bytes_of(max_ram_gib),
            tile_timeout_s=tile_timeout,
            overwrite=overwrite,
            preview=draw_preview if preview else None,
            progress=terminal.progress,
            policy=policy,
            only_series=series or (),
            channels=channel or (),
            dry_run=dry_run,
            plan=plan,
            is_stopped=lambda: stop.is_set,
        )
    result(report.document(), as_json=json, text=report_text(report))
    if stop.is_set:
        stop.raise_interrupted(f"{report.count('done')} scans are done, {report.not_reached} are left")
    finish(report)
