"""Many scans: lines beside the report, parts of the work, rules about series, several at once, a folder that fills."""

import errno
import itertools
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from medssl_cli.base.errors import Exit, StorageError, UsageError
from medssl_cli.base.files import storage_errors
from medssl_cli.cli.pacs_access import StowDestination
from medssl_cli.deploy.choosing import Part
from medssl_cli.deploy.delivery import Delivery
from medssl_cli.deploy.infer import InferReport, infer
from medssl_cli.formats.dicomweb import Credentials, Patience, Store
from medssl_cli.formats.nifti import write_nifti
from medssl_cli.work.workers import DIED, Outcome, Workers
from tests import warm
from tests.batch import AFFINE, phantom, write_series
from tests.dicom_factory import edit
from tests.toy_model import write_toy_model
from tests.warm import WarmProcess

HURRY = Patience(tries=3, first_wait_s=0.01, max_wait_s=0.02, deadline_s=10.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx", modality="CT")


def run(scans: Path, model: Path, out: Path, **options: Any) -> InferReport:
    return infer([scans], model, out=out, device="cpu", outputs=("nifti", "seg"), **options)


def entries(out: Path, name: str = "report.json") -> list[dict[str, Any]]:
    path = out / name
    found: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    return found


def lines(out: Path, name: str = "report.jsonl") -> list[dict[str, Any]]:
    """The results that were recorded one by one."""
    text = (out / name).read_text() if (out / name).exists() else ""
    found = []
    for line in text.splitlines()[1:]:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # cut by a kill
    return found


def write_files(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        write_nifti(folder / f"s{number}.nii.gz", phantom(number), AFFINE)
    return folder


def test_each_result_is_a_line_and_lines_that_the_report_lacks_count(tmp_path: Path, model: Path) -> None:
    source, out = write_files(tmp_path / "in", 1), tmp_path / "out"
    run(source, model, out)
    of_one_scan = (out / "report.json").read_bytes()
    write_files(source, 3)
    run(source, model, out)
    assert [entry["name"] for entry in lines(out)] == ["s0", "s1", "s2"]
    assert all(entry["at"].startswith("20") for entry in lines(out))
    (out / "report.json").write_bytes(of_one_scan)  # as a kill leaves it between two looks at the whole
    with (out / "report.jsonl").open("a") as stream:
        stream.write('{"name": "s9", "sta')

    again = run(source, model, out)

    assert [one.resumed for one in again.results] == [True] * 3
    assert [entry["name"] for entry in entries(out)] == ["s0", "s1", "s2"]
    write_files(source, 4)
    run(source, model, out)
    assert [entry["name"] for entry in lines(out)] == ["s0", "s1", "s2", "s3"]  # the cut line stays by itself


def test_lines_of_somebody_else_are_kept(tmp_path: Path, model: Path) -> None:
    source, out = write_files(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / "report.jsonl").write_text("mine\n")

    with pytest.raises(UsageError, match="E_OUTPUT_EXISTS"):
        run(source, model, out)
    assert (out / "report.jsonl").read_text() == "mine\n"


def test_each_scan_is_in_one_part_and_the_whole_needs_no_more_work(tmp_path: Path, model: Path) -> None:
    source, out = write_files(tmp_path / "in", 7), tmp_path / "out"

    reports = [run(source, model, out, part=Part(number, 3)) for number in (1, 2, 3)]
    whole = run(source, model, out)

    names = Counter(one.name for report in reports for one in report.results)
    assert names == {f"s{number}": 1 for number in range(7)}
    assert sum(len(entries(out, f"report.{number}-of-3.json")) for number in (1, 2, 3)) == 7
    assert [one.resumed for one in whole.results] == [True] * 7
    assert len(entries(out)) == 7


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no part of the work"):
        Part.parse(text)


def write_study(folder: Path) -> None:
    """Three series of one study: thick, thin, and thin of a later time with contrast."""
    for number, (description, thickness, moment) in enumerate(
        (("Thorax 5.0", 5, "1000"), ("Thorax 1.0", 1, "1001"), ("Thorax 1.0 venous", 1, "1002"))
    ):
        for path in write_series(folder / f"{number}", number):
            edit(
                path, StudyInstanceUID="1.2.3", PatientID="P", SeriesDescription=description,
                SliceThickness=thickness, SeriesDate="20200101", SeriesTime=f"{moment}00",
            )  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["modality=CT"], {"0", "1", "2"}),
        (["thickness<=2.5"], {"1", "2"}),
        (["thickness<=2.5,contrast=no"], {"1"}),
        (["contrast=yes", "thickness>=5"], {"0", "2"}),
        (["description=*VENOUS*|*5.0"], {"0", "2"}),
        (["description!=*venous*,newest"], {"1"}),
        (["newest"], {"2"}),
        (["slices>=11"], set()),
        (["1.2.3.0.1", "newest"], {"0", "2"}),
    ],
    ids=lambda value: "+".join(sorted(value)) or "none",
)
def test_rules_choose_series_and_the_report_says_why_others_are_left_out(
    tmp_path: Path, model: Path, rules: list[str], expected: set[str]
) -> None:
    write_study(tmp_path / "in")
    write_files(tmp_path / "in", 1)

    report = run(tmp_path / "in", model, tmp_path / "out", only_series=rules, dry_run=True)

    assert {one.place for one in report.results if one.status == "pending"} == expected
    left = [one for one in report.results if one.status == "skipped"]
    assert {one.code for one in left} == {"S_NOT_CHOSEN"}
    assert len(left) == 4 - len(expected)
    assert all(one.message for one in left)


