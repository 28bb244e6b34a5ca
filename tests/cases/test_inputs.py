"""Every input of a kind that was once taken wrongly is stored right, refused, or noted."""

from pathlib import Path

import pytest

from tests.cases.check import NAMES, case_of, problems

pytestmark = pytest.mark.slow

INPUTS = [name for name in NAMES if hasattr(case_of(name), "build")]


def test_every_case_is_carried_out():
    procedures = [name for name in NAMES if hasattr(case_of(name), "run")]

    assert len(INPUTS) >= 42
    assert len(procedures) >= 30
    assert sorted(INPUTS + procedures) == NAMES


@pytest.mark.parametrize("name", INPUTS)
def test_input(name: str, tmp_path: Path) -> None:
    assert problems(name, tmp_path) == []
