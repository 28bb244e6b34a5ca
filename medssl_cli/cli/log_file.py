"""A file that gets a line for each result: time, level, text. It may be moved away by `logrotate` at any moment."""

import logging
import logging.handlers
import time
from pathlib import Path
from typing import Final

from medssl_cli.base.errors import StorageError
from medssl_cli.base.files import require_place_for_file
from medssl_cli.cli.places import outside_caches

FORMAT: Final = "%(asctime)sZ %(levelname)s %(message)s"


class LogFile:
    """Adds lines to a file; None as a path takes them and writes nothing.

    Args:
        path: The file; it is made if it does not exist.

    Raises:
        UsageError: `E_OUTPUT_SPECIAL`.
        StorageError: `E_IO`.
    """

    def __init__(self, path: Path | None) -> None:
        self._logger = logging.Logger("medssl")
        if path is None:
            self._logger.addHandler(logging.NullHandler())  # else the library writes problems to stderr
            return
        require_place_for_file(path)
        outside_caches(path)
        try:
            handler = _QuietHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise StorageError("E_IO", f"cannot write {path.name}") from error
        formatter = logging.Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        self._logger.addHandler(handler)

    def note(self, text: str, *, is_problem: bool = False) -> None:
        """Add a line."""
        self._logger.log(logging.WARNING if is_problem else logging.INFO, "%s", text)


class _QuietHandler(logging.handlers.WatchedFileHandler):
    """A full disk, or a folder that is gone, costs lines of the log, and nothing else."""

    def emit(self, record: logging.LogRecord) -> None:
        """Add a line, to the file that has the name now."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Go on."""
