"""A batch: whatever happens to one scan costs that scan, everything seen is told of, and the report is shared."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from medssl_cli.base.errors import Exit, InputError, StorageError, UsageError
from medssl_cli.base.files import storage_errors
from medssl_cli.cli.infer_output import report_text
from medssl_cli.deploy.infer import InferReport, InferSettings, infer
from medssl_cli.deploy.naming import series_name
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.formats.nifti import read_nifti, write_nifti
from medssl_cli.formats.policy import Policy
from medssl_cli.imaging.measuring import Measurement
from tests import warm
from tests.batch import AFFINE, INSIDE_HU, SHAPE, make_batch, phantom, write_series
from tests.dicom_factory import edit
from tests.environment import ENVIRONMENT
from tests.toy_model import write_toy_model

OUTPUTS = {"outputs": ("nifti", "seg")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx", modality="CT")


def run(scans: Path | list[Path], model: Path, out: Path, **options: Any) -> InferReport:
    return infer(scans if isinstance(scans, list) else [scans], model, out=out, device="cpu", **options)


def written(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "report.json").read_text())["results"]
    return found


def mask_of(out: Path, entry: dict[str, Any]) -> Any:
    (name,) = [name for name in entry["outputs"] if name.endswith(".nii.gz")]
    return read_nifti(out / name).image.volume.voxels[0] > 0


def by_place(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["place"]: entry for entry in written(out)}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Volumes that the model was asked to segment."""
    seen: list[Any] = []
    segment = OnnxModel.segment

    def counting(self: OnnxModel, volume: Any, **options: Any) -> Any:
        seen.append(volume)
        return segment(self, volume, **options)

    monkeypatch.setattr(OnnxModel, "segment", counting)
    return seen


