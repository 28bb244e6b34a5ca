"""The service: dcmtk and Orthanc send, SEG, SR and RTSTRUCT come back, and no kill loses or doubles a study."""

import io
import json
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from medssl_cli.formats.dicom_sr import read_groups
from medssl_cli.formats.sr_statements import PRESENCE, PRESENT
from tests.batch import write_series
from tests.dicom_nodes import RTSTRUCT, SEG, SR, Service, TakingNode, free_port, program, storescu
from tests.e2e.test_orthanc import PLUGIN
from tests.toy_model import write_findings_model, write_toy_model
from tests.unit.test_dicom_projection import xray


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


def another_series(slices: list[Path], folder: Path) -> list[Path]:
    """The same images as a second series of their study."""
    folder.mkdir()
    for path in slices:
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID += ".2"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID + ".2"
        dataset.save_as(folder / path.name)
    return sorted(folder.iterdir())


def test_all_formats_come_back_once_and_a_late_series_adds_its_own(
    tmp_path: Path, model: Path, node: TakingNode
) -> None:
    """What comes back to us, as from a PACS that forwards all it has, is no image and makes no answer."""
    slices = write_series(tmp_path / "ct", 7)
    options = ("--formats", "seg,rtstruct,sr")
    service = Service(model, tmp_path / "spool", [f"CT1=127.0.0.1:{node.port}"], options=options).start()

    def answered(number: int) -> bool:
        told = service.metrics()
        return told.get("medssl_answered_studies_total", 0) >= number and told["medssl_waiting_studies"] == 0

    assert storescu(service.port, slices) == 0
    service.wait_until(lambda: answered(1))
    first = [node.objects[uid] for uid in node.arrivals]
    back = []
    for number, one in enumerate(first):
        back.append(tmp_path / f"{number}.dcm")
        one.save_as(back[-1], enforce_file_format=True)
    assert storescu(service.port, back, options=("-R",)) == 0
    service.wait_until(lambda: answered(2))
    assert storescu(service.port, another_series(slices, tmp_path / "late")) == 0
    service.wait_until(lambda: answered(3))

    assert service.stop() == 0
    assert [one.SOPClassUID for one in first] == [SEG, RTSTRUCT, SR]  # a report comes after what it names
    assert len(node.arrivals) == len(node.objects) == 6
    assert {one.StudyInstanceUID for one in node.objects.values()} == {"1.2.3.7"}
    series = {kind: {str(one.SeriesInstanceUID) for one in node.objects.values() if one.SOPClassUID == kind}
              for kind in (SEG, RTSTRUCT, SR)}  # fmt: skip
    assert [len(each) for each in series.values()] == [2, 2, 2]
    assert +computed(tmp_path / "spool") == {"1.2.3.7.1": 1, "1.2.3.7.1.2": 1}


def test_findings_of_a_radiograph_come_back_as_a_report(tmp_path: Path, node: TakingNode) -> None:
    model = write_findings_model(tmp_path / "findings.onnx", "DX", threshold=0.6)
    image = tmp_path / "1.dcm"
    xray(image, np.full((8, 8), 2048), Modality="DX")
    service = Service(model, tmp_path / "spool", [f"CT1=127.0.0.1:{node.port}"]).start()

    assert storescu(service.port, [image]) == 0
    service.wait_until(lambda: service.metrics().get("medssl_answered_studies_total") == 1)

    assert service.stop() == 0
    (report,) = node.objects.values()
    buffer = io.BytesIO()
    report.save_as(buffer, enforce_file_format=True)
    (group,) = read_groups(buffer.getvalue())
    mean = 2048 / 4095
    assert group.amounts["122157", "DCM"] == (pytest.approx(1 / (1 + np.exp(-mean)), abs=1e-6), "1")
    assert group.amounts["threshold", "99MEDSSL"] == (0.6, "1")
    assert group.evaluations == {PRESENCE[0]: PRESENT[0]}


@dataclass
class Orthanc:
    """A running Orthanc that knows the service."""

    http_port: int
    dicom_port: int

    @contextmanager
    def running(self, folder: Path, service_port: int) -> Iterator["Orthanc"]:
        """Take images and results inside the block, by C-STORE, and by DICOMweb if it has the plugin."""
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomModalities": {"medssl": ["MEDSSL", "127.0.0.1", service_port]},
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)] if PLUGIN.is_file() else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program("Orthanc", "orthanc"), folder / "orthanc.json"], stdout=log, stderr=log)
        try:
            yield self
        finally:
            process.terminate()
            process.wait(30)

    def upload(self, paths: Sequence[Path]) -> str:
        """Give it images; returns what it calls their study."""
        for path in paths:
            study = json.loads(_ask(self.http_port, "/instances", path.read_bytes()) or b"")["ParentStudy"]
        return str(study)

    def series_of(self, study: str) -> dict[str, list[str]]:
        """Instances of a study by their modality."""
        find = {"Level": "Series", "Expand": True, "Query": {}}
        found = json.loads(_ask(self.http_port, "/tools/find", json.dumps(find).encode()) or b"[]")
        return {one["MainDicomTags"]["Modality"]: one["Instances"] for one in found if one["ParentStudy"] == study}

    def instance(self, name: str) -> Dataset:
        """One of its objects."""
        return pydicom.dcmread(io.BytesIO(_ask(self.http_port, f"/instances/{name}/file") or b""))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["C-STORE", "STOW"])
def test_orthanc_sends_a_study_and_has_its_segmentation_and_report(tmp_path: Path, model: Path, way: str) -> None:
    if way == "STOW" and not PLUGIN.is_file():
        pytest.skip("Orthanc's DICOMweb plugin is not installed (apt-get install orthanc-dicomweb)")
    orthanc = Orthanc(free_port(), free_port())
    peer = f"ORTHANC=127.0.0.1:{orthanc.dicom_port}" if way == "C-STORE" else "ORTHANC"
    stow = ("--stow", f"dicomweb+http://127.0.0.1:{orthanc.http_port}/dicom-web") if way == "STOW" else ()
    options = ("--formats", "seg,rtstruct,sr", *stow)
    service = Service(model, tmp_path / "spool", [peer], options=options).start()
    with orthanc.running(tmp_path, service.port):
        service.wait_until(lambda: _ask(orthanc.http_port, "/system") is not None)
        study = orthanc.upload(write_series(tmp_path / "ct", 5))
        _ask(orthanc.http_port, "/modalities/medssl/store", study.encode())
        service.wait_until(lambda: {"SEG", "RTSTRUCT", "SR"} <= orthanc.series_of(study).keys())
        found = orthanc.series_of(study)
        segmentation, report = (orthanc.instance(found[modality][0]) for modality in ("SEG", "SR"))

    assert service.stop() == 0
    assert {modality: len(instances) for modality, instances in found.items()} == {
        "CT": 10, "SEG": 1, "RTSTRUCT": 1, "SR": 1,
    }  # fmt: skip
    named = {
        item.ReferencedSOPInstanceUID
        for each in report.CurrentRequestedProcedureEvidenceSequence
        for one in each.ReferencedSeriesSequence
        for item in one.ReferencedSOPSequence
    }
    assert segmentation.SOPInstanceUID in named


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
