"""NIfTI-1 and NIfTI-2 single files, read strictly and written so that every other reader agrees.

The header is parsed here and not by a library: the usual readers accept truncated streams, guess affines and
disagree with each other (`docs/concepts/geometry.md`). Field offsets: nifti1.h and nifti2.h of the NIfTI group.
"""

import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.errors import GateError, InputError
from medssl_cli.files import TEMPORARY_PREFIX, storage_errors, sync_directory, write_atomic
from medssl_cli.formats import Identity, LoadedImage
from medssl_cli.formats.gzip_strict import MAGIC, gunzip, gzip_bytes, gzip_head
from medssl_cli.formats.nifti_header import (
    LARGEST_HEADER,
    NiftiHeader,
    encode_header,
    parse_header,
    world_affine,
)
from medssl_cli.imaging.geometry import Affine
from medssl_cli.imaging.volume import Volume

MAX_VOLUME_BYTES: Final = 8 * 2**30
MAX_FILE_BYTES: Final = 16 * 2**30
SLACK_BYTES: Final = 64 * 1024
MAX_SCALE: Final = 1e6
_WHOLE_TYPES: Final = ("int16", "uint16", "int32", "uint32")


@dataclass(frozen=True)
class NiftiImage:
    """A NIfTI file in memory.

    Args:
        image: Voxels as stored, `[1, X, Y, Z]`, intensity scale applied.
        header: The file's own header bytes (348 or 540), for outputs with the same geometry bit for bit.
    """

    image: LoadedImage
    header: bytes


def stem_of(name: str) -> str:
    """A file's name without `.nii` or `.nii.gz`."""
    lower = name.lower()
    for suffix in (".nii.gz", ".nii"):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_nifti(path: Path, *, modality: str = "unknown", patient: str | None = None) -> NiftiImage:
    """Read one file, compressed or not, or refuse it.

    Args:
        path: The file; its content decides how it is read, not its name.
        modality: What the caller knows about it; CT is in Hounsfield units.
        patient: What the caller knows about whose it is.

    Raises:
        InputError: The file cannot be trusted.
    """
    data = read_stable(path)
    header, voxels, affine, warnings = decode_nifti(data)
    if data.startswith(MAGIC) != path.name.lower().endswith(".gz"):
        warnings = (*warnings, "W_EXTENSION_MISMATCH")
    stem = stem_of(path.name)
    image = LoadedImage(
        volume=Volume(voxels[None], affine, modality, "HU" if modality == "CT" else "a.u."),
        identity=Identity(patient=patient, study=patient or stem, series=stem),
        source_kind="nifti",
        warnings=warnings,
    )
    return NiftiImage(image, header.raw)


def read_stable(path: Path) -> bytes:
    """A regular file's bytes; never blocks on a pipe, and notices if somebody writes meanwhile.

    Raises:
        InputError: `E_PERMISSION`, `E_CHANGED_DURING_READ`, `E_TOO_BIG`, `S_SPECIAL_FILE`, `E_IO`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise InputError("S_SPECIAL_FILE", "not a regular file")
            if before.st_size > MAX_FILE_BYTES:
                raise InputError("E_TOO_BIG", f"the file has {before.st_size} bytes, the limit is {MAX_FILE_BYTES}")
            data = stream.read()
            after = os.fstat(descriptor)
    except PermissionError as error:
        raise InputError("E_PERMISSION", "the file cannot be opened") from error
    except OSError as error:
        raise InputError("E_IO", "the file cannot be read") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != before.st_size:
        raise InputError("E_CHANGED_DURING_READ", "the file changed while it was read", hint="run the command again")
    return data


def decode_nifti(data: bytes) -> tuple[NiftiHeader, NDArray[Any], Affine, tuple[str, ...]]:
    """Decode a file's bytes.

    Returns:
        The header, voxels `[X, Y, Z]` with the scale applied, the RAS affine, and `W_` codes.

    Raises:
        InputError: The bytes cannot be trusted.
    """
    compressed = data.startswith(MAGIC)
    head = gzip_head(data, LARGEST_HEADER) if compressed else data[:LARGEST_HEADER]
    if compressed and len(head) < LARGEST_HEADER:
        gunzip(data, limit=LARGEST_HEADER)
    header = parse_header(head)
    num_bytes = header.voxel_bytes
    if num_bytes > MAX_VOLUME_BYTES:
        raise InputError("E_TOO_BIG", f"the header announces {num_bytes} bytes, the limit is {MAX_VOLUME_BYTES}")
    end = header.voxel_offset + num_bytes
    if header.voxel_offset > MAX_VOLUME_BYTES or (not compressed and len(data) < end):
        raise InputError("E_TRUNCATED", f"the voxels should end at byte {end}", hint="copy the file again")
    affine, warnings = world_affine(header)
    content = gunzip(data, limit=end + SLACK_BYTES) if compressed else data
    if len(content) < end:
        raise InputError("E_TRUNCATED", f"{len(content)} bytes of {end}", hint="copy the file again")
    if len(content) > end + SLACK_BYTES or any(memoryview(content)[end:]):
        raise InputError("E_PIXEL_LENGTH", f"{len(content) - end} bytes follow the voxels")
    count = int(np.prod(header.shape))
    stored = np.frombuffer(content, header.dtype, count, header.voxel_offset).reshape(header.shape, order="F")
    voxels, notes = _real_values(stored, header)
    return header, voxels, affine, (*warnings, *notes)


def _real_values(stored: NDArray[Any], header: NiftiHeader) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Apply the intensity scale; whole numbers stay integers, in the stored type where they fit."""
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "f" and not np.isfinite(native).all():
        raise InputError("E_NONFINITE_VOXELS", "the image holds NaN or infinite voxels")
    slope, intercept = header.slope, header.intercept
    if slope == 0 or np.isnan(slope):
        return _storable(native), ("W_SCL_IGNORED",) if np.isfinite(intercept) and intercept != 0 else ()
    if not abs(slope) <= MAX_SCALE or not np.isfinite(intercept):
        raise InputError("E_SCALE", f"intensity scale {slope:g}, intercept {intercept:g}")
    if slope == 1 and intercept == 0:
        return _storable(native), ()
    scaled = native.astype(np.float64) * slope + intercept
    whole = bool((scaled == np.rint(scaled)).all())
    names = (native.dtype.name, *_WHOLE_TYPES) if native.dtype.kind in "iu" else _WHOLE_TYPES
    for name in names if whole else ():
        if name not in ("int64", "uint64") and _fits(scaled, name):
            return scaled.astype(name), ()
    if np.abs(scaled).max() > np.finfo(np.float32).max:
        raise InputError("E_SCALE", f"intensity scale {slope:g} leaves the range of 32-bit numbers")
    return scaled.astype(np.float32), ()


