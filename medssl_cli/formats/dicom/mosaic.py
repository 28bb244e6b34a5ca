"""Siemens mosaics: a volume of MR slices tiled into one picture, described in a private header.

Facts from the vendor's conformance statement and nibabel's "Siemens mosaic format" and "CSA header" pages: tiles run
row by row in a square grid of ceil(sqrt(N)) columns; ImagePositionPatient is that of a picture as large as the mosaic
centred where each slice is centred; slices follow each other along the normal that the private header gives.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.dicom.values import Values

MAX_CSA_TAGS: Final = 1024
MAX_CSA_ITEMS: Final = 20_000

_MAGIC: Final = b"SV10\x04\x03\x02\x01"
_TAG: Final = struct.Struct("<64si4siii")
_ITEM: Final = struct.Struct("<4i")
_NUMBER: Final = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_PARALLEL: Final = 0.999

Triple = tuple[float, float, float]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Mosaic:
    """Where the slices of a mosaic are.

    Args:
        rows: Rows of one slice.
        columns: Columns of one slice.
        corners: Row and column of each slice's first pixel in the picture.
        positions: Centre of each slice's first pixel, LPS mm.
    """

    rows: int
    columns: int
    corners: tuple[tuple[int, int], ...]
    positions: tuple[Triple, ...]


def unfold(
    values: Values,
    *,
    rows: int,
    columns: int,
    position: Triple | None,
    orientation: tuple[float, ...] | None,
    spacing: tuple[float, float] | None,
) -> Mosaic:
    """Find the slices of a mosaic.

    Args:
        values: Raw values of the file.
        rows: Rows of the picture.
        columns: Columns of the picture.
        position: ImagePositionPatient.
        orientation: ImageOrientationPatient.
        spacing: PixelSpacing.

    Raises:
        InputError: `E_MOSAIC_UNSUPPORTED` where the vendor's header is missing, old, or numbers slices backwards;
            `E_GEOM_MISSING`, `E_VALUE_INVALID`.
    """
    csa = parse_csa(values.private("siemens_csa"))
    count = _count(values, csa)
    distance = values.decimal("SpacingBetweenSlices")
    if position is None or orientation is None or spacing is None or distance is None:
        raise InputError("E_GEOM_MISSING", "a mosaic without position, orientation, pixel or slice spacing")
    if distance <= 0:
        raise InputError("E_SPACING_INVALID", "the distance between the slices of a mosaic is not positive")
    side = math.isqrt(count - 1) + 1
    if rows % side or columns % side:
        raise InputError("E_VALUE_INVALID", f"a picture of {columns} x {rows} pixels is no mosaic of {count} slices")
    tile_rows, tile_columns = rows // side, columns // side
    along, down = np.array(orientation[:3]), np.array(orientation[3:])
    first = (
        np.array(position)
        + along * spacing[1] * (columns - tile_columns) / 2
        + down * spacing[0] * (rows - tile_rows) / 2
    )
    step = _normal(csa, np.cross(along, down)) * distance
    places = [first + step * k for k in range(count)]
    return Mosaic(
        tile_rows,
        tile_columns,
        tuple((k // side * tile_rows, k % side * tile_columns) for k in range(count)),
        tuple((float(x), float(y), float(z)) for x, y, z in places),
    )


def parse_csa(raw: bytes) -> dict[str, tuple[float, ...]]:
    """Numbers of the vendor's image header, version 2 ("SV10"), by name; other texts are left out.

    Raises:
        InputError: `E_MOSAIC_UNSUPPORTED` for a missing or older header, `E_DICOM_PARSE` for a damaged one.
    """
    if not raw.startswith(_MAGIC):
        raise InputError(
            "E_MOSAIC_UNSUPPORTED",
            "a mosaic without the vendor's header (0029,1010) that says where its slices are",
            hint="export one picture per slice, or keep the private elements of group 0029",
        )
    num_tags, at, budget = int.from_bytes(raw[8:12], "little"), 16, MAX_CSA_ITEMS
    if len(raw) < 16 or not 1 <= num_tags <= MAX_CSA_TAGS:
        raise _damaged()
    found: dict[str, tuple[float, ...]] = {}
    for _ in range(num_tags):
        if at + _TAG.size > len(raw):
            raise _damaged()
        name, _, _, _, num_items, _ = _TAG.unpack_from(raw, at)
        at += _TAG.size
        budget -= num_items
        if num_items < 0 or budget < 0:
            raise _damaged()
        numbers = []
        for _ in range(num_items):
            if at + _ITEM.size > len(raw):
                raise _damaged()
            _, length, _, _ = _ITEM.unpack_from(raw, at)
            at += _ITEM.size
            if not 0 <= length <= len(raw) - at:
                raise _damaged()
            text = raw[at : at + length].split(b"\0", 1)[0].strip()
            at += (length + 3) // 4 * 4
            if _NUMBER.fullmatch(text):
                numbers.append(float(text))
        found[name.split(b"\0", 1)[0].decode("latin-1")] = tuple(numbers)
    return found


def _count(values: Values, csa: dict[str, tuple[float, ...]]) -> int:
    counts = {int(number) for number in csa.get("NumberOfImagesInMosaic", ())[:1] if math.isfinite(number)}
    stated = values.private_number("siemens_mosaic_images")
    if stated is not None:
        counts.add(stated)
    if len(counts) != 1 or not 1 <= min(counts) <= 10_000:
        raise InputError("E_VALUE_INVALID", "element (0019,100a): the number of slices in a mosaic is not one number")
    if any(csa.get("ProtocolSliceNumber", ())[:1]):
        raise InputError(
            "E_MOSAIC_UNSUPPORTED",
            "a mosaic whose slices are numbered backwards",
            hint="export one picture per slice",
        )
    return min(counts)


def _normal(csa: dict[str, tuple[float, ...]], cross: Vector) -> Vector:
    """Unit normal of the slices, towards the next slice; the vendor's own has fewer digits than the orientation."""
    own = csa.get("SliceNormalVector", ())
    length = float(np.linalg.norm(cross))
    if len(own) != 3 or length < 0.5:
        raise InputError("E_GEOM_MISSING", "a mosaic without the direction in which its slices follow each other")
    unit = cross / length
    cosine = float(unit @ np.array(own))
    if not _PARALLEL <= abs(cosine) <= 2 - _PARALLEL:
        raise InputError("E_VALUE_INVALID", "element (0029,1010): the slices' normal contradicts their orientation")
    return unit * math.copysign(1.0, cosine)


def _damaged() -> InputError:
    return InputError("E_DICOM_PARSE", "element (0029,1010): the vendor's header is damaged")
