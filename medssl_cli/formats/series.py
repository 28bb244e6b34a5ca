"""Images whose slices are files of their own: from files to parts that `open_images` reads.

Each file is looked at by itself, in any process; then all of them are put together, which one process does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medssl_cli.errors import InputError
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
from medssl_cli.formats.source import Source

if TYPE_CHECKING:
    from medssl_cli.formats.labels import AnnotationKind

__all__ = [
    "Assembly",
    "Header",
    "Refusal",
    "RefusedFile",
    "SeriesPart",
    "assemble",
    "kind_of_labels",
    "lost_slice",
    "read_headers",
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
        headers: Of all files that were read, in any order.
        refused: Files that were not read.
        policy: What is accepted and repaired.
    """
    incomplete = incomplete_series(headers, refused)
    parts, refusals = group_headers(headers, policy, incomplete=incomplete)
    return Assembly(parts, refusals, incomplete.sources)


def lost_slice(source: Source, code: str) -> RefusedFile | None:
    """What a refused file says about the series that it may be a slice of; None if it is no slice by its kind.

    Args:
        source: The file.
        code: Why it was refused.
    """
    return refused_file(source, code) if code.startswith(("E_", "S_UNSUPPORTED_MODALITY")) else None


def kind_of_labels(source: Source, refusal: InputError) -> "AnnotationKind | None":
    """Which reader of labels takes a file that is refused as an image; None if it holds no labels."""
    from medssl_cli.formats.labels.recognise import kind_of_object

    return kind_of_object(sop_class_of(source)) if refusal.code == "S_NON_IMAGE" else None
