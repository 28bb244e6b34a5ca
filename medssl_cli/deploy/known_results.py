"""What earlier calls found out, to be looked up by scan, by name and by output. Memory does not grow with it."""

import contextlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from medssl_cli.deploy.results import ScanResult
from medssl_cli.work.scratch import ScratchTables, as_key

_TABLES: Final = """
CREATE TABLE entries (
    number INTEGER PRIMARY KEY, task BLOB, key BLOB, keyless_name BLOB, name BLOB, path BLOB, status TEXT,
    is_own INTEGER, text TEXT
);
CREATE UNIQUE INDEX entry_of_scan ON entries (task, key, keyless_name);
CREATE INDEX entries_of_name ON entries (name);
CREATE INDEX entries_in_order ON entries (path, name, key, task);
CREATE TABLE outputs (entry INTEGER, name BLOB, folded BLOB);
CREATE INDEX outputs_of_entry ON outputs (entry);
CREATE INDEX outputs_of_name ON outputs (name);
CREATE INDEX outputs_folded ON outputs (folded);
"""
_IN_ORDER: Final = "ORDER BY entries.path, entries.name, entries.key, entries.task"


class KnownResults:
    """Entries of reports, one for each scan and task; looking one up costs the same however many there are.

    An entry of an earlier version has no key, and its name in place of that.

    Args:
        entries: Entries of reports; the last counts of several for one scan, or for one output.
    """

    def __init__(self, entries: Iterable[ScanResult] = ()) -> None:
        self._tables = ScratchTables(_TABLES)
        for entry in entries:
            self.put(entry)

    def __len__(self) -> int:
        return int(self._tables.value("SELECT COUNT(*) FROM entries"))

    def __iter__(self) -> Iterator[ScanResult]:
        """In the order of reports."""
        return (entry for text in self._texts("") if (entry := _parsed(text)) is not None)

    @property
    def num_own(self) -> int:
        """How many entries are of the report itself."""
        return int(self._tables.value("SELECT COUNT(*) FROM entries WHERE is_own"))

    def own(self) -> Iterator[ScanResult]:
        """Entries of the report itself, in its order."""
        return (entry for text in self.own_texts() if (entry := _parsed(text)) is not None)

    def own_texts(self) -> Iterator[str]:
        """Entries of the report itself as the report writes them, in its order."""
        return self._texts("WHERE is_own")

    def own_counts(self) -> dict[str, int]:
        """How many entries of the report itself have which status."""
        return dict(self._tables.run("SELECT status, COUNT(*) FROM entries WHERE is_own GROUP BY status"))

    def put(self, entry: ScanResult, *, is_own: bool = False) -> None:
        """Take an entry in place of that of the same scan, and of those that claim the same outputs.

        Args:
            entry: Result of a scan.
            is_own: It belongs into the report itself, and not into one beside it.
        """
        text = json.dumps(entry.to_json(), indent=2, sort_keys=True, allow_nan=False)
        task, key, name = as_key(entry.task), as_key(entry.key), as_key(entry.name)
        outputs = {as_key(output): as_key(_folded(output)) for output in entry.outputs}
        keyless_name = b"" if entry.key else name
        row = (task, key, keyless_name, name, as_key(entry.path), entry.status, is_own, text)
        with self._tables.lock:
            for output in outputs:
                for (number,) in self._tables.run("SELECT entry FROM outputs WHERE name = ?", output):
                    self._drop(number)
            for (number,) in self._tables.run(f"SELECT number FROM entries WHERE {_OF_SCAN}", task, key, keyless_name):
                self._drop(number)
            number = self._tables.value(
                "INSERT INTO entries (task, key, keyless_name, name, path, status, is_own, text) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING number",
                *row,
            )
            for output, folded in outputs.items():
                self._tables.run("INSERT INTO outputs VALUES (?, ?, ?)", number, output, folded)

    def replace_own(self, entries: Iterable[ScanResult]) -> None:
        """Take others for the entries of the report itself; nobody sees anything between."""
        with self._tables.lock:
            self._tables.run("DELETE FROM outputs WHERE entry IN (SELECT number FROM entries WHERE is_own)")
            self._tables.run("DELETE FROM entries WHERE is_own")
            for entry in entries:
                self.put(entry, is_own=True)

    def drop(self, entry: ScanResult) -> None:
        """Forget the entry of a scan."""
        identity = as_key(entry.task), as_key(entry.key), b"" if entry.key else as_key(entry.name)
        with self._tables.lock:
            for (number,) in self._tables.run(f"SELECT number FROM entries WHERE {_OF_SCAN}", *identity):
                self._drop(number)

    def entry(self, task: str, key: str, name: str) -> ScanResult | None:
        """The entry of a scan; one of an earlier version knows it by its name only."""
        own = self._first(f"WHERE {_OF_SCAN}", as_key(task), as_key(key), b"")
        return own or self._first("WHERE name = ? AND key = x''", as_key(name))

    def holder(self, task: str, name: str) -> ScanResult | None:
        """The scan that has outputs of a name."""
        return self._first("WHERE name = ? AND task = ? AND key != x''", as_key(name), as_key(task))

    def owner(self, output: str) -> ScanResult | None:
        """The entry that an output belongs to."""
        return self._first(f"{_WITH_OUTPUTS} WHERE outputs.name = ?", as_key(output))

    def namesake(self, path: Path) -> ScanResult | None:
        """The entry whose output is the same file under another spelling, as on disks that take "A" for "a"."""
        name = _folded(path.name)
        claims = [(one, output) for one in self._claiming(path.name) for output in one.outputs]
        with contextlib.suppress(OSError, ValueError):
            return next(
                (one for one, output in claims if _folded(output) == name and path.samefile(path.with_name(output))),
                None,
            )
        return None

    def about(self, task: str, key: str, names: Iterable[str], outputs: Iterable[str]) -> list[ScanResult]:
        """What looking up one scan may find.

        Args:
            task: Task of the model.
            key: Key of the scan.
            names: That the scan may be given.
            outputs: Names of the files that may hold its result.
        """
        found = self._all(f"WHERE {_OF_SCAN}", as_key(task), as_key(key), b"")
        found += [one for name in names for one in self._all("WHERE name = ?", as_key(name))]
        found += [one for output in outputs for one in self._claiming(output)]
        return list({(one.task, one.key, "" if one.key else one.name): one for one in found}.values())

    def _claiming(self, output: str) -> list[ScanResult]:
        """Entries with an output of a name, in whatever spelling."""
        return self._all(f"{_WITH_OUTPUTS} WHERE outputs.folded = ?", as_key(_folded(output)))

    def _first(self, condition: str, *values: bytes) -> ScanResult | None:
        return next(iter(self._all(condition, *values)), None)

    def _all(self, condition: str, *values: bytes) -> list[ScanResult]:
        rows = self._tables.run(f"SELECT DISTINCT entries.* FROM entries {condition} {_IN_ORDER}", *values)
        return [entry for row in rows if (entry := _parsed(row[-1])) is not None]

    def _texts(self, condition: str) -> Iterator[str]:
        numbers = self._tables.run(f"SELECT number FROM entries {condition} {_IN_ORDER}")
        for (number,) in numbers:
            for (text,) in self._tables.run("SELECT text FROM entries WHERE number = ?", number):
                yield text

    def _drop(self, number: int) -> None:
        self._tables.run("DELETE FROM outputs WHERE entry = ?", number)
        self._tables.run("DELETE FROM entries WHERE number = ?", number)


_OF_SCAN: Final = "task = ? AND key = ? AND keyless_name = ?"
_WITH_OUTPUTS: Final = "JOIN outputs ON outputs.entry = entries.number"


def _parsed(text: str) -> ScanResult | None:
    return ScanResult.from_json(json.loads(text))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
