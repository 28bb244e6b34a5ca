"""MetaImage: a header of text with the voxels behind it, or in a file beside it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.metaimage import announced_grid, is_metaimage, read_metaimage
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member, Source
from medssl_cli.formats.table import Announced, ImageFormat
from medssl_cli.formats.text_headers import detached_files

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart

_DATA_FILE: Final = re.compile(rb"^ElementDataFile *= *([^\r\n]+)", re.MULTILINE)


def _recognises(head: bytes, policy: Policy) -> bool:
    return is_metaimage(head)


def _read(source: Source, *, modality: str, policy: Policy, is_label: bool) -> Sequence[LoadedImage]:
    return [read_metaimage(source, modality=modality, policy=policy, is_label=is_label)]


def _companions(source: Source, policy: Policy) -> Sequence[Source]:
    return detached_files(source, _DATA_FILE, policy)


def _announced(source: "Source | SeriesPart", policy: Policy) -> Announced | None:
    return Announced(*announced_grid(source, policy)) if isinstance(source, Path | Member) else None


FORMAT: Final = ImageFormat(
    suffixes=(".mha", ".mhd"),
    recognises=_recognises,
    read=_read,
    companions=_companions,
    announced=_announced,
    is_told_by_name=True,
)
