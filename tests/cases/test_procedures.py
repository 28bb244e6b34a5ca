"""Every procedure that once ended wrongly ends right. They share one small trained model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases.check import NAMES, case_of, problems

pytestmark = pytest.mark.slow

PROCEDURES = [name for name in NAMES if hasattr(case_of(name), "run")]


@pytest.fixture(scope="module", autouse=True)
def _shared_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASES_MODEL", str(tmp_path_factory.mktemp("model")))
        yield


@pytest.mark.parametrize("name", PROCEDURES)
def test_procedure(name: str, tmp_path: Path) -> None:
    assert problems(name, tmp_path) == []
