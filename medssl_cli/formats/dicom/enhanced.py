"""Frames of enhanced multi-frame objects: what the functional groups say about each (PS3.3 C.7.6.16)."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.tags import (
    FRAME_GROUPS,
    GRADIENT_DIRECTION,
    PLACING_GROUPS,
    PRIVATE,
    PRIVATE_ITEMS,
    SHARED_GROUPS,
    TAGS,
)
from medssl_cli.formats.dicom.values import Values, is_same_value

MAX_FRAMES: Final = 20_000

# What stands outside of the functional groups says nothing about the place of a frame.
_PLACE: Final = tuple(TAGS[name] for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))


def frames(values: Mapping[int, Any], num_frames: int) -> Iterator[dict[int, Any]]:
    """Raw values of each frame: those of the object, then of the shared groups, then of its own groups.

    Args:
        values: Values of the object, with the items of its functional groups.
        num_frames: NumberOfFrames.

    Raises:
        InputError: `E_TOO_BIG`; `E_VALUE_INVALID` if the number of frames is not that of the groups, or if a group that
            places, scales or orders frames says two things.
    """
    if num_frames > MAX_FRAMES:
        raise InputError("E_TOO_BIG", f"an object of {num_frames} frames; {MAX_FRAMES} are the limit")
    groups = values.get(FRAME_GROUPS) or [{}] * num_frames
    if num_frames < 1 or len(groups) != num_frames:
        raise InputError("E_VALUE_INVALID", f"element (5200,9230) has {len(groups)} items for {num_frames} frames")
    common = {tag: value for tag, value in values.items() if tag not in _PLACE and not isinstance(value, list)}
    shared = values.get(SHARED_GROUPS) or ()
    if len(shared) > 1:
        raise _ambiguous(SHARED_GROUPS, len(shared))
    shared = shared[0] if shared else {}
    common |= _flat(shared)
    placed = PLACING_GROUPS & shared.keys()
    for group in groups:
        own = _flat(group)
        for tag in placed & group.keys():
            _require_agreement(tag, shared[tag], group[tag])
        yield common | own


def _flat(group: Mapping[int, Any]) -> dict[int, bytes]:
    """The elements of all functional groups of one item.

    A group that places, scales or orders frames has exactly one item; of others, several say nothing.
    """
    flat: dict[int, bytes] = _philips_scale(group)
    for tag, items in group.items():
        if not isinstance(items, list):
            continue
        if len(items) == 1:
            flat |= _plain(items[0])
            flat |= _only(items[0].get(GRADIENT_DIRECTION))
        elif len(items) > 1 and tag in PLACING_GROUPS:
            raise _ambiguous(tag, len(items))
    return flat


def _plain(item: Mapping[int, Any]) -> dict[int, bytes]:
    return {tag: value for tag, value in item.items() if isinstance(value, bytes)}


def _only(items: Any) -> dict[int, bytes]:
    """The elements of a sequence with one item; none of any other."""
    return _plain(items[0]) if isinstance(items, list) and len(items) == 1 else {}


def _philips_scale(group: Mapping[int, Any]) -> dict[int, bytes]:
    """The private Scale Slope of a frame, as if it stood beside the public elements.

    Philips keeps it in the item of a private sequence of each frame, whose other elements repeat public ones.
    """
    creator, number, low = PRIVATE["philips_scale_slope"]
    for name in PRIVATE_ITEMS:
        slope = Values(_only(Values(group).private_raw(name))).private("philips_scale_slope")
        if slope:
            return {number << 16 | 0x10: creator, number << 16 | 0x10 << 8 | low: slope}
    return {}


def _require_agreement(tag: int, shared: Any, own: Any) -> None:
    """A group stands in one of the two places (PS3.3 C.7.6.16.1.1); in both, it must say the same."""
    first, second = _only(shared), _only(own)
    if any(not is_same_value(first[element], second[element]) for element in first.keys() & second.keys()):
        raise InputError("E_VALUE_INVALID", f"{_name(tag)} says one thing for all frames and another for one of them")


def _ambiguous(tag: int, count: int) -> InputError:
    return InputError("E_VALUE_INVALID", f"{_name(tag)} has {count} items where one is allowed")


def _name(tag: int) -> str:
    return f"element ({tag >> 16:04x},{tag & 0xFFFF:04x})"
