"""Several slices of a volume in a row, with their structures: what a plane through the middle does not show."""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medssl_cli.imaging.geometry import Affine, reorient_to_ras, spacing_mm
from medssl_cli.report import Colour
from medssl_cli.report.pictures import (
    BACKGROUND,
    GAP_PX,
    Voxels,
    automatic_window,
    bar_length_mm,
    box_around,
    cut_plane,
    drawn_plane,
)

NUM_SLICES: Final = 6
MAX_HEIGHT_PX: Final = 220
NO_LETTERS: Final = "    "


def slice_row(
    voxels: Voxels,
    affine: Affine,
    mask: NDArray[np.integer],
    colours: dict[int, Colour],
    *,
    focus: NDArray[np.integer],
    window: tuple[float, float] | None = None,
    margin_mm: float | None = None,
    width_px: int = 900,
) -> Image.Image:
    """Draw axial slices, from the lowest to the highest that shows something, evenly apart.

    Args:
        voxels: `[X, Y, Z]` in any orientation.
        affine: Voxel-centre index to RAS+ millimetres.
        mask: Label map `[X, Y, Z]` on the same grid, drawn over the image.
        colours: Colours of every label value.
        focus: What chooses the slices and the part of them that is shown; without any structure all of the image.
        window: Intensities shown as black and white; by default the 1st and 99.5th percentile.
        margin_mm: Show only this much around the structures of `focus`; by default all of the image.
        width_px: Width of the row.

    Returns:
        An RGB picture.
    """
    image, ras_affine = reorient_to_ras(voxels[np.newaxis], affine)
    labels, _ = reorient_to_ras(mask[np.newaxis], affine)
    is_focus, _ = reorient_to_ras((focus > 0)[np.newaxis], affine)
    spacing, window = spacing_mm(ras_affine), window or automatic_window(voxels)
    box = box_around(is_focus[0], spacing, margin_mm)
    planes = [
        replace(
            cut_plane(image[0], labels[0], spacing, 2, (0, 0, height), box, window),
            name=f"slice {height + 1}",
            letters=NO_LETTERS,
        )
        for height in _heights(is_focus[0])
    ]
    width_mm, height_mm = planes[0].size_mm
    scale = min(((width_px - GAP_PX) / NUM_SLICES - GAP_PX) / width_mm, MAX_HEIGHT_PX / height_mm)
    panels = [drawn_plane(plane, colours, scale, bar_length_mm(width_mm / 3)) for plane in planes]
    size = sum(panel.width + GAP_PX for panel in panels) + GAP_PX, panels[0].height + 2 * GAP_PX
    row = Image.new("RGB", size, BACKGROUND)
    left = GAP_PX
    for panel in panels:
        row.paste(panel, (left, GAP_PX))
        left += panel.width + GAP_PX
    return row


def _heights(is_structure: Voxels) -> list[int]:
    """Indices of the slices to show, at most `NUM_SLICES`."""
    occupied = np.flatnonzero(is_structure.any(axis=(0, 1)))
    occupied = occupied if occupied.size else np.arange(is_structure.shape[2])
    places = np.linspace(0, len(occupied) - 1, min(NUM_SLICES, len(occupied)))
    return [int(occupied[round(place)]) for place in places.tolist()]
