"""Near-duplicates: the same image under another identity, re-compressed, or with noise in the last digit.

An image is reduced to block means, their coarse shape is taken out, and what is left is projected on 64 fixed random
directions; the signs are the fingerprint. Two of them differ in about 64 times angle / pi bits (random hyperplanes,
Charikar, STOC 2002, section 3). Noise of one unit in thousands of voxels turns that angle by thousandths.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from medssl_cli.imaging.volume import Volume

BITS: Final = 64
GRID: Final = 16
COARSE: Final = 4
SAMPLES_PER_AXIS: Final = 64
MAX_DISTANCE: Final = 3
NO_CONTENT: Final = "0" * (BITS // 4)
MAX_COMPARISONS: Final = 200_000_000


class Printed(Protocol):
    """What a comparison needs of a record or of a row of the catalog."""

    @property
    def item_id(self) -> str: ...
    @property
    def patient_key(self) -> str: ...
    @property
    def fingerprint(self) -> str | None: ...


@dataclass(frozen=True, order=True)
class NearDuplicate:
    """Two items of different patients that show nearly the same.

    Args:
        first: Item id, the smaller of the two.
        second: Item id.
        distance: Number of different bits.
    """

    first: str
    second: str
    distance: int


def fingerprint(volume: Volume) -> str:
    """Sixteen hexadecimal digits that images of nearly the same content share, whatever their size and type.

    Args:
        volume: `[1, X, Y, Z]`, finite.

    Returns:
        `NO_CONTENT` for an image without any structure.
    """
    blocks = volume.voxels[0]
    steps = tuple(slice(None, None, max(1, size // SAMPLES_PER_AXIS)) for size in blocks.shape)
    blocks = blocks[steps].astype(np.float64)
    for axis in range(3):
        blocks = _block_means(blocks, axis, GRID)
    low, high = np.percentile(blocks, (2, 98))
    blocks = np.clip(blocks, low, high)
    coarse = blocks
    for axis in range(3):
        coarse = _block_means(coarse, axis, COARSE).repeat(GRID // COARSE, axis=axis)
    detail = (blocks - coarse).ravel()
    bits = _directions() @ detail > np.linalg.norm(detail) * 1e-9
    return np.packbits(bits).tobytes().hex()


def _block_means(values: NDArray[np.float64], axis: int, num_blocks: int) -> NDArray[np.float64]:
    """Means of equal parts along one axis; an axis shorter than the number of blocks is repeated."""
    size = values.shape[axis]
    starts = np.arange(num_blocks) * size // num_blocks
    counts = np.maximum(np.diff(starts, append=size), 1)
    sums = np.add.reduceat(values, starts, axis=axis)
    shape = [1, 1, 1]
    shape[axis] = num_blocks
    return np.asarray(sums / counts.reshape(shape), dtype=np.float64)


@cache
def _directions() -> NDArray[np.float64]:
    """`[BITS, GRID ** 3]` of -1 and 1, the same on every machine and for ever."""
    data = hashlib.shake_256(b"medssl fingerprint 1").digest(BITS * GRID**3 // 8)
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(BITS, -1)
    return bits.astype(np.float64) * 2 - 1


def near_duplicates(records: Iterable[Printed], max_distance: int = MAX_DISTANCE) -> list[NearDuplicate]:
    """Pairs of items of different patients whose fingerprints differ in few bits.

    Of two fingerprints that differ in d bits, one of d + 1 bands of bits is equal: only items that share a band are
    compared. Of items with the same fingerprint, each is paired with the first of another patient only.

    Args:
        records: Records or rows of the catalog; those without a fingerprint or without content are left out.
        max_distance: Most different bits, 0 to 7.
    """
    known = [
        (int(record.fingerprint, 16), record.patient_key, record.item_id)
        for record in records
        if record.fingerprint not in (None, NO_CONTENT)
    ]
    known.sort()
    found = set(_equal_pairs(known))
    prints, first = np.unique(np.array([entry[0] for entry in known], np.uint64), return_index=True)
    for left, right, distance in _close_pairs(prints, max_distance):
        pair = _of_two_patients(known, int(first[left]), int(first[right]))
        if pair is not None:
            found.add(NearDuplicate(min(pair), max(pair), distance))
    return sorted(found)


def _equal_pairs(known: list[tuple[int, str, str]]) -> Iterator[NearDuplicate]:
    """Each item with the first item of another patient that has the same fingerprint."""
    for _, members in groupby(known, key=lambda entry: entry[0]):
        (_, patient, first), *others = members
        other = next((item_id for _, owner, item_id in others if owner != patient), None)
        if other is not None:
            for _, owner, item_id in others:
                low, high = sorted((item_id, first if owner != patient else other))
                yield NearDuplicate(low, high, 0)


def _of_two_patients(known: list[tuple[int, str, str]], left: int, right: int) -> tuple[str, str] | None:
    """Two items, one of each fingerprint, of different patients."""
    for index in range(right, len(known)):
        if known[index][0] != known[right][0]:
            break
        if known[index][1] != known[left][1]:
            return known[left][2], known[index][2]
    for index in range(left + 1, right):
        if known[index][0] != known[left][0]:
            break
        if known[index][1] != known[right][1]:
            return known[index][2], known[right][2]
    return None


def _close_pairs(prints: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[int, int, int]]:
    """Indices and distance of different fingerprints that are close to each other."""
    num_bands = max_distance + 1
    num_compared = 0
    for band in range(num_bands):
        mask = np.uint64(sum(1 << bit for bit in range(band, BITS, num_bands)))
        order = np.argsort(prints & mask, kind="stable")
        masked, ordered = (prints & mask)[order], prints[order]
        at = np.arange(len(prints) - 1)
        offset = 1
        while len(at := at[at < len(prints) - offset]) and num_compared < MAX_COMPARISONS:
            at = at[masked[at] == masked[at + offset]]
            num_compared += len(at)
            distances = np.bitwise_count(ordered[at] ^ ordered[at + offset])
            for index in np.flatnonzero((distances <= max_distance) & (distances > 0)):
                pair = sorted((int(order[at[index]]), int(order[at[index] + offset])))
                yield pair[0], pair[1], int(distances[index])
            offset += 1
