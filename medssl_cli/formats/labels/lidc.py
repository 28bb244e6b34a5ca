"""LIDC-IDRI readings: nodules of up to four readers as outlines in pixels of CT slices.

The XML's rule (LIDC-IDRI, Armato et al., Med Phys 2011, appendix): an outline runs through the first pixels OUTSIDE of
the nodule, so a voxel belongs to it if its centre lies strictly inside. Pixel (0, 0) is the centre of the first voxel;
slices are named by their height in millimetres. A region marked `inclusion = FALSE` is cut out.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, ParseError, XMLParser

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.errors import InputError
from medssl_cli.formats.labels import (
    BoxLabel,
    BoxMark,
    MaskLabel,
    Painting,
    Placed,
    Reference,
    parsed_number,
)
from medssl_cli.formats.labels.polygons import fill_polygon, outline_voxels
from medssl_cli.formats.source import Source, read_bytes
from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm

MAX_FILE_BYTES: Final = 16 * 2**20
MAX_POINTS: Final = 1_000_000
MAX_READERS: Final = 32
MAX_READINGS: Final = 1_000
MAX_PIXEL: Final = 32_767
MAX_OFF_SLICE_MM: Final = 0.1
SMALL_RADIUS_MM: Final = 1.5
CONSENSUS: Final = 2
NODULE: Final = "nodule"
SMALL_NODULE: Final = "nodule_under_3mm"
_ROOT: Final = re.compile(rb"<(\w+:)?(LidcReadMessage|IdriReadMessage)\b")


@dataclass(frozen=True)
class Region:
    """One outline on one slice: corners `[N, 2]` in pixels (x, y), the slice's height, whether it adds or cuts."""

    height_mm: float
    points: NDArray[np.float64]
    is_inclusion: bool


@dataclass(frozen=True)
class LidcReading:
    """One nodule as one reader saw it."""

    reader: int
    regions: tuple[Region, ...]

    @property
    def is_point(self) -> bool:
        """A nodule under 3 mm, of which only the place is marked."""
        return all(len(region.points) < 3 for region in self.regions)


@dataclass(frozen=True)
class Nodules:
    """All readings of a scan; becomes boxes of nodules, or the mask on which readers agree."""

    readings: tuple[LidcReading, ...]

    def place(self, shape: Shape, affine: Affine) -> Placed:
        """One box for each nodule: the mean of its readers' bounding boxes.

        Readings are of one nodule if their centres lie closer than the larger of their radii. The diameter is the
        longest distance between two points of an outline on one slice, the mean over readers who drew an outline.

        Raises:
            InputError: `E_CONTOUR`, `E_LABEL_GRID_MISMATCH`.
        """
        drawn, num_outside = self._on_grid(shape, affine)
        boxes = tuple(_box(members, affine) for members in _clusters(drawn, affine))
        return Placed(boxes, num_outside)

    def paint(
        self, shape: Shape, affine: Affine, classes: dict[int, str], sources: Collection[int] | None = None
    ) -> Painting:
        """1 where at least two readers drew a nodule; outlines name heights and no instances.

        Raises:
            InputError: `E_CONTOUR`, `E_LABEL_GRID_MISMATCH`.
        """
        drawn, _ = self._on_grid(shape, affine)
        votes = np.zeros(shape, dtype=np.uint8)
        for reader in {one.reader for one in drawn}:
            mine = np.zeros(shape, dtype=np.bool_)
            for one in drawn:
                if one.reader == reader and not one.is_point:
                    _add_reading(mine, one)
            votes += mine
        return Painting((votes >= CONSENSUS).astype(np.uint8), classes)

    def _on_grid(self, shape: Shape, affine: Affine) -> tuple["list[_Drawn]", int]:
        """Readings in voxel indices, and how many lie wholly above or below the image."""
        if abs(affine[2, 0]) > 1e-3 * spacing_mm(affine)[0] or abs(affine[2, 1]) > 1e-3 * spacing_mm(affine)[1]:
            raise InputError("E_CONTOUR", "outlines are placed by height, and the slices of the image are not axial")
        drawn, num_outside = [], 0
        for reading in self.readings:
            slices = [_slice_of(region.height_mm, affine) for region in reading.regions]
            is_inside = [0 <= index < shape[2] for index in slices]
            if any(is_inside) and not all(is_inside):
                raise InputError("E_CONTOUR", "a nodule lies on slices that the image does not have")
            if not any(is_inside):
                num_outside += 1
                continue
            points = np.concatenate([region.points for region in reading.regions])
            if points.min() < 0 or (points.max(axis=0) >= shape[:2]).any():
                raise InputError("E_LABEL_GRID_MISMATCH", "an outline leaves the image")
            drawn.append(_Drawn(reading.reader, reading.is_point, tuple(zip(slices, reading.regions, strict=True))))
        if self.readings and not drawn:
            raise InputError("E_LABEL_GRID_MISMATCH", f"none of {num_outside} marks lies on a slice of the image")
        return drawn, num_outside


