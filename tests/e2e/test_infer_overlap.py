"""Consecutive scans at once: read early, written late, all else unchanged; and when that is not done."""

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import StorageError
from medssl_cli.base.files import private_files
from medssl_cli.deploy.infer import InferReport, infer
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.scan_task import ScanTask
from medssl_cli.formats.nifti import write_nifti
from tests.batch import AFFINE, make_batch, phantom
from tests.toy_model import write_toy_model

PATIENCE_S = 120.0
"""Only a test that fails waits so long."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx", modality="CT")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[OnnxModel]:
    opened = OnnxModel(path, "cpu", max_ram_bytes=2**33)
    yield opened
    opened.close()


def run(scans: Path, path: Path, model: OnnxModel, out: Path, **options: Any) -> InferReport:
    return infer([scans], path, out=out, model=model, outputs=("nifti", "seg"), **options)


def write_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        write_nifti(folder / f"s{number}.nii.gz", phantom(number), AFFINE)
    return folder


def told(report: InferReport) -> list[ScanResult]:
    return [replace(one, seconds=0.0) for one in report.results]


def test_results_their_order_and_all_files_are_those_of_one_after_the_other(
    tmp_path: Path, path: Path, model: OnnxModel
) -> None:
    make_batch(tmp_path / "in", 6)

    reports = [
        run(tmp_path / "in", path, model, tmp_path / name, overlap=name == "at-once") for name in ("at-once", "apart")
    ]

    assert told(reports[0]) == told(reports[1])
    masks = [
        {one.name: one.read_bytes() for one in (tmp_path / name).glob("*_toy-seg*")} for name in ("at-once", "apart")
    ]
    assert len(masks[0]) >= 6
    assert masks[0] == masks[1]
    again = run(tmp_path / "in", path, model, tmp_path / "at-once")
    assert all(one.resumed for one in again.results if one.status == "done")


def test_the_next_scan_is_read_and_the_last_one_written_while_the_network_works(
    tmp_path: Path, path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_files(tmp_path / "in", 3)
    begun, read = threading.Event(), threading.Event()
    calls: list[int] = []
    answer, written, read_early = OnnxModel.answer, ScanTask.written, ScanTask.read

    def answering(self: OnnxModel, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            begun.set()
            assert read.wait(PATIENCE_S)
        return answer(self, *arguments, **options)

    def writing(self: ScanTask, answered: Any) -> ScanResult:
        assert self.scan.name != "s0" or begun.wait(PATIENCE_S)
        return written(self, answered)

    def reading(self: ScanTask) -> Any:
        found = read_early(self)
        if self.scan.name == "s2":
            read.set()
        return found

    monkeypatch.setattr(OnnxModel, "answer", answering)
    monkeypatch.setattr(ScanTask, "written", writing)
    monkeypatch.setattr(ScanTask, "read", reading)
    report = run(source, path, model, tmp_path / "out")

    assert [(one.name, one.status) for one in report.results] == [("s0", "done"), ("s1", "done"), ("s2", "done")]
    assert model.beside_bytes == 0


@pytest.mark.parametrize("reason", ["switched off", "no room"])
def test_without_room_or_wish_each_scan_waits_for_the_one_before(
    tmp_path: Path, path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    source = write_files(tmp_path / "in", 3)
    steps: list[str] = []
    answer, written = OnnxModel.answer, ScanTask.written

    def answering(self: OnnxModel, *arguments: Any, **options: Any) -> Any:
        steps.append("answer")
        return answer(self, *arguments, **options)

    def writing(self: ScanTask, answered: Any) -> ScanResult:
        result = written(self, answered)
        steps.append("written")
        return result

    monkeypatch.setattr(OnnxModel, "answer", answering)
    monkeypatch.setattr(ScanTask, "written", writing)
    monkeypatch.setattr(ScanTask, "read", lambda self: pytest.fail("read early"))
    if reason == "no room":
        monkeypatch.setattr(OnnxModel, "expected_bytes", 2**60)

    report = run(source, path, model, tmp_path / "out", overlap=reason == "no room")

    assert report.count("done") == 3
    assert steps == ["answer", "written"] * 3


def test_a_scan_whose_outputs_may_be_those_of_the_last_one_waits_for_it(
    tmp_path: Path, path: Path, model: OnnxModel
) -> None:
    """Disks that take "A" for "a" cannot be told from others beforehand."""
    source = tmp_path / "in"
    source.mkdir()
    for name in ("scan", "SCAN"):
        write_nifti(source / f"{name}.nii.gz", phantom(), AFFINE)

    report = run(source, path, model, tmp_path / "out")

    assert [(one.name, one.status) for one in report.results] == [("SCAN", "done"), ("scan", "done")]


def test_what_goes_wrong_in_recording_ends_the_call(
    tmp_path: Path, path: Path, model: OnnxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ReportFile.record

    def recording(self: ReportFile, header: Any, results: Any, **options: Any) -> None:
        if any(one.name == "s1" for one in results):
            raise StorageError("E_IO", "the disk is full")
        record(self, header, results, **options)

    monkeypatch.setattr(ReportFile, "record", recording)
    with pytest.raises(StorageError, match="E_IO"):
        run(write_files(tmp_path / "in", 4), path, model, tmp_path / "out")
    monkeypatch.undo()

    again = run(tmp_path / "in", path, model, tmp_path / "out")
    assert [one.status for one in again.results] == ["done"] * 4
    assert again.results[0].resumed


def test_outputs_follow_the_umask_of_the_user_in_every_thread(tmp_path: Path, path: Path, model: OnnxModel) -> None:
    source = write_files(tmp_path / "in", 2)
    before = os.umask(0o027)
    try:
        with private_files():
            run(source, path, model, tmp_path / "out")
    finally:
        os.umask(before)

    modes = {stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
