"""Lossy compression: whether a series has been through it, and how strong it was."""

from collections.abc import Sequence
from typing import Final

from medssl_cli.formats.dicom.headers import Header
from medssl_cli.formats.source import size_of

_ALWAYS_LOSSY: Final = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # JPEG baseline and extended


def is_lossy(headers: Sequence[Header]) -> bool:
    """Whether any slice says that it was compressed with loss, or must have been."""
    return any(header.LossyImageCompression == "01" or header.TransferSyntaxUID in _ALWAYS_LOSSY for header in headers)


def loss_ratio(headers: Sequence[Header]) -> float | None:
    """How many times larger the pixels were before a lossy compression.

    Returns:
        The largest ratio that a slice states; where none does and the pixels are still compressed with loss, what they
        take unpacked over what they take in their files; None where nothing tells it.

    Raises:
        InputError: A file is gone.
    """
    stated = [header.acquisition.lossy_ratio for header in headers if header.acquisition.lossy_ratio]
    if stated:
        return max(stated)
    if any(header.TransferSyntaxUID not in _ALWAYS_LOSSY for header in headers):
        return None
    first_of = {header.source: header for header in headers}.values()
    bits = sum(header.Rows * header.Columns * header.BitsStored * header.NumberOfFrames for header in first_of)
    return bits / 8 / sum(size_of(header.source) - header.pixel_offset for header in first_of)
