"""How fast crops and slices come out of the cache's arrays, beside nnU-Net's settings and an uncompressed memory map.

Times are CPU time of this process over files in the page cache: what a data loader of one core can do, whatever else
the machine does. "Opened anew" is a loader that draws from very many images; "kept open" one that comes back to them.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.cache.arrays import encode, open_array

L1_BYTES: Final = 32_768
L3_BYTES: Final = 1_441_792
SAFETY: Final = 0.8
MAX_CHUNK_TO_PATCH: Final = 1.5
NNUNET_LEVEL: Final = 8
COLUMNS: Final = ("storage", "size", "write MB/s", "64^3 crops/s", "96^3 crops/s", "axial slices/s")
Shape = tuple[int, ...]
Box = tuple[slice, ...]
Open = Callable[[], Any]


@dataclass(frozen=True)
class ReadRates:
    """One way to store one image.

    Args:
        storage: Its name.
        size_ratio: Bytes of the file over bytes of the voxels.
        write_bytes_per_s: Voxel bytes encoded per CPU second.
        reads_per_s: Of 64^3 crops, 96^3 crops and axial slices, per CPU second.
    """

    storage: str
    size_ratio: float
    write_bytes_per_s: float
    reads_per_s: tuple[float, ...]

    def row(self) -> tuple[str, ...]:
        """For a table."""
        rates = (f"{rate:.0f}" for rate in self.reads_per_s)
        return (self.storage, f"{self.size_ratio:.3f}", f"{self.write_bytes_per_s / 1e6:.0f}", *rates)


def nnunet_chunks(shape: Shape, patch: Shape, *, bytes_per_voxel: int) -> tuple[Shape, Shape]:
    """nnU-Net's rule for blosc2 arrays: blocks that fit the level-1 cache, chunks that fit a core's share of level 3.

    A block starts at the powers of two that hold the patch; the axis where it is largest relative to the patch is
    halved until the block fits. A chunk starts as a block and grows by blocks along the axis that has the fewest, until
    it no longer fits, spans the image, or is on average 1.5 times as long as the patch. Rule of nnU-Net 2.4 and later
    (Isensee et al., https://github.com/MIC-DKFZ/nnUNet).

    Returns:
        Chunk and block, in voxels.
    """
    block = [min(1 << (length - 1).bit_length(), size) for length, size in zip(patch, shape, strict=True)]
    while np.prod(block) * bytes_per_voxel > L1_BYTES * SAFETY:
        axis = max(range(len(block)), key=lambda index: (block[index] > 1, block[index] / patch[index], index))
        block[axis] = 1 << ((block[axis] - 1).bit_length() - 1)
    chunk = list(block)
    while np.prod(chunk) * bytes_per_voxel < L3_BYTES * SAFETY:
        growing = [axis for axis in range(len(chunk)) if chunk[axis] < shape[axis]]
        if not growing or np.mean([size / length for size, length in zip(chunk, patch, strict=True)]) > (
            MAX_CHUNK_TO_PATCH
        ):
            break
        axis = min(growing, key=lambda index: chunk[index] / block[index])
        chunk[axis] = min(chunk[axis] + block[axis], shape[axis])
    return tuple(chunk), tuple(block)


def encode_as(voxels: NDArray[Any], *, chunk: Shape, block: Shape, codec: str, level: int, shuffle: str) -> bytes:
    """A blosc2 array with other settings than the cache's.

    Args:
        voxels: `[X, Y, Z]`.
        chunk: In voxels.
        block: In voxels.
        codec: Name in `blosc2.Codec`.
        level: Of compression, 0 to 9.
        shuffle: Name in `blosc2.Filter`.
    """
    import blosc2

    settings = {"codec": blosc2.Codec[codec], "clevel": level, "filters": [blosc2.Filter[shuffle]], "nthreads": 1}
    array = blosc2.asarray(np.ascontiguousarray(voxels), chunks=chunk, blocks=block, cparams=settings)
    return bytes(array.to_cframe())


def _open_nnunet(path: Path) -> Any:
    import blosc2

    return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def _open_anew(path: Path) -> Any:
    os.utime(path)  # another state of the file: the handle of the last one is of no use
    return open_array(path)


def bench_read(voxels: NDArray[Any], *, reads: int = 40, rounds: int = 5) -> list[ReadRates]:
    """Read random places of one image, stored in several ways, in turn; the best round counts.

    Args:
        voxels: `[X, Y, Z]`.
        reads: Per round, kind of read and way of storing.
        rounds: Of which the fastest is taken.
    """
    size = voxels.dtype.itemsize

    def nnunet(edge: int) -> Callable[[], bytes]:
        chunk, block = nnunet_chunks(voxels.shape, (edge,) * 3, bytes_per_voxel=size)
        settings: Any = {"codec": "ZSTD", "level": NNUNET_LEVEL, "shuffle": "SHUFFLE"}
        return partial(encode_as, voxels, chunk=chunk, block=block, **settings)

    def memory_map(path: Path) -> Any:
        return np.memmap(path, dtype=voxels.dtype, mode="r", shape=voxels.shape)

    stored: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
        "medssl cache, kept open": (partial(encode, voxels), open_array),
        "medssl cache, opened anew": (partial(encode, voxels), _open_anew),
        "nnU-Net settings for 64^3, kept open": (nnunet(64), lru_cache(_open_nnunet)),
        "nnU-Net settings for 64^3, opened anew": (nnunet(64), _open_nnunet),
        "nnU-Net settings for 96^3, kept open": (nnunet(96), lru_cache(_open_nnunet)),
        "nnU-Net settings for 96^3, opened anew": (nnunet(96), _open_nnunet),
        "memory map, kept open": (voxels.tobytes, lru_cache(memory_map)),
        "memory map, opened anew": (voxels.tobytes, memory_map),
    }
    crops = ((64,) * 3, (96,) * 3, (*voxels.shape[:2], 1))
    boxes = [[_boxes(voxels.shape, crop, reads, seed) for crop in crops] for seed in range(rounds)]
    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        written: dict[str, tuple[int, float]] = {}
        opens: dict[str, Open] = {}
        for number, (name, (make, opener)) in enumerate(stored.items()):
            path = Path(scratch) / f"{number}.b2nd"
            started = time.process_time()
            data = make()
            written[name] = (len(data), max(time.process_time() - started, 1e-9))
            path.write_bytes(data)
            opens[name] = partial(opener, path)
        rates = _rates(opens, boxes)
    return [
        ReadRates(name, num_bytes / voxels.nbytes, voxels.nbytes / seconds, rates[name])
        for name, (num_bytes, seconds) in written.items()
    ]


def _boxes(shape: Shape, crop: Shape, count: int, seed: int) -> list[Box]:
    generator = np.random.default_rng(seed)
    lengths = [min(length, size) for length, size in zip(crop, shape, strict=True)]
    starts = [generator.integers(0, size - length + 1, count) for length, size in zip(lengths, shape, strict=True)]
    return [
        tuple(slice(int(start), int(start) + length) for start, length in zip(corner, lengths, strict=True))
        for corner in zip(*starts, strict=True)
    ]


def _rates(opens: Mapping[str, Open], rounds: Sequence[Sequence[Sequence[Box]]]) -> dict[str, tuple[float, ...]]:
    """Every round reads other places, so that none of them is in the processor's cache already."""
    best = {name: [0.0] * len(rounds[0]) for name in opens}
    for boxes in rounds:
        for kind, places in enumerate(boxes):
            for name, opener in opens.items():
                started = time.process_time()
                for place in places:
                    np.ascontiguousarray(opener()[place])
                seconds = max(time.process_time() - started, 1e-9)
                best[name][kind] = max(best[name][kind], len(places) / seconds)
    return {name: tuple(found) for name, found in best.items()}
