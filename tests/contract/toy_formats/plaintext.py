"""A format of one file: a line with sizes and spacing in mm, then whole numbers as text, the first axis fastest."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.formats.loaded import Identity, LoadedImage
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.formats.table import ImageFormat, stem_of
from medssl_cli.imaging.volume import Volume

MAGIC: Final = b"PLAINTEXT VOLUME "


def _recognises(head: bytes, policy: Policy) -> bool:
    return head.startswith(MAGIC)


def _read(source: Source, *, modality: str, policy: Policy, is_label: bool) -> Sequence[LoadedImage]:
    first, _, rest = read_bytes(source).removeprefix(MAGIC).partition(b"\n")
    words, numbers = first.split(), np.array(rest.split(), np.int16)
    if len(words) != 4 or not all(word.isdigit() for word in words):
        raise InputError("E_VALUE_INVALID", "the first line is not three sizes and a spacing")
    x, y, z, spacing = map(int, words)
    if numbers.size != x * y * z:
        raise InputError("E_TRUNCATED", f"{numbers.size} numbers of {x * y * z}")
    voxels = numbers.reshape((x, y, z), order="F")[None]
    volume = Volume(voxels, np.diag([spacing, spacing, spacing, 1.0]), modality, "HU" if modality == "CT" else "a.u.")
    stem = stem_of(source.name)
    return [LoadedImage(volume, Identity(None, stem, stem), "plaintext")]


FORMAT: Final = ImageFormat(suffixes=(".plain",), recognises=_recognises, read=_read, is_told_by_name=True)
