"""A real PACS: Orthanc with its DICOMweb plugin, and a network between that fails."""

import base64
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from medssl_cli.base.errors import UsageError
from medssl_cli.base.signals import StopRequest
from medssl_cli.cache.keys import Pseudonyms
from medssl_cli.cache.store import Cache
from medssl_cli.formats.dicomweb import Credentials, Pacs, PacsQuery, Patience
from medssl_cli.ingest.ingest import ingest
from medssl_cli.ingest.options import IngestOptions, PacsSource
from medssl_cli.ingest.retrieve import DownloadFolder, RetrievedSeries, retrieve_all
from tests.dicom_factory import ct_series, edit

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ROOT_UID = "1.2.826.0.1.3680043.8.498"
NUM_SERIES, NUM_SLICES = 50, 4
QUERY = PacsQuery("CT", date(2020, 1, 1), date(2020, 12, 31))
PASSWORD = "zqpassword"
CREDENTIALS = Credentials(user="medssl", password=PASSWORD)
HURRY = Patience(first_wait_s=0.01, max_wait_s=0.05, deadline_s=30.0, read_timeout_s=10.0)


def find_orthanc() -> str | None:
    """Debian puts the program into /usr/sbin, which is not on everybody's path."""
    return shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask(port: int, path: str, data: bytes | None = None) -> bytes:
    """Orthanc's own REST API."""
    secret = base64.b64encode(f"medssl:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Authorization": f"Basic {secret}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return bytes(response.read())


@dataclass
class Orthanc:
    """A running server and what was uploaded to it: UIDs and positions of slices, by series."""

    port: int
    series: dict[str, set[str]]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Fifty CT series of 25 patients in 2020, one of 2019."""
    program = find_orthanc()
    if program is None or not PLUGIN.is_file():
        pytest.skip("Orthanc or its DICOMweb plugin is not installed (apt-get install orthanc orthanc-dicomweb)")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "Name": "medssl",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"medssl": PASSWORD},
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, folder / "orthanc.json"], stdout=log, stderr=log)
    try:
        wait_for(process, port)
        yield Orthanc(port, upload(folder / "files", port))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    """Until the server answers; one that died is a failure."""
    for _ in range(300):
        try:
            ask(port, "/system")
        except OSError:
            assert process.poll() is None, "Orthanc did not start"
            time.sleep(0.1)
        else:
            return
    pytest.fail("Orthanc does not answer")


def upload(folder: Path, port: int) -> dict[str, set[str]]:
    held: dict[str, set[str]] = {}
    for number in range(NUM_SERIES + 1):
        uid = f"{ROOT_UID}.21.{number}"
        positions = [100 * number + 5 * index for index in range(NUM_SLICES)]
        files = ct_series(
            folder / f"{number}",
            positions_mm=positions,
            series_uid=uid,
            study_uid=f"{ROOT_UID}.22.{number // 2}",
            patient_id=f"P{number // 2}",
        )
        for file in files:
            edit(file, StudyDate="20191231" if number == NUM_SERIES else "20200615")
            ask(port, "/instances", file.read_bytes())
        if number < NUM_SERIES:
            held[uid] = {f"{uid}.{index + 1}" for index in range(NUM_SLICES)}
    return held


class CuttingProxy:
    """Passes TCP connections on to a port and ends them after given numbers of bytes of the answers.

    Args:
        target: The port behind.
        cuts: For each connection that brings an answer of DICOM files, bytes after which it ends; then none is.
    """

    def __init__(self, target: int, cuts: list[int]) -> None:
        self.target, self.cuts, self.num_cut = target, cuts, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            server.close()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        left: int | None = None
        try:
            while data := server.recv(65536):
                if left is None and self.cuts and b"multipart/related" in data:
                    left = self.cuts.pop(0)
                if left is not None and left < len(data):
                    client.sendall(data[:left])
                    self.num_cut += 1
                    break
                client.sendall(data)
                left = None if left is None else left - len(data)
        except OSError:
            pass
        # A thread that waits for more keeps a socket open that is merely closed.
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def retrieve(port: int, downloads: DownloadFolder, *, credentials: Credentials = CREDENTIALS) -> list[RetrievedSeries]:
    url = f"dicomweb+http://127.0.0.1:{port}/dicom-web"
    pacs = Pacs(url, credentials, patience=HURRY, jitter=random.Random(0))
    found = retrieve_all(
        pacs, QUERY, downloads, is_held=lambda key, number: False, stop=StopRequest(), settle_s=0.0, max_spooled=1000
    )
    with closing(pacs):
        return list(found)


def test_fifty_series_are_ingested_once_although_the_connection_is_cut_twenty_times(
    orthanc: Orthanc, tmp_path: Path
) -> None:
    generator = random.Random(0)
    proxy = CuttingProxy(orthanc.port, [generator.randrange(1, 4500) for _ in range(20)])
    source = PacsSource(
        f"dicomweb+http://127.0.0.1:{proxy.port}/dicom-web", QUERY, CREDENTIALS, settle_s=0.0, patience=HURRY
    )
    root = tmp_path / "cache"
    with closing(proxy):
        report = ingest([], root, IngestOptions(workers=1), pacs=source)
        again = ingest([], root, IngestOptions(workers=1), pacs=source)
    cache = Cache.open(root)
    records = cache.records()

    assert proxy.num_cut == 20
    assert (report.num_images, report.counts["accepted"]) == (NUM_SERIES, NUM_SERIES * NUM_SLICES)
    assert (again.num_images, again.counts["duplicate"]) == (0, NUM_SERIES * NUM_SLICES)
    assert {record.series_key for record in records} == {cache.pseudonyms.of("series", uid) for uid in orthanc.series}
    assert len(records) == NUM_SERIES
    values = {int(cache.read_image(record).voxels[0, 0, 0, 0]) for record in records}
    assert values == {100 * number for number in range(NUM_SERIES)}
    assert not any((root / "spool").iterdir())


def test_one_patient_can_be_asked_for(orthanc: Orthanc) -> None:
    url = f"dicomweb+http://127.0.0.1:{orthanc.port}/dicom-web"
    with closing(Pacs(url, CREDENTIALS, patience=HURRY)) as pacs:
        found = list(pacs.search(PacsQuery(patients=("P7",))))

    assert {series.series_uid for series in found} == {f"{ROOT_UID}.21.14", f"{ROOT_UID}.21.15"}
    assert {series.num_instances for series in found} == {NUM_SLICES}


def test_wrong_credentials_are_denied(orthanc: Orthanc, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="E_PACS_DENIED"):
        retrieve(
            orthanc.port,
            DownloadFolder(tmp_path, Pseudonyms(b"k" * 32)),
            credentials=Credentials(user="medssl", password="x"),
        )