def _storable(voxels: NDArray[Any]) -> NDArray[Any]:
    """64-bit integers become the smallest sufficient type; everything else stays."""
    if voxels.dtype.name not in ("int64", "uint64"):
        return voxels
    for name in _WHOLE_TYPES:
        if _fits(voxels, name):
            return voxels.astype(name)
    raise InputError("E_DATATYPE", "64-bit integers beyond the range of 32 bits")


def _fits(voxels: NDArray[Any], name: str) -> bool:
    limits = np.iinfo(name)
    return bool(limits.min <= voxels.min() and voxels.max() <= limits.max)


def encode_nifti(voxels: NDArray[np.generic], affine: Affine, *, like_header: bytes | None = None) -> bytes:
    """Encode `[X, Y, Z]` as an uncompressed file that depends on nothing but the arguments.

    Args:
        voxels: Integers up to 64 bits or floats; scale 1.
        affine: RAS millimetres. Both affines of the file are set from it, with code 1 (scanner).
        like_header: Header of a file with the same grid; its geometry (both affines, codes, spacing, units) is then
            copied bit for bit, in its byte order and NIfTI version, and `affine` is not written.

    Raises:
        InputError: `E_AFFINE_INVALID`, `E_AFFINE_SHEAR`.
        ValueError: The shape differs from the other file's.
    """
    header, dtype = encode_header(voxels.dtype, voxels.shape, affine, like_header, description=f"medssl {__version__}")
    return header + voxels.astype(dtype, copy=False).tobytes(order="F")


def write_nifti(path: Path, voxels: NDArray[np.generic], affine: Affine, *, like_header: bytes | None = None) -> None:
    """Write `[X, Y, Z]` as `.nii.gz`, read it back strictly and only then give it its name.

    Raises:
        GateError: `E_OUTPUT_CHECK`; nothing is written.
        StorageError: `E_IO`.
    """
    data = gzip_bytes(encode_nifti(voxels, affine, like_header=like_header))
    unproven = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}")
    try:
        write_atomic(unproven, data)
        _check_output(unproven, voxels, affine, like_header)
        with storage_errors(path.name):
            unproven.replace(path)
            sync_directory(path.parent)
    finally:
        unproven.unlink(missing_ok=True)


def _check_output(path: Path, voxels: NDArray[np.generic], affine: Affine, like_header: bytes | None) -> None:
    try:
        header, read, place, _ = decode_nifti(path.read_bytes())
    except InputError as error:
        raise GateError("E_OUTPUT_CHECK", f"the written file does not read back: {error.code}") from error
    expected = affine if like_header is None else world_affine(parse_header(like_header))[0]
    exact = like_header is not None
    is_same_place = np.array_equal(place, expected) if exact else np.allclose(place, expected, rtol=1e-6, atol=1e-3)
    if header.shape != voxels.shape or not np.array_equal(read, voxels) or not is_same_place:
        raise GateError("E_OUTPUT_CHECK", "the written file reads back differently")
