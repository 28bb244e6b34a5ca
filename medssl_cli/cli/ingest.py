"""`medssl ingest`."""

from pathlib import Path
from typing import Annotated

import typer

from medssl_cli.cli import ingest_options as own
from medssl_cli.cli import ingest_tables as tables
from medssl_cli.cli import reading_options as choices
from medssl_cli.cli.ingest_inputs import names_of, pacs_source, sort_inputs, tolerance
from medssl_cli.cli.ingest_output import MapOption, QuarantineOption, finish, print_report, write_map, write_page
from medssl_cli.cli.key import KeyFileOption
from medssl_cli.cli.label_options import ModalityOption, Overlap, OverlapOption
from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption, bytes_of
from medssl_cli.cli.places import require_place_of_file
from medssl_cli.cli.terminal import Terminal, result


def ingest(
    inputs: own.InputsArgument = None,
    cache: CacheOption = DEFAULT_CACHE,
    label_set: Annotated[str, typer.Option(help="Name under which labels are stored.")] = "seg",
    modality: ModalityOption = None,
    channel: choices.ChannelsOption = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(help=r"Patient part of names, as '(case\d+)_': of files, and of DICOM that names none."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Child processes; default: all cores.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Address of a Dask scheduler that does the work instead.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Judge everything, write nothing.")] = False,
    reread: Annotated[bool, typer.Option(help="Open unchanged files again, too.")] = False,
    settle: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="First wait until the folders stay the same for so long.")
    ] = 0.0,
    report: Annotated[Path | None, typer.Option(help="Also write report.json here.")] = None,
    private_map: MapOption = None,
    max_quarantine: QuarantineOption = "0",
    key_file: KeyFileOption = None,
    gaps: choices.GapsOption = choices.Gaps.refuse,
    tilt: choices.TiltOption = choices.Resample.refuse,
    shear: choices.ShearOption = choices.Resample.refuse,
    nifti_affine: choices.NiftiAffineOption = choices.NiftiAffine.agree,
    assume_orientation: choices.OrientationOption = None,
    nonfinite: choices.NonfiniteOption = choices.Nonfinite.refuse,
    split_4d: choices.SplitOption = False,
    min_slices: choices.MinSlicesOption = 4,
    burned_in: choices.BurnedInOption = None,
    allow_headerless: choices.HeaderlessOption = False,
    allow_detached: choices.DetachedOption = False,
    stack_pictures: choices.StackOption = False,
    keep_demographics: own.DemographicsOption = False,
    max_volume_gib: choices.MaxGibOption = 8.0,
    structures: own.StructuresOption = None,
    seg_fraction: own.FractionOption = None,
    overlap: OverlapOption = Overlap.settle,
    predictions: own.PredictionsOption = False,
    key_column: tables.KeyColumnOption = None,
    label_column: tables.LabelColumnOption = None,
    readers: tables.ReadersOption = tables.Readers.fuse,
    box_size: tables.BoxSizeOption = None,
    box_copies: tables.CopiesOption = tables.Copies.proportional,
    date_from: own.FromOption = None,
    date_to: own.ToOption = None,
    patients: own.PatientsOption = None,
    ca_bundle: own.CaOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bring scans into the cache: checked, in physical units, pseudonymous, each once.

    Labels are recognised by their kind and layout: images/ and labels/ with equal names, MSD, nnU-Net and BIDS, DICOM
    SEG and RTSTRUCT, LIDC and LUNA nodules, COCO boxes, tables of findings. What cannot be trusted is refused with a
    code and never stops the rest (exit code 3).

    Examples:

        medssl ingest ./dicoms ./scans export.zip --modality MR

        medssl ingest dicomweb://pacs.example/dicom-web --modality CT --from 2024-01-01
    """
    from medssl_cli.formats.policy import Policy
    from medssl_cli.ingest.ingest import ingest as run_ingest
    from medssl_cli.ingest.options import IngestOptions

    require_place_of_file(private_map)
    require_place_of_file(report)
    terminal = Terminal(quiet=quiet)
    paths, url, given = sort_inputs(inputs or (), channel or ())
    pacs = pacs_source(url, modality, date_from, date_to, patients, ca_bundle, terminal)
    policy = Policy(
        gaps.value, tilt.value, shear.value, nifti_affine.value, assume_orientation, nonfinite.value, split_4d,
        min_slices, burned_in.value if burned_in else None, allow_headerless, allow_detached, keep_demographics,
        bytes_of(max_volume_gib), predictions, stack_pictures,
    )  # fmt: skip
    options = IngestOptions(
        label_set, modality, patient_pattern, policy, workers, cluster, dry_run, reread, report, key_file,
        names_of(structures), seg_fraction, settle,
        tables.table_choice(key_column, label_column, readers, box_size, box_copies),
        overlap.value, given.of_all or None, given.places,
    )  # fmt: skip
    tolerated = tolerance(max_quarantine)
    terminal.note(f"cache {cache}" + (" (dry run: nothing is written)" if dry_run else ""))
    with terminal.running():
        done = run_ingest(
            paths, cache, options, pacs=pacs, progress=lambda stage, at, total: terminal.progress(stage, at, total or 0)
        )
        page = write_page(done, cache, terminal)
    if private_map is not None:
        write_map(done, private_map)
    if json:
        result(done.to_json(), as_json=True, text="")
    else:
        print_report(done, terminal, page, has_map=private_map is not None)
    finish(done, tolerated)
