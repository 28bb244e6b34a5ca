"""NIfTI-1 and NIfTI-2 single files, read strictly and written so that every other reader agrees.

The header is parsed here and not by a library: the usual readers accept truncated streams, guess affines and
disagree with each other (`docs/concepts/geometry.md`). Field offsets: nifti1.h and nifti2.h of the NIfTI group.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli import __version__
from medssl_cli.base.errors import GateError, InputError
from medssl_cli.base.files import candidate_for, write_atomic
from medssl_cli.formats.affines import Placement
from medssl_cli.formats.gzip_strict import MAGIC, gunzip, gzip_bytes, gzip_head
from medssl_cli.formats.loaded import Identity, LoadedImage
from medssl_cli.formats.nifti_header import (
    LARGEST_HEADER,
    NiftiHeader,
    encode_header,
    geometry_bytes,
    parse_header,
    stated_placement,
    world_placement,
)
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.predictions import MASK_DESCRIPTION, MASK_INTENT
from medssl_cli.formats.source import Source, read_bytes, read_head
from medssl_cli.formats.stored_values import native_and_finite, scaled, storable
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.volume import Volume

MAX_OFFSET: Final = 64 * 2**20
SLACK_BYTES: Final = 64 * 1024
HEAD_BYTES: Final = 64 * 1024


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


def read_nifti(
    source: Source,
    *,
    modality: str = "unknown",
    policy: Policy = STRICT,
    is_label: bool = False,
) -> NiftiImage:
    """Read one file, compressed or not, that holds one 3D (or 2D) image, or refuse it.

    Args:
        source: The file; its content decides how it is read, not its name.
        modality: What the caller knows about it; CT is in Hounsfield units.
        policy: `nifti_affine`, `assume_orientation`, `shear`, `nonfinite`, `max_volume_bytes`.
        is_label: Label maps are neither resampled nor filled.

    Raises:
        InputError: The file cannot be trusted.
    """
    content = _open(source, replace(policy, split_4d=False), is_label=is_label)
    return NiftiImage(_image(content, 0, source, modality=modality, suffix=""), content.header.raw)


def read_nifti_series(source: Source, *, modality: str = "unknown", policy: Policy = STRICT) -> list[LoadedImage]:
    """Read one file as one image per 3D image in it; several need the policy's `split_4d`.

    The series of the n-th image of a 4D file ends in "#tn", counted from 0; all share the study.

    Raises:
        InputError: As `read_nifti`; one image that cannot be trusted refuses the file.
    """
    content = _open(source, policy, is_label=False)
    count = content.header.num_images
    suffixes = [f"#t{index}" for index in range(count)] if count > 1 else [""]
    return [_image(content, index, source, modality=modality, suffix=suffix) for index, suffix in enumerate(suffixes)]


def announced_grid(source: Source, policy: Policy = STRICT) -> tuple[Shape, Affine, int]:
    """Size, affine and bytes per voxel that the header of a file announces; nothing else of it is read.

    Raises:
        InputError: The header cannot be trusted.
    """
    data = read_head(source, HEAD_BYTES)
    head = gzip_head(data, LARGEST_HEADER) if data.startswith(MAGIC) else data[:LARGEST_HEADER]
    header = parse_header(head, allow_4d=policy.split_4d)
    return header.shape, world_placement(header, policy).affine, header.dtype.itemsize


@dataclass(frozen=True)
class _Content:
    """A file that is sound as a whole: its images as stored, `[X, Y, Z, T]`, and where they lie."""

    header: NiftiHeader
    stored: NDArray[Any]
    placement: Placement
    policy: Policy
    warnings: tuple[str, ...] = ()
    is_label: bool = False


def _open(source: Source, policy: Policy, *, is_label: bool) -> _Content:
    data = read_bytes(source)
    content = _content(
        data, policy, lambda header: world_placement(header, policy, is_label=is_label), is_label=is_label
    )
    if data.startswith(MAGIC) == source.name.lower().endswith(".gz"):
        return content
    return replace(content, warnings=("W_EXTENSION_MISMATCH",))


def _image(content: _Content, index: int, source: Source, *, modality: str, suffix: str) -> LoadedImage:
    voxels, warnings, repairs = _voxels(content, index)
    stem = stem_of(source.name)
    repairs = (*(("split-4d",) if suffix else ()), *content.placement.repairs, *repairs)
    return LoadedImage(
        volume=Volume(voxels[None], content.placement.affine, modality, "HU" if modality == "CT" else "a.u."),
        identity=Identity(patient=None, study=stem, series=stem + suffix),
        source_kind="nifti",
        warnings=(*content.placement.warnings, *warnings, *content.warnings),
        repairs=repairs,
        nifti_header=None if repairs else content.header.raw,
    )


def decode_nifti(data: bytes, policy: Policy = STRICT) -> tuple[NiftiHeader, NDArray[Any], Affine, tuple[str, ...]]:
    """Decode the bytes of a file that holds one image.

    Returns:
        The header, voxels `[X, Y, Z]` with the scale applied, the RAS affine, and `W_` codes.

    Raises:
        InputError: The bytes cannot be trusted.
    """
    policy = replace(policy, split_4d=False)
    content = _content(data, policy, lambda header: world_placement(header, policy))
    voxels, warnings, _ = _voxels(content, 0)
    return content.header, voxels, content.placement.affine, (*content.placement.warnings, *warnings)


def _content(
    data: bytes, policy: Policy, place: Callable[[NiftiHeader], Placement], *, is_label: bool = False
) -> _Content:
    """Everything that can be judged without touching a voxel, in an order that allocates nothing too early."""
    compressed = data.startswith(MAGIC)
    head = gzip_head(data, LARGEST_HEADER) if compressed else data[:LARGEST_HEADER]
    if compressed and len(head) < LARGEST_HEADER:
        gunzip(data, limit=LARGEST_HEADER)
    header = parse_header(head, allow_4d=policy.split_4d)
    num_bytes, limit = header.voxel_bytes, policy.max_volume_bytes
    if num_bytes > limit:
        raise InputError("E_TOO_BIG", f"the header announces {num_bytes} bytes, the limit is {limit}")
    end = header.voxel_offset + num_bytes
    if header.voxel_offset > MAX_OFFSET or (not compressed and len(data) < end):
        raise InputError("E_TRUNCATED", f"the voxels should end at byte {end}", hint="copy the file again")
    placement = place(header)
    content = gunzip(data, limit=end + SLACK_BYTES) if compressed else data
    if len(content) < end:
        raise InputError("E_TRUNCATED", f"{len(content)} bytes of {end}", hint="copy the file again")
    if len(content) > end + SLACK_BYTES or any(memoryview(content)[end:]):
        raise InputError("E_PIXEL_LENGTH", f"{len(content) - end} bytes follow the voxels")
    shape = (*header.shape, header.num_images)
    stored = np.frombuffer(content, header.dtype, math.prod(shape), header.voxel_offset).reshape(shape, order="F")
    return _Content(header, stored, placement, policy, is_label=is_label)


def _voxels(content: _Content, index: int) -> tuple[NDArray[Any], tuple[str, ...], tuple[str, ...]]:
    """One image `[X, Y, Z]` with scale and repairs applied, `W_` codes, and the repairs of its voxels."""
    native, repairs = native_and_finite(content.stored[..., index], content.policy, is_label=content.is_label)
    slope, intercept = content.header.slope, content.header.intercept
    if slope == 0 or math.isnan(slope):
        warnings = ("W_SCL_IGNORED",) if math.isfinite(intercept) and intercept != 0 else ()
        return content.placement.apply(storable(native)), warnings, repairs
    return content.placement.apply(scaled(native, slope, intercept)), (), repairs


def encode_nifti(
    voxels: NDArray[np.generic], affine: Affine, *, like_header: bytes | None = None, is_prediction: bool = False
) -> bytes:
    """Encode `[X, Y, Z]` as an uncompressed file that depends on nothing but the arguments.

    Args:
        voxels: Integers up to 64 bits or floats; scale 1.
        affine: RAS millimetres. Both affines of the file are set from it, with code 1 (scanner); the sform alone where
            a rotation cannot hold it, as for slices that lean.
        like_header: Header of a file with the same grid; its geometry (both affines, codes, spacing, units) is then
            copied bit for bit, in its byte order and NIfTI version, and `affine` is not written.
        is_prediction: A model made it: the header bears the mark of `predictions`.

    Raises:
        InputError: `E_AFFINE_INVALID`, `E_AFFINE_SHEAR`.
        ValueError: The shape differs from the other file's.
    """
    header, dtype = encode_header(
        voxels.dtype,
        voxels.shape,
        affine,
        like_header,
        description=MASK_DESCRIPTION if is_prediction else f"medssl {__version__}",
        intent=MASK_INTENT if is_prediction else "",
    )
    return header + voxels.astype(dtype, copy=False).tobytes(order="F")


def write_nifti(path: Path, voxels: NDArray[np.generic], affine: Affine, *, like_header: bytes | None = None) -> None:
    """Write `[X, Y, Z]` as `.nii.gz`, read it back strictly and only then give it its name.

    Raises:
        GateError: `E_OUTPUT_CHECK`; nothing is written.
        StorageError: `E_IO`.
    """
    data = gzip_bytes(encode_nifti(voxels, affine, like_header=like_header))
    with candidate_for(path) as candidate:
        write_atomic(candidate, data, is_output=True)
        prove_nifti(candidate.read_bytes(), voxels, affine, like_header=like_header)


def prove_nifti(data: bytes, voxels: NDArray[np.generic], affine: Affine, *, like_header: bytes | None = None) -> None:
    """Read an encoded file back and compare it with what it was made of.

    Args:
        data: The file, compressed or not.
        voxels: `[X, Y, Z]`.
        affine: RAS millimetres, within what 32 bits hold; a shear is compared, not judged.
        like_header: As for `encode_nifti`; the geometry must then be the same bit for bit.

    Raises:
        GateError: `E_OUTPUT_CHECK`.
    """
    expected = Placement(affine, (voxels.shape[0], voxels.shape[1], voxels.shape[2]))
    try:
        content = _content(data, STRICT, stated_placement if like_header is None else lambda header: expected)
        read, *_ = _voxels(content, 0)
    except InputError as error:
        raise GateError("E_OUTPUT_CHECK", f"the written file does not read back: {error.code}") from error
    if like_header is None:
        is_same_place = np.allclose(content.placement.affine, affine, rtol=1e-6, atol=1e-3)
    else:
        is_same_place = geometry_bytes(content.header.raw) == geometry_bytes(like_header)
    if content.header.shape != expected.shape or not np.array_equal(read, voxels) or not is_same_place:
        raise GateError("E_OUTPUT_CHECK", "the written file reads back differently")
