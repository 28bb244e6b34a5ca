"""The results of one call in their order, out of memory."""

from collections.abc import Iterator, Sequence
from typing import Final, overload

from medssl_cli.deploy.results import ScanResult
from medssl_cli.work.scratch import ScratchTables, as_key, packed, unpacked

_TABLES: Final = """
CREATE TABLE results (number INTEGER PRIMARY KEY, task BLOB, key BLOB, result BLOB);
CREATE INDEX results_of_scan ON results (task, key);
"""


class ResultList(Sequence[ScanResult]):
    """Results that were told of, the last at the end."""

    def __init__(self) -> None:
        self._tables, self._length = ScratchTables(_TABLES), 0

    def append(self, result: ScanResult) -> None:
        """Add a result.

        Raises:
            StorageError: `E_IO`.
        """
        row = self._length, as_key(result.task), as_key(result.key), packed(result)
        self._tables.run("INSERT INTO results VALUES (?, ?, ?, ?)", *row)
        self._length += 1

    def tells_of(self, entry: ScanResult) -> bool:
        """Whether there is a result of the same scan and task."""
        condition = "task = ? AND key = ?"
        found = self._tables.run(f"SELECT 1 FROM results WHERE {condition}", as_key(entry.task), as_key(entry.key))
        return bool(found)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> ScanResult: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[ScanResult]: ...

    def __getitem__(self, place: int | slice) -> ScanResult | Sequence[ScanResult]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(self._length))]
        number = range(self._length)[place]
        found: ScanResult = unpacked(self._tables.value("SELECT result FROM results WHERE number = ?", number))
        return found

    def __iter__(self) -> Iterator[ScanResult]:
        return (self[number] for number in range(self._length))
