"""DICOM nodes around the service: a storescu that sends, a node that takes results, and the service itself."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.warm import WarmProcess

TITLE = "MEDSSL"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SR = "1.2.840.10008.5.1.4.1.1.88.34"


def free_port() -> int:
    """A port that nobody uses now."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str, package: str) -> str:
    """A program of the system; a test without it is skipped, or fails where CI=true says that it must be there."""
    # pynetdicom has a program called storescu, too, which may come first on the path.
    found = shutil.which(name, path="/usr/bin:/usr/sbin:/usr/local/bin:/opt/homebrew/bin")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing, and CI=true says that it must be there (apt-get install {package})")
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


def storescu(port: int, paths: Sequence[Path], *, sender: str = "CT1", called: str = TITLE, options: Any = ()) -> int:
    """Send files with dcmtk; returns the exit status, 0 if all were taken."""
    command = [program("storescu", "dcmtk"), "-aet", sender, "-aec", called, *options, "127.0.0.1", port, *paths]
    return subprocess.run(list(map(str, command)), capture_output=True, timeout=60).returncode


@dataclass
class TakingNode:
    """A node that takes objects, and keeps them by their SOPInstanceUID; each arrival counts."""

    port: int = 0
    objects: dict[str, Any] = field(default_factory=dict)
    arrivals: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @contextmanager
    def running(self, title: str = "CT1") -> Iterator["TakingNode"]:
        """Take objects inside the block, or refuse them with the statuses that are listed."""
        from pynetdicom import AE, evt

        node = AE(ae_title=title)
        for kind in (SEG, RTSTRUCT, SR):
            node.add_supported_context(kind)
        server = node.start_server(("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert server is not None
        self.port = int(server.server_address[1])
        try:
            yield self
        finally:
            node.shutdown()

    def _store(self, event: Any) -> int:
        if self.statuses:
            return self.statuses.pop(0)
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.arrivals.append(str(dataset.SOPInstanceUID))
        self.objects[str(dataset.SOPInstanceUID)] = dataset
        return 0x0000


@dataclass
class Service:
    """`medssl listen` in a process."""

    model: Path
    spool: Path
    peers: Sequence[str]
    port: int = field(default_factory=free_port)
    monitor_port: int = field(default_factory=free_port)
    options: Sequence[object] = ()
    process: WarmProcess | None = None

    def start(self) -> "Service":
        """Begin, and wait until it takes objects."""
        peers = [word for peer in self.peers for word in ("--peer", peer)]
        self.process = warm.start(
            (
                "listen", "-t", self.model, "--spool", self.spool, "--port", self.port, "--device", "cpu",
                "--settle", 0.4, "--monitor-port", self.monitor_port, "--min-free", 0, "-q", *peers, *self.options,
            ),
            kind="reading",
        )  # fmt: skip
        self.wait_until(lambda: "medssl_waiting_studies" in self.metrics())
        return self

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(60)
        return self.process.wait()

    def metrics(self) -> dict[str, float]:
        """What it tells of itself; nothing while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor_port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return {}
        return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}

    def waiting(self) -> dict[str, float]:
        """Studies that are not answered for, by their state; one while it does not answer."""
        told = self.metrics()
        return {state: told.get(f"medssl_{state}_studies", 1) for state in ("arriving", "waiting", "unsent")}

    def wait_until(self, is_true: Callable[[], bool], seconds: float = 90) -> None:
        """Wait; a service that has ended is a failure."""
        deadline = time.monotonic() + seconds
        while not is_true():
            assert self.process is None or self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
