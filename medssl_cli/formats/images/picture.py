"""PNG, JPEG and TIFF pictures, which say nothing about place, patient or modality."""

from collections.abc import Sequence
from typing import Final

from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.pictures import is_picture, read_picture
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source
from medssl_cli.formats.table import ImageFormat


def _recognises(head: bytes, policy: Policy) -> bool:
    return is_picture(head)


def _read(source: Source, *, modality: str, policy: Policy, is_label: bool) -> Sequence[LoadedImage]:
    return [read_picture(source, modality=modality, policy=policy, is_label=is_label)]


FORMAT: Final = ImageFormat(
    suffixes=(".png", ".jpg", ".jpeg", ".tif", ".tiff"),
    recognises=_recognises,
    read=_read,
    is_flat=True,
    has_foreign_decoder=True,
)
