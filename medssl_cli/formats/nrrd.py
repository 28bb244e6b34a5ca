"""NRRD images: one attached, three-dimensional grid of single numbers whose header says where it lies.

Source: "Definition of NRRD File Format", teem.sourceforge.net/nrrd/format.html. Fields that carry free text and all
key/value pairs are passed over and never stored. Shape letters: X Y Z voxels.
"""

import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from medssl_cli.base.errors import InputError
from medssl_cli.base.names import unique_names
from medssl_cli.formats.affines import assumed_affine, assumed_repair, placed
from medssl_cli.formats.gzip_strict import gunzip
from medssl_cli.formats.loaded import LoadedImage
from medssl_cli.formats.policy import STRICT, Policy
from medssl_cli.formats.source import Source, read_bytes, read_head
from medssl_cli.formats.text_headers import (
    MAX_HEADER_BYTES,
    StoredGrid,
    checked_shape,
    finite_numbers,
    loaded_image,
    lps_to_ras,
    placed_grid,
    read_detached,
    whole_numbers,
)
from medssl_cli.imaging.geometry import Affine, Shape

_MAGIC: Final = re.compile(rb"NRRD000[1-5]\r?\n")
_CODE: Final = "E_NRRD_HEADER"
_SLACK_BYTES: Final = 64 * 1024
_TYPES: Final = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_TYPE_OF: Final = {name: kind for kind, names in _TYPES.items() for name in names}
_TO_LPS: Final = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1), "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1), "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_ALIASES: Final = {
    "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "oldmin": "old min", "oldmax": "old max",
}  # fmt: skip
_PASSED_OVER: Final = (
    "content", "number", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings",
    "labels", "units", "min", "max", "sample units", "sampleunits", "measurement frame", "space dimension",
)  # fmt: skip
_USED: Final = (
    "dimension", "sizes", "type", "encoding", "endian", "kinds", "space", "space directions", "space origin",
    "space units", "spacings", "data file", "line skip", "byte skip", "old min", "old max",
)  # fmt: skip
_PLAIN_KINDS: Final = ("domain", "space", "none", "???")
_SEQUENCE_KINDS: Final = ("time", "list", "point", "stub", "scalar")
_MILLIMETRES: Final = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "???")
_SEGMENT: Final = re.compile(r"Segment(\d{1,5})_(Name|LabelValue|Layer):=(.*)")
_VECTOR: Final = re.compile(r"none|\(([^()]*)\)")


@dataclass(frozen=True)
class _Layout(StoredGrid):
    """What the header says about the voxels."""

    encoding: str


def is_nrrd(head: bytes) -> bool:
    """Whether bytes begin like an NRRD header, attached or detached."""
    return _MAGIC.match(head) is not None


