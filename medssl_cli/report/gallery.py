"""Pictures of the worst, the median and the best images of an evaluation."""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from PIL import Image

from medssl_cli.imaging.volume import Volume
from medssl_cli.report.viewer import Scene

Place = Literal["worst", "median", "best"]
Entry = tuple[float, str]
"""Figure and item."""

SPARE: Final = 16
"""Images near the median that are kept while an evaluation runs, for the median moves."""


@dataclass(frozen=True)
class Shown:
    """One image with its reference and prediction, drawn, and for the slice viewer where there is one."""

    item_id: str
    figure: float
    picture: Image.Image
    place: Place = "worst"
    scene: Scene | None = None


class Gallery:
    """Keeps the pictures of the worst, the median and the best images while an evaluation runs.

    Of a long evaluation the images shown as median are those nearest to it among the ones that were kept.

    Args:
        draw: Picture of an image with what was found and what is there.
        limit: How many of each to keep.
        stage: The same for the slice viewer, or None if there is none.
    """

    def __init__(
        self,
        draw: Callable[[Volume, Any, Any], Image.Image],
        *,
        limit: int,
        stage: Callable[[Volume, Any, Any], Scene | None] = lambda *_: None,
    ) -> None:
        self._draw = draw
        self._stage = stage
        self._limit = limit
        self._figures: list[float] = []
        self._pictures: dict[Entry, tuple[Image.Image, Scene | None]] = {}

    def add(
        self,
        item_id: str,
        figure: float,
        read: Callable[[], Volume],
        prediction: Any,
        reference: Any,
    ) -> None:
        """Read and draw an image if it is among those to show so far."""
        if not self._limit or np.isnan(figure):
            return
        bisect.insort(self._figures, figure)
        entry = (figure, item_id)
        ranked = sorted([*self._pictures, entry])
        kept = {*ranked[: self._limit], *self._nearest(ranked, self._limit + SPARE), *ranked[-self._limit :]}
        if entry in kept:
            image = read()
            self._pictures[entry] = (
                self._draw(image, prediction, reference),
                self._stage(image, prediction, reference),
            )
        self._pictures = {each: picture for each, picture in self._pictures.items() if each in kept}

    def pictures(self) -> list[Shown]:
        """Each once, worst first."""
        ranked, limit = sorted(self._pictures), self._limit
        worst, others = ranked[:limit], ranked[limit:]
        best = others[-limit:] if limit else []
        median = sorted(self._nearest(others[: len(others) - len(best)], limit))
        places: list[tuple[Place, list[Entry]]] = [("worst", worst), ("median", median), ("best", best)]
        return [
            Shown(item_id, figure, self._pictures[figure, item_id][0], place, self._pictures[figure, item_id][1])
            for place, entries in places
            for figure, item_id in entries
        ]

    def _nearest(self, entries: list[Entry], number: int) -> list[Entry]:
        """Those nearest to the median of all images seen, by rank."""
        return sorted(entries, key=lambda entry: (self._distance(entry[0]), entry))[:number]

    def _distance(self, figure: float) -> float:
        before, through = bisect.bisect_left(self._figures, figure), bisect.bisect_right(self._figures, figure)
        return abs(before + through - len(self._figures)) / 2