def test_ten_scans_broken_in_ten_ways_cost_nobody_elses_mask(tmp_path: Path, model: Path) -> None:
    batch = make_batch(tmp_path / "in", 9)

    report = run(batch.folder, model, tmp_path / "out", **OUTPUTS)

    assert report.exit_code == Exit.PARTIAL
    found = by_place(tmp_path / "out")
    assert {place: entry["code"] for place, entry in found.items() if entry["status"] == "refused"} == batch.codes
    assert {place for place, entry in found.items() if entry["status"] == "done"} == set(batch.masks)
    for place, truth in batch.masks.items():
        assert mask_of(tmp_path / "out", found[place]).sum() == truth.sum()
        if not place.startswith("series"):
            np.testing.assert_array_equal(mask_of(tmp_path / "out", found[place]), truth)
    assert all(entry["message"] and entry["hint"] for entry in found.values() if entry["status"] == "refused")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("unexpected"), "E_SCAN_FAILED"),
        (RuntimeError("Failed to allocate memory for image"), "E_TOO_BIG"),
        (MemoryError(), "E_TOO_BIG"),
        (ValueError("shape"), "E_SCAN_FAILED"),
        (InputError("E_RUNTIME", "not finite"), "E_RUNTIME"),
        (OSError("disk"), "E_SCAN_FAILED"),
        (RecursionError(), "E_SCAN_FAILED"),
    ],
    ids=repr,
)
def test_an_exception_of_any_kind_costs_one_scan(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    for name, number in (("a", 0), ("b", 1), ("c", 2)):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_nifti(tmp_path / f"in/{name}.nii.gz", phantom(number), AFFINE)
    segment = OnnxModel.segment

    def failing(self: OnnxModel, volume: Any, **options: Any) -> Any:
        if volume.voxels[0, 3, 3, 2] == INSIDE_HU and volume.voxels[0, 7, 3, 2] == INSIDE_HU:
            raise error
        return segment(self, volume, **options)

    monkeypatch.setattr(OnnxModel, "segment", failing)

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert [(one.name, one.status, one.code) for one in report.results] == [
        ("a", "done", ""), ("b", "refused", code), ("c", "done", ""),
    ]  # fmt: skip
    assert [entry["code"] for entry in written(tmp_path / "out")] == ["", code, ""]


def test_a_full_disk_ends_a_batch_and_costs_no_scan(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, calls: list[Any]
) -> None:
    """Thousands of scans would be computed in vain, and refused as if something were wrong with them."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_nifti(tmp_path / "in" / f"{number}.nii.gz", phantom(number), AFFINE)

    def full(*_: Any, **__: Any) -> None:
        with storage_errors("a mask"):
            raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("medssl_cli.deploy.scan_task.publish", full)
        with pytest.raises(StorageError, match="ENOSPC") as raised:
            run(tmp_path / "in", model, tmp_path / "out")
    assert raised.value.exit_code == Exit.IO
    assert len(calls) <= 2

    assert {one.status for one in run(tmp_path / "in", model, tmp_path / "out").results} == {"done"}


def test_each_entry_says_whose_scan_it_is_and_what_made_its_mask(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "in" / "deep" / "ct", 7)
    write_nifti(tmp_path / "in" / "deep" / "scan.nii.gz", phantom(), AFFINE)

    report = run(tmp_path / "in", model, tmp_path / "out", **OUTPUTS)

    series, file = by_place(tmp_path / "out")["deep/ct"], by_place(tmp_path / "out")["deep/scan.nii.gz"]
    assert (series["StudyInstanceUID"], series["SeriesInstanceUID"]) == ("1.2.3.7", "1.2.3.7.1")
    assert series["SeriesDescription"] == "phantom 7"
    assert (series["files"], file["files"]) == (SHAPE[2], 1)
    assert series["path"] == str((tmp_path / "in/deep/ct").resolve())
    assert file["path"] == str((tmp_path / "in/deep/scan.nii.gz").resolve())
    for entry in (series, file):
        assert entry["device"] == "cpu"
        assert entry["seconds"] > 0
        assert entry["model_sha256"] == report.model_sha256
        assert set(entry["outputs_sha256"]) == set(entry["outputs"])


def test_the_report_grows_scan_by_scan(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_nifti(tmp_path / f"in/{number}.nii.gz", phantom(number), AFFINE)
    seen: dict[str, int] = {}

    def progress(what: str, done: float, total: float) -> None:
        report = tmp_path / "out" / "report.json"
        seen.setdefault(what, len(json.loads(report.read_text())["results"]) if report.exists() else 0)

    run(tmp_path / "in", model, tmp_path / "out", progress=progress, overlap=False)

    assert seen == {"1/3 0": 0, "2/3 1": 1, "3/3 2": 2}


def test_where_scans_overlap_the_report_is_at_most_one_scan_behind(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        write_nifti(tmp_path / f"in/{number}.nii.gz", phantom(number), AFFINE)
    behind: set[int] = set()

    def progress(what: str, done: float, total: float) -> None:
        report = tmp_path / "out" / "report.json"
        recorded = len(json.loads(report.read_text())["results"]) if report.exists() else 0
        behind.add(int(what.split()[1]) - recorded)

    run(tmp_path / "in", model, tmp_path / "out", progress=progress)

    assert behind <= {0, 1}
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["results"]) == 3


def test_the_same_command_again_computes_nothing(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    batch = make_batch(tmp_path / "in", 3)
    run(batch.folder, model, tmp_path / "out", **OUTPUTS)
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_toy-seg*")}
    assert len(calls) == 3

    again = run(batch.folder, model, tmp_path / "out", **OUTPUTS)

    assert len(calls) == 3
    assert [result.resumed for result in again.results if result.status == "done"] == [True] * 3
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*_toy-seg*")} == first
    assert again.exit_code == Exit.PARTIAL
    assert again.count("done") == 3


@pytest.mark.parametrize("lost", ["mask", "report"])
def test_what_is_missing_is_made_again_and_is_the_same(
    tmp_path: Path, model: Path, calls: list[Any], lost: str
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        write_nifti(tmp_path / f"in/{number}.nii.gz", phantom(number), AFFINE)
    run(tmp_path / "in", model, tmp_path / "out")
    whole = (tmp_path / "out" / "0_toy-seg.nii.gz").read_bytes()
    (tmp_path / "out" / ("0_toy-seg.nii.gz" if lost == "mask" else "report.json")).unlink()

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert report.count("done") == 2
    assert len(calls) == 2 + (1 if lost == "mask" else 2)
    assert (tmp_path / "out" / "0_toy-seg.nii.gz").read_bytes() == whole


def test_a_scan_that_changed_is_not_replaced_in_silence_and_is_refused_before_the_work(
    tmp_path: Path, model: Path, calls: list[Any]
) -> None:
    scan = tmp_path / "in" / "a.nii.gz"
    scan.parent.mkdir()
    write_nifti(scan, phantom(0), AFFINE)
    run(scan.parent, model, tmp_path / "out")
    write_nifti(scan, phantom(1), AFFINE)

    for _ in range(2):
        report = run(scan.parent, model, tmp_path / "out")
        assert [(one.status, one.code) for one in report.results] == [("refused", "E_OUTPUT_EXISTS")]
    assert len(calls) == 1

    run(scan.parent, model, tmp_path / "out", overwrite=True)
    np.testing.assert_array_equal(mask_of(tmp_path / "out", written(tmp_path / "out")[0]), phantom(1) > 50)
    assert len(calls) == 2
    write_nifti(scan, phantom(0), AFFINE)
    assert run(scan.parent, model, tmp_path / "out").results[0].code == "E_OUTPUT_EXISTS"
    write_nifti(scan, phantom(1), AFFINE)
    assert run(scan.parent, model, tmp_path / "out").results[0].resumed
    assert len(calls) == 2


def test_where_things_arrive_a_series_that_grew_replaces_its_answer_and_nothing_else_is_replaced(
    tmp_path: Path, model: Path
) -> None:
    source, opened = tmp_path / "in", InferSettings("cpu").opened(model)
    how = InferSettings("cpu", replaces_grown=True)
    for name in ("grown", "corrected"):
        paths = write_series(source / name, 1 if name == "grown" else 2)
        (source / name).rename(tmp_path / name)
        (source / name).mkdir()
        for path in paths[:7]:
            shutil.copy(tmp_path / name / path.name, path)
    write_nifti(source / "file.nii.gz", phantom(3), AFFINE)

    first = by_path(infer([source], model, out=tmp_path / "out", how=how, model=opened))
    shutil.copytree(tmp_path / "grown", source / "grown", dirs_exist_ok=True)
    shutil.copytree(tmp_path / "corrected", source / "corrected", dirs_exist_ok=True)
    write_nifti(source / "file.nii.gz", phantom(4), AFFINE)
    corrected = tmp_path / "out" / first["corrected"].outputs[0]
    corrected.write_bytes(corrected.read_bytes() + b"by hand")
    second = by_path(infer([source], model, out=tmp_path / "out", how=how, model=opened))
    for path in sorted((source / "grown").iterdir())[:3]:
        path.unlink()  # as when a folder is cleared
    third = by_path(infer([source], model, out=tmp_path / "out", how=how, model=opened))
    opened.close()

    assert {name: one.code for name, one in second.items()} == {
        "grown": "", "corrected": "E_OUTPUT_EXISTS", "file.nii.gz": "E_OUTPUT_EXISTS",
    }  # fmt: skip
    assert third["grown"].code == "E_OUTPUT_EXISTS"
    assert (first["grown"].shape, second["grown"].shape) == ((20, 18, 7), SHAPE)
    assert corrected.read_bytes().endswith(b"by hand")


def by_path(report: InferReport) -> dict[str, ScanResult]:
    """Results by the last part of where they lie."""
    return {Path(one.path).name: one for one in report.results}


def test_a_mask_that_somebody_corrected_is_not_replaced_in_silence(
    tmp_path: Path, model: Path, calls: list[Any]
) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(0), AFFINE)
    run(tmp_path / "a.nii.gz", model, tmp_path / "out")
    mask = tmp_path / "out" / "a_toy-seg.nii.gz"
    write_nifti(mask, np.ones(SHAPE, np.uint8), AFFINE)
    corrected = mask.read_bytes()

    assert run(tmp_path / "a.nii.gz", model, tmp_path / "out").results[0].code == "E_OUTPUT_EXISTS"
    assert mask.read_bytes() == corrected
    assert len(calls) == 1


def test_other_options_and_other_models_are_other_results(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(0), AFFINE)
    run(tmp_path / "a.nii.gz", model, tmp_path / "out")
    other = write_toy_model(tmp_path / "other.onnx", modality="CT", classes={1: "renamed"})

    assert run(tmp_path / "a.nii.gz", other, tmp_path / "out").results[0].code == "E_OUTPUT_EXISTS"
    policy = Policy(nonfinite="background")
    assert run(tmp_path / "a.nii.gz", model, tmp_path / "out", policy=policy).results[0].code == "E_OUTPUT_EXISTS"
    assert len(calls) == 1
    assert run(tmp_path / "a.nii.gz", model, tmp_path / "out").results[0].resumed


def test_calls_into_one_folder_share_the_report(tmp_path: Path, model: Path) -> None:
    other = write_toy_model(tmp_path / "other.onnx", modality="CT", task="other")
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_nifti(tmp_path / f"in/{name}.nii.gz", phantom(), AFFINE)
    for name in "abc":
        run(tmp_path / f"in/{name}.nii.gz", model, tmp_path / "out")
    run(tmp_path / "in/a.nii.gz", other, tmp_path / "out")

    assert sorted((entry["name"], entry["task"]) for entry in written(tmp_path / "out")) == [
        ("a", "other"), ("a", "toy-seg"), ("b", "toy-seg"), ("c", "toy-seg"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "out" / "report.json").read_text())["done"] == 4


def test_calls_at_the_same_time_lose_no_entry(tmp_path: Path, model: Path) -> None:
    names = [f"s{number}" for number in range(12)]
    for name in names:
        write_nifti(tmp_path / f"{name}.nii.gz", phantom(), AFFINE)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: run(tmp_path / f"{name}.nii.gz", model, tmp_path / "out"), names))

    assert sorted(entry["name"] for entry in written(tmp_path / "out")) == sorted(names)


def test_a_report_of_somebody_else_is_kept_and_nothing_is_computed(
    tmp_path: Path, model: Path, calls: list[Any]
) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)
    for number, text in enumerate(('{"mine": 1}', "[]", "no json", '{"results": []}', "")):
        out = tmp_path / f"out{number}"
        out.mkdir()
        (out / "report.json").write_text(text)
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
                run(tmp_path / "a.nii.gz", model, out, overwrite=overwrite)
        assert (out / "report.json").read_text() == text
        assert len(list(out.iterdir())) == 1
    assert calls == []


def test_entries_of_a_report_are_not_trusted(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)
    run(tmp_path / "a.nii.gz", model, tmp_path / "out")
    document = json.loads((tmp_path / "out/report.json").read_text())
    good = document["results"][0]
    measured = good["measurements"]["bright"]
    hostile = [
        None, 1, [], {}, {"name": 1, "status": "done"}, {**good, "outputs": "x"}, {**good, "key": []},
        {**good, "key": "b", "outputs": ["../../a.nii.gz"], "options": 3}, {**good, "outputs_sha256": [1]},
        {**good, "key": "c", "outputs": [["a"]]}, {**good, "key": "d", "warnings": [{}]}, {**good, "status": "won"},
        {**good, "key": "e", "seconds": float("nan")}, {**good, "key": "f", "volumes_ml": {"a": float("inf")}},
        {**good, "key": "g", "study": 5, "StudyInstanceUID": []}, {**good, "key": "h", "options": {"a": [[[]]]}},
        {**good, "key": "k", "measurements": {"a": {"voxels": 1}}}, {**good, "key": "l", "measurements": [1]},
        {**good, "key": "m", "measurements": {"a": {**measured, "mean": "much"}}},
        {**good, "key": "n", "measurements": {"a": {**measured, "extent_mm": [1.0]}}},
        {**good, "key": "i", "shape": [1]}, {**good, "key": "j", "files": True, "resumed": 1},
    ]  # fmt: skip
    (tmp_path / "out/report.json").write_text(json.dumps({**document, "results": [*hostile, good]}))

    assert run(tmp_path / "a.nii.gz", model, tmp_path / "out").results[0].resumed
    assert [entry["name"] for entry in written(tmp_path / "out")] == ["a"]


def test_on_a_disk_that_takes_one_name_for_another_no_mask_takes_the_place_of_anothers(
    tmp_path: Path, model: Path
) -> None:
    write_nifti(tmp_path / "A.nii.gz", phantom(1), AFFINE)
    write_nifti(tmp_path / "a.nii.gz", phantom(2), AFFINE)
    run(tmp_path / "A.nii.gz", model, tmp_path / "out", outputs=("nifti",))
    (tmp_path / "out/a_toy-seg.nii.gz").hardlink_to(tmp_path / "out/A_toy-seg.nii.gz")  # one file, two spellings

    (result,) = run(tmp_path / "a.nii.gz", model, tmp_path / "out", outputs=("nifti",), overwrite=True).results

    assert (result.status, result.code) == ("refused", "E_OUTPUT_EXISTS")
    assert (tmp_path / "out/a_toy-seg.nii.gz").samefile(tmp_path / "out/A_toy-seg.nii.gz")


def test_names_that_others_chose_do_not_steer_a_terminal(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/\x1b]0;title\x07.txt").touch()

    told = report_text(run(tmp_path / "in", model, tmp_path / "out"))

    assert "\\x1b]0;title\\x07.txt: skipped" in told
    assert all(line.isprintable() for line in told.split("\n"))


def test_a_refusal_is_forgotten_when_its_scan_is_mended(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    lost = write_series(tmp_path / "in" / "ct", 3)[4]
    (tmp_path / "lost").write_bytes(lost.read_bytes())
    lost.unlink()
    write_nifti(tmp_path / "in/b.nii.gz", phantom(), AFFINE)
    run(tmp_path / "in", model, tmp_path / "out")
    assert sorted(entry["status"] for entry in written(tmp_path / "out")) == ["done", "refused", "refused"]
    write_nifti(tmp_path / "in/a.nii.gz", phantom(), AFFINE)
    shutil.move(tmp_path / "lost", lost)

    run(tmp_path / "in", model, tmp_path / "out")

    assert [entry["status"] for entry in written(tmp_path / "out")] == ["done"] * 3


def test_a_file_that_was_written_by_nobody_known_is_never_replaced(
    tmp_path: Path, model: Path, calls: list[Any]
) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)
    (tmp_path / "out").mkdir()
    mask = tmp_path / "out" / "a_toy-seg.nii.gz"
    write_nifti(mask, np.zeros((3, 3, 3), np.uint8), np.eye(4))
    before = mask.read_bytes()

    for overwrite in (False, True):
        (result,) = run(tmp_path / "a.nii.gz", model, tmp_path / "out", overwrite=overwrite).results
        assert (result.status, result.code) == ("refused", "E_OUTPUT_EXISTS")
        assert "-o" in result.hint
    assert mask.read_bytes() == before
    assert calls == []


@pytest.mark.parametrize("make", ["pipe", "link", "folder", "dangling link"])
def test_an_output_never_takes_the_place_of_a_special_file(
    tmp_path: Path, model: Path, calls: list[Any], make: str
) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)
    (tmp_path / "out").mkdir()
    mask, target = tmp_path / "out" / "a_toy-seg.nii.gz", tmp_path / "precious"
    target.write_bytes(b"precious")
    if make == "pipe":
        os.mkfifo(mask)
    elif make == "folder":
        mask.mkdir()
    else:
        mask.symlink_to(target if make == "link" else tmp_path / "nowhere")
    before = mask.lstat()

    (result,) = run(tmp_path / "a.nii.gz", model, tmp_path / "out", overwrite=True).results

    assert (result.status, result.code) == ("refused", "E_OUTPUT_SPECIAL")
    assert mask.lstat() == before
    assert target.read_bytes() == b"precious"
    assert calls == []


def test_an_input_is_no_output_whatever_it_is_called_by(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    scan = tmp_path / "scan.nii.gz"
    write_nifti(scan, phantom(), AFFINE)
    before = scan.read_bytes()
    (tmp_path / "hard.nii.gz").hardlink_to(scan)
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)

    for out in (scan, tmp_path / "hard.nii.gz", tmp_path / "other" / "scan.nii.gz"):
        for overwrite in (False, True):
            (result,) = run(scan, model, out, overwrite=overwrite).results
            assert (result.status, result.code) == ("refused", "E_OUTPUT_EXISTS")
    with pytest.raises(UsageError, match="E_USAGE"):
        run([tmp_path / "other"], model, tmp_path)

    assert scan.read_bytes() == before
    assert calls == []


def test_names_stay_when_others_come_and_go(tmp_path: Path, model: Path) -> None:
    for number in (5, 6):
        write_series(tmp_path / "flat", number)
    (tmp_path / "flat" / "p").mkdir()
    write_nifti(tmp_path / "flat/scan.nii.gz", phantom(0), AFFINE)
    write_nifti(tmp_path / "flat/p/scan.nii.gz", phantom(1), AFFINE)

    def names() -> dict[str, str]:
        report = run(tmp_path / "flat", model, tmp_path / "out", dry_run=True)
        return {one.series or one.place: one.name for one in report.results if one.status == "pending"}

    first = names()
    write_series(tmp_path / "flat", 1)
    write_nifti(tmp_path / "flat/p/scan.nii", phantom(2), AFFINE)
    write_nifti(tmp_path / "flat/p_scan.nii.gz", phantom(2), AFFINE)
    (tmp_path / "flat" / "more" / "p").mkdir(parents=True)
    write_nifti(tmp_path / "flat/more/p/scan.nii.gz", phantom(2), AFFINE)
    second = names()

    assert len(first) == 4
    assert first.items() <= second.items()
    assert len(set(second.values())) == len(second) == 8
    for path in (tmp_path / "flat").glob("5-*.dcm"):
        path.rename(path.with_name(f"z{path.name}"))
    (tmp_path / "flat/scan.nii.gz").unlink()
    third = names()
    assert third.items() == second.items() - {("scan.nii.gz", "scan")}


def test_files_of_one_name_under_several_inputs_all_get_masks(tmp_path: Path, model: Path) -> None:
    scans = []
    for number, folder in enumerate(("p1", "p2", "p3")):
        (tmp_path / folder).mkdir()
        scans.append(tmp_path / folder / "scan.nii.gz")
        write_nifti(scans[-1], phantom(number), AFFINE)

    report = run(scans, model, tmp_path / "out")
    backwards = run(scans[::-1], model, tmp_path / "out2")

    assert report.count("done") == 3
    found = {result.path: result.name for result in report.results}
    assert len(set(found.values())) == 3
    assert found == {result.path: result.name for result in backwards.results}
    for number, scan in enumerate(scans):
        entry = next(one for one in written(tmp_path / "out") if one["path"] == str(scan.resolve()))
        np.testing.assert_array_equal(mask_of(tmp_path / "out", entry), phantom(number) > 50)


def test_a_name_in_the_folder_stays_its_first_scans(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    scans = []
    for number, folder in enumerate(("p1", "p2")):
        (tmp_path / folder).mkdir()
        scans.append(tmp_path / folder / "scan.nii.gz")
        write_nifti(scans[-1], phantom(number), AFFINE)
    for overwrite in (False, True, False):
        for scan in scans:
            assert run(scan, model, tmp_path / "out", overwrite=overwrite).count("done") == 1

    assert len(calls) == 2
    for number, scan in enumerate(scans):
        entry = next(one for one in written(tmp_path / "out") if one["path"] == str(scan.resolve()))
        np.testing.assert_array_equal(mask_of(tmp_path / "out", entry), phantom(number) > 50)


def test_one_named_file_is_another_scans_only_if_that_is_said(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    for number in range(2):
        write_nifti(tmp_path / f"{number}.nii.gz", phantom(number), AFFINE)
    out = tmp_path / "out" / "mask.nii.gz"
    run(tmp_path / "0.nii.gz", model, out)

    assert run(tmp_path / "1.nii.gz", model, out).results[0].code == "E_OUTPUT_EXISTS"
    assert len(calls) == 1
    assert run(tmp_path / "1.nii.gz", model, out, overwrite=True).count("done") == 1
    np.testing.assert_array_equal(read_nifti(out).image.volume.voxels[0] > 0, phantom(1) > 50)
    entries = json.loads((out.parent / "mask.report.json").read_text())["results"]
    assert [entry["name"] for entry in entries] == ["1"]


def test_names_with_and_without_the_tasks_word_do_not_meet(tmp_path: Path) -> None:
    models = [write_toy_model(tmp_path / f"{n}.onnx", modality="CT", task=t) for n, t in (("1", "b_c"), ("2", "c"))]
    write_nifti(tmp_path / "a.nii.gz", phantom(0), AFFINE)
    write_nifti(tmp_path / "a_b.nii.gz", phantom(1), AFFINE)

    assert run(tmp_path / "a.nii.gz", models[0], tmp_path / "out").count("done") == 1
    (result,) = run(tmp_path / "a_b.nii.gz", models[1], tmp_path / "out", overwrite=True).results

    assert (result.status, result.code) == ("refused", "E_OUTPUT_EXISTS")
    np.testing.assert_array_equal(mask_of(tmp_path / "out", written(tmp_path / "out")[0]), phantom(0) > 50)


def test_everything_that_ingest_reads_is_segmented(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_nifti(folder / "a.nii.gz", phantom(), AFFINE)
    image = sitk.ReadImage(str(folder / "a.nii.gz"))
    for name in ("b.nrrd", "c.mha"):
        sitk.WriteImage(image, str(folder / name))
    with zipfile.ZipFile(folder / "d.zip", "w") as archive:
        archive.write(folder / "a.nii.gz", "inside/e.nii.gz")
        for path in write_series(tmp_path / "ct", 4):
            archive.write(path, f"ct/{path.name}")

    report = run(folder, model, tmp_path / "out", outputs=("nifti",))

    found = by_place(tmp_path / "out")
    assert set(found) == {"a.nii.gz", "b.nrrd", "c.mha", "d.zip/inside/e.nii.gz", "d.zip/ct"}
    assert report.exit_code == Exit.OK
    for place in ("a.nii.gz", "d.zip/inside/e.nii.gz"):
        np.testing.assert_array_equal(mask_of(tmp_path / "out", found[place]), phantom() > 50)
    for place in ("b.nrrd", "c.mha"):
        assert found[place]["volumes_ml"] == pytest.approx(found["a.nii.gz"]["volumes_ml"], rel=1e-5)


def test_everything_that_is_seen_is_told_of(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "in"
    (folder / "labels").mkdir(parents=True)
    write_nifti(folder / "a.nii.gz", phantom(), AFFINE)
    write_nifti(folder / "a_seg.nii.gz", (phantom() > 0).astype(np.uint8), AFFINE)
    write_nifti(folder / "labels" / "x.nii.gz", (phantom() > 0).astype(np.uint8), AFFINE)
    (folder / "notes.txt").write_text("notes")
    (folder / "empty").write_bytes(b"")
    os.mkfifo(folder / "pipe")
    (tmp_path / "elsewhere").mkdir()
    (folder / "out-link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "again.nii.gz").symlink_to(folder / "a.nii.gz")
    (folder / ".hidden.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes())
    for path in write_series(folder / "ct", 2):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))

    run(folder, model, tmp_path / "out", outputs=("nifti",))

    found = {place: entry["code"] for place, entry in by_place(tmp_path / "out").items() if entry["status"] != "done"}
    assert found == {
        "a_seg.nii.gz": "S_LABEL_MAP",
        "labels/x.nii.gz": "S_LABEL_MAP",
        "notes.txt": "S_NOT_AN_IMAGE",
        "empty": "S_NOT_AN_IMAGE",
        "pipe": "S_SPECIAL_FILE",
        "out-link": "S_LINK_OUTSIDE",
        "dangling": "S_LINK_OUTSIDE",
        "again.nii.gz": "S_DUPLICATE",
        "ct": "S_DUPLICATE",
    }
    done = [entry["place"] for entry in written(tmp_path / "out") if entry["status"] == "done"]
    assert sorted(done) == [".hidden.nii.gz", "a.nii.gz", "ct"]


def test_a_label_map_that_is_named_itself_is_a_scan(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "scan_seg.nii.gz", phantom(), AFFINE)

    assert run(tmp_path / "scan_seg.nii.gz", model, tmp_path / "out").count("done") == 1


def test_what_was_named_twice_is_segmented_once(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_nifti(folder / "a.nii.gz", phantom(), AFFINE)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)

    report = run([folder, folder / "a.nii.gz", tmp_path / "link", folder], model, tmp_path / "out")

    assert [one.status for one in report.results] == ["done"]
    assert len(calls) == 1


def test_a_series_is_put_together_across_folders_and_inputs(tmp_path: Path, model: Path) -> None:
    files = write_series(tmp_path / "one", 3)
    for folder, part in (("two", files[3:6]), ("three/deep", files[6:])):
        (tmp_path / folder).mkdir(parents=True)
        for path in part:
            path.rename(tmp_path / folder / path.name)

    report = run([tmp_path / "two", tmp_path / "one", tmp_path / "three"], model, tmp_path / "out")

    (result,) = report.results
    assert (result.status, result.shape, result.files) == ("done", SHAPE, SHAPE[2])
    assert result.name == series_name("CT", "1.2.3.3", "1.2.3.3.1")


def test_repairs_are_those_of_ingest(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "in" / "gap", 1)[4].unlink()
    four = sitk.JoinSeries([sitk.GetImageFromArray(phantom(number).T.copy()) for number in range(3)])
    sitk.WriteImage(four, str(tmp_path / "in" / "four.nii.gz"))

    strict = run(tmp_path / "in", model, tmp_path / "out")
    policy = Policy(gaps="interpolate", split_4d=True)
    mended = run(tmp_path / "in", model, tmp_path / "out", policy=policy, outputs=("nifti",))

    assert {one.code for one in strict.results} == {"E_MISSING_SLICES", "E_4D_INPUT"}
    assert all("--" in one.hint for one in strict.results)
    assert mended.count("done") == 4
    images = sorted((one for one in mended.results if one.place == "four.nii.gz"), key=lambda one: one.key)
    assert len({one.name for one in images}) == 3
    for number, one in enumerate(images):
        mask = read_nifti(tmp_path / "out" / one.outputs[0]).image.volume.voxels[0]
        np.testing.assert_array_equal(mask, phantom(number) > 50)
    (gap,) = [one for one in mended.results if one.place == "gap"]
    assert (gap.shape, gap.repairs) == (SHAPE, ("gaps=interpolate",))


def test_masks_of_any_call_are_no_scans_wherever_they_lie(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    study = tmp_path / "study"
    write_series(study / "ct", 1)
    write_nifti(study / "a.nii.gz", phantom(), AFFINE)
    for number in range(3):
        run(study, model, study / f"out{number}", **OUTPUTS)
        assert len(list((study / f"out{number}").glob("*.nii.gz"))) == 2
    (study / "moved").mkdir()
    for path in (study / "out0").glob("*_toy-seg*"):
        shutil.copy(path, study / "moved" / f"renamed{''.join(path.suffixes[-2:])}")

    report = run(study, model, tmp_path / "out", **OUTPUTS)

    assert report.count("done") == 2
    predicted = [one.place for one in report.results if one.code == "S_PREDICTION"]
    assert sorted(place for place in predicted if place.startswith("moved")) == [
        "moved/renamed.dcm",
        "moved/renamed.nii.gz",
    ]
    assert len(predicted) == 2 + 3 * 4  # of each call two masks, a segmentation and a table
    assert len(calls) == 4 * 2


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    batch = make_batch(tmp_path / "in", 3)
    run(batch.folder / "scan0.nii.gz", model, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    report = run(batch.folder, model, tmp_path / "out", dry_run=True)

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert len(calls) == 1
    assert (report.count("done"), report.count("pending")) == (1, 2 + 7)  # what only the voxels tell is not known yet
    run(batch.folder, model, tmp_path / "nowhere", dry_run=True)
    assert not (tmp_path / "nowhere").exists()


def test_series_can_be_chosen(tmp_path: Path, model: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / "in", number)
    write_nifti(tmp_path / "in/a.nii.gz", phantom(), AFFINE)

    report = run(tmp_path / "in", model, tmp_path / "out", only_series=["1.2.3.2.1", "a"])

    assert sorted(one.name for one in report.results) == [series_name("CT", "1.2.3.2", "1.2.3.2.1"), "a"]
    with pytest.raises(UsageError, match="E_NOT_FOUND"):
        run(tmp_path / "in", model, tmp_path / "out", only_series=["1.2.3"])


def test_a_stop_request_gives_up_the_scan_at_work_and_the_next_call_does_the_rest(
    tmp_path: Path, model: Path, calls: list[Any]
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_nifti(tmp_path / f"in/{number}.nii.gz", phantom(number), AFFINE)
    stop = threading.Event()

    def progress(what: str, done: float, total: float) -> None:
        if what.startswith("3/4"):
            stop.set()

    report = run(tmp_path / "in", model, tmp_path / "out", progress=progress, is_stopped=stop.is_set)

    assert (report.count("done"), report.not_reached) == (2, 2)
    assert [entry["name"] for entry in written(tmp_path / "out")] == ["0", "1"]
    rest = run(tmp_path / "in", model, tmp_path / "out")
    assert [one.resumed for one in rest.results] == [True, True, False, False]
    assert len(calls) == 5


def test_a_preview_that_cannot_be_drawn_costs_no_mask(tmp_path: Path, model: Path) -> None:
    def draw(*_: object) -> bytes:
        raise ZeroDivisionError

    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)

    (result,) = run(tmp_path / "a.nii.gz", model, tmp_path / "out", preview=draw).results

    assert (result.status, result.warnings) == ("done", ("W_PREVIEW_NOT_WRITTEN",))
    assert result.outputs == ("a_toy-seg.nii.gz",)
    assert run(tmp_path / "a.nii.gz", model, tmp_path / "out", preview=draw).results[0].resumed


def test_outputs_follow_the_umask(tmp_path: Path, model: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", phantom(), AFFINE)
    command = [sys.executable, "-m", "medssl_cli", "infer", tmp_path / "a.nii.gz", "-t", model, "-q", "--device", "cpu"]

    for umask, (file, folder) in {0o022: (0o644, 0o755), 0o027: (0o640, 0o750), 0o077: (0o600, 0o700)}.items():
        out = tmp_path / f"new{umask}" / "out"
        subprocess.run([*command, "-o", out], check=True, env=ENVIRONMENT, umask=umask, capture_output=True)
        assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {file}
        assert {path.stat().st_mode & 0o777 for path in (out, out.parent)} == {folder}
        assert len(list(out.iterdir())) == 5  # mask, picture, measurements, report, its lines


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_ends_a_batch_with_its_report(tmp_path: Path, model: Path, number: int, code: int) -> None:
    (tmp_path / "in").mkdir()
    for scan in range(30):
        write_nifti(tmp_path / f"in/{scan}.nii.gz", phantom(scan, (90, 80, 40)), AFFINE)
    out = tmp_path / "out"
    command = ["infer", tmp_path / "in", "-t", model, "-o", out, "--device", "cpu", "--no-preview"]
    process = warm.start(command, kind="reading")
    while process.poll() is None and not list(out.glob("*.nii.gz")):
        threading.Event().wait(0.01)

    process.send_signal(number)
    _, talk = process.communicate()

    assert process.returncode == code, talk
    masks = {path.name for path in out.glob("*.nii.gz")}
    assert 0 < len(masks) < 30
    assert {name for entry in written(out) for name in entry["outputs"]} == masks


def test_every_field_of_an_entry_survives_the_report() -> None:
    result = ScanResult(
        "n", "done", "dicom", "k", "t", "E_IO", "m", "h", ("W_A",), ("r",), "/p", "p", "1.2", "3.4", "d", 5, (1, 2, 3),
        (1.0, 2.0, 3.0), {"a": 1.5}, 2.5, "cpu", "i", "s", {"gaps": "interpolate"}, ("o",), {"o": "x"}, True,
        "boxes", {"f": 0.5}, ({"class": "b", "score": 0.5, "is_yes": True, "corners": [0.0, 1.0, 2.0, 3.0]},),
        {"f": 0.4}, {"flair": "case/flair.nii.gz"}, ("PACS",), {"OTHER": {"a.dcm": "taken"}}, {"needed": 5},
        {"distance": 1.5},
        {"a": Measurement(3, 1.5, ("left",), -1.0, 0.5, -2.0, 3.5, 7.5, 2.5, 4, (1.0, 2.0, 3.0), (-1.0, 0.0, 2.5), 2)},
        "HU",
    )  # fmt: skip

    assert ScanResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_time_points_of_a_multi_frame_file_keep_their_names(tmp_path: Path) -> None:
    from tests.cases._dicom import enhanced

    model = write_toy_model(tmp_path / "model.onnx")
    times = [np.maximum(phantom(number), 0) for number in range(3)]
    enhanced(tmp_path / "in" / "mf.dcm", times, spacing=(0.9, 0.7, 2.5))

    report = run(tmp_path / "in", model, tmp_path / "out", outputs=("nifti",))

    assert [one.status for one in report.results] == ["done"] * 3
    assert len({one.name for one in report.results}) == 3
    expected_ml = 5 * 8 * 3 * 0.9 * 0.7 * 2.5 / 1000
    assert [one.volumes_ml["bright"] for one in report.results] == pytest.approx([expected_ml] * 3)


def test_a_description_that_is_no_text_costs_nothing(tmp_path: Path, model: Path) -> None:
    for path in write_series(tmp_path / "ct", 1):
        data = path.read_bytes()
        assert data.count(b"phantom 1") == 1
        path.write_bytes(data.replace(b"phantom 1", b"ph\xff\xfe\0\0\0 1"))

    assert run(tmp_path / "ct", model, tmp_path / "out", outputs=("nifti",)).count("done") == 1


def test_what_the_segmentation_does_not_take_over_and_why_there_is_none_is_said(tmp_path: Path, model: Path) -> None:
    for path in write_series(tmp_path / "in" / "odd", 1):
        edit(path, PatientBirthDate="1.1.1970")
    for number, path in enumerate(write_series(tmp_path / "in" / "nameless", 2)):
        edit(path, SOPInstanceUID=f"no uid {number}")

    run(tmp_path / "in", model, tmp_path / "out", **OUTPUTS)

    odd, nameless = by_place(tmp_path / "out")["odd"], by_place(tmp_path / "out")["nameless"]
    assert odd["status"] == nameless["status"] == "done"
    assert "W_SEG_ATTRIBUTES" in odd["warnings"]
    assert "PatientBirthDate" in odd["message"]
    assert len(odd["outputs"]) == 2
    assert {"W_SEG_NOT_WRITTEN", "E_SEG_SOURCE"} <= set(nameless["warnings"])
    assert "SOPInstanceUID" in nameless["message"]
    assert len(nameless["outputs"]) == 1


@pytest.mark.parametrize("index", [0, 4, 9])
def test_a_slice_that_is_refused_takes_its_series_with_it_wherever_it_lies(
    tmp_path: Path, model: Path, index: int
) -> None:
    path = write_series(tmp_path / "in" / "ct", 1)[index]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert report.exit_code == Exit.NOTHING
    assert not list((tmp_path / "out").glob("*.nii.gz"))
    assert {one.status for one in report.results} == {"refused"}


def test_a_label_map_that_only_its_voxels_tell_is_no_scan(tmp_path: Path, model: Path, calls: list[Any]) -> None:
    """Two folders side by side with equal names say that the files belong together, and not which is which."""
    noise = np.random.default_rng(0).integers(-1000, 300, SHAPE).astype(np.int16)
    for folder, voxels in (("one", noise), ("two", (noise > 0).astype(np.uint8))):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for name in "ab":
            write_nifti(tmp_path / "in" / folder / f"{name}.nii.gz", voxels, AFFINE)
    turned = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
    write_nifti(tmp_path / "in" / "two" / "b.nii.gz", (noise > 0).astype(np.uint8), turned)

    report = run(tmp_path / "in", model, tmp_path / "out")

    assert {one.place: one.code for one in report.results} == {
        "one/a.nii.gz": "", "one/b.nii.gz": "", "two/a.nii.gz": "S_LABEL_MAP", "two/b.nii.gz": "",
    }  # fmt: skip
    assert len(calls) == 3
