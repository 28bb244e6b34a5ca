"""NIfTI-1 and NIfTI-2, compressed or not: one image a file, or several along a fourth axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.gzip_strict import MAGIC, gzip_head
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.nifti_header import LARGEST_HEADER, is_nifti, parse_header
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Member, Source, read_head
from medssl_cli.formats.table import Announced, ImageFormat

if TYPE_CHECKING:
    from medssl_cli.formats.dicom import SeriesPart

_HEAD_BYTES: Final = 4096


def _recognises(head: bytes, policy: Policy) -> bool:
    return is_nifti(head) or (head.startswith(MAGIC) and is_nifti(gzip_head(head, 348)))


def _read(source: Source, *, modality: str, policy: Policy, is_label: bool) -> Sequence[LoadedImage]:
    from medssl_cli.formats.nifti import read_nifti, read_nifti_series

    if policy.split_4d and not is_label:
        return read_nifti_series(source, modality=modality, policy=policy)
    return [read_nifti(source, modality=modality, policy=policy, is_label=is_label).image]


def _count(source: Source, policy: Policy) -> int:
    """The number of 3D images that are taken from a file; 1 for a file whose header the reader will refuse."""
    if not policy.split_4d:
        return 1
    try:
        head = read_head(source, _HEAD_BYTES)
        plain = gzip_head(head, LARGEST_HEADER) if head.startswith(MAGIC) else head[:LARGEST_HEADER]
        return parse_header(plain, allow_4d=True).num_images
    except InputError:
        return 1


def _announced(source: "Source | SeriesPart", policy: Policy) -> Announced | None:
    from medssl_cli.formats.nifti import announced_grid

    return Announced(*announced_grid(source, policy)) if isinstance(source, Path | Member) else None


FORMAT: Final = ImageFormat(
    suffixes=(".nii", ".nii.gz"),
    recognises=_recognises,
    read=_read,
    count=_count,
    announced=_announced,
    is_told_by_name=True,
)
