"""Boxes of pictures, in pixel edges, and how they become continuous voxel indices.

Public sets are shared as smaller copies, with boxes in pixels of the originals. A copy is one whose sides have the
ratio of the original's to within a pixel; boxes are scaled onto it edge by edge. Where the size of the original is not
known, or a copy was padded or cut, nobody can say where a box lies.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from medssl_cli.base.errors import InputError, MarkError
from medssl_cli.formats.labels import BoxLabel, BoxMark, Placed
from medssl_cli.imaging.geometry import Affine, Shape

Rectangle = tuple[float, float, float, float]
"""Left, top, width and height in pixels, where pixel 0 covers [0, 1]."""
MAX_OVERHANG: Final = 1.0
MAX_PIXEL: Final = 1e6
_ANOTHER_SIZE: Final = (
    "correct the box; if it was drawn on a larger picture, say how large: columns width and height, or --box-size WxH"
)
_TURNED: Final[dict[int, Callable[[float, float, float, float], tuple[float, float]]]] = {
    5: lambda x, y, width, height: (y, x),
    6: lambda x, y, width, height: (height - y, x),
    7: lambda x, y, width, height: (height - y, width - x),
    8: lambda x, y, width, height: (y, width - x),
}
"""Where a point (x, y) of a stored picture lies once it is upright, by EXIF orientation (EXIF 2.32, tag 0x0112)."""


@dataclass(frozen=True)
class PictureBoxes:
    """Boxes of a picture, their names, and where they come from.

    Args:
        rectangles: Rectangles of all boxes.
        names: Names of what they hold.
        num_readers: How many readers have drawn each; () if nobody says.
        rows: Where each stands in its file; () if nothing says.
    """

    rectangles: tuple[Rectangle, ...]
    names: tuple[str, ...]
    num_readers: tuple[int | None, ...] = ()
    rows: tuple[int, ...] = ()

    def place(self, shape: Shape, affine: Affine) -> Placed:
        """The boxes as corners: an edge at x lies at voxel index x - 0.5. What hangs over by rounding is cut.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, a box leaves the picture by more than a pixel, or the image has depth.
        """
        if shape[2] != 1:
            raise InputError("E_LABEL_GRID_MISMATCH", f"boxes of a picture on an image of {shape[2]} slices")
        boxes = []
        counts = self.num_readers or (None,) * len(self.names)
        rows = self.rows or (0,) * len(self.names)
        for (left, top, width, height), name, count, row in zip(self.rectangles, self.names, counts, rows, strict=True):
            right, bottom = left + width, top + height
            overhang = max(-left, -top, right - shape[0], bottom - shape[1])
            if overhang > MAX_OVERHANG:
                said = f"a box leaves the picture by {overhang:.4g} pixels"
                raise MarkError("E_LABEL_GRID_MISMATCH", said, hint=_ANOTHER_SIZE, row=row)
            lower = (max(left, 0.0) - 0.5, max(top, 0.0) - 0.5, -0.5)
            upper = (min(right, shape[0]) - 0.5, min(bottom, shape[1]) - 0.5, 0.5)
            if min(upper[0] - lower[0], upper[1] - lower[1]) <= 0:
                raise MarkError("E_LABEL_GRID_MISMATCH", "a box lies beside the picture", row=row)
            boxes.append(BoxMark(name, lower, upper, num_readers=count))
        return Placed(tuple(boxes))


def is_copy(size: tuple[int, int], shape: Shape) -> bool:
    """Whether an image may be a resized copy of a picture: one side is within a pixel of what the other one says.

    Args:
        size: Columns and rows of the picture.
        shape: Shape of the image.
    """
    return shape[2] == 1 and abs(shape[1] * size[0] - shape[0] * size[1]) < max(size)


def on_copy(label: BoxLabel, shape: Shape, *, is_stretched: bool = False) -> BoxLabel:
    """Boxes for a resized copy of the picture that they were drawn on, in pixels of the copy.

    Args:
        label: As it was read, the right way up.
        shape: Shape of the image that is there.
        is_stretched: A copy of another aspect ratio was stretched, as the user says.

    Returns:
        The same label where nothing says how large the picture was, or the image is as large.

    Raises:
        InputError: `E_LABEL_GRID_MISMATCH`, the image is no copy, or a box leaves the picture that it was drawn on.
    """
    boxes, size = label.placer, label.size
    if size is None or shape == (*size, 1) or shape[2] != 1 or not isinstance(boxes, PictureBoxes):
        return label
    if not is_stretched and not is_copy(size, shape):
        raise InputError(
            "E_LABEL_GRID_MISMATCH",
            f"the boxes are for {size[0]} x {size[1]} pixels, the image has {shape}, of another aspect ratio",
            hint="take copies that were neither padded nor cut; where they were stretched: --box-copies stretched",
        )
    across, down = shape[0] / size[0], shape[1] / size[1]
    drawn = boxes.place((*size, 1), np.eye(4)).boxes
    rectangles = tuple(
        (
            across * (box.lower[0] + 0.5),
            down * (box.lower[1] + 0.5),
            across * (box.upper[0] - box.lower[0]),
            down * (box.upper[1] - box.lower[1]),
        )
        for box in drawn
    )
    return replace(label, placer=replace(boxes, rectangles=rectangles), size=(shape[0], shape[1]))


def upright(label: BoxLabel, orientation: int, shape: Shape) -> BoxLabel:
    """Boxes for a picture that was turned when it was read, because its EXIF orientation says which way up it is.

    Programs draw on such a picture as it is stored or as it is shown. Which of the two can be told from the size that
    the file of labels gives where turning exchanges width and height, and from nothing else.

    Args:
        label: As it was read.
        orientation: EXIF orientation of the picture, 1 to 8.
        shape: Shape of the picture, the right way up.

    Raises:
        InputError: `E_LABEL_ORIENTATION`, nothing says which way up the picture was when the boxes were drawn.
    """
    boxes = label.placer
    if orientation == 1 or not isinstance(boxes, PictureBoxes):
        return label
    width, height = label.size or (0, 0)
    is_told = orientation in _TURNED and label.size is not None and width != height
    is_exact = shape[:2] in ((width, height), (height, width))
    is_copied = (is_copy((width, height), shape), is_copy((height, width), shape))
    is_told &= is_exact or not all(is_copied)
    if is_told and (shape[:2] == (height, width) if is_exact else is_copied[1]):
        rectangles = tuple(_turned(one, orientation, width, height) for one in boxes.rectangles)
        return replace(label, placer=replace(boxes, rectangles=rectangles), size=(height, width))
    if not is_told and boxes.rectangles:
        raise InputError(
            "E_LABEL_ORIENTATION", f"a picture of EXIF orientation {orientation} with {len(boxes.names)} boxes"
        )
    return label


def _turned(rectangle: Rectangle, orientation: int, width: int, height: int) -> Rectangle:
    left, top, across, down = rectangle
    corners = (_TURNED[orientation](x, y, width, height) for x, y in ((left, top), (left + across, top + down)))
    (x0, y0), (x1, y1) = corners
    return min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)


def checked_rectangle(left: float, top: float, width: float, height: float) -> Rectangle:
    """A rectangle that has an area.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    if width <= 0 or height <= 0:
        raise InputError("E_LABEL_FORMAT", f"a box of {width:g} x {height:g} pixels")
    return left, top, width, height


def check_units(rectangles: Iterable[Rectangle]) -> None:
    """Refuse boxes that all lie within one pixel: they are in shares of the picture.

    Args:
        rectangles: Rectangles of all pictures of a file.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    edges = [max(left + width, top + height) for left, top, width, height in rectangles]
    if edges and max(edges) <= 1:
        raise InputError(
            "E_LABEL_FORMAT",
            f"{len(edges)} boxes in shares of the picture, not in pixels",
            hint="multiply them by the width and the height of the picture",
        )


def unknown_sizes(labels: Sequence[BoxLabel]) -> list[tuple[str, str]]:
    """A note on pictures with boxes of which nobody says how large they were when the boxes were drawn."""
    drawn = [label for label in labels if isinstance(label.placer, PictureBoxes) and label.placer.rectangles]
    number = sum(label.size is None for label in drawn)
    return [("W_BOX_SIZE_UNKNOWN", f"of {number} of {len(drawn)} pictures with boxes")] if number else []
