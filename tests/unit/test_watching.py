"""When what lies in a folder has arrived, and what belongs together; time is what the test says."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from medssl_cli.deploy.again import FIRST_RETRY_S, LONGEST_RETRY_S, MAX_ATTEMPTS
from medssl_cli.deploy.infer import InferSettings
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.results import NOT_SENT, ScanResult
from medssl_cli.deploy.watching import MOST_CHANGING_S, DropFolder, still_changing, watch
from medssl_cli.formats.policy import STRICT
from tests.dicom_factory import ct_series
from tests.toy_model import write_toy_model


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def names(arrivals: DropFolder) -> list[list[str]]:
    return [[path.name for path in paths] for paths in arrivals.due().values()]


def take(arrivals: DropFolder) -> Callable[[Path], bool]:
    return arrivals.take(arrivals.due())


def test_a_file_is_due_when_it_has_not_changed_for_long_enough_and_again_when_it_changes(
    tmp_path: Path, clock: Clock
) -> None:
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    (tmp_path / "a.nii.gz").write_bytes(b"half")
    assert names(arrivals) == []
    clock.now = 9
    (tmp_path / "a.nii.gz").write_bytes(b"whole of it")
    assert names(arrivals) == []
    clock.now = 18
    assert names(arrivals) == []
    clock.now = 19
    assert names(arrivals) == [["a.nii.gz"]]
    is_wanted = take(arrivals)
    assert is_wanted(tmp_path / "a.nii.gz")
    assert not is_wanted(tmp_path / "b.nii.gz")
    assert names(arrivals) == []
    (tmp_path / "a.nii.gz").write_bytes(b"another")
    clock.now = 20
    assert names(arrivals) == []
    clock.now = 30
    assert names(arrivals) == [["a.nii.gz"]]


def test_a_folder_is_due_as_a_whole(tmp_path: Path, clock: Clock) -> None:
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    ct_series(tmp_path / "study" / "series")
    (tmp_path / "other.nii").write_bytes(b"x")
    arrivals.due()
    clock.now = 9
    (tmp_path / "study" / "late.dcm").write_bytes(b"x")
    arrivals.due()
    clock.now = 10
    assert names(arrivals) == [["other.nii"]]
    clock.now = 19
    assert sorted(map(len, names(arrivals))) == [1, 6]


def test_loose_slices_of_a_study_are_due_together_and_no_other_study_waits(tmp_path: Path, clock: Clock) -> None:
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    for number, path in enumerate(ct_series(tmp_path / ".made", study_uid="1.2.1", series_uid="1.2.1.1")):
        path.rename(tmp_path / f"a{number}.dcm")
    others = ct_series(tmp_path / ".more", study_uid="1.2.2", series_uid="1.2.2.1")
    others[0].rename(tmp_path / "b0.dcm")
    arrivals.due()
    clock.now = 5
    others[1].rename(tmp_path / "b1.dcm")
    arrivals.due()
    clock.now = 11
    assert names(arrivals) == [[f"a{number}.dcm" for number in range(5)]]
    clock.now = 15
    assert names(arrivals)[-1] == ["b0.dcm", "b1.dcm"]


def test_a_file_that_is_being_written_keeps_loose_studies_waiting(tmp_path: Path, clock: Clock) -> None:
    """It may be one of their slices; folders do not wait for it."""
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "scan.nii").write_bytes(b"x")
    first, second = ct_series(tmp_path / ".made", positions_mm=(0, 5))
    first.rename(tmp_path / "0.dcm")
    arrivals.due()
    clock.now = 8
    (tmp_path / "1.dcm").write_bytes(second.read_bytes()[:200])
    arrivals.due()
    clock.now = 12
    assert names(arrivals) == [["scan.nii"]]
    second.rename(tmp_path / "1.dcm")
    arrivals.due()
    clock.now = 22
    assert ["0.dcm", "1.dcm"] in names(arrivals)


LINE = "2026-12-01 02:00:00 a line of a log, as programs write it: done, ä, 12 %\n"


def grown(path: Path, text: str = LINE) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def test_a_log_that_grows_for_ever_keeps_nothing_waiting_and_makes_nothing_taken_again(
    tmp_path: Path, clock: Clock
) -> None:
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    (tmp_path / "study").mkdir()
    ct_series(tmp_path / ".made", positions_mm=(0,))[0].rename(tmp_path / "0.dcm")
    (tmp_path / "study" / "scan.nii").write_bytes(b"x")
    logs = (tmp_path / "run.log", tmp_path / "study" / "run.log")
    taken: list[str] = []
    for second in range(0, 60, 4):
        clock.now = second
        for log in logs:
            grown(log, 3 * LINE)
        units = arrivals.due()
        arrivals.take(units)
        taken += units
        assert arrivals.newly_aside() == []

    assert sorted(name.partition(" ")[0] for name in taken) == ["run.log", "study", "study/"]


def test_a_text_that_is_an_image_or_describes_some_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: ascii\n" + "# a remark\n" * 20 + "\n"
    (tmp_path / "scan.nrrd").write_text(header)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "dataset.json").write_text('{"channel_names": {"0": "CT"}}' + " " * 200)
    for second in range(0, 60, 4):
        clock.now = second
        grown(tmp_path / "scan.nrrd", "1 2 3 4\n")
        grown(tmp_path / "study" / "dataset.json", " ")
        assert names(arrivals) == []
    clock.now += 10
    assert names(arrivals) == [["scan.nrrd"], ["dataset.json"]]


def test_a_file_that_changes_for_too_long_is_set_aside_and_read_when_it_stops(tmp_path: Path, clock: Clock) -> None:
    """It might be an image, by its bytes; what belongs together with it is taken without it after half an hour."""
    arrivals = DropFolder(tmp_path, 10, STRICT, clock=clock)
    ct_series(tmp_path / ".made", positions_mm=(0,))[0].rename(tmp_path / "0.dcm")
    growing = tmp_path / "growing"
    aside: list[tuple[float, Path]] = []
    first_taken = 0.0
    while clock.now < MOST_CHANGING_S + 40:
        grown(growing, "\0\1\2")
        units = arrivals.due()
        aside += [(clock.now, path) for path in arrivals.newly_aside()]
        arrivals.take(units)
        first_taken = first_taken or (clock.now if units else 0.0)
        clock.now += 8

    assert [path for _, path in aside] == [growing]
    assert MOST_CHANGING_S <= aside[0][0] < first_taken <= MOST_CHANGING_S + 16
    clock.now += 10
    assert arrivals.newly_aside() == []
    assert names(arrivals) == [["growing"]]
    grown(growing, "\0")  # it has been whole meanwhile, and has all its time again
    arrivals.due()
    clock.now += 8
    grown(growing, "\0")
    arrivals.due()
    assert arrivals.newly_aside() == []


def test_what_is_set_aside_is_told_of_and_its_outputs_stay_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medssl_cli.deploy.watching.MOST_CHANGING_S", 0.0)  # at its first change
    model, growing = write_toy_model(tmp_path / "model.onnx", modality="CT"), tmp_path / "in" / "growing"
    growing.parent.mkdir()
    said: list[ScanResult] = []

    def is_stopped() -> bool:
        grown(growing, "\0")
        return len(said) > 0

    how = InferSettings("cpu", say=said.append, is_stopped=is_stopped)
    counts = watch(growing.parent, model, settle_s=60, how=how, out=tmp_path / "out")

    assert counts == {"refused": 1}
    (entry,) = json.loads((tmp_path / "out" / "report.json").read_text())["results"]
    assert (entry["place"], entry["status"], entry["code"]) == ("growing", "refused", "E_STILL_CHANGING")
    report = ReportFile(tmp_path / "out" / "report.json", has_journal=True)
    had = replace(said[0], outputs=("a.nii.gz",), outputs_sha256={"a.nii.gz": "0"})
    report.record({}, [had])
    assert still_changing(growing, growing.parent, had.task, report).outputs == had.outputs


def test_hidden_and_unfinished_files_and_the_output_are_not_looked_at(tmp_path: Path, clock: Clock) -> None:
    arrivals = DropFolder(tmp_path, 0, STRICT, tmp_path / "out", clock=clock)
    for name in (".hidden.nii", "a.nii.part", "b.nii.tmp", "out/mask.nii", ".made/c.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    assert names(arrivals) == []


def test_channels_of_a_case_lying_loose_are_due_together(tmp_path: Path, clock: Clock) -> None:
    arrivals = DropFolder(tmp_path, 0, STRICT, are_cases=True, clock=clock)
    for name in ("case_0000.nii", "case_0001.nii"):
        (tmp_path / name).write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(100))

    assert names(arrivals) == [["case_0000.nii", "case_0001.nii"]]


def test_a_folder_that_goes_away_is_waited_for_and_looked_at_again(tmp_path: Path, clock: Clock) -> None:
    arrivals = DropFolder(tmp_path / "share", 0, STRICT, clock=clock)
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "a.nii.gz").write_bytes(b"a")
    take(arrivals)
    (tmp_path / "share").rename(tmp_path / "away")

    assert names(arrivals) == []
    (tmp_path / "away").rename(tmp_path / "share")
    assert names(arrivals) == [["a.nii.gz"]]


def result(code: str = "", *warnings: str) -> ScanResult:
    """What became of a scan."""
    return ScanResult(
        name="a", kind="nifti", key="k", task="t", path="/a", status="refused" if code else "done", code=code,
        warnings=warnings,
    )  # fmt: skip


@pytest.mark.parametrize(("outcome", "is_for_ever"), [(result("", NOT_SENT), True), (result("E_IO"), True),
                                                      (result("E_RUNTIME"), False)])  # fmt: skip
def test_what_has_no_answer_yet_is_taken_again_though_nothing_changes(
    tmp_path: Path, clock: Clock, outcome: ScanResult, is_for_ever: bool
) -> None:
    """A PACS that is down over night, a full disk, a device that fails."""
    arrivals = DropFolder(tmp_path, 0, STRICT, clock=clock)
    (tmp_path / "a.nii.gz").write_bytes(b"a")
    (tmp_path / "b.nii.gz").write_bytes(b"b")

    def answer(outcome: ScanResult) -> None:
        units = arrivals.due()
        arrivals.take(units)
        arrivals.conclude(units, [outcome])

    answer(outcome)
    assert names(arrivals) == []
    clock.now = FIRST_RETRY_S
    assert names(arrivals) == [["a.nii.gz"], ["b.nii.gz"]]
    answer(outcome)
    clock.now += FIRST_RETRY_S
    assert names(arrivals) == []
    for _ in range(MAX_ATTEMPTS):
        clock.now += LONGEST_RETRY_S
        answer(outcome)
    clock.now += LONGEST_RETRY_S
    assert bool(names(arrivals)) == is_for_ever
    answer(result())
    clock.now += LONGEST_RETRY_S
    assert names(arrivals) == []
