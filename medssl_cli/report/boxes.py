"""Boxes on pictures and in volumes: where they show, and pictures of them.

A picture without a place in the patient is seen as it is stored, a volume slice by slice from below.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medssl_cli.imaging.geometry import Affine, reorient_to_ras
from medssl_cli.imaging.placement import move_boxes
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour
from medssl_cli.report.pictures import HALO, TEXT, automatic_window, comparison, font_of
from medssl_cli.report.projections import projection

LINE_PX: Final = 3
DASH_PX: Final = 7
TEXT_PX: Final = 13
PICTURE_PX: Final = (900, 480)
SLICE_PX: Final = (280, 280)
MOST_SLICES: Final = 4
HU_WINDOW: Final = (-1000.0, 400.0)
CONTEXT_MM: Final = 20.0
"""How much is seen around the boxes of a slice where it is enlarged."""


@dataclass(frozen=True)
class ShownBox:
    """A box on an image.

    Args:
        name: Name of its class.
        corners: Low and high corners in voxel edges of the image: two numbers each on a picture, three in a volume.
        score: Score of a box that a model found; None of one that is there.
    """

    name: str
    corners: Sequence[float]
    score: float | None = None

    @property
    def text(self) -> str:
        """What is written beside it."""
        return self.name if self.score is None else f"{self.name} {self.score:.2f}"

    @property
    def edges(self) -> NDArray[np.float64]:
        """Its corners `[2, 3]`; on a picture it is as thick as that."""
        corners = np.array(self.corners, dtype=np.float64).reshape(2, -1)
        return corners if corners.shape[1] == 3 else np.column_stack([corners, [0.0, 1.0]])


def is_picture(image: Volume) -> bool:
    """Whether an image is a picture or a projection, which has a spacing and no place in the patient."""
    return image.shape[2] == 1 and np.array_equal(image.affine, np.diag([*image.spacing_mm, 1.0]))


def from_below(image: Volume) -> Volume:
    """A volume whose x runs to the patient's left, y to the back and z to the head."""
    voxels, affine = reorient_to_ras(image.voxels, image.affine)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    turn[:2, 3] = voxels.shape[1] - 1, voxels.shape[2] - 1
    return Volume(voxels[:, ::-1, ::-1], affine @ turn, image.modality, image.units)


def edges_on(affine: Affine, image: Volume, boxes: Sequence[ShownBox]) -> NDArray[np.float64]:
    """Boxes of an image in voxel edges of another grid with the same axes, `[M, 2, 3]`.

    Args:
        affine: Affine of the other grid.
        image: Image of the boxes.
        boxes: The boxes.
    """
    corners = np.array([box.edges for box in boxes], dtype=np.float64).reshape(-1, 2, 3) - 0.5
    return move_boxes(corners, np.linalg.inv(affine) @ image.affine) + 0.5


def box_window(image: Volume) -> tuple[float, float] | None:
    """Intensities shown as black and white under boxes, from lung to bone; None where units do not tell."""
    return HU_WINDOW if image.units == "HU" else None


def box_picture(image: Volume, boxes: Sequence[ShownBox], colours: Mapping[str, Colour]) -> Image.Image:
    """All boxes on a picture; of a volume the slices through the middles of boxes, each whole and enlarged.

    Boxes that are there have dashed lines, boxes that were found solid ones.

    Args:
        image: Image under the boxes.
        boxes: The boxes, those first that should be seen if not all can.
        colours: Colours by name of a class.
    """
    if is_picture(image):
        panel = _panel(image.voxels[0, :, :, 0], image.spacing_mm, PICTURE_PX, box_window(image))
        return _with_boxes(panel, image.shape, [(box, box.edges) for box in boxes], colours)
    seen = from_below(image)
    moved = list(zip(boxes, edges_on(seen.affine, image, boxes), strict=True))
    cells: list[tuple[str, Image.Image]] = []
    for height in _heights([edges for _, edges in moved], seen.shape[2]):
        here = [(box, edges) for box, edges in moved if edges[0, 2] < height + 1 and edges[1, 2] > height]
        told = ", ".join(box.text for box, _ in here) or "no box"
        plane = seen.voxels[0, :, :, height]
        window = box_window(image) or automatic_window(plane)
        whole = _with_boxes(
            _panel(plane, seen.spacing_mm, SLICE_PX, window), plane.shape, here, colours, has_text=False
        )
        cells.append((f"slice {height + 1}", _with_sides(whole)))
        if here:
            cells.append((told, _enlarged(plane, seen.spacing_mm, here, colours, window)))
    return comparison(cells, columns=4)


