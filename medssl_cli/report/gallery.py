"""Pictures of the worst and the best images of an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from medssl_cli.imaging.volume import Volume


@dataclass(frozen=True)
class Shown:
    """One image with its reference and prediction, drawn."""

    item_id: str
    figure: float
    picture: Image.Image


class Gallery:
    """Keeps the pictures of the worst and best images while an evaluation runs.

    Args:
        draw: Picture of an image with what was found and what is there.
        limit: How many of each to keep.
    """

    def __init__(self, draw: Callable[[Volume, Any, Any], Image.Image], *, limit: int) -> None:
        self._draw = draw
        self._limit = limit
        self._shown: list[Shown] = []

    def add(
        self,
        item_id: str,
        figure: float,
        image: Volume,
        prediction: Any,
        reference: Any,
    ) -> None:
        """Draw an image if it is among the worst or best so far."""
        if not self._limit or np.isnan(figure):
            return
        ranked = sorted(shown.figure for shown in self._shown)
        if len(ranked) >= 2 * self._limit and ranked[self._limit - 1] <= figure <= ranked[-self._limit]:
            return
        self._shown.append(Shown(item_id, figure, self._draw(image, prediction, reference)))
        self._shown.sort(key=lambda shown: (shown.figure, shown.item_id))
        if len(self._shown) > 2 * self._limit:
            del self._shown[self._limit]

    def pictures(self) -> list[Shown]:
        """Worst first."""
        return self._shown
