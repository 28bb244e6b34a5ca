"""Which voxels a polygon holds: those whose centre is inside, by the even-odd rule; and several polygons together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError

MAX_CROSSINGS: Final = 50_000_000
MAX_TOUCHING: Final = 1_000
MAX_PATCH_VOXELS: Final = 2**28
_MAX_CORNER_TESTS: Final = 20_000_000
_CORNER_TESTS_AT_ONCE: Final = 500_000
_CORNER_DIGITS: Final = 2
_CROSSING_DIGITS: Final = 9


def fill_polygon(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxels of a slice whose centre lies inside a closed polygon.

    The even-odd rule: inside is what a ray leaves through an odd number of edges, so a keyhole or an outline that
    crosses itself cuts out. A centre exactly on an edge belongs to the polygon if its inside lies towards increasing
    index there (of x, and for edges along x, of y): polygons that share an edge share no voxel and leave no gap.
    Corners are rounded to a hundredth of a voxel first: files give them in micrometres at best, and "exactly" shall not
    hang on their last digit.

    Args:
        points: `[N, 2]` corners (x, y) in continuous voxel indices, the last joined to the first.
        size: Size of the slice (X, Y).

    Returns:
        `[X, Y]`.

    Raises:
        InputError: `E_TOO_BIG`, the polygon crosses the rows more than 50 million times.
    """
    mask = np.zeros(size, dtype=np.bool_)
    patch = _filled(points, size)
    mask[patch.place] = patch.inside
    return mask


