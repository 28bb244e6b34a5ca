"""What `medssl ingest` leaves behind for people: tables, a page, a map, an exit code."""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medssl_cli.cli.terminal import Terminal, table

if TYPE_CHECKING:
    from medssl_cli.ingest.report import IngestReport, ReportEntry

MAX_LINES = 40
SAID_WITH_REMEDY = ("W_ONE_PATIENT",)
"""Notes that change which images are of one patient, and that only the user can judge."""
MapOption = Annotated[
    Path | None, typer.Option(help="Write which file has which key, in the clear (mode 0600). Keep it on site.")
]
QuarantineOption = Annotated[
    str, typer.Option(metavar="N|P%", help="Exit with 0 if no more files than this are refused.")
]


def write_page(report: "IngestReport", cache: Path, terminal: Terminal) -> Path | None:
    """The page with a picture of every image, beside the report in the cache; None where nothing was written there."""
    if report.written is None:
        return None
    from medssl_cli.base.files import write_atomic
    from medssl_cli.cache.store import Cache
    from medssl_cli.report.ingest import ingest_page

    page = report.written.with_suffix(".html")
    html = ingest_page(
        json.loads(report.written.read_text(encoding="utf-8")),
        Cache.open(cache),
        report.planes,
        progress=lambda done, total: terminal.progress("pictures", done, total),
    )
    write_atomic(page, html.encode())
    return page


def write_map(report: "IngestReport", path: Path) -> None:
    """Which sources each key of the report stands for, in the clear."""
    from medssl_cli.base.files import write_json
    from medssl_cli.formats.source import place_of

    places: dict[str, list[str]] = defaultdict(list)
    for entry, sources in report.sources:
        places[entry.id] += [os.fsencode(place_of(source)).decode("utf-8", "backslashreplace") for source in sources]
    write_json(path, places)


def print_report(report: "IngestReport", terminal: Terminal, page: Path | None, *, has_map: bool) -> None:
    """Refusals by what is said about them, then files by state and by reason."""
    from medssl_cli.base.codes import CODES

    refused: dict[tuple[str, str, str], list[ReportEntry]] = defaultdict(list)
    for entry in report.entries:
        if entry.state == "quarantined":
            code = CODES[entry.code]
            refused[entry.code, entry.message or code.meaning, entry.hint or code.remedy].append(entry)
    for (name, message, hint), entries in list(refused.items())[:MAX_LINES]:
        others = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        num_files = sum(entry.num_files for entry in entries)
        terminal.note(f"{name} {entries[0].id[:10]}{others} ({num_files} files): {message}")
        terminal.note(f"  hint: {hint}")
    if len(refused) > MAX_LINES:
        terminal.note(f"... and {len(refused) - MAX_LINES} reasons more; see the report")
    if refused and not has_map:
        terminal.note("which files these are: run it again with --private-map FILE")
    if report.key_is_ephemeral:
        terminal.note("W_EPHEMERAL_KEY: this cache has a key of its own; medssl key init makes one for the whole site")
    for name in filter(report.by_code.__contains__, SAID_WITH_REMEDY):
        terminal.note(f"{name}: {report.by_code[name]} images: {CODES[name].meaning}")
        terminal.note(f"  hint: {CODES[name].remedy}")
    rows = [(state, str(count)) for state, count in report.counts.items() if count or state == "seen"]
    table("files", ("state", "count"), rows)
    if report.by_code:
        reasons = [(f"{code}  {CODES[code].meaning}", str(count)) for code, count in report.by_code.items()]
        table("reasons", ("code", "count"), reasons)
    typer.echo(f"{report.num_images} new images, {report.num_labels} new labels")
    if page is not None:
        typer.echo(f"page: {page}")


def finish(report: "IngestReport", tolerated: Callable[[int], float]) -> None:
    """End the command with the exit code that the report stands for.

    Raises:
        NothingUsableError: `E_NOTHING_USABLE`.
        typer.Exit: Some files were refused.
    """
    from medssl_cli.base.errors import Exit, NothingUsableError

    if report.exit_code == Exit.NOTHING:
        why = "the report says why each was refused" if report.seen else "name files or folders that hold images"
        raise NothingUsableError("E_NOTHING_USABLE", f"none of {report.seen} files could be used", hint=why)
    if report.exit_code and report.num_refused > tolerated(report.seen):
        raise typer.Exit(int(report.exit_code))
