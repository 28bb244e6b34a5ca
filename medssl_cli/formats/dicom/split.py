"""One series that holds several images: told apart by matrix, orientation, stack, or phase, echo and the like.

A split is accepted only if every part passes the gate; nothing is left over.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from medssl_cli.errors import InputError
from medssl_cli.formats.dicom.gate import Fit, check_slices, fit
from medssl_cli.formats.dicom.headers import Header
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.imaging.geometry import is_same_grid

MAX_ORIENTATIONS: Final = 64

_SAME_ORIENTATION: Final = 0.01

# What may tell slices of one position apart, in the order in which it is tried (reliability E2). The ImageType of a
# frame is its FrameType.
_SPLITTERS: Final[tuple[Callable[[Header], Hashable], ...]] = (
    lambda header: header.AcquisitionNumber,
    lambda header: header.TemporalPositionIdentifier,
    lambda header: header.AcquisitionTime,
    lambda header: (header.EchoNumbers, header.EchoTime),
    lambda header: header.DiffusionBValue,
    lambda header: header.TriggerTime,
    lambda header: header.ImageType,
    lambda header: header.ConvolutionKernel,
    lambda header: header.StackID,
    lambda header: header.SOPInstanceUID if header.tile is not None else None,
)


def resolve(headers: Sequence[Header], policy: Policy = STRICT) -> list[Fit]:
    """Find the image or images in one series: as it is, else split by matrix, orientation, stack or phase.

    Raises:
        InputError: No way of splitting gives stacks that all pass the gate; the code says why.
    """
    check_slices(headers)
    by_matrix = by(headers, lambda header: (header.Rows, header.Columns))
    if len(by_matrix) > 1:
        return _resolve_each(by_matrix, "E_MATRIX_VARIES", "matrix sizes", policy)
    by_orientation = _by_orientation(headers)
    if len(by_orientation) > 1:
        return _resolve_each(by_orientation, "E_ORIENTATION_VARIES", "orientations", policy)
    try:
        return [fit(headers, replace(policy, gaps="refuse"))]
    except InputError as error:
        fits = _split(headers, policy) if error.code == "E_DUP_POSITION" else None
        fits = fits or _stacks(headers, policy)
        if fits is None and error.code == "E_DUP_POSITION":
            fits = _runs(headers, policy)
        if fits is None and error.code == "E_MISSING_SLICES" and policy.gaps == "interpolate":
            fits = [fit(headers, policy)]
        if fits is None:
            raise
        return fits


def by(headers: Iterable[Header], key: Callable[[Header], Hashable]) -> list[list[Header]]:
    """Groups of equal keys, in an order that depends on the keys and the content only."""
    groups: dict[Hashable, list[Header]] = defaultdict(list)
    for header in headers:
        groups[key(header)].append(header)
    return [groups[name] for name in sorted(groups, key=repr)]


def instance_order(header: Header) -> tuple[int, int, str]:
    """Sorts slices as their maker numbered them."""
    return (header.InstanceNumber or 0, header.frame, header.SOPInstanceUID)


def _resolve_each(groups: list[list[Header]], code: str, what: str, policy: Policy) -> list[Fit]:
    fits: list[Fit] = []
    for group in groups:
        try:
            fits += resolve(group, policy)
        except InputError as error:
            sizes = ", ".join(str(len(group)) for group in groups[:8])
            raise InputError(
                code, f"{len(groups)} {what} in one series ({sizes} slices), not each a volume ({error.code})"
            ) from error
    return fits


def _by_orientation(headers: Sequence[Header]) -> list[list[Header]]:
    """Clusters of nearly equal cosines; small differences are for the gate, which knows millimetres."""
    clusters: list[list[Header]] = []
    for header in sorted(headers, key=lambda header: header.ImageOrientationPatient or ()):
        cluster = next((cluster for cluster in reversed(clusters) if _is_parallel(cluster[0], header)), None)
        if cluster is not None:
            cluster.append(header)
        elif len(clusters) == MAX_ORIENTATIONS:
            raise InputError("E_ORIENTATION_VARIES", f"more than {MAX_ORIENTATIONS} orientations in one series")
        else:
            clusters.append([header])
    return clusters


def _is_parallel(first: Header, second: Header) -> bool:
    one, other = first.ImageOrientationPatient or (), second.ImageOrientationPatient or ()
    return one == other or all(abs(a - b) <= _SAME_ORIENTATION for a, b in zip(one, other, strict=True))


def _split(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """Parts told apart by one or two elements, only if every part is a volume on the same grid."""
    strict = replace(policy, gaps="refuse")
    telling = [key for key in _SPLITTERS if len({key(header) for header in headers}) > 1]
    for size in (1, 2):
        for keys in itertools.combinations(telling, size):
            groups = by(headers, lambda header: tuple(key(header) for key in keys))  # noqa: B023
            if len(groups) < 2 or len({len(group) for group in groups}) > 1 or len(groups[0]) < policy.min_slices:
                continue
            try:
                fits = [fit(group, strict) for group in groups]
            except InputError:
                continue
            if _are_one_grid(fits):
                return fits
    return None


def _stacks(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """The stacks that a multi-frame object itself tells apart (PS3.3 C.7.6.16.2.2.7), where they share no place.

    Stacks at one place must be equally long, which `_split` sees to.
    """
    groups = by(headers, lambda header: header.StackID)
    if len(groups) < 2 or min(map(len, groups)) < policy.min_slices:
        return None
    places = [{header.ImagePositionPatient for header in group} for group in groups]
    if len(set().union(*places)) < sum(map(len, places)):
        return None
    try:
        return [fitted for group in groups for fitted in resolve(group, policy)]
    except InputError:
        return None


def _runs(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """Volumes that follow each other whole by instance number, each with the same positions in the same order.

    Some scanners tell time points and directions of diffusion apart in no other way.
    """
    numbers = {header.InstanceNumber for header in headers}
    if None in numbers or len(numbers) < len(headers):
        return None
    ordered = sorted(headers, key=instance_order)
    places = [header.ImagePositionPatient for header in ordered]
    size = len(set(places))
    if len(places) % size or any(place != places[number % size] for number, place in enumerate(places)):
        return None
    try:
        fits = [
            fit(ordered[first : first + size], replace(policy, gaps="refuse")) for first in range(0, len(ordered), size)
        ]
    except InputError:
        return None
    return [replace(fitted, warnings=("W_SPLIT_BY_INSTANCE",)) for fitted in fits] if _are_one_grid(fits) else None


def _are_one_grid(fits: Sequence[Fit]) -> bool:
    first = fits[0]
    shape = (first.headers[0].Columns, first.headers[0].Rows, len(first.headers))
    return all(is_same_grid(first.affine, other.affine, shape) for other in fits[1:])
