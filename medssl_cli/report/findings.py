"""A picture of an image with what a model says of all of it: a bar for the probability of each finding."""

from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from medssl_cli.imaging.volume import Volume
from medssl_cli.report import STRUCTURE_COLOURS, Colour
from medssl_cli.report.boxes import is_picture
from medssl_cli.report.pictures import BACKGROUND, DIMMED, FONT_PX, GAP_PX, TEXT, Font, font_of, mid_planes
from medssl_cli.report.projections import projection

MOST_BARS: Final = 12
ROW_PX: Final = FONT_PX + 11
NAME_PX: Final = 190
BAR_PX: Final = 200
NUMBER_PX: Final = 60
WORD_PX: Final = 110
PICTURE_PX: Final = (600, 440)
PLANES_PX: Final = (900, 300)
YES: Final[Colour] = STRUCTURE_COLOURS[1]
GROUND: Final[Colour] = (48, 54, 61)
CUT: Final = "..."


@dataclass(frozen=True)
class Bar:
    """The probability of a finding.

    Args:
        name: Name of the finding.
        probability: From 0 to 1.
        threshold: A probability of at least this is a yes.
        word: What is written behind it.
    """

    name: str
    probability: float
    threshold: float
    word: str = ""


def findings_picture(image: Volume, bars: list[Bar], *, window: tuple[float, float] | None = None) -> Image.Image:
    """A picture as it is stored, or three planes of a volume, and the probabilities of findings, the highest first.

    Args:
        image: The image.
        bars: Findings; beyond the twelve most probable ones their number is told.
        window: Intensities of a volume that are shown as black and white; by default the 1st and 99.5th percentile.
    """
    drawn = _drawn(sorted(bars, key=lambda bar: -bar.probability))
    if is_picture(image):
        seen = projection(image.voxels[0, :, :, 0], image.spacing_mm[:2], max_size_px=PICTURE_PX).convert("RGB")
        size = seen.width + drawn.width + 3 * GAP_PX, max(seen.height, drawn.height) + 2 * GAP_PX
        places = (GAP_PX, GAP_PX), (seen.width + 2 * GAP_PX, GAP_PX)
    else:
        seen = mid_planes(image.voxels[0], image.affine, window=window, max_size_px=PLANES_PX)
        size = max(seen.width, drawn.width + 2 * GAP_PX), seen.height + drawn.height + GAP_PX
        places = (0, 0), (GAP_PX, seen.height)
    sheet = Image.new("RGB", size, BACKGROUND)
    for part, place in zip((seen, drawn), places, strict=True):
        sheet.paste(part, place)
    return sheet


def _drawn(bars: list[Bar]) -> Image.Image:
    """Bars below one another; a line where the threshold of each is."""
    seen = bars[:MOST_BARS]
    rows = len(seen) + (len(bars) > len(seen))
    picture = Image.new("RGB", (NAME_PX + BAR_PX + NUMBER_PX + WORD_PX, max(rows, 1) * ROW_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for row, bar in enumerate(seen):
        top, middle, is_yes = row * ROW_PX, (row + 0.5) * ROW_PX, bar.probability >= bar.threshold
        font = font_of(is_ascii=bar.name.isascii())
        draw.text((0, middle), _fitting(bar.name, font), font=font, fill=TEXT if is_yes else DIMMED, anchor="lm")
        box = (NAME_PX, top + 5, NAME_PX + BAR_PX, top + ROW_PX - 5)
        draw.rectangle(box, fill=GROUND)
        draw.rectangle((*box[:2], NAME_PX + BAR_PX * bar.probability, box[3]), fill=YES if is_yes else DIMMED)
        tick = NAME_PX + BAR_PX * bar.threshold
        draw.line((tick, top + 2, tick, top + ROW_PX - 2), fill=TEXT, width=2)
        left = NAME_PX + BAR_PX + GAP_PX
        draw.text((left, middle), f"{bar.probability:.3f}", font=font_of(), fill=TEXT, anchor="lm")
        draw.text((left + NUMBER_PX, middle), bar.word, font=font_of(), fill=DIMMED, anchor="lm")
    if len(bars) > len(seen):
        place = (0, (len(seen) + 0.5) * ROW_PX)
        draw.text(place, f"and {len(bars) - len(seen)} less probable ones", font=font_of(), fill=DIMMED, anchor="lm")
    return picture


def _fitting(text: str, font: Font) -> str:
    """A text, cut where it is too long for its place."""
    if font.getlength(text) <= NAME_PX - GAP_PX:
        return text
    while text and font.getlength(text + CUT) > NAME_PX - GAP_PX:
        text = text[:-1]
    return text + CUT
