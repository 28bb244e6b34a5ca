"""Tables of one process that memory need not hold.

SQLite keeps what is large in a file of the temporary folder (`TMPDIR`) that has no name, that nobody else can open, and
that is gone with the process, however it ends.
"""

import sqlite3
import threading
from multiprocessing.reduction import ForkingPickler
from typing import Any, Final

from medssl_cli.base.errors import StorageError

MEMORY_BYTES: Final = 4 * 2**20
"""What the tables of one owner take in memory; only larger ones reach the disk."""


class ScratchTables:
    """Tables that one owner makes, fills and asks; threads take turns.

    Args:
        script: Statements of SQL that make them.
    """

    def __init__(self, script: str) -> None:
        self.lock = threading.RLock()
        self._connection = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._connection.executescript(f"PRAGMA cache_size = -{MEMORY_BYTES // 1024}; {script}")

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows that a statement gives.

        Raises:
            StorageError: `E_IO`, the temporary folder has no room.
        """
        with self.lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise StorageError(
                    "E_IO", "cannot write temporary tables", hint="free space in the temporary folder (TMPDIR)"
                ) from error

    def value(self, statement: str, *values: Any) -> Any:
        """The first value of the first row; None if there is none."""
        rows = self.run(statement, *values)
        return rows[0][0] if rows else None


def as_key(text: str) -> bytes:
    """A text as tables keep it: any, those of broken encodings included, and in the order of texts."""
    return text.encode("utf-8", "surrogatepass")


def packed(value: Any) -> bytes:
    """An object of this process as bytes for its tables, in the form in which it goes to its child processes."""
    return bytes(ForkingPickler.dumps(value))


def unpacked(data: bytes) -> Any:
    """What was packed. Nothing else than a table that this process has filled may be unpacked."""
    return ForkingPickler.loads(data)
