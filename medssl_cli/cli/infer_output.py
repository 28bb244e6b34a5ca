"""What `medssl infer` says at its end: a line for each scan, an exit code."""

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medssl_cli.cli.log_file import LogFile
    from medssl_cli.deploy.infer import InferReport, ScanResult

MAX_LINES = 40


class Teller:
    """Tells of each result as it comes: in a log file, and of a folder that is watched on stdout.

    Args:
        log: Gets a line each.
        prints: Print it, too.
        as_json: Print it as a JSON document on one line.
    """

    def __init__(self, log: "LogFile", *, prints: bool, as_json: bool) -> None:
        self._log, self._prints, self._as_json = log, prints, as_json

    def __call__(self, scan: "ScanResult") -> None:
        """Tell of one result."""
        text = scan_line(scan)
        self._log.note(f"{scan.task} {text} ({scan.seconds:.1f} s)", is_problem=scan.status == "refused")
        if self._prints:
            typer.echo(json.dumps(scan.to_json(), allow_nan=False) if self._as_json else text)


def finish(report: "InferReport") -> None:
    """End the command with the exit code that the report stands for.

    Raises:
        NothingUsableError: `E_NOTHING_USABLE`.
        typer.Exit: Some scans were refused.
    """
    from medssl_cli.base.errors import Exit, NothingUsableError

    if report.exit_code == Exit.NOTHING:
        hints = [scan.hint for scan in report.results if scan.status == "refused"]
        told = hints[0] if len(report.results) == 1 and hints else f"the report says why: {report.path}"
        hint = "the list above says why" if report.is_dry_run else told
        raise NothingUsableError("E_NOTHING_USABLE", f"none of {len(report.results)} scans has an answer", hint=hint)
    if report.exit_code:
        raise typer.Exit(int(report.exit_code))


def report_text(report: "InferReport") -> str:
    """One line for each scan and each of its files, those that are no scans last."""
    lines = []
    skipped = [scan for scan in report.results if scan.status == "skipped"]
    for scan in [*(scan for scan in report.results if scan.status != "skipped"), *skipped[:MAX_LINES]]:
        lines.append(scan_line(scan))
        if scan.status not in ("refused", "skipped"):
            lines += [f"  {report.folder / name}" for name in scan.outputs]
    if len(skipped) > MAX_LINES:
        lines.append(f"... and {len(skipped) - MAX_LINES} files more that are no scans")
    lines.append("nothing is written" if report.is_dry_run else f"report: {report.path} · device {report.device}")
    if report.page is not None:
        lines.append(f"page: {report.page}")
    return "\n".join(map(printable, lines))


def scan_line(scan: "ScanResult") -> str:
    """What became of a scan, in one line."""
    if scan.status in ("refused", "skipped"):
        return printable(f"{scan.name}: {scan.status} {scan.code}: {scan.message}".rstrip(": "))
    if scan.memory:
        return printable(f"{scan.name}: {scan.message}")
    notes = (*scan.warnings, *(("done before",) if scan.resumed else ()))
    told = f" [{', '.join(notes)}]" if notes else ""
    return printable(f"{scan.name}: {'to do' if scan.status == 'pending' else _answer(scan) or 'nothing found'}{told}")


def _answer(scan: "ScanResult") -> str:
    """What the model says of a scan, what reaches its operating point marked with a star."""
    told = [f"{name} {scan.volume_text(name)}" for name in scan.volumes_ml]
    for name, score in scan.findings.items():
        told.append(f"{name} {score:.3f}{'*' if score >= scan.thresholds.get(name, 1.0) else ''}")
    told += [f"{box['class']} {box['score']:.3f}*" for box in scan.boxes if box["is_yes"]]
    if weak := sum(not box["is_yes"] for box in scan.boxes):
        told.append(f"{weak} boxes below their operating point")
    return ", ".join(told)


def printable(line: str) -> str:
    """A line without control characters: names of files and classes, which others chose, must not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
