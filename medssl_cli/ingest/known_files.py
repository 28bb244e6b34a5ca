"""What became of files that have not changed since an earlier ingest, so that nobody has to open them again.

Hints only: losing the file costs time, never an image. It holds keyed hashes, so neither a path nor a date of the
source can be read from it. A file counts as unchanged if inode, size and both of its times are exactly the same; the
times are compared for equality, never with a clock (decision 0016).
"""

import contextlib
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.base.codes import CODES
from medssl_cli.cache.databases import is_busy, remove_database
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.formats.source import Member, Source
from medssl_cli.ingest.report import STATES, ReportEntry, State

FILE_NAME: Final = "sources.sqlite"
_ROW: Final = (str, str, str, int)
SETTLED_AFTER_NS: Final = 1_000_000_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    place TEXT PRIMARY KEY, stamp TEXT NOT NULL, kind TEXT NOT NULL, fate INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fates (
    fate INTEGER PRIMARY KEY, rules TEXT NOT NULL, num_sources INTEGER NOT NULL, entry TEXT NOT NULL,
    state TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL, hint TEXT NOT NULL, item TEXT,
    warnings TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS retrieved (
    series TEXT PRIMARY KEY, rules TEXT NOT NULL, num_instances INTEGER NOT NULL, items TEXT NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Judgement:
    """What became of a group of files that were judged together."""

    entry: ReportEntry
    sources: tuple[Source, ...]
    kind: str


class KnownFiles:
    """The table of known files of one cache.

    Args:
        path: The SQLite file; made when something is first recorded.
        pseudonyms: Pseudonyms of the cache.
        rules: Digest of everything beside the files that decides what becomes of them: options, and the tool's version.
    """

    def __init__(self, path: Path, pseudonyms: Pseudonyms, rules: str) -> None:
        self._path = path
        self._hash_place, self._hash_stamp = pseudonyms.hasher("place"), pseudonyms.hasher("stamp")
        self._rules = rules
        self._files: dict[str, tuple[str, str, int]] = {}
        self._stamps: dict[Path, tuple[str, bool]] = {}
        self._matched: dict[Path, tuple[str, int]] = {}
        with contextlib.suppress(sqlite3.Error):
            self._load()

    def _load(self) -> None:
        if not self._path.is_file():
            return
        with self._readable() as connection:
            rows = connection.execute(
                "SELECT place, stamp, kind, fate FROM files JOIN fates USING (fate) WHERE rules = ?", (self._rules,)
            )
            found = {place: (stamp, kind, judgement) for place, stamp, kind, judgement in rows}
        self._files = {place: row for place, row in found.items() if tuple(map(type, (place, *row))) == _ROW}

    def peek(self, path: Path, status: os.stat_result) -> bool:
        """Remember a file's stamp; whether it is known and unchanged."""
        numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        stamp = self._hash_stamp(repr(numbers).encode())
        is_settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_AFTER_NS
        self._stamps[path] = (stamp, is_settled)
        known = self._files.get(self._place(path))
        if known is None or known[0] != stamp:
            return False
        self._matched[path] = known[1:]
        return True

    def _place(self, path: Path) -> str:
        return self._hash_place(os.fsencode(path))

    def judgements(self, is_held: Callable[[str], bool]) -> list[Judgement]:
        """Groups of which every file was seen unchanged; a group whose item is gone is not among them.

        Args:
            is_held: Whether an item id is in the cache.
        """
        groups: dict[int, list[Path]] = defaultdict(list)
        for path, (_, judgement) in self._matched.items():
            groups[judgement].append(path)
        if not groups:
            return []
        found = []
        with contextlib.suppress(sqlite3.Error), self._readable() as connection:
            for judgement, paths in groups.items():
                row = connection.execute(
                    "SELECT num_sources, entry, state, code, message, hint, item, warnings FROM fates WHERE fate = ?",
                    (judgement,),
                ).fetchone()
                if row is None or row[0] != len(paths) or (row[6] is not None and not is_held(row[6])):
                    continue
                entry = _entry_of(row, len(paths))
                if entry is None:
                    continue
                found.append(Judgement(entry, tuple(sorted(paths)), self._matched[paths[0]][0]))
        return found

    def record(self, judged: Iterable[tuple[ReportEntry, Iterable[Source], str]]) -> None:
        """Remember what became of files on disk whose times lie safely in the past.

        Args:
            judged: Entries of the report, the sources of each, and their kind. Members of archives are left out.
        """
        rows = []
        for entry, sources, kind in judged:
            paths = [source for source in sources if not isinstance(source, Member)]
            known = [self._stamps.get(path) for path in paths]
            if paths and len(paths) == len(list(sources)) and all(stamp and stamp[1] for stamp in known):
                rows.append((entry, paths, [stamp[0] for stamp in known if stamp], kind))
        if not rows:
            return

        def insert(connection: sqlite3.Connection) -> None:
            for entry, paths, stamps, kind in rows:
                self._insert(connection, entry, paths, stamps, kind)
            connection.execute("DELETE FROM fates WHERE fate NOT IN (SELECT fate FROM files)")

        self._write(insert)

    def record_retrieved(self, series: str, num_instances: int, items: Iterable[str]) -> None:
        """Remember that a series of a PACS was judged, and the items that came of it."""
        row = (series, self._rules, num_instances, " ".join(sorted(items)))
        self._write(lambda connection: connection.execute("INSERT OR REPLACE INTO retrieved VALUES (?, ?, ?, ?)", row))

    def retrieved_items(self, series: str, num_instances: int) -> list[str] | None:
        """Items of a series that was judged with so many instances; None if it was not."""
        with contextlib.suppress(sqlite3.Error), self._readable() as connection:
            row = connection.execute(
                "SELECT items FROM retrieved WHERE series = ? AND rules = ? AND num_instances = ?",
                (series, self._rules, num_instances),
            ).fetchone()
            return None if row is None else str(row[0]).split()
        return None

    @contextlib.contextmanager
    def _readable(self) -> Iterator[sqlite3.Connection]:
        if not self._path.is_file():  # opening a pipe may never end
            raise sqlite3.DatabaseError("not a file")
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            yield connection

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Change the table; a damaged one is made anew. Hints that cannot be written are done without."""
        for is_last in (False, True):
            try:
                if self._path.exists() and not self._path.is_file():
                    raise sqlite3.DatabaseError("not a file")
                with self._writable() as connection:
                    work(connection)
                return
            except sqlite3.Error as error:
                if is_last or is_busy(error):
                    return
                remove_database(self._path)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
            connection.executescript(_SCHEMA)
            yield connection
        self._path.chmod(0o600)

    def _insert(
        self, connection: sqlite3.Connection, entry: ReportEntry, paths: list[Path], stamps: list[str], kind: str
    ) -> None:
        state: State = "duplicate" if entry.state == "accepted" else entry.state
        cursor = connection.execute(
            "INSERT INTO fates (rules, num_sources, entry, state, code, message, hint, item, warnings)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._rules, len(paths), entry.id, state, entry.code, entry.message, entry.hint, entry.item,
                " ".join(entry.warnings),
            ),
        )  # fmt: skip
        connection.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
            [(self._place(path), stamp, kind, cursor.lastrowid) for path, stamp in zip(paths, stamps, strict=True)],
        )


def _entry_of(row: tuple[Any, ...], num_files: int) -> ReportEntry | None:
    """An entry of the report from a row; None if the row holds other things."""
    try:
        entry = ReportEntry(
            id=row[1], state=row[2], num_files=num_files, code=row[3], message=row[4], hint=row[5],
            item=row[6], warnings=tuple(row[7].split()),
        )  # fmt: skip
    except (ValueError, TypeError, AttributeError):
        return None
    words = (entry.id, entry.code, entry.message, entry.hint, entry.item or "", *entry.warnings)
    is_known = entry.state in STATES and {entry.code, *entry.warnings} <= {"", *CODES}
    return entry if is_known and all(isinstance(word, str) for word in words) else None