@dataclass(frozen=True)
class _Drawn:
    """A reading whose regions know their slices."""

    reader: int
    is_point: bool
    regions: tuple[tuple[int, Region], ...]

    @property
    def corners(self) -> NDArray[np.float64]:
        """All points of its outlines `[N, 3]` in voxel indices."""
        return np.concatenate(
            [np.c_[region.points, np.full(len(region.points), index)] for index, region in self.regions]
        )

    def centre_mm(self, affine: Affine) -> NDArray[np.float64]:
        """Middle of its bounding box, in the patient."""
        corners = self.corners
        middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
        return np.asarray(affine[:3, :3] @ middle + affine[:3, 3])

    def diameter_mm(self, affine: Affine) -> float:
        """Longest distance between two points of one outline."""
        return max(_longest(region.points @ affine[:3, :2].T) for _, region in self.regions if region.is_inclusion)


def read_lidc(source: Source) -> tuple[BoxLabel, MaskLabel]:
    """Read one file of readings.

    Marks that readers judged to be no nodule are not read.

    Args:
        source: An XML file of LIDC-IDRI, in any of its namespaces.

    Returns:
        Boxes of the nodules, and the mask of voxels that at least two readers drew.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TOO_BIG`, or what `read_bytes` raises.
    """
    root = _parse_xml(read_bytes(source, max_bytes=MAX_FILE_BYTES))
    series = next((_text(element) for element in _all(root, "SeriesInstanceUid")), "")
    if not re.fullmatch(r"[0-9.]{1,64}", series):
        raise InputError("E_LABEL_FORMAT", "the readings do not name their series")
    readings = tuple(_readings(root))
    if len(readings) > MAX_READINGS:
        raise InputError("E_TOO_BIG", f"{len(readings)} readings, more than {MAX_READINGS}")
    nodules, reference = Nodules(readings), Reference(series_uid=series)
    return BoxLabel(reference, nodules), MaskLabel(reference, {1: NODULE}, nodules)


def is_lidc(head: bytes) -> bool:
    """Whether a file that begins so holds readings of LIDC-IDRI."""
    return _ROOT.search(head) is not None


def _parse_xml(data: bytes) -> Element:
    """The root; document types are refused before the parser sees them, and with them all entities."""
    if b"\0" in data:
        raise InputError("E_LABEL_FORMAT", "the XML is not UTF-8")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise InputError("E_LABEL_FORMAT", "the XML declares entities or a document type; readings have none")
    if not is_lidc(data):
        raise InputError("E_LABEL_FORMAT", "not readings of LIDC-IDRI")
    parser = XMLParser(encoding="utf-8")  # whatever it declares: another encoding could hide a document type
    try:
        parser.feed(data)
        root = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise InputError("E_LABEL_FORMAT", f"the XML is not well formed ({type(error).__name__})") from None
    if not isinstance(root, Element):
        raise InputError("E_LABEL_FORMAT", "the XML has no root")
    return root


def _all(root: Element, name: str) -> Iterator[Element]:
    """Descendants of a name in any namespace."""
    return (element for element in root.iter() if isinstance(element.tag, str) and _local(element) == name)


def _children(parent: Element, name: str) -> Iterator[Element]:
    return (element for element in parent if isinstance(element.tag, str) and _local(element) == name)


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _readings(root: Element) -> Iterator[LidcReading]:
    sessions = list(_all(root, "readingSession"))
    if not 1 <= len(sessions) <= MAX_READERS:
        raise InputError("E_LABEL_FORMAT", f"{len(sessions)} reading sessions of CT; 1 to {MAX_READERS} are possible")
    num_points = 0
    for reader, session in enumerate(sessions):
        for nodule in _children(session, "unblindedReadNodule"):
            regions = tuple(_region(roi) for roi in _children(nodule, "roi"))
            num_points += sum(len(region.points) for region in regions)
            if num_points > MAX_POINTS:
                raise InputError("E_TOO_BIG", f"more than {MAX_POINTS} points of outlines")
            if not any(region.is_inclusion for region in regions):
                raise InputError("E_LABEL_FORMAT", "a nodule without an outline")
            yield LidcReading(reader, regions)


