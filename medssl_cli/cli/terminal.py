"""What a person sees: notes and progress on stderr, results on stdout."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import typer

LINE_EVERY_S: Final = 20.0


class Terminal:
    """A `Talk` on stderr: a live bar on a terminal, a line now and then in a log file.

    Args:
        quiet: Say nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last_line = 0.0
        self._last_what = ""

    @contextmanager
    def running(self) -> Iterator["Terminal"]:
        """Around the work, so that the bar is closed whatever happens."""
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
            )
            with self._bar:
                yield self
            self._bar = None
        else:
            yield self

    def note(self, text: str) -> None:
        """One line on stderr."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            typer.echo(text, err=True)

    def progress(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Move the bar, or print a line every `LINE_EVERY_S` seconds; a total of 0 means that nobody knows it."""
        if self._quiet:
            return
        if self._bar is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bar.add_task(what, total=total or None, detail=detail)
            self._bar.update(self._tasks[what], completed=done, total=total or None, detail=detail)
            return
        now = monotonic()
        is_end = 0 < total <= done
        if what != self._last_what or now - self._last_line > LINE_EVERY_S or is_end:
            self._last_what, self._last_line = what, now
            share = f"{100 * done / total:.0f} %" if total else f"{done:g}"
            typer.echo(f"{what}: {share} {detail}".rstrip(), err=True)


def announce(place: str, *, quiet: bool = False) -> None:
    """Say on stderr which cache, store or folder a command uses."""
    Terminal(quiet=quiet).note(place)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


def result(document: Any, *, as_json: bool, text: str) -> None:
    """The command's result on stdout: one JSON document, or text for people."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False) if as_json else text)