def fill_contours(contours: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Exclusive or of several contours of one slice, as CLOSEDPLANAR_XOR defines it (PS3.3 C.8.8.6.3)."""
    mask = np.zeros(size, dtype=np.bool_)
    for points in contours:
        patch = _filled(points, size)
        mask[patch.place] ^= patch.inside
    return mask


@dataclass(frozen=True)
class United:
    """Several contours of one slice as one area.

    Args:
        mask: `[X, Y]`.
        num_inside: Contours that lie wholly inside of others: holes, and islands in them.
        num_overlaps: Pairs of contours that overlap in part.
    """

    mask: NDArray[np.bool_]
    num_inside: int = 0
    num_overlaps: int = 0


def unite_contours(contours: Sequence[NDArray[np.float64]], size: tuple[int, int]) -> United:
    """The area of closed contours (CLOSED_PLANAR) of one structure on one slice.

    The standard does not say how they are combined (PS3.3 C.8.8.6.1). Contours beside each other and contours that
    overlap in part are united. A contour wholly inside another cuts a hole, and one inside a hole is an island, as
    planning systems write and read them. The same contour again changes nothing.

    Args:
        contours: `[N, 2]` corners each, in continuous voxel indices; see `fill_polygon`.
        size: Size of the slice (X, Y).

    Raises:
        InputError: `E_TOO_BIG`, also for more than 1,000 contours that touch others.
    """
    patches: list[_Patch] = []
    num_voxels = 0
    for points in contours:
        patches.append(_filled(points, size))
        num_voxels += patches[-1].inside.size
        if num_voxels > MAX_PATCH_VOXELS:
            raise InputError("E_TOO_BIG", f"{len(contours)} contours of one slice are larger than what can be compared")
    count = np.zeros(size, dtype=np.int32)
    for patch in patches:
        count[patch.place] += patch.inside
    if count.max(initial=0) <= 1:
        return United(count.astype(np.bool_))
    touches = [bool((count[patch.place] > 1)[patch.inside].any()) for patch in patches]
    touching = [number for number, one in enumerate(touches) if one]
    if len(touching) > MAX_TOUCHING:
        raise InputError("E_TOO_BIG", f"{len(touching)} contours of one slice overlap, more than can be told apart")
    around, num_overlaps = _relations(touching, patches, contours)
    regions = _regions(around, patches)
    mask = np.zeros(size, dtype=np.bool_)
    alone = {number: patch.inside for number, patch in enumerate(patches) if not touches[number]}
    outermost = {number: regions[number] for number, outer in around.items() if not outer}
    for number, region in {**alone, **outermost}.items():
        mask[patches[number].place] |= region
    return United(mask, sum(map(bool, around.values())), num_overlaps)


@dataclass(frozen=True)
class _Patch:
    """A filled polygon: the voxels inside, cut out at its bounding box."""

    inside: NDArray[np.bool_]
    left: int = 0
    top: int = 0

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it lies on the slice."""
        width, height = self.inside.shape
        return slice(self.left, self.left + width), slice(self.top, self.top + height)

    @cached_property
    def area(self) -> int:
        """Voxels."""
        return int(np.count_nonzero(self.inside))

    def part_in(self, other: "_Patch") -> tuple[slice, slice]:
        """What this and another bounding box have in common, in indices of this one."""
        return tuple(  # type: ignore[return-value]
            slice(max(mine.start, its.start) - mine.start, max(min(mine.stop, its.stop) - mine.start, 0))
            for mine, its in zip(self.place, other.place, strict=True)
        )

    def common_with(self, other: "_Patch") -> int:
        """Voxels that lie inside of both."""
        mine, its = self.inside[self.part_in(other)], other.inside[other.part_in(self)]
        return int(np.count_nonzero(mine & its)) if mine.size and its.size else 0


def _filled(points: NDArray[np.float64], size: tuple[int, int]) -> _Patch:
    width, height = size
    corners = np.round(points, _CORNER_DIGITS) + 0.0
    starts, ends = corners, np.roll(corners, -1, axis=0)
    low, high = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    first = np.clip(np.ceil(low), 0, height).astype(np.int64)
    counts = np.clip(np.ceil(high), 0, height).astype(np.int64) - first
    total = int(counts.sum())
    if total > MAX_CROSSINGS:
        raise InputError("E_TOO_BIG", f"a contour crosses the rows of its slice more than {MAX_CROSSINGS} times")
    if not total:
        return _Patch(np.zeros((0, 0), dtype=np.bool_))
    edge = np.repeat(np.arange(len(corners)), counts)
    row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    step = ends[edge] - starts[edge]
    crossing = np.round(starts[edge, 0] + (row - starts[edge, 1]) * step[:, 0] / step[:, 1], _CROSSING_DIGITS)
    column = np.clip(np.ceil(crossing), 0, width).astype(np.int64)
    top, left, bottom, right = row.min(), column.min(), row.max() + 1, column.max() + 1
    toggles = np.zeros((right - left, bottom - top), dtype=np.int64)
    np.add.at(toggles, (column - left, row - top), 1)
    inside = np.cumsum(toggles, axis=0) % 2 == 1
    return _Patch(inside[: width - left], int(left), int(top))


def _relations(
    touching: Sequence[int], patches: Sequence[_Patch], contours: Sequence[NDArray[np.float64]]
) -> tuple[dict[int, set[int]], int]:
    """For each contour those wholly around it; copies are left out. And how many pairs overlap in part."""
    around: dict[int, set[int]] = {}
    num_overlaps = 0
    for number in sorted(touching, key=lambda number: -patches[number].area):
        outer: set[int] = set()
        is_copy = False
        for larger in around:
            common = patches[number].common_with(patches[larger])
            if common == patches[number].area == patches[larger].area:
                is_copy = True
                num_overlaps += not _is_within(contours[number], contours[larger], patches[larger])
                break
            is_covered = common == patches[number].area
            if is_covered and _is_within(contours[number], contours[larger], patches[larger]):
                outer.add(larger)
            else:
                num_overlaps += common > 0
        if not is_copy:
            around[number] = outer
    return around, num_overlaps


def _is_within(points: NDArray[np.float64], outer: NDArray[np.float64], patch: _Patch) -> bool:
    """Whether all corners of a polygon lie inside another or on its edges, to a hundredth of a voxel.

    A corner between four voxels whose centres are inside is; only the others are looked at one by one.
    """
    points = points[~_is_among_inside(points, patch)]
    if len(points) * len(outer) > _MAX_CORNER_TESTS:
        return True  # of voxels it was true
    starts = np.round(outer, _CORNER_DIGITS)
    steps = np.roll(starts, -1, axis=0) - starts
    size = max(1, _CORNER_TESTS_AT_ONCE // len(outer))
    return all(
        _are_within(np.round(points[first : first + size], _CORNER_DIGITS), starts, steps)
        for first in range(0, len(points), size)
    )


def _is_among_inside(points: NDArray[np.float64], patch: _Patch) -> NDArray[np.bool_]:
    """For each point whether all four voxels around it are inside."""
    first = np.floor(points).astype(np.int64) - (patch.left, patch.top)
    is_within = ((first >= 0) & (first + 1 < patch.inside.shape)).all(axis=1)
    x, y = first[is_within].T
    inside = patch.inside
    found = np.zeros(len(points), dtype=np.bool_)
    found[is_within] = inside[x, y] & inside[x + 1, y] & inside[x, y + 1] & inside[x + 1, y + 1]
    return found


def _are_within(corners: NDArray[np.float64], starts: NDArray[np.float64], steps: NDArray[np.float64]) -> bool:
    offsets = corners[:, None] - starts[None]
    is_beside = (offsets[..., 1] >= 0) != (offsets[..., 1] >= steps[:, 1])
    rising = np.where(steps[:, 1], steps[:, 1], 1.0)
    is_left = offsets[..., 0] < offsets[..., 1] * steps[:, 0] / rising
    is_inside = np.count_nonzero(is_beside & is_left, axis=1) % 2 == 1
    along = np.clip((offsets * steps).sum(axis=-1) / np.maximum((steps**2).sum(axis=-1), 1e-12), 0, 1)
    distance = np.linalg.norm(offsets - along[..., None] * steps, axis=-1).min(axis=1)
    return bool((is_inside | (distance <= 10.0**-_CORNER_DIGITS)).all())


def _regions(around: dict[int, set[int]], patches: Sequence[_Patch]) -> dict[int, NDArray[np.bool_]]:
    """What each contour holds: its inside without what the contours next inside of it hold; within its patch."""
    within: dict[int, list[int]] = {number: [] for number in around}
    for number, outer in around.items():
        for parent in outer - set().union(*(around[one] for one in outer)):
            within[parent].append(number)
    regions: dict[int, NDArray[np.bool_]] = {}
    for number in reversed(list(around)):  # the smallest first
        region = patches[number].inside.copy()
        for child in within[number]:
            mine, its = patches[number].part_in(patches[child]), patches[child].part_in(patches[number])
            region[mine] &= ~regions[child][its]
        regions[number] = region
    return regions


def outline_voxels(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxels `[X, Y]` whose centre lies on the outline of a polygon with whole-numbered corners.

    Raises:
        InputError: `E_TOO_BIG`, the outline is longer than 50 million voxels.
    """
    starts = points.astype(np.int64)
    steps = np.roll(starts, -1, axis=0) - starts
    counts = np.maximum(np.gcd(np.abs(steps[:, 0]), np.abs(steps[:, 1])), 1)
    total = int(counts.sum())
    if total > MAX_CROSSINGS:
        raise InputError("E_TOO_BIG", f"an outline is longer than {MAX_CROSSINGS} voxels")
    edge = np.repeat(np.arange(len(starts)), counts)
    along = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    voxels = starts[edge] + along[:, None] * (steps // counts[:, None])[edge]
    inside = voxels[((voxels >= 0) & (voxels < size)).all(axis=1)]
    mask = np.zeros(size, dtype=np.bool_)
    mask[inside[:, 0], inside[:, 1]] = True
    return mask
