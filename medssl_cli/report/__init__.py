"""What a person looks at: pictures of volumes, plots, and the one HTML page that holds them."""

from collections.abc import Iterable
from typing import Final

Colour = tuple[int, int, int]

STRUCTURE_COLOURS: Final[tuple[Colour, ...]] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
"""Okabe & Ito's colours, told apart with any common colour blindness: https://jfly.uni-koeln.de/color/"""


def structure_colours(values: Iterable[int]) -> dict[int, Colour]:
    """One colour per label value, given in ascending order and so the same in every picture of a task.

    Beyond seven structures the colours come again, each time lighter.

    Args:
        values: Label values; 0 (background) has no colour.
    """
    colours = {}
    for position, value in enumerate(sorted(set(values) - {0})):
        times, index = divmod(position, len(STRUCTURE_COLOURS))
        lightness = 1 - 0.6**times
        red, green, blue = (round(c + (255 - c) * lightness) for c in STRUCTURE_COLOURS[index])
        colours[value] = (red, green, blue)
    return colours
