"""`medssl infer`. Imports no torch."""

from pathlib import Path

from medssl_cli.cli import infer_options as own
from medssl_cli.cli import many_scans as many
from medssl_cli.cli import reading_options as choices
from medssl_cli.cli.infer_output import Teller, finish, report_text
from medssl_cli.cli.log_file import LogFile
from medssl_cli.cli.options import JsonOption, ModelsOption, QuietOption, bytes_of, models_folder
from medssl_cli.cli.pacs_access import deliveries
from medssl_cli.cli.places import outside_caches
from medssl_cli.cli.terminal import Terminal, result


def infer(
    task: own.TaskOption,
    scans: own.ScansArgument = None,
    out: own.OutOption = None,
    models: ModelsOption = None,
    device: own.DeviceOption = "auto",
    threads: own.ThreadsOption = None,
    max_ram_gib: own.MaxRamOption = None,
    tile_timeout: own.TileTimeoutOption = None,
    every_tile: own.EveryTileOption = False,
    overwrite: own.OverwriteOption = False,
    preview: own.PreviewOption = True,
    page: own.PageOption = False,
    formats: own.FormatsOption = "seg",
    probabilities: own.ProbabilitiesOption = False,
    series: own.SeriesOption = None,
    dry_run: own.DryRunOption = False,
    plan: own.PlanOption = False,
    workers: own.WorkersOption = 1,
    cluster: own.ClusterOption = None,
    overlap: own.OverlapOption = True,
    part: own.PartOption = None,
    watch: own.WatchOption = None,
    settle: own.SettleOption = 30.0,
    log_file: own.LogFileOption = None,
    stow: own.StowOption = None,
    ca_bundle: own.CaOption = None,
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
    findings.csv, boxes.csv or candidates.csv (LPS mm, as LUNA16) for all, with operating points. --formats adds
    structure sets and measurement reports. Images of one case are put together by the layouts that ingest knows.

    Whatever happens to one scan costs that scan only; typed again, the command does what is left.

    Examples:

        medssl infer scan.nii.gz --task heart-seg

        medssl infer ./dicom-series -o out --task heart-seg --device cpu --formats seg,rtstruct,sr

        medssl infer --channel flair=p1/a.nii.gz --channel t1ce=p1/b.nii.gz --task brain-tumour

        medssl infer --watch ./arriving -o out --task heart-seg --series 'modality=MR,slices>=40,newest'
    """
    from medssl_cli.base.signals import stop_on_signals
    from medssl_cli.cli.preview import draw_preview
    from medssl_cli.deploy import infer as inference
    from medssl_cli.deploy.model_store import ModelStore, resolve_model
    from medssl_cli.deploy.watching import watch as run_watch
    from medssl_cli.formats.policy import Policy

    many.require_one_way(watch, scans=scans or (), channels=channel or (), part=part, dry_run=dry_run, page=page)
    model = resolve_model(task, ModelStore(models_folder(models)))
    terminal = Terminal(quiet=quiet)
    terminal.note(f"model {model} · output {outside_caches(out or Path('medssl-out'))} · device {device}")
    policy = Policy(
        gaps.value, tilt.value, shear.value, nifti_affine.value, assume_orientation, nonfinite.value, split_4d,
        min_slices, burned_in.value if burned_in else None, allow_headerless, allow_detached,
        max_volume_bytes=bytes_of(max_volume_gib), stack_pictures=stack_pictures,
    )  # fmt: skip
    tell = Teller(LogFile(log_file), prints=watch is not None, as_json=json)
    with (
        terminal.running(),
        stop_on_signals() as stop,
        many.other_processes(workers, cluster) as others,
        deliveries(stow, ca_bundle, out, terminal, lambda: stop.is_set, asks_again=watch is None) as deliver,
    ):
        share = many.shares(threads, max_ram_gib, workers)
        how = inference.InferSettings(
            device, threads=share[0], max_ram_bytes=share[1], tile_timeout_s=tile_timeout, every_tile=every_tile,
            overwrite=overwrite, outputs=own.outputs_of(formats, probabilities=probabilities),
            preview=draw_preview if preview else None, has_page=page, progress=terminal.progress, policy=policy,
            workers=others, overlap=overlap, deliver=deliver, say=tell, is_stopped=lambda: stop.is_set,
        )  # fmt: skip
        if watch is not None:
            counts = run_watch(watch, model, settle_s=settle, how=how, out=out, only_series=series or ())
            terminal.note(f"stopped after {counts} results" if counts else "stopped")
            return
        report = inference.infer(
            scans or (), model, out=out, only_series=series or (), channels=channel or (), part=many.part_of(part),
            dry_run=dry_run, plan=plan, how=how,
        )  # fmt: skip
    result(report.document() if json else None, as_json=json, text=report_text(report))
    if stop.is_set:
        stop.raise_interrupted(f"{report.count('done')} scans are done, {report.not_reached} are left")
    finish(report)
