"""Nodules as points in the patient: `annotations.csv` and `candidates.csv` of LUNA16 (https://luna16.grand-challenge.org).

Columns `seriesuid, coordX, coordY, coordZ` in LPS+ millimetres, and `diameter_mm` or `class` (1 nodule, 0 none), in any
order. The points of one series are taken together or not at all: a missing one would teach that there is no nodule. A
row without coordinates says that somebody looked at the series; a negative diameter, that nobody measured it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from medssl_cli.base.errors import InputError, MarkError
from medssl_cli.formats.labels import (
    MAX_MARKS,
    BoxLabel,
    BoxMark,
    Placed,
    Reading,
    Reference,
    RefusedRow,
    refusals,
)
from medssl_cli.formats.labels.columns import plain
from medssl_cli.formats.labels.csv_rows import Row, Table, read_rows
from medssl_cli.formats.labels.findings import is_unknown, number_in
from medssl_cli.formats.source import Source
from medssl_cli.formats.table import stem_of
from medssl_cli.imaging.geometry import Affine, Shape, spacing_mm

COLUMNS: Final = ("seriesuid", "coordx", "coordy", "coordz")
MAX_COORDINATE_MM: Final = 1e5
MAX_DIAMETER_MM: Final = 1e3
NODULE: Final = "nodule"
NO_NODULE: Final = "not_nodule"
_Point = tuple[tuple[float, float, float, float], str]


@dataclass(frozen=True)
class Spheres:
    """Points with a diameter (0: a point only), their names, and where they come from.

    Args:
        spheres: As (x, y, z, diameter_mm) in RAS+ millimetres.
        names: Names of all spheres.
        rows: Where each of them stands in its file; () if nothing says.
    """

    spheres: tuple[tuple[float, float, float, float], ...]
    names: tuple[str, ...]
    rows: tuple[int, ...] = ()

    def place(self, shape: Shape, affine: Affine) -> Placed:
        """The smallest box around each sphere along the axes of the image.

        Raises:
            InputError: `E_LABEL_GRID_MISMATCH`, a centre lies outside of the image.
        """
        to_index = np.linalg.inv(affine)
        spacing = np.array(spacing_mm(affine))
        boxes = []
        outside = []
        for (*centre, diameter), name, row in zip(
            self.spheres, self.names, self.rows or (0,) * len(self.names), strict=True
        ):
            index = to_index[:3, :3] @ centre + to_index[:3, 3]
            if ((index < -0.5) | (index > np.array(shape) - 0.5)).any():
                outside.append(row)
            half = diameter / 2 / spacing
            low, high = (index - half).tolist(), (index + half).tolist()
            boxes.append(
                BoxMark(name, (low[0], low[1], low[2]), (high[0], high[1], high[2]), diameter_mm=diameter or None)
            )
        if outside:
            said = f"{len(outside)} of {len(boxes)} points lie outside of the image"
            raise MarkError("E_LABEL_GRID_MISMATCH", said, row=outside[0])
        return Placed(tuple(boxes))


def is_luna(header: Sequence[str]) -> bool:
    """Whether a table with these columns holds points of LUNA16."""
    return set(COLUMNS) <= {plain(name) for name in header}


def read_luna(source: Source) -> Reading:
    """Read a table of points.

    Returns:
        One label for each series, and the rows that were refused.

    Raises:
        InputError: `E_LABEL_FORMAT`, `E_TOO_BIG`, or what `read_bytes` raises.
    """
    table = read_rows(source)
    if not is_luna(table.header):
        raise InputError("E_LABEL_FORMAT", "not a table of points in the patient")
    column = {plain(name): index for index, name in enumerate(table.header)}
    refused = list(table.refused)
    by_series: dict[str, list[tuple[int, _Point | RefusedRow | None]]] = defaultdict(list)
    for row in table.rows:
        series = stem_of(row.fields[column["seriesuid"]])
        if is_unknown(series):
            refused.append(RefusedRow(row.line, "E_LABEL_FORMAT", "a point of no series"))
            continue
        try:
            by_series[series].append((row.line, _point(row, table, column)))
        except InputError as error:
            by_series[series].append((row.line, RefusedRow(row.line, error.code, error.message)))
    labels = []
    for series, points in by_series.items():
        lines = tuple(line for line, _ in points)
        good = [(line, point) for line, point in points if isinstance(point, tuple)]
        bad = [point for _, point in points if isinstance(point, RefusedRow)]
        if len(points) > MAX_MARKS:
            bad = [RefusedRow(lines[0], "E_TOO_BIG", f"{len(points)} points in one series, more than {MAX_MARKS}")]
        if bad:
            refused += refusals(bad[0], lines)
        else:
            spheres = Spheres(
                tuple(sphere for _, (sphere, _) in good),
                tuple(name for _, (_, name) in good),
                tuple(line for line, _ in good),
            )
            labels.append(BoxLabel(Reference(series_uid=series), spheres, rows=lines))
    num_others = len(table.header) - sum(name in column for name in (*COLUMNS, "diametermm", "class"))
    notes = (("W_LABEL_NOT_TAKEN", f"{num_others} of {len(table.header)} columns"),) if num_others else ()
    return Reading(tuple(labels), tuple(refused), notes)


def _point(row: Row, table: Table, column: Mapping[str, int]) -> _Point | None:
    """A row as a sphere in RAS+ millimetres and its name; None of one that names no place.

    Raises:
        InputError: `E_LABEL_FORMAT`.
    """
    places = [row.fields[column[name]] for name in COLUMNS[1:]]
    if not any(place.strip() for place in places):
        return None
    x, y, z = (number_in(place, table, limit=MAX_COORDINATE_MM) for place in places)
    size = row.fields[column["diametermm"]] if "diametermm" in column else ""
    diameter = 0.0 if is_unknown(size) else number_in(size, table, limit=MAX_DIAMETER_MM)
    kind = row.fields[column["class"]] if "class" in column else "1"
    if kind not in ("0", "1"):
        raise InputError("E_LABEL_FORMAT", "a point of a class but 0 and 1")
    return (-x, -y, z, max(diameter, 0.0)), NODULE if kind == "1" else NO_NODULE
