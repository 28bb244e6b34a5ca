"""Pictures of radiographs and other images without a place in the patient: as they are stored, with their boxes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medssl_cli.report import structure_colours
from medssl_cli.report.pictures import HALO, automatic_window, comparison

LINE_PX: Final = 3
TEXT_PX: Final = 13
SHOWN_FROM: Final = 0.5
"""Score of the boxes that are drawn."""


def projection(
    pixels: NDArray[np.generic], spacing_mm: Sequence[float], *, max_size_px: tuple[int, int]
) -> Image.Image:
    """Draw an image with its proportions in millimetres.

    Args:
        pixels: `[X, Y]`; y runs downwards.
        spacing_mm: Along x and y.
        max_size_px: Width and height.
    """
    low, high = automatic_window(pixels)
    grey = np.clip((pixels.T.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)
    width, height = (count * step for count, step in zip(pixels.shape, spacing_mm, strict=True))
    scale = min(max_size_px[0] / width, max_size_px[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray((grey * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def box_comparison(
    pixels: NDArray[np.generic],
    spacing_mm: Sequence[float],
    found: Sequence[Mapping[str, Any]],
    there: Sequence[Mapping[str, Any]],
    classes: Mapping[int, str],
) -> Image.Image:
    """Boxes that are there beside boxes that were found with a score of at least a half.

    Args:
        pixels: `[X, Y]`.
        spacing_mm: Along x and y.
        found: Boxes with `class`, `score` and `corners` in pixel edges (low x, low y, high x, high y).
        there: The same, whose scores say nothing.
        classes: Names, by numbers that choose the colours.
    """
    plain = projection(pixels, spacing_mm, max_size_px=(440, 440)).convert("RGB")
    colours = structure_colours(classes)
    by_name = {name: colours[number] for number, name in classes.items()}
    scale = plain.width / pixels.shape[0], plain.height / pixels.shape[1]
    likely = [box for box in found if box["score"] >= SHOWN_FROM]
    panels = []
    for title, boxes, has_score in (("reference", there, False), ("model", likely, True)):
        panel = plain.copy()
        for box in boxes:
            text = f"{box['class']} {box['score']:.2f}" if has_score else box["class"]
            _outline(panel, box["corners"], scale, by_name[box["class"]], text)
        panels.append((title, panel))
    return comparison(panels, columns=2)


def _outline(
    picture: Image.Image,
    corners: Sequence[float],
    scale: tuple[float, float],
    colour: tuple[int, int, int],
    text: str,
) -> None:
    low_x, low_y, high_x, high_y = (value * scale[place % 2] for place, value in enumerate(corners))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((low_x, low_y, high_x, high_y), outline=colour, width=LINE_PX)
    place = low_x + LINE_PX + 2, max(0.0, low_y) + LINE_PX
    draw.text(place, text, fill=colour, stroke_fill=HALO, stroke_width=2, font_size=TEXT_PX)
