"""A DICOMweb server in a thread that fails as it is told to, for tests."""

import json
import socket
import ssl
import struct
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import pydicom

BOUNDARY = "b0undary"


@dataclass
class Answer:
    """What the server is about to send; a fault changes it.

    Args:
        cut_at: Bytes of the body after which the connection is reset.
        claimed_length: Content-Length; the body's own by default.
    """

    status: int = 200
    kind: str = "application/dicom+json"
    body: bytes = b"[]"
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    claimed_length: int | None = None


Fault = Callable[[Answer], Answer | None]


class FakePacs:
    """Serves DICOM files over QIDO-RS and WADO-RS at `url` while it is entered as a context.

    Args:
        files: What it holds.
        page_size: Most entries that it gives at once, whatever it is asked for.
        repeats: Entries of the page before with which each page begins once more.
        context: Serve over TLS.

    Attributes:
        faults: One for each search or retrieval to come; None does nothing.
        retrieval_faults: The same, used up by retrievals only.
        requests: Method and path of each request.
        authorizations: What came as credentials.
        counts: Number of instances that it claims of a series.
        ignores_conditions: Lists studies of all dates.
        ignores_offset: Gives the first page of a list again and again.
    """

    def __init__(
        self, files: list[Path], *, page_size: int = 1000, repeats: int = 0, context: ssl.SSLContext | None = None
    ) -> None:
        self.page_size, self.repeats, self.context = page_size, repeats, context
        self.studies: dict[str, dict[str, dict[str, bytes]]] = defaultdict(lambda: defaultdict(dict))
        self.faults: list[Fault | None] = []
        self.retrieval_faults: list[Fault | None] = []
        self.requests: list[tuple[str, str]] = []
        self.authorizations: set[str] = set()
        self.counts: dict[str, int] = {}
        self.ignores_conditions = False
        self.ignores_offset = False
        for file in files:
            self.add(file)

    def add(self, file: Path) -> None:
        """Hold one more instance."""
        dataset = pydicom.dcmread(file, stop_before_pixels=True)
        self.studies[dataset.StudyInstanceUID][dataset.SeriesInstanceUID][dataset.SOPInstanceUID] = file.read_bytes()

    def __enter__(self) -> Self:
        pacs = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                pacs.requests.append((self.command, self.path))
                pacs.authorizations.add(self.headers.get("Authorization", ""))
                pacs.send(self, pacs.answer(self.path))

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of the standard library

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        scheme = "dicomweb+http"
        if self.context is not None:
            self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True)
            scheme = "dicomweb"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}/dicom-web"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def retrievals(self) -> list[str]:
        """Paths that were retrieved from, in order."""
        paths = [path for _, path in self.requests if "?" not in path]
        return [path.removeprefix("/dicom-web/") for path in paths]

    def answer(self, path: str) -> Answer:
        """What an honest server would say, then the faults."""
        parts = urlsplit(path)
        names = parts.path.removeprefix("/dicom-web/").split("/")
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        is_retrieval = not parts.query
        answer = self._retrieval(names[1::2]) if is_retrieval else self._search(names[1::2], options)
        for faults in (self.faults, self.retrieval_faults if is_retrieval else []):
            fault = faults.pop(0) if faults else None
            answer = (fault(answer) if fault else None) or answer
        return answer

    def _retrieval(self, uids: list[str]) -> Answer:
        instances = self.studies[uids[0]][uids[1]]
        found = list(instances.values()) if len(uids) == 2 else [instances[uid] for uid in uids[2:] if uid in instances]
        if not found:
            return Answer(404, "text/plain", b"no such thing")
        return Answer(200, f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', multipart(found))

    def _search(self, uids: list[str], options: dict[str, str]) -> Answer:
        if len(uids) == 0:
            rows = [self._row(study) for study in sorted(self.studies)]
            if not self.ignores_conditions:
                rows = [row for row in rows if is_in(row["00080020"]["Value"][0], options.get("StudyDate", "-"))]
        elif len(uids) == 1:
            rows = [self._row(uids[0], series) for series in sorted(self.studies[uids[0]])]
        else:
            sops = sorted(self.studies[uids[0]][uids[1]])
            rows = [{"00080018": {"vr": "UI", "Value": [sop]}} for sop in sops]
        first = 0 if self.ignores_offset else int(options["offset"])
        rows = rows[max(0, first - self.repeats) if first < len(rows) else first :]
        return Answer(body=json.dumps(rows[: min(int(options["limit"]), self.page_size)]).encode())

    def _row(self, study: str, series: str | None = None) -> dict[str, Any]:
        any_series = series or next(iter(self.studies[study]))
        head = pydicom.dcmread(pydicom.filebase.DicomBytesIO(next(iter(self.studies[study][any_series].values()))))
        row = {
            "00080020": {"vr": "DA", "Value": [head.get("StudyDate", "")]},
            "00080060": {"vr": "CS", "Value": [head.Modality]},
            "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Zqname^Zq"}]},
            "00100020": {"vr": "LO", "Value": [head.PatientID]},
            "0020000D": {"vr": "UI", "Value": [study]},
        }
        if series is not None:
            number = self.counts.get(series, len(self.studies[study][series]))
            row |= {"0020000E": {"vr": "UI", "Value": [series]}, "00201209": {"vr": "IS", "Value": [number]}}
        return row

    def send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        """Send an answer as it is, however wrong."""
        length = len(answer.body) if answer.claimed_length is None else answer.claimed_length
        handler.send_response(answer.status)
        for name, value in {"Content-Type": answer.kind, "Content-Length": str(length), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer.body[: answer.cut_at])
        if answer.cut_at is not None:
            handler.wfile.flush()
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.close_connection = True
        elif length != len(answer.body):
            handler.close_connection = True


def is_in(day: str, dates: str) -> bool:
    """Whether a StudyDate lies in a range as QIDO-RS writes it."""
    first, _, last = dates.partition("-")
    return (first or "0") <= day <= (last or "9")


def multipart(instances: list[bytes], *, boundary: str = BOUNDARY, kind: str = "application/dicom") -> bytes:
    """A body of multipart/related."""
    parts = (
        f"\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Length: {len(instance)}\r\n\r\n".encode() + instance
        for instance in instances
    )
    return b"".join(parts).removeprefix(b"\r\n") + f"\r\n--{boundary}--\r\n".encode()
