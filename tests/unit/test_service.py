"""The queue of the service, who may do what, and what is refused. Time is what the test says."""

import gc
import io
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medssl_cli.base.errors import GateError, InputError, MedsslError, StorageError, UsageError
from medssl_cli.deploy.again import FIRST_RETRY_S, LONGEST_RETRY_S, MAX_ATTEMPTS
from medssl_cli.deploy.delivery import TAKEN, Delivery
from medssl_cli.deploy.infer import InferSettings, infer
from medssl_cli.deploy.naming import series_name
from medssl_cli.deploy.results import NOT_SENT, NOT_TAKEN, ScanResult
from medssl_cli.deploy.running_model import MAX_FAILURES
from medssl_cli.service.listen import ListenSettings, listen, tls_contexts
from medssl_cli.service.monitor import exposition
from medssl_cli.service.peers import Peer, PeerDestination
from medssl_cli.service.receiver import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS, Receiver, ReceiverLimits
from medssl_cli.service.spool import Spool, name_of
from medssl_cli.service.worker import TaskRule, Worker
from tests.batch import OUTSIDE_HU, SHAPE, write_series
from tests.dicom_factory import edit
from tests.dicom_nodes import TakingNode, free_port
from tests.toy_model import write_failing_model, write_toy_model

PEER = Peer("CT1")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def finish(spool: Spool, study: str) -> None:
    spool.finish(study, spool.content(study), {})


