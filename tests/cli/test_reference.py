"""Pages of docs/reference that are made from the code are the code's. MEDSSL_UPDATE_GOLDEN=1 writes them anew."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medssl_cli.base.codes import CODES
from medssl_cli.base.errors import Exit
from tests import reference
from tests.report_reference import report_page

TESTS = Path(__file__).parents[1]
FOLDER = TESTS.parent / "docs" / "reference"
PAGES = {
    "cli.md": reference.cli_page,
    "codes.md": reference.codes_page,
    "recipe.md": reference.recipe_page,
    "report.md": report_page,
}


@pytest.mark.parametrize(("name", "make"), PAGES.items(), ids=list(PAGES))
def test_the_page_says_what_the_code_says(name: str, make: Callable[[], str]) -> None:
    text = make().rstrip("\n") + "\n"
    if os.environ.get("MEDSSL_UPDATE_GOLDEN"):
        (FOLDER / name).write_text(text, encoding="utf-8")

    assert (FOLDER / name).read_text(encoding="utf-8") == text


def test_every_exit_code_is_explained_once() -> None:
    text = (FOLDER / "exit-codes.md").read_text(encoding="utf-8")

    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]

    assert codes == [int(code) for code in Exit]


def test_every_test_and_code_of_the_page_on_reliability_exists() -> None:
    text = (FOLDER / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+/test_\w+)::(\w+)`", text)
    sources = {file: (TESTS / f"{file}.py").read_text(encoding="utf-8") for file, _ in named}

    assert len(named) > 120
    assert [name for file, name in named if not re.search(rf"def test_{name}\(", sources[file])] == []
    assert sorted(set(re.findall(r"`([EWS]_[A-Z0-9_]+)`", text)) - set(CODES)) == []


def test_the_page_on_reliability_leaves_no_row_of_the_catalogue_out() -> None:
    rows = re.findall(r"^\| ([A-HP]\d+) \|", (FOLDER / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE)
    last = {"A": 10, "B": 6, "C": 14, "D": 11, "E": 9, "F": 15, "P": 7, "H": 14}

    assert rows == [
        f"{letter}{number}" for letter, end in last.items() for number in range(0 if letter == "E" else 1, end + 1)
    ]