def test_the_newest_series_is_the_newest_of_those_that_the_model_takes(tmp_path: Path, model: Path) -> None:
    """A PET of the same study, reconstructed after the CT, is no reason to answer for neither."""
    write_study(tmp_path / "in")
    for path in write_series(tmp_path / "in" / "pet", 3):
        edit(
            path, StudyInstanceUID="1.2.3", PatientID="P", SeriesDate="20200102", SeriesTime="100000", Modality="PT",
            SOPClassUID="1.2.840.10008.5.1.4.1.1.128",
        )  # fmt: skip

    report = run(tmp_path / "in", model, tmp_path / "out", only_series=["newest"], dry_run=True)

    assert {one.place: one.status for one in report.results} == {
        "0": "skipped", "1": "skipped", "2": "pending", "pet": "skipped",
    }  # fmt: skip


@pytest.mark.parametrize(
    "rule", ["slices=many", "thickness!=2", "colour=red", "contrast=maybe", "slices>=4,,", "=", ">"]
)
def test_what_is_no_rule_is_refused(tmp_path: Path, model: Path, rule: str) -> None:
    with pytest.raises(UsageError, match="is no condition about series"):
        run(write_files(tmp_path / "in", 1), model, tmp_path / "out", only_series=[rule])


def pickled(value: Any) -> Any:
    """A value as it comes from another process."""
    return ForkingPickler.loads(ForkingPickler.dumps(value))


def masks(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*_toy-seg*")}


def test_several_at_a_time_give_the_same_masks_and_resume(tmp_path: Path, model: Path) -> None:
    source = write_files(tmp_path / "in", 3)
    write_series(source / "series", 5)
    (source / "junk.nii.gz").write_bytes(b"\x1f\x8bjunk")
    run(source, model, tmp_path / "one")

    with Workers(2) as workers:
        report = run(source, model, tmp_path / "two", workers=workers)
        again = run(source, model, tmp_path / "two", workers=workers)

    assert masks(tmp_path / "two") == masks(tmp_path / "one")
    assert (report.exit_code, report.count("done"), report.not_reached) == (Exit.PARTIAL, 4, 0)
    assert [one.resumed for one in again.results if one.status == "done"] == [True] * 4
    codes = {entry["name"]: entry["code"] for entry in entries(tmp_path / "one")}
    assert {entry["name"]: entry["code"] for entry in entries(tmp_path / "two")} == codes


def test_a_process_that_dies_costs_its_scan(tmp_path: Path, model: Path) -> None:
    class Dying:
        def map(self, function: Callable[[Any], Any], tasks: Any, **_: Any) -> Iterator[Outcome[Any, Any]]:
            for number, task in enumerate(tasks):
                yield Outcome(task, None, f"{DIED} (signal 9)") if number == 1 else Outcome(task, function(task))

    report = run(write_files(tmp_path / "in", 3), model, tmp_path / "out", workers=Dying())

    assert [(one.name, one.code) for one in report.results] == [("s0", ""), ("s1", "E_SCAN_FAILED"), ("s2", "")]


def test_a_full_disk_ends_a_batch_of_several_at_a_time_and_costs_no_scan(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it ends one of one at a time: what is at work comes to its end, and nothing is called refused."""

    class TwoAtATime:
        """Two tasks are at work when the first of them is ready, as a disk fills up."""

        def map(self, function: Callable[[Any], Any], tasks: Any, **_: Any) -> Iterator[Outcome[Any, Any]]:
            queue = list(itertools.islice(tasks, 2))
            while queue:
                task = queue.pop(0)
                with monkeypatch.context() as patched:
                    if task.scan.name in ("s1", "s3"):
                        patched.setattr("medssl_cli.deploy.scan_task.publish", full)
                    yield Outcome(task, pickled(function(task)))
                queue += itertools.islice(tasks, 1)

    def full(*_: Any, **__: Any) -> None:
        with storage_errors("a mask"):
            raise OSError(errno.EDQUOT, "quota exceeded")

    source, out = write_files(tmp_path / "in", 6), tmp_path / "out"
    with pytest.raises(StorageError, match="EDQUOT") as raised:
        run(source, model, out, workers=TwoAtATime())

    assert raised.value.exit_code == Exit.IO
    assert [(entry["name"], entry["status"]) for entry in entries(out)] == [("s0", "done"), ("s2", "done")]
    again = run(source, model, out)
    assert [(one.name, one.status, one.resumed) for one in again.results] == [
        (f"s{number}", "done", number in (0, 2)) for number in range(6)
    ]


class TakingPacs:
    """A server that takes objects, with a status for each to come, 200 by default."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.bodies: list[bytes] = []
        answering = iter(answers)
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = next(answering, (200, b"{}"))
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def delivery(self, out: Path) -> Delivery:
        url = f"dicomweb+http://127.0.0.1:{self.server.server_port}/dicom-web"
        return Delivery(out, [StowDestination(Store(url, Credentials(), patience=HURRY))], asks_again=True)


FAILED = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [49442]}}]}}'


