"""Voxels on disk: blosc2 arrays that keep their dtype and are read in parts."""

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.errors import GateError
from medssl_cli.files import write_atomic

CHUNK: Final = (128, 128, 64)
BLOCK: Final = (32, 32, 8)
LEVEL: Final = 5
_THREADS: Final = slice(62, 68)
_DEFAULT_THREADS: Final = b"\xd1\x00\x00\xd1\x00\x01"


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
    array = blosc2.asarray(
        np.ascontiguousarray(voxels),
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": blosc2.Codec.LZ4, "clevel": LEVEL, "filters": [shuffle], "nthreads": 1},
    )
    frame: bytes = array.to_cframe()
    if frame[_THREADS] == _DEFAULT_THREADS or frame[_THREADS.start] != _DEFAULT_THREADS[0]:
        return frame  # the usual case, without another copy
    return b"".join((frame[: _THREADS.start], _DEFAULT_THREADS, memoryview(frame)[_THREADS.stop :]))


def write_array(path: Path, voxels: NDArray[np.generic]) -> str:
    """Store `[X, Y, Z]` atomically.

    Returns:
        SHA-256 of the file.
    """
    data = encode(voxels)
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def open_array(path: Path) -> Any:
    """A lazily read array: index it to read a part. Open it in the process that reads, never across a fork.

    Raises:
        GateError: `E_CACHE_CORRUPT` if the file is not readable as an array.
    """
    import blosc2

    try:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
    except (RuntimeError, ValueError, OSError) as error:
        raise GateError("E_CACHE_CORRUPT", f"{path.name} of item {path.parent.name} cannot be read") from error


def read_array(path: Path) -> NDArray[Any]:
    """A whole array in memory."""
    whole: NDArray[Any] = open_array(path)[:]
    return whole
