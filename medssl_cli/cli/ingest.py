"""`medssl ingest`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.cli.options import DEFAULT_CACHE, CacheOption, JsonOption, QuietOption, require_path
from medssl_cli.cli.terminal import Terminal, result, table

if TYPE_CHECKING:
    from medssl_cli.engine.ingest_report import IngestReport

MAX_LINES = 40


def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Folders and files: DICOM, NIfTI, labelled sets, mixed.")],
    cache: CacheOption = DEFAULT_CACHE,
    label_set: Annotated[str, typer.Option(help="Name under which labels are stored.")] = "seg",
    modality: Annotated[str | None, typer.Option(help="Of NIfTI files that do not say: CT, MR, PT ...")] = None,
    patient_pattern: Annotated[
        str | None, typer.Option(help=r"Patient part of NIfTI names as a regular expression, e.g. '(case\d+)_'.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Child processes; default: all cores.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Judge everything, write nothing.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write report.json here.")] = None,
    private_map: Annotated[
        Path | None, typer.Option(help="Write which file has which key, in the clear (mode 0600). Keep it on site.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bring scans into the cache: checked, in physical units, pseudonymous, each once.

    Labelled sets are recognised by their layout: images/ and labels/ with equal names, or an MSD or nnU-Net
    dataset.json. What cannot be trusted is refused with a code and never stops the rest (exit code 3).

    Examples:

        medssl ingest ./dicoms

        medssl ingest ./scans ./hippocampus --cache CACHE --modality MR
    """
    from medssl_cli.engine.ingest import ingest as run_ingest
    from medssl_cli.errors import Exit, NothingUsableError
    from medssl_cli.files import write_json

    terminal = Terminal(quiet=quiet)
    terminal.note(f"cache {cache}" + (" (dry run: nothing is written)" if dry_run else ""))
    with terminal.running():
        done = run_ingest(
            [require_path(path) for path in paths],
            cache,
            label_set=label_set,
            modality=modality,
            patient_pattern=patient_pattern,
            workers=workers,
            dry_run=dry_run,
            report_path=report,
            progress=lambda stage, at, total: terminal.progress(stage, at, total or 0),
        )
    if private_map is not None:
        write_json(private_map, {key: [str(path) for path in files] for key, files in done.files.items()})
    if json:
        result(done.to_json(), as_json=True, text="")
    else:
        _print(done, terminal)
    if done.exit_code == Exit.NOTHING:
        why = "the report says why each was refused" if done.seen else "name files or folders that hold images"
        raise NothingUsableError("E_NOTHING_USABLE", f"none of {done.seen} files could be used", hint=why)
    if done.exit_code:
        raise typer.Exit(int(done.exit_code))


def _print(report: "IngestReport", terminal: Terminal) -> None:
    from medssl_cli.errors import CODES

    refused = [entry for entry in report.entries if entry.state == "quarantined"]
    for entry in refused[:MAX_LINES]:
        terminal.note(f"{entry.code} {entry.id[:10]} ({entry.num_files} files): {entry.message or CODES[entry.code]}")
    if len(refused) > MAX_LINES:
        terminal.note(f"... and {len(refused) - MAX_LINES} more; see the report")
    rows = [(state, str(count)) for state, count in report.counts.items() if count or state == "seen"]
    table("files", ("state", "count"), rows)
    if report.by_code:
        reasons = [(f"{code}  {CODES.get(code, '')}", str(count)) for code, count in report.by_code.items()]
        table("reasons", ("code", "count"), reasons)
    typer.echo(f"{report.num_images} new images, {report.num_labels} new labels")
