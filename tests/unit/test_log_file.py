"""A log that cannot be written costs its lines, and nothing else."""

import gc
import shutil
from pathlib import Path

import pytest

from medssl_cli.cli.log_file import LogFile


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_that_goes_away_and_comes_back_costs_the_lines_between(tmp_path: Path) -> None:
    place = tmp_path / "log" / "listen.log"
    place.parent.mkdir()
    log = LogFile(place)
    log.note("first")
    shutil.rmtree(place.parent)
    log.note("lost")
    place.parent.mkdir()

    log.note("last")

    assert place.read_text().endswith("INFO last\n")
    del log
    gc.collect()


def test_without_a_file_nothing_is_written_anywhere(capfd: pytest.CaptureFixture[str]) -> None:
    LogFile(None).note("a name", is_problem=True)

    assert capfd.readouterr() == ("", "")
