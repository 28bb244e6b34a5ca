"""The report of an output folder on disk, and the tables beside it: every call into the folder adds to them.

Each result is a line at the end of `report.jsonl` as soon as it is there; `report.json`, which holds every entry once,
and the tables are made anew now and then and at the end. `report.json` says how much of the lines it holds already, so
that what a killed call left is read from both. Calls that share the work of a folder (`--part 3/8`) have a report each.
Memory holds one entry at a time, and the few that `report.json` waits for.
"""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import append_durably, make_output_folder, open_regular, write_pieces
from medssl_cli.base.json_stream import pairs_of_object
from medssl_cli.deploy.known_results import KnownResults
from medssl_cli.deploy.results import ScanResult, report_pieces
from medssl_cli.deploy.scans import is_report
from medssl_cli.deploy.whole_answers import tables_of

MAX_REPORT_BYTES: Final = 2**30
MAX_LINE_BYTES: Final = 2**26
SMALL: Final = 200
"""Entries up to which `report.json` is written after every result."""
NEW_SHARE: Final = 0.05
"""Share of the entries that a larger report waits for before it is written."""
JOURNAL_START: Final = b'{"medssl_results": 1}\n'


class ReportFile:
    """The report of an output folder: entries of every call that wrote into it, one for each scan and task.

    Args:
        path: Path of `report.json`; it need not exist.
        has_journal: Keep results as lines, too; not where the report is about one named file.

    Attributes:
        known: All entries, those of other calls that share the work of the folder included.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, there is a file that medssl did not write.
    """

    def __init__(self, path: Path, *, has_journal: bool = False) -> None:
        self.path = path
        self._journal = path.with_suffix(".jsonl") if has_journal else None
        self._pending: list[ScanResult] = []
        self._known_state: tuple[object, ...] = ()
        self.known = KnownResults()
        for entry in self._of_siblings():
            self.known.put(entry)
        self._read()
        self._num_own = self.known.num_own
        self._require_own_journal()

    def record(
        self,
        header: dict[str, Any],
        results: Sequence[ScanResult],
        *,
        is_stale: Callable[[ScanResult], bool] | None = None,
        is_last: bool = False,
    ) -> None:
        """Bring results into the report; entries of other scans stay, those that another call wrote meanwhile too.

        Args:
            header: Header of the report.
            results: Take the place of entries of the same scans, and of those that claim the same outputs.
            is_stale: Which other entries are left out from now on.
            is_last: Nothing more is expected from this call.

        Raises:
            StorageError: `E_IO`.
        """
        make_output_folder(self.path.parent)
        with _locked(self.path.parent):
            is_unchanged = self._state() == self._known_state
            self._append([one for one in results if self._is_news(one)])
            if is_unchanged:
                self._known_state = self._state()
            for one in results:
                self.known.put(one, is_own=True)
            self._pending += results
            is_small = self._num_own + len(self._pending) <= SMALL or self._journal is None
            if is_small or is_last or len(self._pending) > NEW_SHARE * self._num_own:
                self._write_all(header, is_stale)

    def _is_news(self, result: ScanResult) -> bool:
        known = self.known.entry(result.task, result.key, result.name)
        if not result.resumed or known is None:
            return True
        return (known.sent, known.delivered) != (result.sent, result.delivered)

    def _append(self, results: Sequence[ScanResult]) -> None:
        if self._journal is None or not results:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({"at": at, **one.to_json()}, sort_keys=True, allow_nan=False) for one in results]
        append_durably(self._journal, "".join(f"{line}\n" for line in lines).encode(), start=JOURNAL_START)

    def _write_all(self, header: dict[str, Any], is_stale: Callable[[ScanResult], bool] | None) -> None:
        """Make `report.json` and the tables anew, with what other calls have written meanwhile."""
        if self._state() != self._known_state:
            self._read()
        for one in self.known.own() if is_stale is not None else ():
            if is_stale is not None and is_stale(one):
                self.known.drop(one)
        head = {**header, "journal_bytes": _length(self._journal)}
        self._write(self.path, lambda: report_pieces(head, self.known.own_counts(), self.known.own_texts()))
        tables = tables_of(self.known.own()) if self._journal is not None else {}
        for name, table in tables.items():
            self._write(table_path(self.path, name), lambda table=table: (table,))  # type: ignore[misc]
        self._num_own, self._pending = self.known.num_own, []
        self._known_state = self._state()

    @staticmethod
    def _write(path: Path, pieces: Callable[[], Iterable[bytes]]) -> None:
        if not (path.is_file() and _holds(path, pieces())):
            write_pieces(path, pieces(), is_output=True)

    def _state(self) -> tuple[object, ...]:
        """What changes when somebody writes into the report or the lines beside it."""
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            return status.st_ino, status.st_size, status.st_mtime_ns, _length(self._journal)
        return (_length(self._journal),)

    def _read(self) -> None:
        """Take for the entries of this report what `report.json`, the lines behind it, and what waits for it hold."""
        self._known_state = self._state()
        if not os.path.lexists(self.path):
            self.known.replace_own(self._pending)
            return
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if self.path.is_file():
                self.known.replace_own(itertools.chain(_entries_of(self.path, self._journal), self._pending))
                return
        raise UsageError(
            "E_OUTPUT_EXISTS",
            f"{self.path.name} in the output folder is not a report of medssl infer",
            hint="move it away, or choose another folder with -o",
        )

    def _of_siblings(self) -> Iterator[ScanResult]:
        """Entries of the other reports of the folder, as far as they can be read."""
        if self._journal is None or not self.path.parent.is_dir():
            return
        for path in sorted(self.path.parent.glob("report*.json")):
            if path.name == self.path.name or not is_report(path.name):
                continue
            with contextlib.suppress(OSError, ValueError, RecursionError):
                yield from _entries_of(path, path.with_suffix(".jsonl"))

    def _require_own_journal(self) -> None:
        if self._journal is None or not os.path.lexists(self._journal):
            return
        with contextlib.suppress(OSError, ValueError):
            with open_regular(self._journal) as stream:
                start = stream.read(len(JOURNAL_START))
            if not self._journal.is_symlink() and JOURNAL_START.startswith(start):
                return
        raise UsageError(
            "E_OUTPUT_EXISTS",
            f"{self._journal.name} in the output folder does not hold results of medssl infer",
            hint="move it away, or choose another folder with -o",
        )


