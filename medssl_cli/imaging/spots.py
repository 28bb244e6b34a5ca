"""Round findings of a scan, and which points hit them: nearer to the centre than the radius, as LUNA16 counts."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UNKNOWN_DIAMETER_MM: Final = 10.0
"""Diameter of findings that state a negative one: nobody measured it."""


class Spots(NamedTuple):
    """Round findings of one scan: centres in millimetres `[L, 3]` and diameters in millimetres `[L]`."""

    centres_mm: Array
    diameters_mm: Array

    @classmethod
    def none(cls) -> "Spots":
        """No findings: those of a scan without any."""
        return cls(np.zeros((0, 3)), np.zeros(0))

    def hit_by(self, points_mm: Array) -> NDArray[np.bool_]:
        """Which of the points `[M, 3]` hits which finding, `[M, L]`."""
        diameters = np.where(self.diameters_mm < 0, UNKNOWN_DIAMETER_MM, self.diameters_mm)
        squares = ((points_mm[:, None] - self.centres_mm[None]) ** 2).sum(axis=-1)
        hits: NDArray[np.bool_] = squares < (diameters / 2) ** 2
        return hits
