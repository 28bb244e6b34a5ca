"""The page of docs/reference about what `medssl infer` tells, made from the code; see `tests.reference`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Final

from medssl_cli.deploy.candidates import candidate_rows
from medssl_cli.deploy.measurements import MEASUREMENT_COLUMNS
from medssl_cli.deploy.results import InferReport, ScanResult
from medssl_cli.deploy.whole_answers import tables_of
from medssl_cli.imaging.measuring import Measurement
from tests.reference import NOTE, arguments_of, table_lines

HEADER: Final = {
    "medssl_version": "Version that wrote it.",
    "task": "Task of the model of the last call.",
    "model_sha256": "SHA-256 of that model.",
    "device": "Device on which it ran.",
    "intended_use": "What the model says it is for.",
    "done": "How many results are `done`.",
    "refused": "How many are `refused`.",
    "skipped": "How many are `skipped`.",
    "results": "An entry for each scan and for each file that is none; below.",
    "journal_bytes": "Only `report.json`: how much of `report.jsonl` is in it.",
    "dry_run": "Only `--json`: nothing was computed or written.",
    "not_reached": "Only `--json`: scans that a stop request left for the next call.",
}
NAMES: Final = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "description": "SeriesDescription"}
COMMON: Final = {
    "name": "Name of the scan, as its outputs are called.",
    "path": "Where it lies.",
    "medssl_task": "Task of the model.",
    "class": "Name of the class.",
    "threshold": "Operating point of its class, from 0 to 1.",
    "is_yes": "1 where the score reaches it.",
    "units": "Unit of the scores (probability), or of the corners or centre of the box.",
}
COLUMNS: Final = {
    "seriesuid": "SeriesInstanceUID, or the name of the file without its suffix.",
    "coordX": "Centre of the box, x in LPS+ millimetres (towards the left).",
    "coordY": "The same, y (towards the back).",
    "coordZ": "The same, z (towards the head).",
    "probability": "Score from 0 to 1.",
    "diameter_mm": "Mean of the sides of the box.",
    "volume_mL": "0 of a class that was not found; the other cells are then empty.",
    "cut_off": "Sides on which the class reaches the edge of the scan, so that there is more of it than was measured.",
    "value_units": "Unit of the four columns that follow: HU, SUVbw, Bq/ml, or a.u. for units of the scan's own.",
    "centre_x_RAS_mm": "Centre of mass, x in RAS+ millimetres (towards the right).",
    "centre_y_RAS_mm": "The same, y (towards the front).",
    "centre_z_RAS_mm": "The same, z (towards the head).",
    "extent_right_left_mm": "Size of the box around it, along the scan's axis nearest to right and left.",
    "extent_front_back_mm": "The same from front to back.",
    "extent_top_bottom_mm": "The same from top to bottom.",
    "score": "Score from 0 to 1.",
    "low_x": "Left edge of the box; pixel 0 covers 0 to 1.",
    "low_y": "Upper edge.",
    "high_x": "Right edge.",
    "high_y": "Lower edge.",
    "CLASS": "Probability of a finding, from 0 to 1.",
    "CLASS threshold": "Its operating point.",
    "CLASS is_yes": "1 where the probability reaches it.",
    "CLASS mL": "Volume of a region; if it is cut off, there is more of it.",
    "CLASS cut_off": "Sides on which it reaches the edge of the scan.",
}
TABLES: Final = {
    "measurements.csv": "Models of masks: a row for each class of each scan.",
    "volumes.csv": "Models of regions, which may overlap: a row for each scan.",
    "findings.csv": "Models of findings: a row for each image.",
    "boxes.csv": "Models of boxes in pictures: a row for each box, and one for an image without any.",
    "candidates.csv": "Models of boxes in volumes: a row for each box. The first columns are those of LUNA16.",
}


REPORT: Final = """\
`report.json` beside the outputs holds an entry for each scan of all calls into the folder. `report.jsonl` has a line
for each result, the same entry with its time (`at`, UTC). `infer --json` prints a report of one call, and with
`--watch` an entry for each result. Later versions add fields and change none. The file `NAME_TASK.json` of each image
of a model of findings or boxes is told of in [its guide](../guides/deploy-findings-and-boxes.md#what-comes-out).
"""
MEASURED: Final = """\
In `measurements` by the name of the class, in the table `measurements.csv`, and in DICOM reports (`--formats sr`).
Slices are those of a DICOM series, and of a file the third axis of its array; values are those of the scan's first
channel. The outline of a class runs halfway between the centres of pixels inside and outside, so that the axes of a
disc are up to 0.9 pixels too long ([decision 0426](../decisions/0426-measurements-of-classes.md)).
"""
FIELDS: Final = ("field", "meaning")


def report_page() -> str:
    """Fields of reports and entries, and columns of tables."""
    lines = ["# What infer tells", "", NOTE, "", REPORT, "## The report", ""]
    lines += [*table_lines(FIELDS, _in_code(_header())), "", "## An entry", ""]
    lines += [*table_lines(FIELDS, _in_code(_documented(ScanResult))), "", "## Measurements of a class", "", MEASURED]
    lines += [*table_lines(FIELDS, _in_code(_documented(Measurement))), ""]
    columns = _columns()
    for name, text in TABLES.items():
        rows = [(str(column), _meaning(column)) for column in columns[name]]
        lines += [f"## {name}", "", text, "", *table_lines(("column", "meaning"), _in_code(rows)), ""]
    return "\n".join(lines)


def _in_code(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"`{name}`", text) for name, text in rows]


def _header() -> Iterator[tuple[str, str]]:
    """Each field of a report, in the order of the list above; none may be missing there."""
    empty = InferReport.__new__(InferReport)
    for name in ("task", "model_sha256", "device", "intended_use"):
        object.__setattr__(empty, name, "")
    for name, value in (("results", ()), ("not_reached", 0), ("is_dry_run", False)):
        object.__setattr__(empty, name, value)
    assert {*empty.document(), "journal_bytes"} == set(HEADER)
    yield from HEADER.items()


def _documented(told: type[ScanResult] | type[Measurement]) -> list[tuple[str, str]]:
    known = arguments_of(told)
    return [(NAMES.get(one.name, one.name), known[one.name]) for one in fields(told)]


def _columns() -> dict[str, Sequence[object]]:
    """The first rows of all tables."""
    common = {"name": "n", "status": "done", "input_sha256": "0", "task": "t"}
    box = {"class": "CLASS", "score": 0.5, "is_yes": True, "corners": [0.0] * 4}
    of_volume = {**box, "corners": [0.0] * 6, "diameter_mm": 1.0}
    entries = [
        ScanResult(**common, head="regions", volumes_ml={"CLASS": 1.0}),  # type: ignore[arg-type]
        ScanResult(**common, head="findings", findings={"CLASS": 0.5}),  # type: ignore[arg-type]
        ScanResult(**common, head="boxes", boxes=(box,)),  # type: ignore[arg-type]
        ScanResult(**common, head="candidates", boxes=(of_volume,)),  # type: ignore[arg-type]
    ]
    made = {name: data.decode().splitlines()[0].split(",") for name, data in tables_of(entries).items()}
    assert set(made) == set(TABLES)
    assert made["measurements.csv"] == list(MEASUREMENT_COLUMNS)
    assert made["candidates.csv"] == list(candidate_rows([])[0])
    return made  # type: ignore[return-value]


def _meaning(column: object) -> str:
    """What a column holds: listed above, or that of the field of a measurement."""
    own = dict(_documented(Measurement))
    return {**own, **COMMON, **COLUMNS}[str(column)]