def table_path(report: Path, name: str) -> Path:
    """Where a table or page lies beside a report; those of a part of the work bear its number, too."""
    part = report.name.removeprefix("report").removesuffix(".json")
    return report.with_name(name if not is_report(report.name) else f"{Path(name).stem}{part}{Path(name).suffix}")


def _entries_of(path: Path, journal: Path | None) -> Iterator[ScanResult]:
    """The entries of a report and of the lines beside it that it does not hold.

    Raises:
        ValueError: It is no report.
        OSError: It cannot be read.
        RecursionError: It is nested too deeply.
    """
    keys, start = set(), 0
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > MAX_REPORT_BYTES:
            raise ValueError("too large")
        for key, value in pairs_of_object(stream, "results"):
            keys.add(key)
            if key == "results" and (entry := ScanResult.from_json(value)) is not None:
                yield entry
            if key == "journal_bytes" and isinstance(value, int):
                start = value
    if not {"medssl_version", "model_sha256", "results"} <= keys:
        raise ValueError("not a report")
    yield from _lines_behind(journal, start)


def _lines_behind(journal: Path | None, start: int) -> Iterator[ScanResult]:
    """Results of the lines behind a place; a line that was cut is left out."""
    if journal is None or not journal.is_file():
        return
    with open_regular(journal) as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(start if 0 <= start <= length else 0)
        while line := stream.readline(MAX_LINE_BYTES):
            with contextlib.suppress(ValueError, RecursionError):
                if (entry := ScanResult.from_json(json.loads(line))) is not None:
                    yield entry


def _length(journal: Path | None) -> int:
    """Bytes of the lines; 0 where there are none."""
    with contextlib.suppress(OSError):
        return 0 if journal is None else journal.stat().st_size
    return 0


def _holds(path: Path, pieces: Iterable[bytes]) -> bool:
    """Whether a file consists of these pieces."""
    with path.open("rb") as stream:
        return all(stream.read(len(piece)) == piece for piece in pieces) and not stream.read(1)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Calls into one folder change its report one after the other; where folders cannot be locked, nothing waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
