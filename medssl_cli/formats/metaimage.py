"""MetaImage files: one three-dimensional grid of single numbers with its place in LPS, as ITK writes them.

Source: "MetaIO Documentation", itk.org/Wiki/MetaIO/Documentation. Row i of TransformMatrix is the direction of array
axis i; the letters of AnatomicalOrientation say from which side an axis comes. Keys that are not named here, free
text among them, are passed over and never stored. Shape letters: X Y Z voxels.
"""

import re
import zlib
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.affines import assumed_affine, assumed_repair, placed
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source, read_bytes, read_head
from medssl_cli.formats.text_headers import (
    MAX_HEADER_BYTES,
    StoredGrid,
    check_length,
    checked_shape,
    finite_numbers,
    loaded_image,
    lps_to_ras,
    placed_grid,
    read_detached,
    whole_numbers,
)
from medssl_cli.imaging.geometry import Affine, Shape

_CODE: Final = "E_METAIMAGE_HEADER"
_FIRST_LINE: Final = re.compile(rb"(ObjectType|NDims) *= *[A-Za-z0-9]+ *\r?\n")
_TYPES: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_ALIASES: Final = {
    "Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip
_FROM_SIDE: Final = {
    "R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "I": (0, 0, 1), "S": (0, 0, -1),
}  # fmt: skip
_MIN_COSINE: Final = 0.1
_ANY_HEADER: Final = 47


@dataclass(frozen=True)
class _Layout(StoredGrid):
    """What the header says about the voxels."""

    is_compressed: bool
    compressed_size: int | None
    header_size: int


def is_metaimage(head: bytes) -> bool:
    """Whether bytes begin like a MetaImage header."""
    return _FIRST_LINE.match(head) is not None


def read_metaimage(
    source: Source, *, modality: str = "unknown", policy: Policy = STRICT, is_label: bool = False
) -> LoadedImage:
    """Read one file, or refuse it.

    Args:
        source: The file, or with the policy's `allow_detached` a header whose data lie beside it.
        modality: What the caller knows about it; CT is in Hounsfield units.
        policy: `assume_orientation`, `shear`, `nonfinite`, `allow_detached`, `max_volume_bytes`.
        is_label: Label maps are neither resampled nor filled.

    Raises:
        InputError: `E_METAIMAGE_HEADER`, `E_DATATYPE`, `E_4D_INPUT`, `E_SCALE`, `E_NO_ORIENTATION`, `E_GEOM_MISSING`,
            `E_VALUE_INVALID`, `E_AFFINE_INVALID`, `E_AFFINE_SHEAR`, `E_DETACHED_DATA`, `E_TOO_BIG`, `E_TRUNCATED`,
            `E_PIXEL_LENGTH`, `E_PIXEL_DECODE`, `E_NONFINITE_VOXELS`, and the codes of reading files.
    """
    data = read_bytes(source)
    fields, start = _fields(data)
    layout = _layout(fields, policy)
    affine, repairs = _stated_affine(fields, policy)
    placement = placed(affine, layout.shape, policy, is_label=is_label)
    is_local = fields["ElementDataFile"].upper() == "LOCAL"
    body = data[start:] if is_local else read_detached(source, fields["ElementDataFile"], policy)
    if layout.header_size if is_local else start < len(data):
        raise InputError(_CODE, "HeaderSize with attached data, or data behind a header that names a data file")
    return loaded_image(
        _stored(body, layout),
        replace(placement, repairs=(*repairs, *placement.repairs)),
        policy,
        name=source.name,
        source_kind="metaimage",
        modality=modality,
        num_files=1 if is_local else 2,
        is_label=is_label,
    )


def announced_grid(source: Source, policy: Policy = STRICT) -> tuple[Shape, Affine, int]:
    """Size, affine and bytes per voxel that the header of a file announces; nothing else of it is read.

    Raises:
        InputError: The header cannot be trusted.
    """
    fields, _ = _fields(read_head(source, MAX_HEADER_BYTES))
    layout, (affine, _) = _layout(fields, policy), _stated_affine(fields, policy)
    return placed_grid(layout, affine, policy)


def _fields(data: bytes) -> tuple[dict[str, str], int]:
    """The header's fields by name, and where the data begin: behind the line of ElementDataFile."""
    if not is_metaimage(data[:MAX_HEADER_BYTES]):
        raise InputError(_CODE, "the first line is not that of a MetaImage")
    fields: dict[str, str] = {}
    start = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", start, MAX_HEADER_BYTES)
        line = data[start : end if end >= 0 else MAX_HEADER_BYTES].decode("latin-1")
        name, separator, value = line.partition("=")
        name = _ALIASES.get(name.strip(), name.strip())
        if line.strip() and (not separator or name in fields):
            raise InputError(_CODE, "a line of the header is no field, or a field occurs twice")
        if line.strip():
            fields[name] = value.strip()
        start = end + 1 if end >= 0 else len(data)
        if end < 0 and "ElementDataFile" not in fields:
            raise InputError(_CODE, f"the header does not end within {MAX_HEADER_BYTES} bytes")
    return fields, start


def _layout(fields: dict[str, str], policy: Policy) -> _Layout:
    if fields.get("ObjectType", "Image") != "Image" or not _flag(fields, "BinaryData", default=False):
        raise InputError(_CODE, "not an image with binary data")
    if _whole(fields, "ElementNumberOfChannels", 1) != 1 or fields.get("ElementType") not in _TYPES:
        raise InputError("E_DATATYPE", "several channels, or a voxel type that is none of 8 to 64 bit numbers")
    if _whole(fields, "NDims", 0) > 3:
        raise InputError("E_4D_INPUT", f"{_whole(fields, 'NDims', 0)} dimensions")
    scale = [finite_numbers(fields.get(f"ElementToIntensityFunction{name}", default), 1)[0] for name, default in _SCALE]
    if scale != [1, 0]:
        raise InputError("E_SCALE", f"intensity scale {scale[0]:g}, intercept {scale[1]:g} are not applied")
    dtype = np.dtype(_TYPES[fields["ElementType"]])
    if dtype.itemsize > 1:
        is_big = _flag(fields, "BinaryDataByteOrderMSB", default=None)
        dtype = dtype.newbyteorder(">" if is_big else "<")
    sizes = whole_numbers(fields.get("DimSize", ""), _CODE)
    if _whole(fields, "NDims", 0) != len(sizes):
        raise InputError(_CODE, "NDims and DimSize disagree or are missing")
    return _Layout(
        dtype=dtype,
        shape=checked_shape(sizes, dtype.itemsize, policy, _CODE),
        is_compressed=_flag(fields, "CompressedData", default=False),
        compressed_size=_whole(fields, "CompressedDataSize", 0) or None,
        header_size=_whole(fields, "HeaderSize", 0),
    )


_SCALE: Final = (("Slope", "1"), ("Offset", "0"))


def _flag(fields: dict[str, str], name: str, *, default: bool | None) -> bool:
    value = {"true": True, "false": False, "1": True, "0": False}.get(fields.get(name, "").lower())
    if name not in fields:
        value = default
    if value is None:
        raise InputError(_CODE, f"{name} is missing or neither True nor False")
    return value


def _whole(fields: dict[str, str], name: str, default: int) -> int:
    numbers = whole_numbers(fields.get(name, str(default)), _CODE)
    if len(numbers) != 1:
        raise InputError(_CODE, f"{name} is not one whole number")
    return numbers[0]


def _stated_affine(fields: dict[str, str], policy: Policy) -> tuple[Affine, tuple[str, ...]]:
    stated_spacing = fields.get("ElementSpacing", fields.get("ElementSize"))
    if stated_spacing is None:
        raise InputError("E_GEOM_MISSING", "the voxel spacing is missing")
    spacing = finite_numbers(stated_spacing, 3)
    if not all(length > 0 for length in spacing):
        raise InputError("E_SPACING_INVALID", "a voxel spacing is zero or negative")
    if "TransformMatrix" not in fields:
        return assumed_affine(policy, spacing), (assumed_repair(policy),)
    if "Offset" not in fields:
        raise InputError("E_GEOM_MISSING", "the place of the first voxel is missing")
    directions = np.reshape(finite_numbers(fields["TransformMatrix"], 9), (3, 3))
    if any(finite_numbers(fields.get("CenterOfRotation", "0 0 0"), 3)):
        raise InputError(_CODE, "a centre of rotation other than the origin")
    _check_lengths(directions)
    _check_letters(fields.get("AnatomicalOrientation", "???"), directions)
    origin = np.array(finite_numbers(fields["Offset"], 3))
    return lps_to_ras((directions * np.array(spacing)[:, None]).T, origin), ()


def _check_lengths(directions: NDArray[np.float64]) -> None:
    """Directions of another length than 1 would change the spacing that the header states."""
    lengths = np.linalg.norm(directions, axis=1)
    if not (np.abs(lengths - 1) <= 1e-3).all():
        raise InputError("E_PIXDIM_MISMATCH", f"direction vectors of length {lengths.min():.4g} to {lengths.max():.4g}")


def _check_letters(letters: str, directions: NDArray[np.float64]) -> None:
    """Refuse letters that contradict the matrix."""
    if "?" in letters:
        return
    axes = np.array([_FROM_SIDE.get(letter, (0, 0, 0)) for letter in letters], dtype=np.float64)
    # Letters name RAS sides an axis comes from: from R is towards L, +x of LPS; from A towards P, +y; from I, +z.
    if axes.shape != (3, 3) or not ((axes * directions).sum(axis=1) > _MIN_COSINE).all():
        raise InputError(_CODE, "AnatomicalOrientation contradicts TransformMatrix")


def _stored(body: bytes, layout: _Layout) -> NDArray[Any]:
    if layout.is_compressed:
        if layout.header_size:
            raise InputError(_CODE, "HeaderSize with compressed data")
        content = _inflated(body, layout)
    else:
        content = _skipped(body, layout)
    return layout.voxels(content)


def _skipped(body: bytes, layout: _Layout) -> bytes:
    """A data file without its own header: HeaderSize bytes, or with -1 whatever comes before the voxels."""
    if layout.header_size < -1:
        raise InputError(_CODE, "a negative HeaderSize")
    start = max(len(body) - layout.num_bytes, 0) if layout.header_size == -1 else layout.header_size
    return body[start:]


def _inflated(body: bytes, layout: _Layout) -> bytes:
    """The voxels of a zlib or gzip stream that is whole, checked, and no longer than announced."""
    if layout.compressed_size is not None:
        check_length(len(body), layout.compressed_size)
    stream = zlib.decompressobj(_ANY_HEADER)
    try:
        content = stream.decompress(body, layout.num_bytes + 1)
    except zlib.error as error:
        raise InputError("E_PIXEL_DECODE", "the compressed voxels are damaged", hint="copy the file again") from error
    check_length(len(content), layout.num_bytes)
    if not stream.eof:
        raise InputError("E_TRUNCATED", "the compressed voxels end before their checksum", hint="copy the file again")
    check_length(len(stream.unused_data), 0)
    return content
