"""Images whose slices are files of their own: from files to parts that `open_images` reads.

Each file is looked at by itself, in any process; then all of them are put together, which one process does.
"""

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl_cli.formats.dicom import (
    Header,
    Refusal,
    RefusedFile,
    SeriesPart,
    group_headers,
    incomplete_series,
    read_headers,
    refused_file,
    sop_class_of,
)
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.slice_store import FileOfSlices, SliceStore
from medssl_cli.formats.source import Source, read_bytes

__all__ = [
    "Assembly",
    "Header",
    "Refusal",
    "RefusedFile",
    "SeriesPart",
    "assemble",
    "assemble_stored",
    "lost_slice",
    "read_headers",
    "series_description",
    "sop_class_of",
]


@dataclass(frozen=True)
class Assembly:
    """What files of slices make together.

    Args:
        parts: Slices that make one image each.
        refusals: Slices that make none.
        suspects: Files that were not read, and that may be slices of what was: when they can be read, all changes.
    """

    parts: list[SeriesPart]
    refusals: list[Refusal]
    suspects: set[Source]


def assemble(headers: Sequence[Header], refused: Iterable[RefusedFile], policy: Policy = STRICT) -> Assembly:
    """Put slices together.

    Args:
        headers: Headers of all files that were read, in any order.
        refused: Files that were not read.
        policy: What is accepted and repaired.
    """
    incomplete = incomplete_series(headers, refused)
    parts, refusals = group_headers(headers, policy, incomplete=incomplete)
    return Assembly(parts, refusals, incomplete.sources)


def assemble_stored(
    store: SliceStore, refused: Iterable[RefusedFile], policy: Policy = STRICT
) -> Iterator[tuple[list[FileOfSlices], Assembly]]:
    """Put slices together that are out of memory, as `assemble` does, one series after the other.

    Args:
        store: Headers of all files that were read.
        refused: Files that were not read.
        policy: What is accepted and repaired.

    Yields:
        The files of a series, and what they make.
    """
    incomplete = incomplete_series(store.headers(), refused)
    for files in store.series():
        headers = [header for file in files for header in file.headers]
        yield files, Assembly(*group_headers(headers, policy, incomplete=incomplete), incomplete.sources)


def lost_slice(source: Source, code: str) -> RefusedFile | None:
    """What a refused file says about the series that it may be a slice of; None if it is no slice by its kind.

    Args:
        source: The file.
        code: Why it was refused.
    """
    return refused_file(source, code) if code.startswith(("E_", "S_UNSUPPORTED_MODALITY")) else None


def series_description(part: SeriesPart) -> str:
    """SeriesDescription as the first file gives it; "" where it gives none that can be read."""
    from pydicom import dcmread

    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        source = part.sources[0]
        stream = source if isinstance(source, Path) else io.BytesIO(read_bytes(source))
        tags = ["SpecificCharacterSet", "SeriesDescription"]
        found = dcmread(stream, stop_before_pixels=True, force=True, specific_tags=tags).get("SeriesDescription")
        return "".join(filter(str.isprintable, str(found or "")))[:200]
    return ""
