"""Headers of slices on their way to series, out of memory: of 10,000 series one is held at a time."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.formats.source import Source
from medssl_cli.work.scratch import ScratchTables, as_key, packed, unpacked

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import Header, SeriesPart

_TABLES: Final = """
CREATE TABLE files (series BLOB, path BLOB, headers BLOB, origin BLOB);
CREATE INDEX files_of_series ON files (series);
CREATE INDEX files_of_path ON files (path);
CREATE TABLE parts (number INTEGER PRIMARY KEY, part BLOB);
"""


@dataclass(frozen=True, slots=True)
class FileOfSlices:
    """A file whose slices belong to a series.

    Args:
        headers: One for each slice.
        root: The input that the file was found under.
        kind: Its format.
    """

    headers: "tuple[Header, ...]"
    root: Path
    kind: str

    @property
    def source(self) -> Source:
        """The file."""
        return self.headers[0].source


class SliceStore:
    """Headers of any number of files, and the series that were made of them."""

    def __init__(self) -> None:
        self._tables = ScratchTables(_TABLES)

    def add(self, file: FileOfSlices) -> None:
        """Keep the headers of a file, which all are of one series.

        Raises:
            StorageError: `E_IO`.
        """
        path = os.fsencode(file.source) if isinstance(file.source, Path) else None
        series = as_key(file.headers[0].SeriesInstanceUID)
        row = series, path, packed(file.headers), packed((file.root, file.kind))
        self._tables.run("INSERT INTO files VALUES (?, ?, ?, ?)", *row)

    @property
    def is_empty(self) -> bool:
        """Whether no file was added."""
        return not self._tables.run("SELECT 1 FROM files LIMIT 1")

    def holds(self, path: Path) -> bool:
        """Whether the slices of a file are here."""
        return bool(self._tables.run("SELECT 1 FROM files WHERE path = ? LIMIT 1", os.fsencode(path)))

    def series(self) -> Iterator[list[FileOfSlices]]:
        """The files of one SeriesInstanceUID after the other."""
        for (series,) in self._tables.run("SELECT DISTINCT series FROM files ORDER BY series"):
            rows = self._tables.run("SELECT headers, origin FROM files WHERE series = ? ORDER BY rowid", series)
            yield [FileOfSlices(unpacked(headers), *unpacked(origin)) for headers, origin in rows]

    def headers(self) -> "Iterator[Header]":
        """All headers, one series after the other."""
        return (header for files in self.series() for file in files for header in file.headers)

    def keep(self, part: "SeriesPart") -> "StoredSeries":
        """Put the slices of one image away.

        Raises:
            StorageError: `E_IO`.
        """
        number = self._tables.value("INSERT INTO parts (part) VALUES (?) RETURNING number", packed(part))
        return StoredSeries(self, number)

    def part(self, number: int) -> "SeriesPart":
        """What was put away."""
        found: SeriesPart = unpacked(self._tables.value("SELECT part FROM parts WHERE number = ?", number))
        return found


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """Slices that make one image, put away until the image is asked about."""

    store: SliceStore
    number: int

    def loaded(self) -> "SeriesPart":
        """The slices themselves."""
        return self.store.part(self.number)
