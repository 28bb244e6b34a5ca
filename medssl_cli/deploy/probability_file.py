"""Probabilities of every class, of a scan as large as it may be: on disk while they are made, never whole in memory.

Planes are written as they are decided about, to a file without a name: a killed process leaves nothing behind. From
there they are packed as NIfTI, one image for each class, read back, and only then given their name.
"""

import errno
import hashlib
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, InputError, StorageError
from medssl_cli.base.files import candidate_for, make_output_folder, sha256_file, storage_errors, write_atomic
from medssl_cli.deploy.outputs import OVERWRITE
from medssl_cli.formats.gzip_strict import gzip_pieces
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.nifti_header import encode_header, geometry_bytes, parse_header, stated_placement
from medssl_cli.formats.predictions import MASK_INTENT
from medssl_cli.imaging.geometry import Shape
from medssl_cli.imaging.kept_probabilities import STEPS

MIB: Final = 2**20
PIECE_BYTES: Final = 16 * MIB
_GZIP_WINDOW: Final = 31


class ProbabilityFile:
    """Probabilities of the classes of one scan; an `imaging.kept_probabilities.ProbabilityPlanes`.

    Args:
        path: Name of the file, `.nii.gz`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._images: NDArray[np.uint8] = np.zeros((0, 0, 0, 0), np.uint8)

    def begin(self, count: int, shape: Shape, slowest: int) -> NDArray[np.uint8]:
        """Room on the disk; see `ProbabilityPlanes`.

        Raises:
            StorageError: `E_NO_SPACE`, `E_IO`.
        """
        others = [axis for axis in range(3) if axis != slowest]
        stored = (shape[slowest], count, *(shape[axis] for axis in others))
        size = int(np.prod(stored, dtype=np.int64))
        make_output_folder(self.path.parent)
        with storage_errors(self.path.name), tempfile.TemporaryFile(dir=self.path.parent) as stream:
            _reserve(stream, size)
            self._map = mmap.mmap(stream.fileno(), size)
        planes = np.frombuffer(self._map, np.uint8).reshape(stored)
        order = [1, *(0 if axis == slowest else 2 + others.index(axis) for axis in range(3))]
        self._images = planes.transpose(order)
        return self._images

    def settle(self) -> None:
        """Let memory go; what was written is the file's."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def publish(self, image: LoadedImage, *, overwrite: bool) -> None:
        """Pack the file under its name; 255ths, scaled to 0 to 1 by the header.

        Args:
            image: The scan, whose geometry it has.
            overwrite: A file of another content there is replaced.

        Raises:
            GateError: `E_OUTPUT_CHECK`, it does not read back as it should.
            InputError: `E_OUTPUT_EXISTS`.
            StorageError: `E_IO`.
        """
        affine, like, shape = image.volume.affine, image.nifti_header, image.volume.shape
        header, _ = encode_header(
            np.dtype(np.uint8), shape, affine, like, description=f"medssl {__version__} probabilities",
            intent=MASK_INTENT, num_images=len(self._images), slope=1 / STEPS,
        )  # fmt: skip
        with candidate_for(self.path) as candidate:
            write_atomic(candidate, b"", is_output=True)
            with storage_errors(self.path.name), candidate.open("r+b") as stream:
                for piece in gzip_pieces(self._pieces(header), has_runs=True):
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            self._prove(candidate, header, image)
            is_other = self.path.exists() and sha256_file(self.path) != sha256_file(candidate)
            if is_other and not overwrite:
                raise InputError("E_OUTPUT_EXISTS", f"{self.path.name} exists already and differs", hint=OVERWRITE)

    def _pieces(self, header: bytes) -> Iterator[bytes]:
        """The plain file: x fastest, then y and z, one class after the other."""
        yield header
        _, x, y, z = self._images.shape
        step = max(1, PIECE_BYTES // (x * y))
        for image in self._images:
            for first in range(0, z, step):
                yield image[:, :, first : first + step].tobytes(order="F")
                self.settle()

    def _prove(self, path: Path, header: bytes, image: LoadedImage) -> None:
        """The packed file must hold what was packed, and lie where the scan does."""
        expected, found = hashlib.sha256(), hashlib.sha256()
        for piece in self._pieces(header):
            expected.update(piece)
        first = b""
        for piece in _unpacked(path):
            found.update(piece)
            first = first or piece[: len(header)]
        stated = parse_header(first, allow_4d=True)
        if image.nifti_header is not None:
            is_same_place = geometry_bytes(stated.raw) == geometry_bytes(image.nifti_header)
        else:
            is_same_place = np.allclose(stated_placement(stated).affine, image.volume.affine, rtol=1e-6, atol=1e-3)
        is_same = expected.digest() == found.digest() and stated.num_images == len(self._images)
        if not (is_same and is_same_place):
            raise GateError("E_OUTPUT_CHECK", "the file of probabilities does not read back as it was made")


def _reserve(stream: BinaryIO, size: int) -> None:
    """Take the space before anything is computed: a full disk in the middle would end the process.

    Raises:
        StorageError: `E_NO_SPACE`.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        for first in range(0, size, PIECE_BYTES):
            stream.write(bytes(min(PIECE_BYTES, size - first)))
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageError(
            "E_NO_SPACE",
            f"probabilities need {-(-size // MIB)} MiB beside the outputs while they are made",
            hint="free space, choose another folder for the outputs, or ask for no probabilities",
        ) from error


def _unpacked(path: Path) -> Iterator[bytes]:
    """A file's content, piece by piece; what does not unpack to its end raises `zlib.error` or is left out."""
    stream = zlib.decompressobj(_GZIP_WINDOW)
    with path.open("rb") as packed:
        while data := packed.read(MIB):
            yield stream.decompress(data)
    yield stream.flush()
