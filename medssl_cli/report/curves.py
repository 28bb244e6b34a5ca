"""Square plots of shares over shares side by side: ROC, precision over sensitivity, reliability."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medssl_cli.report.plots import INK, SERIES_COLOURS, plot_style, svg_of

SIDE_INCHES: Final = 3.0
SHOWN_POINTS: Final = 300
"""More points than this are thinned out: they would only make the file larger."""
LARGEST_DOT: Final = 160.0
SMALLEST_DOT: Final = 12.0


@dataclass(frozen=True)
class Panel:
    """One curve in a square from 0 to 1.

    Args:
        title: Written above.
        xlabel: What runs to the right.
        ylabel: What runs upwards.
        x: Values of the points along the first axis, ascending; NaN is not drawn.
        y: Values of the points along the second axis.
        line: Heights at 0 and 1 of a dashed line, what one gets by chance or wants to get; NaN is not drawn.
        numbers: What each point stands for, drawn as its size; without them there are no dots.
        is_stepped: Between two points the curve keeps the height of the one on the right.
    """

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[float]
    y: Sequence[float]
    line: tuple[float, float]
    numbers: Sequence[int] | None = None
    is_stepped: bool = False


def share_curves(panels: Sequence[Panel]) -> bytes:
    """Draw curves side by side.

    Args:
        panels: Panels from left to right.

    Returns:
        The bytes of an SVG.
    """
    from matplotlib.figure import Figure

    colour = SERIES_COLOURS[0]
    with plot_style():
        figure = Figure(figsize=(SIDE_INCHES * len(panels), SIDE_INCHES + 0.25), layout="constrained")
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), place)
            axes.plot((0, 1), panel.line, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.5)
            shown = _shown(len(panel.x))
            x, y = np.asarray(panel.x, dtype=float)[shown], np.asarray(panel.y, dtype=float)[shown]
            drawing = "steps-pre" if panel.is_stepped else "default"
            axes.plot(x, y, color=colour, linewidth=1.8, drawstyle=drawing, solid_joinstyle="round")
            if panel.numbers is not None:
                sizes = np.asarray(panel.numbers, dtype=float)
                areas = SMALLEST_DOT + (LARGEST_DOT - SMALLEST_DOT) * sizes / max(1.0, sizes.max(initial=0.0))
                axes.scatter(x, y, s=areas[shown], color=colour, alpha=0.75, linewidths=0, zorder=3)
            axes.set(
                title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.04)
            )
            axes.set_xticks((0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "0.5", "0.75", "1"))
            axes.set_yticks((0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "0.5", "0.75", "1"))
            axes.set_aspect("equal")
            axes.grid(alpha=0.12)
        return svg_of(figure)


def _shown(number: int) -> list[int]:
    """Places of the points that are drawn: the first, the last, and some between."""
    return sorted({round(place) for place in np.linspace(0, number - 1, min(number, SHOWN_POINTS))})
