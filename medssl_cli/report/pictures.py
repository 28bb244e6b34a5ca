"""Pictures of volumes with their structures, laid out as radiologists read them.

The patient's right is on the left of the picture, anterior and superior are up, and one millimetre has the same length
in all planes. `medssl infer` draws its preview here: numpy and pillow only, no matplotlib, no torch.
"""

import functools
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medssl_cli.imaging.geometry import Affine, Shape, reorient_to_ras, spacing_mm
from medssl_cli.imaging.planes import Planes, step
from medssl_cli.imaging.volume import Volume
from medssl_cli.report import Colour, structure_colours

BACKGROUND: Final[Colour] = (13, 17, 23)
TEXT: Final[Colour] = (230, 237, 243)
DIMMED: Final[Colour] = (139, 148, 158)
HALO: Final[Colour] = (0, 0, 0)
GAP_PX: Final = 10
FONT_PX: Final = 15
SUPERSAMPLING: Final = 2
"""Planes are drawn this much larger and then reduced, so that contours have no stairs."""
FILL_OPACITY: Final = 0.35
CONTOUR_PX: Final = 3
AUTOMATIC_WINDOW_PERCENTILES: Final = (1.0, 99.5)
SMALLEST_RANGE: Final = 1e-12
PERCENTILE_SAMPLES: Final = 1_000_000
TISSUE_HU: Final = (-200.0, 600.0)
NUM_COLOURS: Final = 128
"""Colours of a picture on a page: of so few it takes a third of the room."""
KMEANS_ROUNDS: Final = 2

