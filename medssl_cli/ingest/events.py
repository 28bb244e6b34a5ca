"""The trail of a running ingest: one line of JSON per judgement, so that even a killed run can be followed."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO

from medssl_cli.base.files import is_alive, storage_errors, sync_directory
from medssl_cli.ingest.report import ReportEntry


class EventLog:
    """Appends entries to `reports/running-<process>.jsonl`; the file appears with the first of them.

    Args:
        folder: `reports` of the cache; None: keep no trail.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / f"running-{os.getpid()}.jsonl"
        self._stream: IO[str] | None = None

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, entry: ReportEntry) -> None:
        """Append one entry and hand it to the operating system.

        Raises:
            StorageError: `E_IO`.
        """
        if self._path is None:
            return
        with storage_errors("the trail of the ingest"):
            if self._stream is None:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                self._stream = os.fdopen(descriptor, "a", encoding="ascii")
            self._stream.write(json.dumps(entry.to_json()) + "\n")
            self._stream.flush()

    def close_as(self, final: Path | None) -> None:
        """Give the finished trail its final name, or remove it where the run changed nothing.

        Trails that killed runs left behind have served their purpose once a run has come to its end.
        """
        if self._path is None or self._stream is None:
            return
        with storage_errors("the trail of the ingest"):
            self._stream.close()
            for trail in self._path.parent.glob("running-*.jsonl"):
                owner = trail.stem.removeprefix("running-")
                if owner.isdigit() and not is_alive(int(owner)):
                    trail.unlink(missing_ok=True)
            if final is None:
                self._path.unlink()
            else:
                self._path.replace(final)
                sync_directory(final.parent)
