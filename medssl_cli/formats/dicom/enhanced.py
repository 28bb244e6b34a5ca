"""Frames of enhanced multi-frame objects: what the functional groups say about each (PS3.3 C.7.6.16)."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from medssl_cli.errors import InputError
from medssl_cli.formats.dicom.tags import FRAME_GROUPS, SHARED_GROUPS, TAGS

MAX_FRAMES: Final = 20_000

# What stands outside of the functional groups says nothing about the place of a frame.
_PLACE: Final = tuple(TAGS[name] for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))


def frames(values: Mapping[int, Any], num_frames: int) -> Iterator[dict[int, Any]]:
    """Raw values of each frame: those of the object, then of the shared groups, then of its own groups.

    Args:
        values: Of the object, with the items of its functional groups.
        num_frames: NumberOfFrames.

    Raises:
        InputError: `E_TOO_BIG`, or `E_VALUE_INVALID` if the number of frames is not that of the groups.
    """
    if num_frames > MAX_FRAMES:
        raise InputError("E_TOO_BIG", f"an object of {num_frames} frames; {MAX_FRAMES} are the limit")
    groups = values.get(FRAME_GROUPS) or [{}] * num_frames
    if num_frames < 1 or len(groups) != num_frames:
        raise InputError("E_VALUE_INVALID", f"element (5200,9230) has {len(groups)} items for {num_frames} frames")
    common = {tag: value for tag, value in values.items() if tag not in _PLACE and not isinstance(value, list)}
    for shared in (values.get(SHARED_GROUPS) or ())[:1]:
        common |= _flat(shared)
    for group in groups:
        yield common | _flat(group)


def _flat(group: Mapping[int, Any]) -> dict[int, bytes]:
    """The elements of all functional groups of one item; groups of one purpose never repeat."""
    flat: dict[int, bytes] = {}
    for items in group.values():
        if isinstance(items, list) and len(items) == 1:
            flat |= {tag: value for tag, value in items[0].items() if isinstance(value, bytes)}
    return flat