def read_nrrd(
    source: Source, *, modality: str = "unknown", policy: Policy = STRICT, is_label: bool = False
) -> LoadedImage:
    """Read one file, or refuse it.

    Args:
        source: The file, or with the policy's `allow_detached` a header whose data lie beside it.
        modality: What the caller knows about it; CT is in Hounsfield units.
        policy: `assume_orientation`, `shear`, `nonfinite`, `allow_detached`, `max_volume_bytes`.
        is_label: Label maps are neither resampled nor filled.

    Raises:
        InputError: `E_NRRD_HEADER`, `E_DATATYPE`, `E_4D_INPUT`, `E_NO_ORIENTATION`, `E_GEOM_MISSING`,
            `E_VALUE_INVALID`, `E_AFFINE_INVALID`, `E_AFFINE_SHEAR`, `E_DETACHED_DATA`, `E_TOO_BIG`, `E_TRUNCATED`,
            `E_SEGMENT_OVERLAP`, `E_PIXEL_LENGTH`, `E_NONFINITE_VOXELS`, the codes of gzip streams and of reading files.
    """
    data = read_bytes(source)
    fields, start = _fields(data)
    if is_label:
        _check_layers(fields)
    layout = _layout(fields, policy)
    affine, repairs = _stated_affine(fields, policy)
    placement = placed(affine, layout.shape, policy, is_label=is_label)
    body, num_files = _body(source, data, start, fields, policy)
    return loaded_image(
        _stored(body, layout),
        replace(placement, repairs=(*repairs, *placement.repairs)),
        policy,
        name=source.name,
        source_kind="nrrd",
        modality=modality,
        num_files=num_files,
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


def read_segments(source: Source) -> dict[int, str]:
    """Names of the values of a segmentation that 3D Slicer wrote; empty if the file is none.

    Source: 3D Slicer, vtkMRMLSegmentationStorageNode: `SegmentN_Name`, `SegmentN_LabelValue`. Files of several layers
    have four axes and are refused by `read_nrrd`; where no value is given (before Slicer 4.11) there is one segment.

    Raises:
        InputError: `E_NAME_COLLISION`, `E_NRRD_HEADER` if a value occurs twice, and the codes of reading files.
    """
    head = _head(read_bytes(source))[0]
    segments: dict[int, dict[str, str]] = {}
    for line in head.split("\n"):
        if match := _SEGMENT.fullmatch(line.rstrip("\r")):
            segments.setdefault(int(match[1]), {})[match[2]] = match[3]
    values = [segment.get("LabelValue", "1").strip() for segment in segments.values()]
    numbers = [int(value) for value in values if value.isdigit()]
    if len(numbers) != len(segments) or len(set(numbers)) != len(numbers):
        raise InputError(_CODE, "a segment has no label value of its own")
    names = unique_names(_unicode(segment.get("Name", "")) for segment in segments.values())
    return dict(zip(numbers, names, strict=True))


def _unicode(text: str) -> str:
    """A name, which Slicer writes as UTF-8, where the header was taken for Latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text


def _head(data: bytes) -> tuple[str, int]:
    """The header's text, and where the data begin (the end, if nothing follows)."""
    head = data[:MAX_HEADER_BYTES]
    if not is_nrrd(head):
        raise InputError(_CODE, "the first line is not that of an NRRD file")
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and len(data) > MAX_HEADER_BYTES:
        raise InputError(_CODE, f"the header does not end within {MAX_HEADER_BYTES} bytes")
    return (head[: end.start()] if end else head).decode("latin-1"), end.end() if end else len(data)


def _fields(data: bytes) -> tuple[dict[str, str], int]:
    """The header's fields by their lower-case names, and where the data begin (the end, if nothing follows)."""
    head, start = _head(data)
    lines = head.split("\n")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if line.startswith("#") or not line.strip() or _is_key_value(line):
            continue
        name = name.strip().lower()
        name = _ALIASES.get(name, name)
        if name in fields or name not in (*_USED, *_PASSED_OVER):
            raise InputError(_CODE, "a line of the header is no field of the format, or a field occurs twice")
        fields[name] = value.strip()
    return fields, start


def _is_key_value(line: str) -> bool:
    """Whether a line is `key:=value` and not `field: value`, whichever separator comes first."""
    return 0 <= line.find(":=") < (line.find(": ") if ": " in line else len(line))


def _layout(fields: dict[str, str], policy: Policy) -> _Layout:
    kind = fields.get("type", "").lower()
    if kind not in _TYPE_OF:
        raise InputError("E_DATATYPE", "the voxel type is missing or none of 8 to 64 bit numbers")
    for name in ("line skip", "byte skip"):
        if fields.get(name, "0") != "0":
            raise InputError(_CODE, f"'{name}' is not supported")
    for name in ("old min", "old max"):
        if fields.get(name, "nan").lower() != "nan":
            raise InputError("E_SCALE", f"the stored values are quantised ('{name}'); their scale is not applied")
    sizes = whole_numbers(fields.get("sizes", ""), _CODE)
    dimension = whole_numbers(fields.get("dimension", ""), _CODE)
    if dimension != (len(sizes),):
        raise InputError(_CODE, "dimension and sizes disagree or are missing")
    _check_axes(fields, len(sizes))
    dtype = np.dtype(_TYPE_OF[kind])
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(_byte_order(fields))
    return _Layout(dtype, checked_shape(sizes, dtype.itemsize, policy, _CODE), fields.get("encoding", "").lower())


def _byte_order(fields: dict[str, str]) -> Literal["<", ">"]:
    orders: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
    stated = fields.get("endian", "").lower()
    if stated not in orders:
        raise InputError(_CODE, "the byte order is missing or unknown")
    return orders[stated]


def _check_axes(fields: dict[str, str], dimension: int) -> None:
    """Refuse axes that are not places: time and lists, colours and vectors."""
    kinds = fields.get("kinds", " ".join(["???"] * dimension)).lower().split()
    if len(kinds) != dimension:
        raise InputError(_CODE, f"{len(kinds)} kinds for {dimension} axes")
    if any(kind not in (*_PLAIN_KINDS, *_SEQUENCE_KINDS) for kind in kinds):
        raise InputError("E_DATATYPE", "an axis holds colours, vectors or other parts of one voxel")
    if dimension > 3 or any(kind in _SEQUENCE_KINDS for kind in kinds):
        raise InputError("E_4D_INPUT", f"{dimension} axes, or one that is time or a list")


def _check_layers(fields: dict[str, str]) -> None:
    """Refuse segmentations whose segments overlap: 3D Slicer writes them in layers, along a first axis."""
    if fields.get("kinds", "").lower().split()[:1] == ["list"]:
        raise InputError(
            "E_SEGMENT_OVERLAP",
            "the segments overlap: the file holds several layers",
            hint="in 3D Slicer, cut segments so that they do not overlap, or save them as a file each",
        )


def _stated_affine(fields: dict[str, str], policy: Policy) -> tuple[Affine, tuple[str, ...]]:
    space = fields.get("space", "").lower()
    vectors = _vectors(fields["space directions"]) if "space directions" in fields else None
    if space.endswith("-time"):
        raise InputError("E_4D_INPUT", "the space of the image has a time axis")
    if space not in _TO_LPS or vectors is None:
        spacing = np.linalg.norm(vectors, axis=1) if vectors is not None else _spacings(fields)
        return assumed_affine(policy, tuple(map(float, spacing))), (assumed_repair(policy),)
    units = [unit.strip().lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))]
    if any(unit not in _MILLIMETRES for unit in units):
        raise InputError(_CODE, "the unit of length is not the millimetre")
    if "space origin" not in fields:
        raise InputError("E_GEOM_MISSING", "the place of the first voxel is missing")
    origin = _vectors(fields["space origin"], count=1)[0]
    signs = np.array(_TO_LPS[space], dtype=np.float64)
    return lps_to_ras(vectors.T * signs[:, None], origin * signs), ()


