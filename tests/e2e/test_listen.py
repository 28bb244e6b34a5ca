"""The service: dcmtk and Orthanc send, SEG come back, and no kill loses or doubles a study."""

import json
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from tests.batch import write_series
from tests.dicom_nodes import Service, TakingNode, free_port, program, storescu
from tests.toy_model import write_toy_model

SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_model(tmp_path_factory.mktemp("model") / "model.onnx", modality="CT")


@pytest.fixture
def node() -> Iterator[TakingNode]:
    with TakingNode().running() as taking:
        yield taking


def computed(spool: Path, *, by: str = "SeriesInstanceUID") -> Counter[str]:
    """How often each series, or each content of one, was computed, by the lines of all reports."""
    found: Counter[str] = Counter()
    for path in spool.glob("studies/*/results/*/report.jsonl"):
        for line in path.read_text().splitlines()[1:]:
            entry = json.loads(line)
            found[entry[by]] += entry["status"] == "done" and not entry["resumed"]
    return found


def num_referenced(seg: Dataset) -> int:
    """How many images a SEG is about."""
    return len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence)


def test_what_storescu_sends_is_answered_with_a_seg_and_strangers_are_refused(
    tmp_path: Path, model: Path, node: TakingNode
) -> None:
    slices = write_series(tmp_path / "ct", 3)
    service = Service(model, tmp_path / "spool", [f"CT1=127.0.0.1:{node.port}"]).start()

    assert storescu(service.port, slices, sender="STRANGER") != 0
    assert storescu(service.port, slices, called="OTHER") != 0
    assert storescu(service.port, slices) == 0
    service.wait_until(lambda: service.metrics().get("medssl_answered_studies_total") == 1)
    assert storescu(service.port, slices) == 0  # the same objects again
    time.sleep(1)

    told = service.metrics()
    assert service.stop() == 0
    (seg,) = node.objects.values()
    assert (seg.SOPClassUID, seg.StudyInstanceUID, seg.PatientID) == (SEG, "1.2.3.3", "P3")
    assert node.arrivals == [seg.SOPInstanceUID]
    assert computed(tmp_path / "spool") == {"1.2.3.3.1": 1}
    assert told["medssl_rejected_associations_total"] == 2
    assert told["medssl_stored_objects_total"] == 2 * len(slices)
    assert (told["medssl_waiting_studies"], told["medssl_arriving_studies"]) == (0, 0)
    private = [
        path for path in (tmp_path / "spool").rglob("*") if path.stat().st_mode & 0o077 and "results" not in str(path)
    ]
    assert private == []


def test_results_that_nobody_takes_wait_and_a_late_slice_is_answered_for(
    tmp_path: Path, model: Path, node: TakingNode
) -> None:
    slices = write_series(tmp_path / "ct", 4)
    node.statuses = [0xA700]
    service = Service(model, tmp_path / "spool", [f"CT1=127.0.0.1:{node.port}"]).start()

    assert storescu(service.port, slices[:-2]) == 0
    service.wait_until(lambda: service.metrics().get("medssl_unsent_studies") == 1)
    assert node.objects == {}
    service.kill()  # the wait until the next try is forgotten, and nothing else
    service.start()
    service.wait_until(lambda: len(node.objects) == 1)
    assert storescu(service.port, slices[-2:]) == 0
    service.wait_until(lambda: len(node.objects) == 2)

    assert service.stop() == 0
    assert max(map(num_referenced, node.objects.values())) == 10


