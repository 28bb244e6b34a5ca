"""The report of many results: what it costs, and what is found in it."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.files import json_bytes
from medssl_cli.deploy import report_file
from medssl_cli.deploy.known_results import KnownResults
from medssl_cli.deploy.report_file import ReportFile
from medssl_cli.deploy.results import ScanResult
from medssl_cli.deploy.scan_task import not_done

HEADER = {"medssl_version": "0", "model_sha256": "a", "task": "t"}


def done(number: int, **changes: Any) -> ScanResult:
    name = f"s{number}"
    return ScanResult(
        name, "done", key=f"/in/{name}", task="t", path=f"/in/{name}", outputs=(f"{name}_t.nii.gz",), **changes
    )


def test_a_large_report_is_written_now_and_then_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10 new ones in a hundred before it is written anew, 300 results after the 20th take log(15) / log(1.1)
    times, which is 29."""
    monkeypatch.setattr(report_file, "SMALL", 20)
    monkeypatch.setattr(report_file, "NEW_SHARE", 0.1)
    monkeypatch.setattr(report_file, "append_durably", appended_without_waiting)
    written: list[int] = []
    report = ReportFile(tmp_path / "report.json", has_journal=True)
    original = report_file.write_pieces
    monkeypatch.setattr(report_file, "write_pieces", lambda *a, **k: (written.append(1), original(*a, **k)))

    for number in range(300):
        report.record(HEADER, [done(number)])

    assert 20 < len(written) < 20 + 40
    again = ReportFile(tmp_path / "report.json", has_journal=True)
    assert len(again.known) == 300
    assert again.known.entry("t", "/in/s299", "s299") == done(299)


def appended_without_waiting(path: Path, data: bytes, *, start: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(data if stream.tell() else start + data)


def test_the_file_is_the_canonical_document_of_its_entries(tmp_path: Path) -> None:
    report = ReportFile(tmp_path / "report.json", has_journal=True)
    report.record({**HEADER, "intended_use": 'a "results": [] b'}, [], is_last=True)
    empty = (tmp_path / "report.json").read_bytes()
    report.record(HEADER, [done(2, warnings=("W_X",), volumes_ml={"a\n": 0.1}), done(1)], is_last=True)
    full = (tmp_path / "report.json").read_bytes()

    assert empty == json_bytes(json.loads(empty))
    assert full == json_bytes(json.loads(full))
    assert [entry["name"] for entry in json.loads(full)["results"]] == ["s1", "s2"]
    assert json.loads(full)["done"] == 2


def test_what_another_call_wrote_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    one, other = (ReportFile(path, has_journal=True) for _ in range(2))

    one.record(HEADER, [done(1)])
    other.record(HEADER, [done(2)])
    one.record(HEADER, [done(3)])

    assert [entry["name"] for entry in json.loads(path.read_text())["results"]] == ["s1", "s2", "s3"]


def test_memory_does_not_grow_with_the_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python holds after 600 entries is what it holds after 200, but for the few that wait for the report."""
    monkeypatch.setattr(report_file, "append_durably", appended_without_waiting)
    monkeypatch.setattr(report_file, "SMALL", 0)
    report = ReportFile(tmp_path / "report.json", has_journal=True)
    held = []
    tracemalloc.start()
    for number in range(600):
        report.record(HEADER, [done(number, message="m" * 1000)], is_last=number in (199, 599))
        if number in (199, 599):
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()

    assert held[1] - held[0] < 40 * 1000


def test_a_journal_that_somebody_removed_or_a_place_that_is_none_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    ReportFile(path, has_journal=True).record(HEADER, [done(1)], is_last=True)
    (tmp_path / "report.jsonl").unlink()
    assert len(ReportFile(path, has_journal=True).known) == 1
    path.write_text(path.read_text().replace('"journal_bytes": ', '"journal_bytes": -7'))
    ReportFile(path, has_journal=True).record(HEADER, [done(2)], is_last=True)
    assert len(ReportFile(path, has_journal=True).known) == 2


def test_lines_in_a_link_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(report_file.JOURNAL_START)
    (tmp_path / "report.jsonl").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
        ReportFile(tmp_path / "report.json", has_journal=True)


def test_entries_are_found_by_scan_name_and_output_and_replaced_by_their_like() -> None:
    known = KnownResults([done(1), done(2)])
    other = ScanResult("s1", "done", key="/else/s1", task="t", path="/else/s1", outputs=("S2_T.nii.gz",))
    known.put(other)  # claims nothing of the others: letters differ

    assert known.entry("t", "/in/s1", "s1") == done(1)
    assert known.holder("t", "s1") == other  # /else comes before /in
    assert known.owner("s2_t.nii.gz") == done(2)
    assert known.owner("S2_T.nii.gz") == other
    known.put(replace(done(3), outputs=("s2_t.nii.gz",)))
    assert known.owner("s2_t.nii.gz") is not None
    assert known.entry("t", "/in/s2", "s2") is None  # its output is another scan's now
    assert len(known) == 3


def test_an_entry_of_an_earlier_version_is_known_by_its_name() -> None:
    old = ScanResult("s1", "done", task="t")
    known = KnownResults([old])

    assert known.entry("t", "/in/s1", "s1") == old
    assert known.holder("t", "s1") is None


def test_what_is_told_of_one_scan_holds_all_that_looking_it_up_may_find() -> None:
    known = KnownResults([done(number) for number in range(9)])

    few = known.about("t", "/in/s1", ["s1", "s2"], ["S3_t.nii.gz"])

    assert {one.name for one in few} == {"s1", "s2", "s3"}


def test_tables_tell_of_what_is_answered_for_now(tmp_path: Path) -> None:
    """A file under an old name may be the next patient's: no table calls the last one's numbers its own."""
    common: dict[str, Any] = {"kind": "nifti", "task": "t", "path": "/in/scan.nii.gz", "input_sha256": "0" * 64}
    masks = ScanResult(**common, name="a", key="a", status="done", volumes_ml={"liver": 812.0})
    findings = ScanResult(**common, name="b", key="b", status="done", head="findings", findings={"mass": 0.9})
    path = tmp_path / "report.json"
    report = ReportFile(path, has_journal=True)
    report.record(HEADER, [masks, findings], is_last=True)
    before = {name: (tmp_path / name).read_text() for name in ("measurements.csv", "findings.csv")}

    refused = [not_done(one, "E_OUTPUT_EXISTS", "made from another content") for one in (masks, findings)]
    report.record(HEADER, refused, is_last=True)

    after = {name: (tmp_path / name).read_text() for name in before}
    assert {name: text.count("scan.nii.gz") for name, text in before.items()} == dict.fromkeys(before, 1)
    assert {name: text.count("scan.nii.gz") for name, text in after.items()} == dict.fromkeys(before, 0)
    assert all(text.startswith("name,path,medssl_task,") for text in after.values())