def _region(roi: Element) -> Region:
    points = [(_number(edge, "xCoord"), _number(edge, "yCoord")) for edge in _children(roi, "edgeMap")]
    inclusion = [_text(element).upper() for element in _children(roi, "inclusion")]
    if not points or any(p != int(p) for point in points for p in point) or inclusion not in (["TRUE"], ["FALSE"]):
        raise InputError("E_LABEL_FORMAT", "an outline is not of whole pixels, or does not say whether it adds")
    return Region(_number(roi, "imageZposition"), np.array(points, dtype=np.float64), inclusion == ["TRUE"])


def _number(parent: Element, name: str) -> float:
    found = [_text(element) for element in _children(parent, name)]
    if len(found) != 1:
        raise InputError("E_LABEL_FORMAT", f"{len(found)} elements where one number is expected")
    return parsed_number(found[0], limit=MAX_PIXEL)


def _slice_of(height_mm: float, affine: Affine) -> int:
    step = float(affine[2, 2])
    index = round((height_mm - float(affine[2, 3])) / step)
    distance = abs(float(affine[2, 3]) + index * step - height_mm)
    if distance > MAX_OFF_SLICE_MM:
        raise InputError(
            "E_CONTOUR", f"an outline lies {distance:.3g} mm beside the nearest slice, {MAX_OFF_SLICE_MM} are accepted"
        )
    return index


def _add_reading(mask: NDArray[np.bool_], drawn: _Drawn) -> None:
    """Add what one reader drew: on each slice what is strictly inside of included outlines and not of excluded ones."""
    size = (mask.shape[0], mask.shape[1])
    by_slice: dict[int, list[Region]] = defaultdict(list)
    for index, region in drawn.regions:
        by_slice[index].append(region)
    for index, regions in by_slice.items():
        included = np.zeros(size, dtype=np.bool_)
        for region in sorted(regions, key=lambda region: not region.is_inclusion):
            outline = outline_voxels(region.points, size)
            filled = fill_polygon(region.points, size)
            included = (included | (filled & ~outline)) if region.is_inclusion else (included & ~(filled | outline))
        mask[:, :, index] |= included


def _clusters(drawn: Sequence[_Drawn], affine: Affine) -> list[list[_Drawn]]:
    """Readings of the same nodules: connected by centres closer than the larger radius."""
    centres = [one.centre_mm(affine) for one in drawn]
    radii = [SMALL_RADIUS_MM if one.is_point else one.diameter_mm(affine) / 2 for one in drawn]
    cluster = list(range(len(drawn)))
    for i in range(len(drawn)):
        for j in range(i):
            if cluster[i] != cluster[j] and np.linalg.norm(centres[i] - centres[j]) < max(radii[i], radii[j]):
                old, new = cluster[i], cluster[j]
                cluster = [new if one == old else one for one in cluster]
    return [[drawn[i] for i in range(len(drawn)) if cluster[i] == name] for name in dict.fromkeys(cluster)]


def _box(members: Sequence[_Drawn], affine: Affine) -> BoxMark:
    outlined = [one for one in members if not one.is_point]
    used = outlined or members
    lower = np.mean([one.corners.min(axis=0) for one in used], axis=0)
    upper = np.mean([one.corners.max(axis=0) for one in used], axis=0)
    # An outline runs through the centres of pixels that are outside; a slice is marked as a whole.
    margin = np.array([-0.5, -0.5, 0.5] if outlined else [0.5, 0.5, 0.5])
    lower, upper = np.minimum(lower - margin, upper), np.maximum(upper + margin, lower)
    diameter = float(np.mean([one.diameter_mm(affine) for one in outlined])) if outlined else None
    return BoxMark(
        NODULE if outlined else SMALL_NODULE,
        (float(lower[0]), float(lower[1]), float(lower[2])),
        (float(upper[0]), float(upper[1]), float(upper[2])),
        diameter_mm=diameter,
        num_readers=len({one.reader for one in members}),
    )


def _longest(points: NDArray[np.float64]) -> float:
    """Longest distance between any two points: along 64 directions, short of the truth by less than 0.1 %."""
    basis = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][:2]
    flat = (points - points.mean(axis=0)) @ basis.T
    angles = np.arange(64) * np.pi / 64
    along = flat @ np.stack([np.cos(angles), np.sin(angles)])[: flat.shape[1]]
    return float((along.max(axis=0) - along.min(axis=0)).max())