Voxels = NDArray[np.generic]
Spacing = tuple[float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class DisplayedPlane:
    """One plane as it is displayed: rows downwards, columns to the right.

    Args:
        name: "axial", "coronal" or "sagittal".
        letters: Where the patient's directions lie: left, right, top, bottom of the picture.
        image: `[rows, columns]`, 0 to 1.
        labels: `[rows, columns]`, 0 where there is no structure.
        size_mm: Width and height of the whole plane.
    """

    name: str
    letters: str
    image: NDArray[np.float32]
    labels: NDArray[np.int64]
    size_mm: tuple[float, float]


def mid_planes(
    voxels: Voxels,
    affine: Affine,
    *,
    mask: NDArray[np.integer] | None = None,
    classes: Mapping[int, str] | None = None,
    window: tuple[float, float] | None = None,
    focus: NDArray[np.integer] | None = None,
    margin_mm: float | None = None,
    max_size_px: tuple[int, int] = (1200, 440),
    colours: Mapping[int, Colour] | None = None,
) -> Image.Image:
    """Draw the axial, coronal and sagittal plane through the middle of the structures.

    Args:
        voxels: `[X, Y, Z]` in any orientation. Oblique images are shown along the voxel axes nearest to the patient's.
        affine: Voxel-centre index to RAS+ millimetres.
        mask: Label map `[X, Y, Z]` on the same grid, drawn over the image.
        classes: Label value to name, for the legend; those that the mask does not hold are dimmed.
        window: Intensities shown as black and white; by default the 1st and 99.5th percentile.
        focus: Label map through whose centre of mass the planes go, to show several masks of one image alike; by
            default `mask`. Without any structure the planes go through the middle of the image.
        margin_mm: Show only this much around the structures of `focus`; by default all of the image.
        max_size_px: Width and height for the planes; the legend comes below.
        colours: Colours by label value, instead of those of the palette.

    Returns:
        An RGB picture.

    Raises:
        ValueError: The label maps are not on the image's grid.
    """
    mask = np.zeros(voxels.shape, dtype=np.uint8) if mask is None else mask
    focus = mask if focus is None else focus
    if not voxels.shape == mask.shape == focus.shape:
        raise ValueError(f"image {voxels.shape} and masks {mask.shape}, {focus.shape} are not on the same grid")
    image, ras_affine = reorient_to_ras(voxels[np.newaxis], affine)
    labels, _ = reorient_to_ras(mask[np.newaxis], affine)
    is_focus, _ = reorient_to_ras((focus > 0)[np.newaxis], affine)
    spacing = spacing_mm(ras_affine)
    centre, box = _centre(is_focus[0]), box_around(is_focus[0], spacing, margin_mm)
    window = window or automatic_window(voxels)
    planes = [cut_plane(image[0], labels[0], spacing, fixed_axis, centre, box, window) for fixed_axis in (2, 1, 0)]
    present = set(np.unique(mask).tolist())
    colours = {**structure_colours((classes or {}).keys() | present), **(colours or {})}
    sheet = _arranged([plane for plane in planes if min(plane.image.shape) > 1] or planes, colours, max_size_px)
    return _with_legend(sheet, classes, colours, present) if classes else sheet


def thumbnail(
    planes: Planes,
    shape: Shape,
    affine: Affine,
    *,
    window: tuple[float, float] | None = None,
    max_size_px: tuple[int, int] = (360, 240),
) -> Image.Image:
    """Draw the three planes through the middle of a volume.

    Args:
        planes: Its `middle_planes`.
        shape: (X, Y, Z) voxels of the volume.
        affine: Voxel-centre index to RAS+ millimetres.
        window: Intensities shown as black and white; by default percentiles of the planes.
        max_size_px: Width and height.

    Returns:
        An RGB picture.
    """
    window = window or automatic_window(np.concatenate([plane.reshape(-1) for plane in planes]))
    drawn = []
    for axis, plane in enumerate(planes):
        steps = [1.0 if at == axis else float(step(shape[at])) for at in range(3)]
        image, ras_affine = reorient_to_ras(plane[np.newaxis], affine @ np.diag([*steps, 1.0]))
        fixed = next((at for at in range(3) if image.shape[1 + at] == 1), axis)
        whole = tuple(slice(0, size) for size in image.shape[1:])
        nothing = np.zeros(image.shape[1:], dtype=np.uint8)
        drawn.append(cut_plane(image[0], nothing, spacing_mm(ras_affine), fixed, (0, 0, 0), whole, window))
    order = {"axial": 0, "coronal": 1, "sagittal": 2}
    return _arranged(sorted(drawn, key=lambda plane: order[plane.name]), {}, max_size_px)


def comparison(pictures: Sequence[tuple[str, Image.Image]], *, columns: int = 1, title: str = "") -> Image.Image:
    """Put captioned pictures on one sheet, row by row.

    Args:
        pictures: Caption and picture; the pictures keep their size.
        columns: Pictures per row.
        title: Written above all.

    Raises:
        ValueError: There is nothing to show.
    """
    if not pictures:
        raise ValueError("no pictures to compare")
    caption_px = 2 * FONT_PX
    cells = [(caption, picture.convert("RGB")) for caption, picture in pictures]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    cell_width = max(picture.width for _, picture in cells)
    heights = [max(picture.height for _, picture in row) + caption_px for row in rows]
    header = 3 * FONT_PX if title else 0
    num_columns = min(columns, len(cells))
    sheet = Image.new("RGB", (num_columns * (cell_width + GAP_PX) + GAP_PX, sum(heights) + header + GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (2 * GAP_PX, header / 2), title, font=font_of(FONT_PX + 4, is_ascii=title.isascii()), fill=TEXT, anchor="lm"
    )
    top = header
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = GAP_PX + column * (cell_width + GAP_PX)
            font = font_of(is_ascii=caption.isascii())
            draw.text((left + GAP_PX, top + caption_px / 2), caption, font=font, fill=TEXT, anchor="lm")
            sheet.paste(picture, (left, top + caption_px))
        top += height
    return sheet


def with_few_colours(picture: Image.Image) -> Image.Image:
    """A picture of `NUM_COLOURS` colours. Those of small structures stay what they are, since legends name them."""
    return picture.quantize(
        NUM_COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=KMEANS_ROUNDS, dither=Image.Dither.NONE
    )


def automatic_window(voxels: Voxels) -> tuple[float, float]:
    """Intensities to show as black and white when nothing is known about an image: its 1st and 99.5th percentile.

    Args:
        voxels: Voxels of any shape; values that are not finite are left out, very large images are sampled regularly.
    """
    values = voxels.reshape(-1)[:: max(1, voxels.size // PERCENTILE_SAMPLES)].astype(np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, AUTOMATIC_WINDOW_PERCENTILES)
    return float(low), float(high)


def tissue_window(image: Volume) -> tuple[float, float] | None:
    """Intensities to show as black and white, from fat to bone; None where units do not tell."""
    return TISSUE_HU if image.units == "HU" else None


def _centre(is_structure: Voxels) -> tuple[int, ...]:
    """The index of the centre of mass; where its plane misses every structure, that of the plane that shows most."""
    centre = []
    for axis, size in enumerate(is_structure.shape):
        profile = np.count_nonzero(is_structure, axis=tuple(other for other in range(3) if other != axis))
        if not profile.any():
            centre.append(size // 2)
            continue
        middle = round(float(np.average(np.arange(size), weights=profile)))
        centre.append(middle if profile[middle] else int(profile.argmax()))
    return tuple(centre)


def box_around(is_structure: Voxels, spacing: Spacing, margin_mm: float | None) -> tuple[slice, ...]:
    """The part of the image to show."""
    if margin_mm is None or not is_structure.any():
        return tuple(slice(0, size) for size in is_structure.shape)
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(is_structure.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = math.ceil(margin_mm / spacing[axis])
        box.append(slice(max(int(occupied[0]) - margin, 0), int(occupied[-1]) + margin + 1))
    return tuple(box)


def cut_plane(
    image: Voxels,
    labels: Voxels,
    spacing: Spacing,
    fixed_axis: int,
    centre: tuple[int, ...],
    box: tuple[slice, ...],
    window: tuple[float, float],
) -> DisplayedPlane:
    """Cut a plane out of RAS-oriented arrays and turn it as it is displayed."""
    columns, rows = (axis for axis in range(3) if axis != fixed_axis)
    index: list[int | slice] = list(box)
    index[fixed_axis] = centre[fixed_axis]
    shown, drawn = (array[tuple(index)][::-1, ::-1].T for array in (image, labels))
    low, high = window
    scaled = (np.nan_to_num(shown.astype(np.float32), nan=low) - low) / max(high - low, SMALLEST_RANGE)
    return DisplayedPlane(
        name=("sagittal", "coronal", "axial")[fixed_axis],
        letters=("RL", "AP")[columns] + ("", "AP", "SI")[rows],
        image=np.clip(scaled, 0, 1).astype(np.float32),
        labels=drawn.astype(np.int64),
        size_mm=(shown.shape[1] * spacing[columns], shown.shape[0] * spacing[rows]),
    )


def _arranged(
    planes: Sequence[DisplayedPlane], colours: Mapping[int, Colour], max_size_px: tuple[int, int]
) -> Image.Image:
    """Planes in a row, or the first beside the others stacked: whichever shows them larger."""
    in_a_row = [[plane] for plane in planes]
    stacked = [[planes[0]], list(planes[1:])] if len(planes) == 3 else in_a_row
    columns = max((in_a_row, stacked), key=lambda layout: _scale(layout, max_size_px))
    scale = _scale(columns, max_size_px)
    bar_mm = bar_length_mm(min(plane.size_mm[0] for plane in planes) / 4)
    drawn = [[drawn_plane(plane, colours, scale, bar_mm) for plane in column] for column in columns]
    widths = [max(panel.width for panel in column) for column in drawn]
    heights = [sum(panel.height for panel in column) + GAP_PX * (len(column) - 1) for column in drawn]
    height = max(heights)
    sheet = Image.new("RGB", (sum(widths) + GAP_PX * (len(drawn) + 1), height + 2 * GAP_PX), BACKGROUND)
    left = GAP_PX
    for column, width, column_height in zip(drawn, widths, heights, strict=True):
        top = GAP_PX + (height - column_height) // 2
        for panel in column:
            sheet.paste(panel, (left + (width - panel.width) // 2, top))
            top += panel.height + GAP_PX
        left += width + GAP_PX
    return sheet


def _scale(layout: Sequence[Sequence[DisplayedPlane]], max_size_px: tuple[int, int]) -> float:
    """Largest number of pixels per millimetre at which columns of planes fit."""
    width_mm = sum(max(plane.size_mm[0] for plane in column) for column in layout)
    height_mm = max(sum(plane.size_mm[1] for plane in column) for column in layout)
    gaps = GAP_PX * (max(len(column) for column in layout) - 1)
    return min((max_size_px[0] - GAP_PX * (len(layout) + 1)) / width_mm, (max_size_px[1] - gaps) / height_mm)


def drawn_plane(plane: DisplayedPlane, colours: Mapping[int, Colour], scale: float, bar_mm: float) -> Image.Image:
    """Draw a plane at a number of pixels per millimetre."""
    width, height = (max(1, round(size * scale)) for size in plane.size_mm)
    large = width * SUPERSAMPLING, height * SUPERSAMPLING
    grey = np.clip(_resized(plane.image, large, Image.Resampling.BICUBIC), 0, 1)
    pixels = np.repeat(grey[:, :, np.newaxis] * 255, 3, axis=2)
    labels = _resized_labels(plane.labels, large)
    contour = _contour(labels) if labels.any() else labels
    for value in np.unique(labels[labels > 0]).tolist():
        colour = np.array(colours[value], dtype=np.float32)
        inside = labels == value
        pixels[inside] += FILL_OPACITY * (colour - pixels[inside])
        pixels[inside & contour] = colour
    picture = Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
    _annotate(picture, plane, bar_mm, bar_px=bar_mm * scale)
    return picture


def _resized(
    values: NDArray[np.float32], size_px: tuple[int, int], resampling: Image.Resampling
) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize(size_px, resampling), dtype=np.float32)


def _resized_labels(labels: NDArray[np.int64], size_px: tuple[int, int]) -> NDArray[np.int64]:
    """Enlarge a label map smoothly: each pixel takes the class that linear interpolation gives the largest share."""
    values = np.unique(labels)
    if len(values) == 1:
        return np.full(size_px[::-1], values[0], dtype=np.int64)
    shares = [
        _resized((labels == value).astype(np.float32), size_px, Image.Resampling.BILINEAR) for value in values.tolist()
    ]
    return np.asarray(values[np.argmax(shares, axis=0)], dtype=np.int64)


def _contour(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pixels at most `CONTOUR_PX` away, along an axis, from one of another label."""
    contour = np.zeros(labels.shape, dtype=bool)
    for distance in range(1, CONTOUR_PX + 1):
        for one, other in ((np.s_[distance:], np.s_[:-distance]), (np.s_[:, distance:], np.s_[:, :-distance])):
            differs = labels[one] != labels[other]
            contour[one] |= differs
            contour[other] |= differs
    return contour


def _annotate(picture: Image.Image, plane: DisplayedPlane, bar_mm: float, *, bar_px: float) -> None:
    """Write the patient's directions at the borders, the name of the plane and a scale bar into corners."""
    draw, font, small = ImageDraw.Draw(picture), font_of(), font_of(FONT_PX - 3)
    width, height, inset = picture.width, picture.height, 6
    places = (
        ((inset, height / 2), "lm"),
        ((width - inset, height / 2), "rm"),
        ((width / 2, inset), "mt"),
        ((width / 2, height - inset), "mb"),
    )
    for letter, (position, anchor) in zip(plane.letters, places, strict=True):
        draw.text(position, letter, font=font, fill=TEXT, anchor=anchor, stroke_width=2, stroke_fill=HALO)
    draw.text((inset, inset), plane.name, font=small, fill=TEXT, anchor="lt", stroke_width=1, stroke_fill=HALO)
    right, bottom = width - inset, height - inset
    left = right - bar_px
    draw.rectangle((left - 1, bottom - 3, right + 1, bottom + 1), fill=HALO)
    draw.rectangle((left, bottom - 2, right, bottom), fill=TEXT)
    words = f"{bar_mm:g} mm"
    middle = (min((left + right) / 2, right - small.getlength(words) / 2), bottom - 5)
    draw.text(middle, words, font=small, fill=TEXT, anchor="mb", stroke_width=1, stroke_fill=HALO)


def bar_length_mm(limit_mm: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50 ... that does not exceed a limit."""
    power = 10.0 ** math.floor(math.log10(limit_mm))
    return float(max(digit * power for digit in (1, 2, 5) if digit * power <= limit_mm))


def _with_legend(
    sheet: Image.Image, classes: Mapping[int, str], colours: Mapping[int, Colour], present: set[int]
) -> Image.Image:
    """Add the names of the structures below, in as many rows as they need."""
    font, swatch, row_px = font_of(is_ascii="".join(classes.values()).isascii()), FONT_PX - 2, FONT_PX + 10
    left, row, places = GAP_PX, 0, []
    for value, name in classes.items():
        width = swatch + 6 + math.ceil(font.getlength(name)) + 18
        if left > GAP_PX and left + width > sheet.width:
            left, row = GAP_PX, row + 1
        places.append((value, name, left, row))
        left += width
    result = Image.new("RGB", (sheet.width, sheet.height + (row + 1) * row_px + GAP_PX), BACKGROUND)
    result.paste(sheet, (0, 0))
    draw = ImageDraw.Draw(result)
    for value, name, left, row in places:
        middle = sheet.height + row * row_px + row_px / 2
        is_present = value in present
        box = (left, middle - swatch / 2, left + swatch, middle + swatch / 2)
        draw.rounded_rectangle(box, radius=3, fill=colours[value] if is_present else None, outline=colours[value])
        draw.text((left + swatch + 6, middle), name, font=font, fill=TEXT if is_present else DIMMED, anchor="lm")
    return result


@functools.cache
def font_of(size_px: int = FONT_PX, *, is_ascii: bool = True) -> Font:
    """Pillow's own font; for letters that it lacks (accents, Greek, Cyrillic), the one in matplotlib's folder."""
    matplotlib = None if is_ascii else importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        path = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size_px)
    return ImageFont.load_default(size_px)
