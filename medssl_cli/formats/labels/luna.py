"""Nodules as points in the patient: `annotations.csv` and `candidates.csv` of LUNA16 (https://luna16.grand-challenge.org).

Columns `seriesuid, coordX, coordY, coordZ` in LPS+ millimetres, and `diameter_mm` or `class` (1 nodule, 0 none).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medssl_cli.errors import InputError
from medssl_cli.formats.labels import MAX_MARKS, BoxLabel, BoxMark, Placed, Reference, parsed_number
from medssl_cli.formats.labels.csv_rows import read_rows
from medssl_cli.formats.source import Source
from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm

COLUMNS: Final = ("seriesuid", "coordx", "coordy", "coordz")
MAX_COORDINATE_MM: Final = 1e5
NODULE: Final = "nodule"
NO_NODULE: Final = "not_nodule"


@dataclass(frozen=True)
class Spheres:
    """Points with a diameter (0: a point only), as (x, y, z, diameter_mm) in RAS+ millimetres, and their names."""

    spheres: tuple[tuple[float, float, float, float], ...]
    names: tuple[str, ...]

    def place(self, shape: Shape, affine: Affine) -> Placed:
        """The smallest box around each sphere along the axes of the image.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, a centre lies outside of the image.
        """
        to_index = np.linalg.inv(affine)
        spacing = np.array(spacing_mm(affine))
        boxes = []
        num_outside = 0
        for (*centre, diameter), name in zip(self.spheres, self.names, strict=True):
            index = to_index[:3, :3] @ centre + to_index[:3, 3]
            num_outside += bool(((index < -0.5) | (index > np.array(shape) - 0.5)).any())
            half = diameter / 2 / spacing
            low, high = (index - half).tolist(), (index + half).tolist()
            boxes.append(
                BoxMark(name, (low[0], low[1], low[2]), (high[0], high[1], high[2]), diameter_mm=diameter or None)
            )
        if num_outside:
            raise InputError("E_LABEL_GRID_MISMATCH", f"{num_outside} of {len(boxes)} points lie outside of the image")
        return Placed(tuple(boxes))


def is_luna(header: Sequence[str]) -> bool:
    """Whether a table with these columns holds points of LUNA16."""
    return set(COLUMNS) <= {name.strip().lower() for name in header}


def read_luna(source: Source) -> tuple[BoxLabel, ...]:
    """Read a table of points.

    Returns:
        One label for each series.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TOO_BIG`, or what `read_bytes` raises.
    """
    header, rows = read_rows(source)
    if not is_luna(header):
        raise InputError("E_LABEL_FORMAT", "not a table of points in the patient")
    column = {name.strip().lower(): index for index, name in enumerate(header)}
    by_series: dict[str, list[tuple[float, float, float, float, str]]] = defaultdict(list)
    for row in rows:
        x, y, z = (parsed_number(row[column[name]], limit=MAX_COORDINATE_MM) for name in COLUMNS[1:])
        diameter = parsed_number(row[column["diameter_mm"]], limit=1000) if "diameter_mm" in column else 0.0
        kind = row[column["class"]].strip() if "class" in column else "1"
        if diameter < 0 or kind not in ("0", "1") or not row[column["seriesuid"]].strip():
            raise InputError("E_LABEL_FORMAT", "a point of negative diameter, of a class but 0 and 1, or of no series")
        by_series[row[column["seriesuid"]].strip()].append((-x, -y, z, diameter, NODULE if kind == "1" else NO_NODULE))
    most = max(map(len, by_series.values()), default=0)
    if most > MAX_MARKS:
        raise InputError("E_TOO_BIG", f"{most} points in one series, more than {MAX_MARKS}")
    return tuple(
        BoxLabel(
            Reference(series_uid=series),
            Spheres(tuple((x, y, z, d) for x, y, z, d, _ in points), tuple(name for *_, name in points)),
        )
        for series, points in by_series.items()
    )