def test_five_kills_lose_no_study_and_answer_none_twice(tmp_path: Path, model: Path, node: TakingNode) -> None:
    """A study is sent until all of it is acknowledged, as a modality does. What arrived before a kill may settle and be
    answered for, and then all of it. A SEG may arrive twice if the kill comes between its arrival and the note of it;
    then it is the same object."""
    rng, service = random.Random(0), Service(model, tmp_path / "spool", [f"CT1=127.0.0.1:{node.port}"])
    service.start()
    for number in range(6):
        slices = write_series(tmp_path / f"{number}", number)
        if number < 5:
            timer_s = rng.uniform(0.0, 1.0)
            words = [program("storescu", "dcmtk"), "-aet", "CT1", "-aec", "MEDSSL", "127.0.0.1", service.port, *slices]
            sending = subprocess.Popen([*map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(timer_s)
            service.kill()
            sending.wait(60)
            service.start()
        assert storescu(service.port, slices) == 0

    def whole() -> set[str]:
        """Studies of which a SEG of all slices has arrived."""
        return {str(one.StudyInstanceUID) for one in node.objects.values() if num_referenced(one) == len(slices)}

    everything = {f"1.2.3.{number}" for number in range(6)}
    service.wait_until(lambda: service.metrics().get("medssl_waiting_studies") == 0 and whole() == everything)

    assert service.stop() == 0
    assert set(computed(tmp_path / "spool")) == {f"{study}.1" for study in everything}
    assert set(computed(tmp_path / "spool", by="input_sha256").values()) == {1}


@pytest.mark.slow
def test_orthanc_sends_a_study_and_has_its_seg(tmp_path: Path, model: Path) -> None:
    orthanc_port, http_port = free_port(), free_port()
    service = Service(model, tmp_path / "spool", [f"ORTHANC=127.0.0.1:{orthanc_port}"]).start()
    settings = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "HttpPort": http_port,
        "DicomPort": orthanc_port,
        "DicomAet": "ORTHANC",
        "DicomModalities": {"medssl": ["MEDSSL", "127.0.0.1", service.port]},
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    with (tmp_path / "log").open("wb") as log:
        orthanc = subprocess.Popen([program("Orthanc", "orthanc"), tmp_path / "orthanc.json"], stdout=log, stderr=log)
    try:
        service.wait_until(lambda: _ask(http_port, "/system") is not None)
        for path in write_series(tmp_path / "ct", 5):
            study = json.loads(_ask(http_port, "/instances", path.read_bytes()) or b"")["ParentStudy"]
        _ask(http_port, "/modalities/medssl/store", study.encode())
        find = json.dumps({"Level": "Series", "Expand": True, "Query": {"Modality": "SEG"}}).encode()
        service.wait_until(lambda: json.loads(_ask(http_port, "/tools/find", find) or b"[]") != [])
        (series,) = json.loads(_ask(http_port, "/tools/find", find) or b"")
    finally:
        orthanc.terminate()
        orthanc.wait(30)

    assert series["ParentStudy"] == study
    assert service.stop() == 0


def _ask(port: int, path: str, data: bytes | None = None) -> bytes | None:
    """Orthanc's own REST API; None while it does not answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{port}{path}", data), timeout=20
        ) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def test_only_who_shows_a_certificate_is_heard(tmp_path: Path, model: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        program("openssl", "openssl"),
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
    ]
    names = ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    options = ("--tls-cert", certificate, "--tls-key", key, "--tls-ca", certificate)
    service = Service(model, tmp_path / "spool", ["CT1"], options=options).start()
    slices = write_series(tmp_path / "ct", 6)[:2]

    plain = storescu(service.port, slices)
    own = storescu(service.port, slices, options=("+tls", key, certificate, "+cf", certificate))

    told = service.metrics()
    assert service.stop() == 0
    assert (plain != 0, own) == (True, 0)
    assert told["medssl_stored_objects_total"] == 2


def test_health_is_told_on_a_loopback_port_and_nothing_of_patients(tmp_path: Path, model: Path) -> None:
    service = Service(model, tmp_path / "spool", ["CT1"]).start()
    base = f"http://127.0.0.1:{service.monitor_port}"
    with urllib.request.urlopen(f"{base}/healthz", timeout=5) as answer:
        document: dict[str, Any] = json.loads(answer.read())
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{base}/studies", timeout=5)

    assert service.stop() == 0
    assert document.pop("status") == "ok"
    assert all(isinstance(value, int | float) for value in document.values())
