"""Voxels on disk: blosc2 arrays that keep their dtype and are read in parts."""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import GateError
from medssl_cli.base.files import open_regular, write_atomic

CHUNK: Final = (128, 128, 64)
BLOCK: Final = (32, 32, 8)
LEVEL: Final = 5
MAX_OPEN: Final = 128
_LENGTH: Final = slice(16, 24)
_THREADS: Final = slice(62, 68)
_ONE_THREAD: Final = b"\xd1\x00\x01\xd1\x00\x01"


def encode(voxels: NDArray[np.generic]) -> bytes:
    """Compress `[X, Y, Z]` losslessly, in chunks that suit random crops and single slices.

    The same voxels give the same bytes everywhere: the header of a frame also notes how many threads wrote it, which an
    environment variable decides (Blosc2 contiguous frame format, header bytes 62 to 67), and that note is taken out.
    The settings were chosen by measurement: docs/decisions/0013-array-settings.md. Arrays describe themselves, so those
    that were written with other settings stay readable.
    """
    import blosc2

    chunks = tuple(min(size, limit) for size, limit in zip(voxels.shape, CHUNK, strict=True))
    blocks = tuple(min(size, limit) for size, limit in zip(chunks, BLOCK, strict=True))
    shuffle = blosc2.Filter.SHUFFLE if voxels.itemsize > 1 else blosc2.Filter.BITSHUFFLE
    array = blosc2.empty(
        voxels.shape,
        voxels.dtype,
        chunks=chunks,
        blocks=blocks,
        contiguous=True,
        cparams={"codec": blosc2.Codec.LZ4, "clevel": LEVEL, "filters": [shuffle], "nthreads": 1},
        dparams={"nthreads": 1},
    )
    for number, chunk in enumerate(_chunks(voxels, chunks, blocks)):
        array.schunk.update_data(number, chunk, copy=False)
    frame: bytes = array.to_cframe()
    if frame[_THREADS] == _ONE_THREAD or frame[_THREADS.start] != _ONE_THREAD[0]:
        return frame  # the usual case, without another copy
    return b"".join((frame[: _THREADS.start], _ONE_THREAD, memoryview(frame)[_THREADS.stop :]))


def _chunks(voxels: NDArray[np.generic], chunks: Sequence[int], blocks: Sequence[int]) -> Iterator[NDArray[np.generic]]:
    """Chunks as they are compressed: block after block, filled up with zeros to whole blocks (Blosc2's NDim format).

    The library would cut them itself, row by row of each block, which takes as long as compressing them. Here such a
    row is one element of a transposed array.
    """
    counts = [-(-chunk // block) for chunk, block in zip(chunks, blocks, strict=True)]
    padded = np.zeros([count * block for count, block in zip(counts, blocks, strict=True)], voxels.dtype)
    rows = padded.view(np.dtype((np.void, blocks[2] * voxels.itemsize)))
    in_blocks = rows.reshape(counts[0], blocks[0], counts[1], blocks[1], counts[2]).transpose(0, 2, 4, 1, 3)
    starts = (range(0, size, chunk) for size, chunk in zip(voxels.shape, chunks, strict=True))
    for x, y, z in product(*starts):
        part = voxels[x : x + chunks[0], y : y + chunks[1], z : z + chunks[2]]
        if part.shape != padded.shape:
            padded[...] = 0
        padded[: part.shape[0], : part.shape[1], : part.shape[2]] = part
        yield np.ascontiguousarray(in_blocks)


def write_array(path: Path, voxels: NDArray[np.generic]) -> str:
    """Store `[X, Y, Z]` atomically.

    Returns:
        SHA-256 of the file.
    """
    data = encode(voxels)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def refuse_damage(path: Path) -> Iterator[None]:
    """Around opening an array, or reading parts of it: blocks are decoded, and found damaged, only then.

    Values that a damaged block still decodes to are not noticed here; the audit compares digests.

    Raises:
        GateError: `E_CACHE_CORRUPT`.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise GateError("E_CACHE_CORRUPT", f"{path.name} of item {path.parent.name} cannot be read") from error


def open_array(path: Path) -> Any:
    """A lazily read array: index it to read a part. Open it in the process and the thread that read.

    The last few stay open, memory-mapped, so that the next crop of an image need not parse its frame again; a file that
    was replaced since is opened anew.

    Raises:
        GateError: `E_CACHE_CORRUPT` if the file is not readable as an array.
    """
    with refuse_damage(path):
        status = path.stat()
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return _opened(path, stamp, os.getpid(), threading.get_ident())


@lru_cache(maxsize=MAX_OPEN)
def _opened(path: Path, stamp: tuple[int, ...], process: int, thread: int) -> Any:
    """A handle of one state of a file; none is shared with another process or thread."""
    import blosc2

    with open_regular(path) as stream:
        head = stream.read(_LENGTH.stop)
    if int.from_bytes(head[_LENGTH], "big") != stamp[2]:
        raise ValueError("length")
    return blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})


def read_array(path: Path) -> NDArray[Any]:
    """A whole array in memory.

    Raises:
        GateError: `E_CACHE_CORRUPT` if the file is not readable as an array.
    """
    array = open_array(path)
    with refuse_damage(path):
        whole: NDArray[Any] = array[:]
    return whole
