"""Commands in processes of their own that need not load torch and MONAI again: each is a fork of one that has.

They are real processes with a group, streams, environment and end of their own, so that they can be killed, stopped and
waited for like any other. What a test wants to know about the loading itself needs a cold process.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from typing import IO

from tests.environment import ENVIRONMENT, ROOT

LOADED = (
    "lightning_fabric",
    "medssl_cli.cli.app",
    "medssl_cli.engine.finetune",
    "medssl_cli.engine.pretrain",
    "medssl_cli.methods.voco",
)
_NUMBER = struct.Struct("i")


class WarmProcess:
    """A running command; the part of `subprocess.Popen` that tests use, with text as streams."""

    def __init__(self, status: int, stdout: int, stderr: int) -> None:
        self._status = status
        self.pid = self._number()
        self.returncode: int | None = None
        self.stdout: IO[str] = os.fdopen(stdout, encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(stderr, encoding="utf-8")

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it writes until its end: results and talk.

        Raises:
            subprocess.TimeoutExpired: It writes on.
        """
        found = ["", ""]

        def read(index: int, stream: IO[str]) -> None:
            found[index] = stream.read()

        streams = (self.stdout, self.stderr)
        threads = [threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        for stream in streams:
            stream.close()
        self.wait(timeout)
        return found[0], found[1]

    def send_signal(self, number: int) -> None:
        """To the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _number(self) -> int:
        return int(_NUMBER.unpack(os.read(self._status, _NUMBER.size))[0])

    def _end(self) -> None:
        self.returncode = self._number()
        os.close(self._status)


def start(
    arguments: Sequence[object],
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    module: str = "medssl_cli",
    code: str | None = None,
) -> WarmProcess:
    """A command in a process group of its own.

    Args:
        arguments: Of the command line.
        environment: Of the process.
        module: What is run, as `python -m` does.
        code: What is run instead, as `python -c` does.
    """
    pipes = [os.pipe() for _ in range(3)]
    request = {
        "module": module,
        "code": code,
        "arguments": [str(one) for one in arguments],
        "environment": {**environment},
    }
    data = json.dumps(request).encode()
    server = _server()
    socket.send_fds(server, [_NUMBER.pack(len(data))], [end for _, end in pipes])
    server.sendall(data)
    for _, end in pipes:
        os.close(end)
    return WarmProcess(*(end for end, _ in pipes))


@functools.cache
def _server() -> socket.socket:
    """One for all tests of this process; it ends with it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=ENVIRONMENT, cwd=ROOT)
    atexit.register(lambda: (ours.close(), process.wait()))
    theirs.close()
    return ours


def _serve(requests: socket.socket) -> dict[str, object]:
    """Fork for each request, until there are no more; returns only in the fork, with what it is to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        head, descriptors, _, _ = socket.recv_fds(requests, _NUMBER.size, 3)
        if not head:
            os._exit(0)
        data = requests.recv(_NUMBER.unpack(head)[0], socket.MSG_WAITALL)
        if not os.fork():
            requests.close()
            if _is_command(*descriptors):
                return dict(json.loads(data))
        for descriptor in descriptors:
            os.close(descriptor)


def _is_command(status: int, stdout: int, stderr: int) -> bool:
    """Fork again: one that waits for the command and tells how it ended, and the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        os.write(status, _NUMBER.pack(child))
        os.close(stdout)
        os.close(stderr)
        os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, stdout, stderr)):
        os.dup2(source, target)
        os.close(source)
    os.close(status)
    return True


def _run(request: dict[str, object]) -> None:
    """What `python -m` and `python -c` do."""
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.argv = ["medssl", *request["arguments"]]  # type: ignore[misc]
    if request["code"] is None:
        runpy.run_module(str(request["module"]), run_name="__main__", alter_sys=True)
    else:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(str(request["code"]), main.__dict__)


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
