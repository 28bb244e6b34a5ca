"""What others chose does nothing in a spreadsheet."""

import csv
import io

import pytest

from medssl_cli.base.csv_text import csv_text
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.whole_answers import tables_of
from medssl_cli.tasks.classification.scores import to_csv

FORMULA = '=HYPERLINK("http://example.org","liver")'


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_a_text_that_would_be_computed_stands_behind_an_apostrophe(start: str) -> None:
    (row,) = cells(csv_text([("a", f"{start}1+cmd|' /C calc'!A0")]))

    assert row == ["a", f"'{start}1+cmd|' /C calc'!A0".replace("\r", "\n")]


@pytest.mark.parametrize(
    "cell", [-1, -1.5, "-12.500000", "-1e-06", "+3", "-inf", "liver", "a=b", "left - right", "", None]
)
def test_numbers_and_other_texts_stay(cell: object) -> None:
    assert cells(csv_text([("a", cell)])) == [["a", "" if cell is None else str(cell)]]


def test_names_of_classes_are_no_formulas_in_any_table_of_answers() -> None:
    common = {"name": "n", "status": "done", "input_sha256": "0", "task": "t"}
    box = {"class": FORMULA, "score": 0.5, "is_yes": True, "corners": [0.0] * 4}
    of_volume = {**box, "corners": [0.0] * 6, "diameter_mm": 1.0}
    entries = [
        ScanResult(**common, head="regions", volumes_ml={FORMULA: 1.0}),  # type: ignore[arg-type]
        ScanResult(**common, head="findings", findings={FORMULA: 0.5}),  # type: ignore[arg-type]
        ScanResult(**common, head="boxes", boxes=(box,)),  # type: ignore[arg-type]
        ScanResult(**common, head="candidates", boxes=(of_volume,)),  # type: ignore[arg-type]
    ]
    tables = tables_of(entries)

    assert len(tables) == 5
    for table in tables.values():
        found = [cell for row in cells(table.decode()) for cell in row if "HYPERLINK" in cell]
        assert found
        assert all(cell.startswith("'=") for cell in found)


def test_scores_say_the_same() -> None:
    case = {"item": "i", "patient": "p", "probability": {FORMULA: 0.5}, "target": {FORMULA: 1}}

    assert cells(to_csv({"cases": [case]}))[1] == ["i", "p", f"'{FORMULA}", "0.500000", "1"]
