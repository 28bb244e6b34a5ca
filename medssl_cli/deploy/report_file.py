"""The report of an output folder on disk, and the tables beside it: every call into the folder adds to them."""

import contextlib
import fcntl
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import json_bytes, make_output_folder, write_atomic
from medssl_cli.deploy.results import ScanResult, report_document
from medssl_cli.deploy.whole_answers import tables_of

MAX_REPORT_BYTES: Final = 2**30


class ReportFile:
    """`report.json` of an output folder: entries of every call that wrote into it, one for each scan and task.

    Args:
        path: The file; it need not exist.

    Raises:
        UsageError: `E_OUTPUT_EXISTS`, there is a file that medssl did not write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = self._read()

    def entry(self, task: str, key: str, name: str) -> ScanResult | None:
        """The entry of a scan; one of an earlier version knows it by its name only."""
        own = next((one for one in self.entries if (one.task, one.key) == (task, key)), None)
        return own or next((one for one in self.entries if not one.key and one.name == name), None)

    def holder(self, task: str, name: str) -> ScanResult | None:
        """The scan that has outputs of a name."""
        return next((one for one in self.entries if one.key and (one.task, one.name) == (task, name)), None)

    def owner(self, output: str) -> ScanResult | None:
        """The entry that an output belongs to."""
        return next((one for one in self.entries if output in one.outputs), None)

    def namesake(self, path: Path) -> ScanResult | None:
        """The entry whose output is the same file under another spelling, as on disks that take "A" for "a"."""
        name = _folded(path.name)
        spellings = ((one, output) for one in self.entries for output in one.outputs if _folded(output) == name)
        with contextlib.suppress(OSError, ValueError):
            return next((one for one, output in spellings if path.samefile(path.with_name(output))), None)
        return None

    def update(
        self,
        header: dict[str, Any],
        results: Sequence[ScanResult] = (),
        *,
        is_stale: Callable[[ScanResult], bool] | None = None,
    ) -> None:
        """Bring results into the file; entries of other scans stay, those that another call wrote meanwhile too.

        Args:
            header: Header of the report.
            results: Take the place of entries of the same scans, and of those that claim the same outputs.
            is_stale: Which other entries are left out from now on.

        Raises:
            StorageError: `E_IO`.
        """
        make_output_folder(self.path.parent)
        with _locked(self.path.parent):
            keys = {(one.task, one.key) for one in results}
            outputs = {output for one in results for output in one.outputs}
            others = [one for one in self._read() if (one.task, one.key) not in keys]
            others = [one for one in others if outputs.isdisjoint(one.outputs)]
            kept = others if is_stale is None else [one for one in others if not is_stale(one)]
            self.entries = sorted([*kept, *results], key=lambda one: (one.path, one.name, one.key, one.task))
            data = json_bytes(report_document(header, self.entries))
            self._write(self.path, data)
            for name, table in tables_of(self.entries).items():
                self._write(self.path.with_name(name), table)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        if not (path.is_file() and path.read_bytes() == data):
            write_atomic(path, data, is_output=True)

    def _read(self) -> list[ScanResult]:
        if not os.path.lexists(self.path):
            return []
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if self.path.is_file() and self.path.stat().st_size <= MAX_REPORT_BYTES:
                document = json.loads(self.path.read_bytes())
                found = [ScanResult.from_json(entry) for entry in _results_of(document)]
                return [entry for entry in found if entry is not None]
        raise UsageError(
            "E_OUTPUT_EXISTS",
            f"{self.path.name} in the output folder is not a report of medssl infer",
            hint="move it away, or choose another folder with -o",
        )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _results_of(document: Any) -> list[Any]:
    """The entries of a report."""
    is_report = isinstance(document, dict) and {"medssl_version", "model_sha256"} <= document.keys()
    results = document.get("results") if is_report else None
    if not isinstance(results, list):
        raise ValueError("not a report")
    return results


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