def test_what_did_not_arrive_is_sent_the_next_time_and_nothing_is_sent_twice(tmp_path: Path, model: Path) -> None:
    write_series(tmp_path / "in", 3)
    out, pacs = tmp_path / "out", TakingPacs((503, b""), (202, FAILED), (500, b""))

    reports = [run(tmp_path / "in", model, out, deliver=pacs.delivery(out)) for _ in range(4)]

    assert [report.exit_code for report in reports] == [Exit.PARTIAL, Exit.PARTIAL, Exit.OK, Exit.OK]
    assert [report.results[0].warnings for report in reports] == [("W_NOT_TAKEN",), ("W_NOT_SENT",), (), ()]
    assert "E_STORE_REFUSED" in reports[0].results[0].message
    assert [report.results[0].resumed for report in reports] == [False, True, True, True]
    assert len(pacs.bodies) == 4
    (seg,) = out.glob("*_toy-seg.dcm")
    assert all(seg.read_bytes() in body for body in pacs.bodies)


def watching(model: Path, folder: Path, out: Path) -> WarmProcess:
    command = ("infer", "--watch", folder, "--settle", 0.3, "-t", model, "--device", "cpu", "--no-preview", "-o", out)
    return warm.start((*command, "-q", "--log-file", out.with_suffix(".log")), kind="reading")


def wait_until(is_true: Callable[[], bool], process: WarmProcess, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_arrives_is_done_once_whatever_kills_the_watch(tmp_path: Path, model: Path) -> None:
    source, out, rng = tmp_path / "in", tmp_path / "out", random.Random(0)
    source.mkdir()
    places = [f"s{number}" for number in range(6)]
    for number, place in enumerate(places):
        process = watching(model, source, out)
        slices = write_series(tmp_path / "made" / place, number)
        (source / place).mkdir()
        for path in slices:
            path.rename(source / place / path.name)
        if number < len(places) - 1:
            if number % 2:
                wait_until(lambda done=number: len(list(out.glob("*_toy-seg.dcm"))) >= done - 1, process)
            time.sleep(rng.uniform(0, 0.6))
            process.send_signal(signal.SIGKILL)
            process.communicate()
    wait_until(lambda: len(lines(out)) >= len(places), process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()

    assert process.wait() == 0
    assert Counter(entry["place"] for entry in lines(out)) == dict.fromkeys(places, 1)
    assert {entry["status"] for entry in entries(out)} == {"done"}
    assert places[-1] not in printed  # a series is called after its UIDs
    assert "CT-" in out.with_suffix(".log").read_text()


def test_a_line_of_the_log_says_when_and_what(tmp_path: Path, model: Path) -> None:
    source = write_files(tmp_path / "in", 1)
    log = tmp_path / "log"
    command = ("infer", source, "-t", model, "--device", "cpu", "-q", "-o", tmp_path / "out", "--log-file", log)

    assert warm.run(*command, kind="reading").returncode == 0

    (line,) = log.read_text().splitlines()
    assert line[10] == "T"
    assert " INFO toy-seg s0: bright " in line
    assert log.stat().st_mode & 0o777 == 0o600
