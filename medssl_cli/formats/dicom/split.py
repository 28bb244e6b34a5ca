"""One series that holds several images: told apart by matrix, orientation, stack, or phase, echo and the like.

A split is accepted only if every part passes the gate; nothing is left over.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from medssl_cli.base.errors import InputError
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
    lambda header: (header.DiffusionBValue, header.DiffusionGradientOrientation),
    lambda header: header.TriggerTime,
    lambda header: header.NominalPercentageOfCardiacPhase,
    lambda header: header.FrameReferenceTime,
    lambda header: header.acquisition.inversion_time_ms,
    lambda header: header.acquisition.flip_angle_deg,
    lambda header: header.ImageType,
    lambda header: header.ConvolutionKernel,
    lambda header: header.StackID,
    lambda header: header.SOPInstanceUID if header.tile is not None else None,
)

# What grows from phase to phase at each slice, although its values differ from slice to slice: times.
_ORDERS: Final[tuple[Callable[[Header], float | None], ...]] = (
    lambda header: header.TriggerTime,
    lambda header: header.FrameReferenceTime,
    lambda header: _seconds(header.AcquisitionTime),
)
_HALF_A_DAY_S: Final = 43_200.0
_TIME: Final = re.compile(r"(\d\d)(\d\d)(\d\d(?:\.\d{1,6})?)")


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
            ways = (_dimensions, _runs, _orders, _visits)
            fits = next((found for way in ways if (found := way(headers, policy))), None)
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
    telling = [key for key in _SPLITTERS if len({key(header) for header in headers}) > 1]
    for size in (1, 2):
        for keys in itertools.combinations(telling, size):
            groups = by(headers, lambda header: tuple(key(header) for key in keys))  # noqa: B023
            if fits := _volumes_of_one_grid(groups, policy):
                return fits
    return None


def _volumes_of_one_grid(groups: Sequence[Sequence[Header]], policy: Policy) -> list[Fit] | None:
    """Two or more groups of slices that are equally long and each a volume on the same grid, or None."""
    if len(groups) < 2 or len({len(group) for group in groups}) > 1 or len(groups[0]) < policy.min_slices:
        return None
    try:
        fits = [fit(group, replace(policy, gaps="refuse")) for group in groups]
    except InputError:
        return None
    return fits if _are_one_grid(fits) else None


def _at_each_place(headers: Sequence[Header]) -> list[list[Header]] | None:
    """Slices by position, if several share each of them and all are shared by equally many."""
    places = by(headers, lambda header: header.ImagePositionPatient)
    return places if len({len(place) for place in places}) == 1 and len(places[0]) > 1 else None


def _dimensions(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """Volumes that the dimension index of a multi-frame object tells apart (PS3.3 C.7.6.17).

    A dimension that takes several values at one position is none of space.
    """
    places = _at_each_place(headers)
    lengths = {len(header.DimensionIndexValues) for header in headers}
    if places is None or len(lengths) > 1 or lengths == {0}:
        return None
    telling = [
        number
        for number in range(*lengths)
        if any(len({header.DimensionIndexValues[number] for header in place}) > 1 for place in places)
    ]
    groups = by(headers, lambda header: tuple(header.DimensionIndexValues[number] for number in telling))
    return _volumes_of_one_grid(groups, policy)


def _orders(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """Phases whose times differ a little from slice to slice, of all slices or of those that one element picks.

    Heart beats have unequal lengths, and slices of one time point are acquired one after the other.
    """
    telling = (key for key in _SPLITTERS if len({key(header) for header in headers}) > 1)
    for key in itertools.chain((lambda header: None,), telling):
        fits: list[Fit] = []
        for group in by(headers, key):
            phases = _phases(group, policy)
            if phases is None:
                break
            fits += phases
        else:
            if _are_one_grid(fits):
                return [replace(fitted, warnings=("W_SPLIT_BY_ORDER",)) for fitted in fits]
    return None


def _phases(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """Volumes of the n-th time of each slice, where every slice has as many different times."""
    places = _at_each_place(headers)
    if places is None:
        return None
    for order in _ORDERS:
        times = [[order(header) for header in place] for place in places]
        if any(None in own or len(set(own)) < len(own) for own in times) or _passes_midnight(times, order):
            continue
        ordered = [sorted(place, key=lambda header: order(header) or 0.0) for place in places]
        if fits := _volumes_of_one_grid([list(phase) for phase in zip(*ordered, strict=True)], policy):
            return fits
    return None


def _passes_midnight(times: Sequence[Sequence[float | None]], order: Callable[[Header], float | None]) -> bool:
    """Whether times of the day may have begun again at zero, so that their order is not that of time."""
    known = [time for own in times for time in own if time is not None]
    return order is _ORDERS[-1] and max(known) - min(known) > _HALF_A_DAY_S


def _seconds(time: str) -> float | None:
    """Seconds since midnight of a time with seconds (PS3.5 6.2, TM)."""
    match = _TIME.match(time)
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


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
    ordered = _numbered(headers)
    places = [header.ImagePositionPatient for header in ordered]
    size = len(set(places))
    if not places or len(places) % size or any(place != places[k % size] for k, place in enumerate(places)):
        return None
    return _by_instance([ordered[first : first + size] for first in range(0, len(ordered), size)], policy)


def _visits(headers: Sequence[Header], policy: Policy) -> list[Fit] | None:
    """The n-th instance number of each slice, where all of one slice come before those of the next."""
    ordered = _numbered(headers)
    places = [header.ImagePositionPatient for header in ordered]
    count = len(places) // max(1, len(set(places)))
    if not places or any(place != places[k - k % count] for k, place in enumerate(places)):
        return None
    return _by_instance([ordered[first::count] for first in range(count)], policy)


def _numbered(headers: Sequence[Header]) -> list[Header]:
    """Slices by their instance numbers; none if these are missing or repeat."""
    numbers = {header.InstanceNumber for header in headers}
    return [] if None in numbers or len(numbers) < len(headers) else sorted(headers, key=instance_order)


def _by_instance(groups: Sequence[Sequence[Header]], policy: Policy) -> list[Fit] | None:
    fits = _volumes_of_one_grid(groups, policy)
    return [replace(fitted, warnings=("W_SPLIT_BY_INSTANCE",)) for fitted in fits] if fits else None


def _are_one_grid(fits: Sequence[Fit]) -> bool:
    first = fits[0]
    shape = (first.headers[0].Columns, first.headers[0].Rows, len(first.headers))
    return all(is_same_grid(first.affine, other.affine, shape) for other in fits[1:])
