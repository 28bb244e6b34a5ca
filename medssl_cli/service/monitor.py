"""Health and metrics over HTTP, on a loopback address only: numbers, and nothing about patients."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from medssl_cli.base.errors import UsageError

LOOPBACK: Final = "127.0.0.1"
Numbers = Callable[[], Mapping[str, float]]


@contextlib.contextmanager
def monitored(port: int, numbers: Numbers, *, is_healthy: Callable[[], bool]) -> Iterator[int]:
    """Answer `/healthz` (JSON; 503 where the service does not work) and `/metrics` (Prometheus) inside the block.

    Args:
        port: 0 lets the system choose.
        numbers: Numbers of the service, by name.
        is_healthy: Whether it works.

    Raises:
        UsageError: `E_PORT`.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            told = numbers()
            if self.path == "/healthz":
                status = 200 if is_healthy() else 503
                document = {"status": "ok" if status == 200 else "failing", **told}
                self._answer(status, "application/json", json.dumps(document, sort_keys=True))
            elif self.path == "/metrics":
                self._answer(200, "text/plain; version=0.0.4", exposition(told))
            else:
                self._answer(404, "text/plain", "/healthz or /metrics\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        raise UsageError("E_PORT", f"cannot listen on port {port} ({error.strerror})") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def exposition(numbers: Mapping[str, float]) -> str:
    """Numbers in the text format of Prometheus; those that only grow are called `_total`."""
    lines = []
    for name, value in sorted(numbers.items()):
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE medssl_{name} {kind}", f"medssl_{name} {value:g}"]
    return "\n".join(lines) + "\n"
