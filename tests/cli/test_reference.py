"""Pages of docs/reference that are made from the code are the code's. MEDSSL_UPDATE_GOLDEN=1 writes them anew."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from medssl_cli.errors import Exit
from tests import reference

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {"cli.md": reference.cli_page, "codes.md": reference.codes_page, "recipe.md": reference.recipe_page}


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
