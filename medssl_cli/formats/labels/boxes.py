"""Boxes of pictures, in pixel edges, and how they become continuous voxel indices."""

from dataclasses import dataclass
from typing import Final

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import BoxMark, Placed
from medssl_cli.imaging.geometry import Affine, Shape

MAX_OVERHANG: Final = 1.0
MAX_PIXEL: Final = 1e6


@dataclass(frozen=True)
class PictureBoxes:
    """Boxes (left, top, width, height) in pixels, where pixel 0 covers [0, 1], and their names."""

    rectangles: tuple[tuple[float, float, float, float], ...]
    names: tuple[str, ...]

    def place(self, shape: Shape, affine: Affine) -> Placed:
        """The boxes as corners: an edge at x lies at voxel index x - 0.5. What hangs over by rounding is cut.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, a box leaves the picture by more than a pixel, or the image has depth.
        """
        if shape[2] != 1:
            raise InputError("E_LABEL_GRID_MISMATCH", f"boxes of a picture on an image of {shape[2]} slices")
        boxes = []
        for (left, top, width, height), name in zip(self.rectangles, self.names, strict=True):
            right, bottom = left + width, top + height
            overhang = max(-left, -top, right - shape[0], bottom - shape[1])
            if overhang > MAX_OVERHANG:
                raise InputError("E_LABEL_GRID_MISMATCH", f"a box leaves the picture by {overhang:.4g} pixels")
            lower = (max(left, 0.0) - 0.5, max(top, 0.0) - 0.5, -0.5)
            upper = (min(right, shape[0]) - 0.5, min(bottom, shape[1]) - 0.5, 0.5)
            boxes.append(BoxMark(name, lower, upper))
        return Placed(tuple(boxes))


def checked_rectangle(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A rectangle that has an area.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    if width <= 0 or height <= 0:
        raise InputError("E_LABEL_FORMAT", f"a box of {width:g} x {height:g} pixels")
    return left, top, width, height