def _vectors(text: str, *, count: int = 3) -> Any:
    """Vectors in parentheses, `[count, 3]`, one per axis of the array."""
    words = list(_VECTOR.finditer(text))
    if _VECTOR.sub("", text).strip() or len(words) != count:
        raise InputError("E_VALUE_INVALID", f"the header needs {count} vectors where it has others")
    if any(word[0] == "none" for word in words):
        raise InputError("E_4D_INPUT", "an axis of the image has no direction in space")
    return np.array([finite_numbers(word[1].replace(",", " "), 3) for word in words])


def _spacings(fields: dict[str, str]) -> tuple[float, ...]:
    return finite_numbers(fields["spacings"], 3) if "spacings" in fields else ()


def _body(source: Source, data: bytes, start: int, fields: dict[str, str], policy: Policy) -> tuple[bytes, int]:
    """The encoded voxels, and how many files they and the header are."""
    if "data file" not in fields:
        return data[start:], 1
    body = read_detached(source, fields["data file"], policy)
    if start < len(data):
        raise InputError(_CODE, "data follow a header that names a data file")
    return body, 2


def _stored(body: bytes, layout: _Layout) -> Any:
    match layout.encoding:
        case "raw":
            content: bytes | bytearray = body
        case "gzip" | "gz":
            content = gunzip(body, limit=layout.num_bytes + _SLACK_BYTES)
        case _:
            raise InputError(_CODE, "the encoding is missing or neither raw nor gzip")
    return layout.voxels(content)
