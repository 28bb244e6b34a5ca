"""Stacks of pictures: the numbered pictures of a folder as the slices of one volume, on request.

Nothing in a picture says how far apart slices lie, which of them is the lowest, or what its grey values mean. The
volume gets a grid of 1 mm whose rows run to the patient's left and to the back, as axial CT is shown, and a note that
this is assumed (`W_PICTURE_STACK`); its values stay as they are.
Shape letters: X columns, Y rows, Z slices in the order of their numbers.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.formats.loaded import Identity, LoadedImage
from medssl_cli.formats.pictures import read_picture
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source, place_of
from medssl_cli.formats.table import stem_of
from medssl_cli.imaging.volume import Volume

REPAIR: Final = "stack-pictures"
"""The repair that says how the volume came about."""
ASSUMED: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_NUMBERED: Final = re.compile(r"(.*\D|)(\d{1,9})")


@dataclass(frozen=True)
class PictureStack:
    """Pictures of one folder that are slices of one volume.

    Args:
        sources: Sources in the order of their numbers.
        numbers: Numbers of the pictures, ascending.
    """

    sources: tuple[Source, ...]
    numbers: tuple[int, ...]

    @property
    def num_missing(self) -> int:
        """How many numbers between the first and the last are left out."""
        return self.numbers[-1] - self.numbers[0] + 1 - len(set(self.numbers))

    @property
    def folder(self) -> PurePath:
        """Where the pictures lie."""
        return place_of(self.sources[0]).parent


def stacks_of(pictures: Iterable[Source], *, min_slices: int) -> list[PictureStack]:
    """Pictures of one folder whose names are equal but for a number at their end.

    Args:
        pictures: Pictures of an input.
        min_slices: Fewer are no stack.
    """
    groups: dict[tuple[PurePath, str], list[tuple[int, str, Source]]] = defaultdict(list)
    for source in pictures:
        place = place_of(source)
        if match := _NUMBERED.fullmatch(stem_of(place.name)):
            groups[place.parent, match[1]].append((int(match[2]), place.name, source))
    stacks = []
    for group in groups.values():
        if len(group) >= min_slices:
            ordered = sorted(group, key=lambda one: one[:2])
            stacks.append(PictureStack(tuple(one[2] for one in ordered), tuple(one[0] for one in ordered)))
    return stacks


def read_stack(stack: PictureStack, *, modality: str = "unknown", policy: Policy = STRICT) -> LoadedImage:
    """Read a stack as one volume `[1, X, Y, Z]`, or refuse all of it.

    Args:
        stack: Which pictures.
        modality: What the caller knows about them.
        policy: See `read_picture`; `max_volume_bytes` is for all slices together.

    Raises:
        InputError: `E_MATRIX_VARIES`, `E_DUP_POSITION`, `E_TOO_BIG`, and the codes of `read_picture`.
    """
    if len(set(stack.numbers)) < len(stack.numbers):
        raise InputError("E_DUP_POSITION", "two pictures of the folder have one number")
    first = read_picture(stack.sources[0], modality=modality, policy=policy)
    if first.volume.voxels.nbytes * len(stack.sources) > policy.max_volume_bytes:
        raise InputError("E_TOO_BIG", f"{len(stack.sources)} pictures are more than {policy.max_volume_bytes} bytes")
    slices = [first, *(read_picture(source, modality=modality, policy=policy) for source in stack.sources[1:])]
    expected = _pixels(first)
    for number, one in zip(stack.numbers, slices, strict=True):
        if (found := _pixels(one)) != expected:
            raise InputError("E_MATRIX_VARIES", f"picture {number} has {found}, the first {expected}")
    warnings = dict.fromkeys(code for one in slices for code in one.warnings)
    repairs = dict.fromkeys(repair for one in slices for repair in one.repairs)
    said = f"W_PICTURE_STACK: {len(slices)} pictures, {stack.num_missing} numbers between them left out"
    return replace(
        first,
        volume=Volume(np.concatenate([one.volume.voxels for one in slices], axis=3), ASSUMED, modality),
        identity=Identity(patient=None, study=stack.folder.name, series=stack.folder.name),
        num_files=len(slices),
        warnings=(*warnings, "W_PICTURE_STACK"),
        repairs=(*repairs, REPAIR),
        spacing_kind=None,
        details=(*first.details, said),
    )


def _pixels(image: LoadedImage) -> str:
    """Size and type of a slice, for comparison and for people."""
    columns, rows, _ = image.volume.shape
    return f"{columns} x {rows} pixels of {image.volume.voxels.dtype}"
