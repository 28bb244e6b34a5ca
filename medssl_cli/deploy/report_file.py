"""The report of an output folder on disk, and the tables beside it: every call into the folder adds to them.

Each result is a line at the end of `report.jsonl` as soon as it is there; `report.json`, which holds every entry once,
and the tables are made anew now and then and at the end. `report.json` says how much of the lines it holds already, so
that what a killed call left is read from both. Calls that share the work of a folder (`--part 3/8`) have a report each.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import (
    append_durably,
    json_bytes,
    make_output_folder,
    open_regular,
    read_regular,
    write_atomic,
)
from medssl_cli.deploy.known_results import KnownResults
from medssl_cli.deploy.results import ScanResult, report_document
from medssl_cli.deploy.scans import is_report
from medssl_cli.deploy.whole_answers import tables_of

MAX_REPORT_BYTES: Final = 2**30
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
        own, _ = self._read()
        self._num_own = len(own)
        self.known = KnownResults([*self._of_siblings(), *own])
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
            self._append([one for one in results if self._is_news(one)])
            for one in results:
                self.known.put(one)
            self._pending += results
            is_small = self._num_own + len(self._pending) <= SMALL or self._journal is None
            if is_small or is_last or len(self._pending) > NEW_SHARE * self._num_own:
                self._write_all(header, is_stale)

    def _is_news(self, result: ScanResult) -> bool:
        known = self.known.entry(result.task, result.key, result.name)
        return not result.resumed or known is None or known.sent != result.sent

    def _append(self, results: Sequence[ScanResult]) -> None:
        if self._journal is None or not results:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({"at": at, **one.to_json()}, sort_keys=True, allow_nan=False) for one in results]
        append_durably(self._journal, "".join(f"{line}\n" for line in lines).encode(), start=JOURNAL_START)

    def _write_all(self, header: dict[str, Any], is_stale: Callable[[ScanResult], bool] | None) -> None:
        """Make `report.json` and the tables anew."""
        own, journal_bytes = self._read()
        kept = own if is_stale is None else [one for one in own if not is_stale(one)]
        entries = KnownResults([*kept, *self._pending])
        document = report_document({**header, "journal_bytes": journal_bytes}, list(entries))
        self._write(self.path, json_bytes(document))
        for name, table in tables_of(list(entries)).items():
            self._write(table_path(self.path, name), table)
        self._num_own, self._pending = len(entries), []
        for one in entries:
            self.known.put(one)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        if not (path.is_file() and path.read_bytes() == data):
            write_atomic(path, data, is_output=True)

    def _read(self) -> tuple[list[ScanResult], int]:
        """Entries of `report.json` and of the lines behind it, and how long the lines are."""
        if not os.path.lexists(self.path):
            return [], 0 if self._journal is None or not self._journal.exists() else self._journal.stat().st_size
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if self.path.is_file():
                entries, journal_bytes = _entries_of(read_regular(self.path, max_bytes=MAX_REPORT_BYTES))
                lines, journal_bytes = _lines_behind(self._journal, journal_bytes)
                return [*entries, *lines], journal_bytes
        raise UsageError(
            "E_OUTPUT_EXISTS",
            f"{self.path.name} in the output folder is not a report of medssl infer",
            hint="move it away, or choose another folder with -o",
        )

    def _of_siblings(self) -> list[ScanResult]:
        """Entries of the other reports of the folder, as far as they can be read."""
        if self._journal is None or not self.path.parent.is_dir():
            return []
        found: list[ScanResult] = []
        for path in sorted(self.path.parent.glob("report*.json")):
            if path.name == self.path.name or not is_report(path.name):
                continue
            with contextlib.suppress(OSError, ValueError, RecursionError):
                entries, journal_bytes = _entries_of(read_regular(path, max_bytes=MAX_REPORT_BYTES))
                found += entries
                found += _lines_behind(path.with_suffix(".jsonl"), journal_bytes)[0]
        return found

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


def _entries_of(data: bytes) -> tuple[list[ScanResult], int]:
    """The entries of a report, and how much of the lines beside it they hold."""
    document = json.loads(data)
    is_report = isinstance(document, dict) and {"medssl_version", "model_sha256"} <= document.keys()
    results = document.get("results") if is_report else None
    if not isinstance(results, list):
        raise ValueError("not a report")
    journal_bytes = document.get("journal_bytes", 0)
    found = [ScanResult.from_json(entry) for entry in results]
    return [entry for entry in found if entry is not None], journal_bytes if isinstance(journal_bytes, int) else 0


def _lines_behind(journal: Path | None, start: int) -> tuple[list[ScanResult], int]:
    """Results of the lines behind a place, and where they end; a line that was cut is left out."""
    if journal is None or not journal.is_file():
        return [], 0
    found = []
    with open_regular(journal) as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(start if 0 <= start <= length else 0)
        for line in stream.read(MAX_REPORT_BYTES).split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                found.append(ScanResult.from_json(json.loads(line)))
    return [entry for entry in found if entry is not None], length


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
