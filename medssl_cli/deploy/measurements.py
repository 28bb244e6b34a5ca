"""Measurements of classes as they are told: rounded, and in the table of all scans of a folder."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from medssl_cli.deploy.results import ScanResult
from medssl_cli.formats.predictions import TABLE_START
from medssl_cli.imaging.measuring import Measurement

MEASUREMENTS_TABLE: Final = "measurements.csv"
DIGITS: Final = 6
"""Significant digits of the scan's values, whatever their unit."""
DECIMALS: Final = 3
"""Decimals of millimetres."""
_COLUMNS: Final = (
    "class", "volume_mL", "cut_off", "value_units", "mean", "sd", "minimum", "maximum", "long_axis_mm", "short_axis_mm",
    "axes_slice", "extent_right_left_mm", "extent_front_back_mm", "extent_top_bottom_mm", "centre_x_RAS_mm",
    "centre_y_RAS_mm", "centre_z_RAS_mm", "parts",
)  # fmt: skip
MEASUREMENT_COLUMNS: Final = (*TABLE_START, *_COLUMNS)


def rounded(exact: Measurement) -> Measurement:
    """A measurement as it is told: no digits that nobody needs, and none that hang on a processor."""
    x, y, z = (round(each, DECIMALS) + 0.0 for each in exact.centre_mm)
    right_left, front_back, top_bottom = (round(each, DECIMALS) for each in exact.extent_mm)
    return replace(
        exact,
        volume_ml=round(exact.volume_ml, 6),
        mean=_significant(exact.mean),
        sd=_significant(exact.sd),
        minimum=_significant(exact.minimum),
        maximum=_significant(exact.maximum),
        long_axis_mm=round(exact.long_axis_mm, DECIMALS),
        short_axis_mm=round(exact.short_axis_mm, DECIMALS),
        extent_mm=(right_left, front_back, top_bottom),
        centre_mm=(x, y, z),
    )


def _significant(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def measurement_rows(entry: ScanResult) -> list[Sequence[object]]:
    """One row for each class of a scan; of classes that were not found it says no more than that."""
    rows: list[Sequence[object]] = []
    for name, volume in entry.volumes_ml.items():
        start = (entry.name, entry.path, entry.task, name, f"{volume:.6f}")
        found = entry.measurements.get(name)
        told = [""] * (len(_COLUMNS) - 2) if found is None else _cells(found, entry.value_units)
        rows.append((*start, *told))
    return rows


def _cells(found: Measurement, units: str) -> list[object]:
    return [
        " ".join(found.cut_off),
        units,
        *(f"{each:.{DIGITS}g}" for each in (found.mean, found.sd, found.minimum, found.maximum)),
        *(f"{each:.{DECIMALS}f}" for each in (found.long_axis_mm, found.short_axis_mm)),
        found.axes_slice,
        *(f"{each:.{DECIMALS}f}" for each in (*found.extent_mm, *found.centre_mm)),
        found.parts,
    ]