def _heights(edges: Sequence[NDArray[np.float64]], num_slices: int) -> list[int]:
    """Slices through the middles of boxes, each box on one of them; without any box the middle one."""
    chosen: list[int] = []
    for low, high in edges:
        if len(chosen) < MOST_SLICES and not any(low[2] < each + 1 and high[2] > each for each in chosen):
            chosen.append(min(max(int((low[2] + high[2]) / 2), 0), num_slices - 1))
    return sorted(set(chosen)) or [num_slices // 2]


Placed = tuple[ShownBox, NDArray[np.float64]]
"""A box and its corners `[2, 3]` on what is seen."""


def _enlarged(
    plane: NDArray[np.generic],
    spacing_mm: tuple[float, float, float],
    boxes: Sequence[Placed],
    colours: Mapping[str, Colour],
    window: tuple[float, float],
) -> Image.Image:
    """A slice around its boxes."""
    margin = CONTEXT_MM / np.array(spacing_mm[:2])
    low = np.floor(np.min([edges[0, :2] for _, edges in boxes], axis=0) - margin).astype(int).clip(0)
    high = np.ceil(np.max([edges[1, :2] for _, edges in boxes], axis=0) + margin).astype(int)
    part = plane[low[0] : high[0], low[1] : high[1]]
    if not part.size:
        return Image.new("RGB", SLICE_PX)
    moved = [(box, edges - [*low, 0]) for box, edges in boxes]
    return _with_boxes(_panel(part, spacing_mm, SLICE_PX, window), part.shape, moved, colours)


def _panel(
    pixels: NDArray[np.generic],
    spacing_mm: Sequence[float],
    max_size_px: tuple[int, int],
    window: tuple[float, float] | None,
) -> Image.Image:
    return projection(pixels, spacing_mm[:2], max_size_px=max_size_px, window=window).convert("RGB")


def _with_sides(picture: Image.Image) -> Image.Image:
    """The patient's right and left at the borders."""
    draw, font = ImageDraw.Draw(picture), font_of()
    for letter, x, anchor in (("R", 6, "lm"), ("L", picture.width - 6, "rm")):
        place = x, picture.height / 2
        draw.text(place, letter, font=font, fill=TEXT, anchor=anchor, stroke_width=2, stroke_fill=HALO)
    return picture


def _with_boxes(
    picture: Image.Image,
    shape: Sequence[int],
    boxes: Sequence[Placed],
    colours: Mapping[str, Colour],
    *,
    has_text: bool = True,
) -> Image.Image:
    """Draw boxes over a picture of pixels `[X, Y]`."""
    draw, scale = ImageDraw.Draw(picture), np.array([picture.width / shape[0], picture.height / shape[1]])
    for box, edges in reversed(boxes):
        (left, top), (right, bottom) = edges[:, :2] * scale
        corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
        for start, end in itertools.pairwise(corners):
            _line(draw, start, end, colours[box.name], is_dashed=box.score is None)
        if has_text:
            font = font_of(TEXT_PX, is_ascii=box.text.isascii())
            above = top - TEXT_PX - LINE_PX - 2 if box.score is not None else bottom + LINE_PX
            place = max(left, 0) + 2, min(max(above, 0), picture.height - TEXT_PX - 4)
            draw.text(place, box.text, font=font, fill=colours[box.name], stroke_width=2, stroke_fill=HALO)
    return picture


def _line(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: Colour, *, is_dashed: bool
) -> None:
    """A line, whole or in dashes."""
    if not is_dashed:
        draw.line((*start, *end), fill=colour, width=LINE_PX)
        return
    ends = np.array([start, end])
    number = max(1, round(float(np.linalg.norm(ends[1] - ends[0])) / DASH_PX))
    for place in range(0, number, 2):
        first, last = (ends[0] + (ends[1] - ends[0]) * share for share in (place / number, (place + 1) / number))
        draw.line((*first.tolist(), *last.tolist()), fill=colour, width=LINE_PX)