def test_a_study_is_due_when_nothing_more_arrives_and_again_when_something_does(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool(tmp_path / "spool", 10, clock)
    with spool.held():
        study = spool.receive("1.2", "1.2.1", b"a", "CT1")
        clock.now = 9
        spool.receive("1.2", "1.2.2", b"b", "CT2")
        clock.now = 18
        assert spool.due() == []
        clock.now = 19
        assert spool.due() == [study]
        finish(spool, study)
        assert (spool.due(), spool.num_waiting) == ([], 0)
        spool.receive("1.2", "1.2.1", b"a", "CT1")  # the same object again
        assert spool.num_waiting == 0
        spool.receive("1.2", "1.2.3", b"late", "CT1")
        clock.now = 29
        assert spool.due() == [study]
        assert spool.senders(study) == ["CT1", "CT2"]


def test_what_arrives_during_the_work_is_not_answered_for(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        study = spool.receive("1.2", "1.2.1", b"a", "CT1")
        content, _ = spool.begin(study)
        spool.receive("1.2", "1.2.2", b"b", "CT1")
        spool.finish(study, content, {})

        assert spool.due() == [study]


def test_the_next_process_knows_what_is_not_answered_for(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool", 0)
    with first.held():
        answered, begun = (first.receive(uid, f"{uid}.1", b"a", "CT1") for uid in ("1.2", "1.3"))
        finish(first, answered)
        first.begin(begun)
        (first.files(begun) / ".tmp-999999999-aaaaaaaaaaaa").write_bytes(b"cut")
    second = Spool(tmp_path / "spool", 0)
    with second.held():
        assert second.due() == [begun]
        assert second.begin(begun)[1] == 2
        assert [path.name for path in second.files(begun).iterdir()] == [f"{name_of('1.3.1')}.dcm"]


def test_studies_that_were_tried_least_come_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        deadly, other = (spool.receive(uid, f"{uid}.1", b"a", "CT1") for uid in ("1.2", "1.3"))
        spool.begin(deadly)

        assert spool.due() == [other, deadly]


def test_one_service_works_on_a_queue_and_on_nothing_else(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", 0).held(), pytest.raises(UsageError, match="E_SPOOL_BUSY"):
        Spool(tmp_path / "spool", 0).held().__enter__()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("a")
    with pytest.raises(UsageError, match="other things"):
        Spool(tmp_path / "mine", 0).held().__enter__()


def test_images_are_removed_some_time_after_the_answer_and_never_before_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        answered, waiting = (spool.receive(uid, f"{uid}.1", b"a", "CT1") for uid in ("1.2", "1.3"))
        finish(spool, answered)

        assert spool.expire(3600) == 0
        assert spool.expire(0) == 1
        assert not spool.folder(answered).exists()
        assert spool.files(waiting).is_dir()
        assert [path.name for path in (tmp_path / "spool/studies").iterdir()] == [waiting]


def test_many_senders_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)

    def send(number: int) -> None:
        for index in range(10):
            spool.receive(f"1.{number % 2}", f"1.{number}.{index}", b"a", f"CT{number}")

    with spool.held():
        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(len(list(spool.files(study).iterdir())) for study in spool.due()) == 40
        assert {title for study in spool.due() for title in spool.senders(study)} == {f"CT{n}" for n in range(4)}


def encoded(path: Path, **changes: Any) -> bytes:
    dataset = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        for name, value in changes.items():
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.fixture
def slice_file(tmp_path: Path) -> Path:
    return write_series(tmp_path / "ct", 0)[0]


def test_a_full_disk_and_a_full_queue_are_told_to_the_sender(
    tmp_path: Path, slice_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool", 0)
    receiver = Receiver(spool, "MEDSSL", [PEER], ReceiverLimits(max_waiting=1, min_free_bytes=0))
    with spool.held():
        assert receiver.take(encoded(slice_file), "CT1") == SUCCESS
        assert receiver.take(encoded(slice_file, StudyInstanceUID="1.9"), "CT1") == OUT_OF_RESOURCES
        assert receiver.take(encoded(slice_file, SOPInstanceUID="1.8"), "CT1") == SUCCESS  # of the study that waits
        receiver.limits = ReceiverLimits(min_free_bytes=2**62)
        assert receiver.take(encoded(slice_file, SOPInstanceUID="1.7"), "CT1") == OUT_OF_RESOURCES

        def refuse(*_: Any) -> None:
            raise StorageError("E_IO", "cannot write")

        receiver.limits = ReceiverLimits(min_free_bytes=0)
        monkeypatch.setattr(spool, "receive", refuse)
        assert receiver.take(encoded(slice_file, SOPInstanceUID="1.6"), "CT1") == OUT_OF_RESOURCES


@pytest.mark.parametrize("uid", ["", "../../etc/passwd", "1.2 3", "a", "1." * 40 + "1"])
def test_an_object_without_usable_uids_is_not_filed(tmp_path: Path, slice_file: Path, uid: str) -> None:
    spool = Spool(tmp_path / "spool", 0)
    receiver = Receiver(spool, "MEDSSL", [PEER], ReceiverLimits(min_free_bytes=0))
    with spool.held():
        assert receiver.take(encoded(slice_file, StudyInstanceUID=uid), "CT1") == CANNOT_UNDERSTAND
        assert receiver.take(b"no DICOM", "CT1") == CANNOT_UNDERSTAND
        assert list((tmp_path / "spool" / "studies").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CT1", Peer("CT1")),
        ("PACS=10.0.0.5:104", Peer("PACS", "10.0.0.5", 104)),
        ("A B=[::1]:11112", Peer("A B", "::1", 11112)),
        ("PACS=tls://pacs.example:2762", Peer("PACS", "pacs.example", 2762, is_encrypted=True)),
    ],
)
def test_a_peer_is_a_title_and_perhaps_a_place(text: str, expected: Peer) -> None:
    assert Peer.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "=a:1", "A" * 17, "A\\B", " A", "A=host", "A=host:0", "A=host:70000", "A=:104", "A="]
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no DICOM node"):
        Peer.parse(text)


def test_a_rule_belongs_to_a_task() -> None:
    assert TaskRule.parse("heart-seg") == TaskRule("heart-seg")
    assert TaskRule.parse("m.onnx: modality=MR,newest") == TaskRule("m.onnx", ("modality=MR,newest",))
    with pytest.raises(UsageError, match="no condition"):
        TaskRule.parse("heart-seg: colour=red")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"peers": []}, "nobody may send"),
        ({"peers": [PEER, PEER]}, "named twice"),
        ({"send_to": ["CT1"]}, "no --peer with an address"),
        ({"peers": [Peer("A", "h", 1, is_encrypted=True)]}, "no certificates"),
    ],
)
def test_a_service_that_could_not_work_does_not_begin(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ListenSettings(**{"spool": tmp_path, "title": "M", "host": "127.0.0.1", "port": 0, "peers": [PEER], **changes})


def test_certificates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("no certificate")
    for files in (
        (tmp_path / "a.pem", None, None),
        (None, None, tmp_path / "none.pem"),
        (None, None, tmp_path / "a.pem"),
    ):
        with pytest.raises(UsageError):
            tls_contexts(*files)


def test_a_port_that_is_taken_is_named_and_results_that_go_nowhere_are_told_of(tmp_path: Path) -> None:
    said: list[str] = []
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    with TakingNode().running() as node:
        settings = ListenSettings(tmp_path / "spool", "M", "127.0.0.1", node.port, [PEER])
        with pytest.raises(UsageError, match="E_PORT"):
            listen(settings, [(model, ())], InferSettings("cpu"), say=said.append)
    assert "results of what CT1 sends are sent nowhere" in said[0]
    answered = replace(settings, peers=[Peer("CT1", "127.0.0.1", 104)])
    assert answered.unanswered == []


def worker(tmp_path: Path, spool: Spool, **how: Any) -> tuple[Worker, list[str], Callable[[], None]]:
    said: list[str] = []
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    made = Worker(spool, [(model, ())], InferSettings("cpu", **how), lambda _: [], lambda *_: None, said.append)
    made.open_models()
    return made, said, made.close


def test_what_ends_the_service_again_and_again_is_given_up(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        study = spool.receive("1.2", "1.2.1", b"deadly", "CT1")
        for _ in range(MAX_ATTEMPTS):
            spool.begin(study)  # and the process dies
        made, said, close = worker(tmp_path, spool)
        made.answer(study)
        close()

        assert "given up" in said[0]
        assert (spool.num_waiting, spool.done(study)["problem"]) == (0, "given up after 10 attempts")


def test_deaths_in_quick_succession_use_up_no_attempts(tmp_path: Path) -> None:
    clock, due = Clock(), []
    spool = Spool(tmp_path / "spool", 0, clock)
    with spool.held():
        study = spool.receive("1.2", "1.2.1", b"image", "CT1")
    for _ in range(4):
        spool = Spool(tmp_path / "spool", 0, clock)
        with spool.held():
            due.append(spool.due() == [study])
            for one in spool.due():
                spool.begin(one)  # and the process dies
    assert due == [True, True, False, False]

    clock.now += FIRST_RETRY_S
    with spool.held():
        assert spool.due() == []
        clock.now += FIRST_RETRY_S
        assert spool.due() == [study]


def test_a_stop_request_leaves_a_study_for_the_next_start(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        for path in write_series(tmp_path / "ct", 1):
            study = spool.receive("1.2.3.1", path.name, path.read_bytes(), "CT1")
        made, _, close = worker(tmp_path, spool, is_stopped=lambda: True)
        made.answer(study)
        close()

        assert spool.due() == [study]


def filed(spool: Spool, folder: Path, number: int = 1) -> str:
    """A series as it arrives."""
    paths = write_series(folder, number)
    return {spool.receive(f"1.2.3.{number}", path.name, path.read_bytes(), "CT1") for path in paths}.pop()


def test_a_scan_that_a_model_failed_on_is_tried_again_later_and_not_for_ever(tmp_path: Path) -> None:
    clock = Clock()
    spool, said, counts = Spool(tmp_path / "spool", 0, clock), [], Counter()
    model = write_failing_model(tmp_path / "model.onnx")
    made = Worker(
        spool, [(model, ())], InferSettings("cpu"), lambda _: [], lambda what, n: counts.update({what: n}), said.append
    )
    with spool.held():
        study = filed(spool, tmp_path / "ct")
        made.open_models()
        made.answer(study)
        assert (spool.due(), spool.num_waiting) == ([], 1)
        clock.now = FIRST_RETRY_S
        assert spool.due() == [study]
        for _ in range(MAX_ATTEMPTS - 2):
            spool.begin(study)  # further attempts
        made.answer(study)
        clock.now += LONGEST_RETRY_S
        made.answer(study)
        made.close()

    assert said[0].endswith("1 scans failed (E_RUNTIME), tried again in 10 s")
    assert said[2].endswith("given up after 10 attempts")
    assert {what: number for what, number in counts.items() if number} == {"postponed_studies": 2, "failed_studies": 1}


def test_an_object_that_cannot_be_made_is_told_of_and_counted(tmp_path: Path) -> None:
    spool, counts, said = Spool(tmp_path / "spool", 0), Counter(), []
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    made = Worker(
        spool, [(model, ())], InferSettings("cpu"), lambda _: [], lambda what, n: counts.update({what: n}), said.append
    )
    with spool.held():
        for path in write_series(tmp_path / "ct", 1):
            edit(path, SeriesInstanceUID="no.uid")
            study = spool.receive("1.2.3.1", path.name, path.read_bytes(), "CT1")
        made.open_models()
        made.answer(study)
        made.close()

    assert said[-1].endswith("1 done [W_SEG_NOT_WRITTEN]")
    assert counts["unwritten_objects"] == 1


def test_scans_that_a_model_failed_on_are_no_verdict_on_later_studies(tmp_path: Path) -> None:
    model = write_failing_model(tmp_path / "model.onnx")
    for number in range(MAX_FAILURES):
        write_series(tmp_path / "bad" / str(number), number)
    write_series(tmp_path / "good", 9, np.full(SHAPE, OUTSIDE_HU, np.int16))
    opened = InferSettings("cpu").opened(model)

    bad = infer([tmp_path / "bad"], model, out=tmp_path / "out", model=opened)
    (good,) = infer([tmp_path / "good"], model, out=tmp_path / "out", model=opened).results
    opened.close()

    assert {one.code for one in bad.results} == {"E_RUNTIME"}
    assert good.status == "done"


def test_a_study_whose_results_find_no_room_is_not_answered_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        study = filed(spool, tmp_path / "ct")
        made, _, close = worker(tmp_path, spool)

        def full(*_: Any, **__: Any) -> None:
            raise StorageError("E_IO", "cannot write a mask (ENOSPC)")

        with monkeypatch.context() as patched:
            patched.setattr("medssl_cli.deploy.scan_task.publish", full)
            with pytest.raises(StorageError, match="ENOSPC"):
                made.answer(study)
        assert spool.due() == [study]
        made.answer(study)
        close()

        assert spool.done(study)["counts"] == {"done": 1, "refused": 0, "skipped": 0}


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_model_that_is_another_one_now_ends_the_service_and_no_study(tmp_path: Path, change: str) -> None:
    spool = Spool(tmp_path / "spool", 0)
    with spool.held():
        study = filed(spool, tmp_path / "ct")
        made, _, close = worker(tmp_path, spool)
        close()  # as when its process has died
        if change == "removed":
            (tmp_path / "model.onnx").unlink()
        else:
            write_toy_model(tmp_path / "model.onnx", modality="CT", intended_use="Something else")
        with pytest.raises(GateError, match="replaced or removed"):
            made.answer(study)

        assert spool.due() == [study]


@dataclass
class Taking:
    """A place that takes everything."""

    taken: list[str]
    name: str = "PACS"

    def send(self, file: Path) -> None:
        self.taken.append(file.name)


def test_a_late_series_is_answered_for_alone_and_a_late_slice_does_its_series_anew(tmp_path: Path) -> None:
    """What was sent stays, and is not sent again."""
    first, second = write_series(tmp_path / "1", 1), write_series(tmp_path / "2", 2)
    for path in second:
        edit(path, StudyInstanceUID="1.2.3.1", PatientID="P1", FrameOfReferenceUID="1.2.9.1")
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    spool, place = Spool(tmp_path / "spool", 0), Taking([])
    counts: Counter[str] = Counter()

    def receive(paths: Sequence[Path]) -> str:
        return {spool.receive("1.2.3.1", path.stem, path.read_bytes(), "CT1") for path in paths}.pop()

    def count(what: str, number: int) -> None:
        counts[what] += number

    worker = Worker(
        spool, [(model, ())], InferSettings("cpu", outputs=("seg",)), lambda senders: [place], count, lambda text: None
    )
    with spool.held():
        worker.open_models()
        for arriving in (first[1:], second, first[:1]):
            study = receive(arriving)
            assert spool.due() == [study]
            worker.answer(study)
            assert spool.due() == []
        worker.close()

    names = [series_name("CT", "1.2.3.1", f"1.2.3.{number}.1") for number in (1, 2)]
    assert [name.partition("_")[0] for name in place.taken] == [names[0], names[1], names[0]]
    assert counts["answered_scans"] == 3
    assert counts["answered_studies"] == 3


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom, of a refused connection
def test_a_node_that_is_away_and_one_that_takes_no_seg_are_told_apart(tmp_path: Path) -> None:
    file = write_series(tmp_path / "ct", 1)[0]
    with pytest.raises(StorageError, match="E_PACS"):
        PeerDestination(Peer("CT1", "127.0.0.1", free_port()), "MEDSSL").send(file)
    with TakingNode().running() as node, pytest.raises(InputError, match="E_STORE_REFUSED: CT1 takes no objects of"):
        PeerDestination(Peer("CT1", "127.0.0.1", node.port), "MEDSSL").send(file)  # a CT, which it does not take
    gc.collect()


class Leaving:
    """A node that ends the association after its first object."""

    taken = 0

    def send_c_store(self, dataset: Any) -> pydicom.Dataset:
        if self.taken:
            raise RuntimeError("The association must be established before")  # as pynetdicom does
        self.taken += 1
        status = pydicom.Dataset()
        status.Status = SUCCESS
        return status


def test_a_node_that_leaves_between_two_objects_is_tried_again_and_no_bug() -> None:
    node, there = PeerDestination(Peer("CT1", "127.0.0.1", 1), "MEDSSL"), Leaving()
    node._store(there, pydicom.Dataset())

    with pytest.raises(StorageError, match="ended the association"):
        node._store(there, pydicom.Dataset())


def test_an_output_that_cannot_be_read_is_not_sent_and_stops_nothing(tmp_path: Path) -> None:
    class Reading(Taking):
        def send(self, file: Path) -> None:
            self.taken.append(file.read_text())

    done = ScanResult(name="a", kind="dicom", key="k", task="t", path="/a", status="done", outputs=("a.dcm",))

    told = Delivery(tmp_path, [Reading([])])(done)

    assert told.warnings == (NOT_SENT,)
    assert told.sent == ()


@dataclass
class Choosy(Taking):
    """A place that does not take some objects, by their names."""

    refusals: dict[str, MedsslError] = field(default_factory=dict)

    def send(self, file: Path) -> None:
        super().send(file)
        if file.name in self.refusals:
            raise self.refusals[file.name]


def status_of(number: int) -> MedsslError:
    """How a node's answer to an object is raised."""

    class Answering:
        def send_c_store(self, dataset: Any) -> pydicom.Dataset:
            status = pydicom.Dataset()
            status.Status = number
            return status

    with pytest.raises((InputError, StorageError), match="E_STORE_REFUSED") as raised:
        PeerDestination(Peer("CT1", "127.0.0.1", 1), "MEDSSL")._store(Answering(), pydicom.Dataset())
    return raised.value


ANSWER = ScanResult(
    name="a", kind="dicom", key="k", task="t", path="/a", status="done", outputs=("a.seg.dcm", "a.sr.dcm", "a.nii.gz")
)


@pytest.mark.parametrize("number", [0x0122, 0xA900, 0xC000])
def test_what_a_place_will_never_take_is_told_of_once_and_what_it_has_is_not_sent_again(
    tmp_path: Path, number: int
) -> None:
    place, told_of = Choosy([], refusals={"a.sr.dcm": status_of(number)}), []
    delivery = Delivery(tmp_path, [place], refused=lambda: told_of.append(1))

    first = delivery(ANSWER)
    second = delivery(ScanResult.from_json(first.to_json()) or ANSWER)

    assert place.taken == ["a.seg.dcm", "a.sr.dcm"]
    assert second == first
    assert (first.sent, first.warnings, len(told_of)) == ((), (NOT_TAKEN,), 1)
    assert first.message == f"W_NOT_TAKEN: a.sr.dcm: E_STORE_REFUSED: CT1 answers with status {number:#06x}"
    place.refusals.clear()
    typed_again = Delivery(tmp_path, [place], asks_again=True)(second)
    assert place.taken == ["a.seg.dcm", "a.sr.dcm", "a.sr.dcm"]
    assert (typed_again.sent, typed_again.delivered, typed_again.warnings, typed_again.message) == (
        ("PACS",),
        {},
        (),
        "",
    )


@pytest.mark.parametrize("number", [0xA700, 0x0110, 0x0124])
def test_what_a_place_does_not_take_now_is_sent_again_and_nothing_else(tmp_path: Path, number: int) -> None:
    place, other = Choosy([], refusals={"a.seg.dcm": status_of(number)}), Taking([], name="OTHER")
    delivery = Delivery(tmp_path, [place, other])

    first = delivery(ANSWER)
    assert (first.sent, first.warnings) == (("OTHER",), (NOT_SENT,))
    assert first.delivered == {"PACS": {"a.sr.dcm": TAKEN}}
    second = delivery(first)
    assert second == first
    place.refusals.clear()
    third = delivery(second)

    assert (third.sent, third.delivered, third.warnings, third.message) == (("OTHER", "PACS"), {}, (), "")
    assert place.taken == ["a.seg.dcm", "a.sr.dcm", "a.seg.dcm", "a.seg.dcm"]
    assert other.taken == ["a.seg.dcm", "a.sr.dcm"]


def test_a_place_that_is_away_is_not_asked_for_each_object(tmp_path: Path) -> None:
    place = Choosy([], refusals={"a.seg.dcm": StorageError("E_PACS", "cannot be reached")})

    told = Delivery(tmp_path, [place])(ANSWER)

    assert (place.taken, told.warnings, told.delivered) == (["a.seg.dcm"], (NOT_SENT,), {})


def test_a_study_of_which_an_object_is_never_taken_is_answered_for_and_counted(tmp_path: Path) -> None:
    spool, counts = Spool(tmp_path / "spool", 0), Counter[str]()
    said: list[str] = []

    class NoReports(Taking):
        def send(self, file: Path) -> None:
            super().send(file)
            if pydicom.dcmread(file).Modality == "SR":
                raise InputError("E_STORE_REFUSED", "it takes no objects of this kind")

    place = NoReports([])
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    how = InferSettings("cpu", outputs=("seg", "sr"))
    made = Worker(
        spool,
        [(model, ())],
        how,
        lambda senders: [place],
        lambda what, number: counts.update({what: number}),
        said.append,
    )
    with spool.held():
        study = filed(spool, tmp_path / "ct")
        made.open_models()
        made.answer(study)
        made.close()

        assert (spool.due(), spool.num_waiting) == ([], 0)
    assert len(place.taken) == 2
    assert (counts["untaken_objects"], counts["answered_studies"], counts["postponed_studies"]) == (1, 1, 0)
    assert "[W_NOT_TAKEN]" in said[-1]


def test_numbers_in_the_format_of_prometheus() -> None:
    assert exposition({"a_total": 3, "b": 0.5}) == (
        "# TYPE medssl_a_total counter\nmedssl_a_total 3\n# TYPE medssl_b gauge\nmedssl_b 0.5\n"
    )
