"""What NRRD and MetaImage have in common: numbers written as text, voxels of an exact length, data in another file."""

import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.affines import MAX_MM, MAX_SIDE, Placement, placed
from medssl_cli.formats.loaded import LPS_TO_RAS, Identity, LoadedImage, SourceKind
from medssl_cli.formats.policy import Policy
from medssl_cli.formats.source import MAX_FILE_BYTES, Member, Source, member_beside, read_bytes, read_head
from medssl_cli.formats.stored_values import native_and_finite, storable
from medssl_cli.imaging.geometry import Affine, Shape
from medssl_cli.imaging.volume import Volume

MAX_HEADER_BYTES: Final = 64 * 1024
_DETACHED_HEADERS: Final = (".mhd", ".nhdr")
_MAX_NUMBER_LENGTH: Final = 64
_NUMBER: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True)
class StoredGrid:
    """Voxels as a header announces them."""

    dtype: np.dtype[Any]
    shape: Shape

    @property
    def num_bytes(self) -> int:
        """Length of the voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def voxels(self, content: bytes | bytearray) -> NDArray[Any]:
        """Voxels `[X, Y, Z]` of bytes, x running fastest.

        Raises:
            InputError: `E_TRUNCATED`, `E_PIXEL_LENGTH`.
        """
        check_length(len(content), self.num_bytes)
        return np.frombuffer(content, self.dtype).reshape(self.shape, order="F")


def whole_numbers(text: str, code: str) -> tuple[int, ...]:
    """Whole numbers separated by spaces.

    Raises:
        InputError: `code`.
    """
    words = text.split()
    if not all(_WHOLE.fullmatch(word) for word in words):
        raise InputError(code, "a whole number of the header cannot be read")
    return tuple(int(word) for word in words)


def finite_numbers(text: str, count: int) -> tuple[float, ...]:
    """So many finite numbers of a size that a place or a scale can have, separated by spaces.

    Raises:
        InputError: `E_VALUE_INVALID`.
    """
    words = text.split()
    is_sound = all(len(word) <= _MAX_NUMBER_LENGTH and _NUMBER.fullmatch(word) for word in words)
    numbers = tuple(float(word) for word in words) if is_sound else ()
    if len(numbers) != count or not all(abs(number) <= MAX_MM for number in numbers):
        raise InputError("E_VALUE_INVALID", f"the header needs {count} numbers up to {MAX_MM:g} where it has others")
    return numbers


def checked_shape(sizes: tuple[int, ...], itemsize: int, policy: Policy, code: str) -> Shape:
    """Three sizes, if an image of them may be held in memory.

    Raises:
        InputError: `code`, `E_TOO_BIG`.
    """
    if len(sizes) != 3 or not all(1 <= size <= MAX_SIDE for size in sizes):
        raise InputError(code, f"{len(sizes)} sizes, or one that is not between 1 and {MAX_SIDE}")
    num_bytes = math.prod(sizes) * itemsize
    if num_bytes > policy.max_volume_bytes:
        raise InputError("E_TOO_BIG", f"the header announces {num_bytes} bytes, the limit is {policy.max_volume_bytes}")
    return sizes[0], sizes[1], sizes[2]


def placed_grid(layout: StoredGrid, affine: Affine, policy: Policy) -> tuple[Shape, Affine, int]:
    """Size, affine and bytes per voxel that a header announces, placed as reading will place it.

    Raises:
        InputError: The affine cannot be trusted.
    """
    return layout.shape, placed(affine, layout.shape, policy).affine, layout.dtype.itemsize


def check_length(num_bytes: int, expected: int) -> None:
    """Refuse data of another length than the header announces.

    Raises:
        InputError: `E_TRUNCATED`, `E_PIXEL_LENGTH`.
    """
    if num_bytes < expected:
        raise InputError("E_TRUNCATED", f"{num_bytes} bytes of {expected}", hint="copy the file again")
    if num_bytes > expected:
        raise InputError("E_PIXEL_LENGTH", f"{num_bytes - expected} bytes follow the voxels")


def loaded_image(
    stored: NDArray[Any],
    placement: Placement,
    policy: Policy,
    *,
    name: str,
    source_kind: SourceKind,
    modality: str,
    num_files: int,
    is_label: bool,
) -> LoadedImage:
    """The image of stored voxels.

    Args:
        stored: `[X, Y, Z]`, any byte order.
        placement: Placement of the voxels, judged before they were read.
        policy: `nonfinite`.
        name: Name of the file; without its suffix it is the best substitute for study and series.
        source_kind: As in `LoadedImage`.
        modality: CT is in Hounsfield units.
        num_files: As in `LoadedImage`.
        is_label: Label maps are never repaired.

    Raises:
        InputError: `E_NONFINITE_VOXELS`, `E_DATATYPE`.
    """
    native, repairs = native_and_finite(stored, policy, is_label=is_label)
    voxels = placement.apply(storable(native))
    stem = name.rpartition(".")[0] or name
    return LoadedImage(
        volume=Volume(voxels[None], placement.affine, modality, "HU" if modality == "CT" else "a.u."),
        identity=Identity(patient=None, study=stem, series=stem),
        source_kind=source_kind,
        num_files=num_files,
        warnings=placement.warnings,
        repairs=(*placement.repairs, *repairs),
    )


def read_detached(source: Source, name: str, policy: Policy) -> bytes:
    """The data file that a header names, if it lies beside the header and is nothing but a file.

    In an archive the two must be called the same but for their suffixes, and nothing else may be called so: many
    headers that name one data file would unpack it many times, beyond all that the archive declares.

    Args:
        source: Source of the header.
        name: As the header gives it, decoded as Latin-1.
        policy: `allow_detached`.

    Raises:
        InputError: `E_DETACHED_DATA`, `E_TOO_BIG`, `E_CHANGED_DURING_READ`; in an archive the codes of reading members.
    """
    if not policy.allow_detached:
        hint = "write header and voxels into one file, or pass --allow-detached"
        raise InputError("E_DETACHED_DATA", "the voxels lie in another file", hint=hint)
    if not name or name in (".", "..") or any(char in name for char in "/\\\0%") or name.split()[0] == "LIST":
        raise InputError("E_DETACHED_DATA", "the data file is not one plain file name in the folder of the header")
    if isinstance(source, Member):
        return read_bytes(_member_of(source, name))
    path = os.path.join(os.fsencode(source.parent), name.encode("latin-1"))  # noqa: PTH118 - names are bytes
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            return _plain_content(stream, descriptor)
    except OSError as error:
        raise InputError(
            "E_DETACHED_DATA", f"the data file cannot be opened as a plain file ({type(error).__name__})"
        ) from error


def _member_of(header: Member, name: str) -> Member:
    """The member of an archive that holds the voxels of a header in it."""
    text = name.encode("latin-1").decode("utf-8", "surrogateescape")
    stem, suffix = header.inner.stem, header.inner.suffix.lower()
    is_pair = suffix in _DETACHED_HEADERS and text != header.name and text.rpartition(".")[0] == stem
    found = member_beside(header, text) if is_pair else None
    if found is None:
        raise InputError(
            "E_DETACHED_DATA",
            "the archive has no single data file that is called as the header and lies in its folder",
            hint="unpack the archive and name the folder",
        )
    return found


def detached_files(source: Source, names: re.Pattern[bytes], policy: Policy) -> tuple[Source, ...]:
    """The data file that a header names, as it would lie beside it; whether it may be read is for the reader to say.

    Args:
        source: Source of the header.
        names: Finds the line of the header; its first group is the name.
        policy: `allow_detached`.

    Raises:
        InputError: The codes of reading files.
    """
    if not policy.allow_detached:
        return ()
    match = names.search(read_head(source, MAX_HEADER_BYTES))
    if match is None:
        return ()
    name = match[1].decode("latin-1").strip()
    return (_member_of(source, name) if isinstance(source, Member) else source.parent / Path(name).name,)


def _plain_content(stream: Any, descriptor: int) -> bytes:
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode) or before.st_nlink != 1:
        raise InputError("E_DETACHED_DATA", "the data file is not a regular file with a single name")
    if before.st_size > MAX_FILE_BYTES:
        raise InputError("E_TOO_BIG", f"the data file is larger than {MAX_FILE_BYTES} bytes")
    data: bytes = stream.read(before.st_size)
    after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or len(data) != before.st_size:
        raise InputError("E_CHANGED_DURING_READ", "the data file changed while it was read")
    return data


def lps_to_ras(axes: NDArray[np.float64], origin: NDArray[np.float64]) -> NDArray[np.float64]:
    """The RAS affine of columns `axes` `[3, 3]` in mm per voxel and the place `origin` of voxel 0, both in LPS."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    result: NDArray[np.float64] = LPS_TO_RAS @ affine
    return result + 0.0
