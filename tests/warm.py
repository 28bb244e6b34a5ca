"""Commands in processes of their own that need not load torch and MONAI again: each is a fork of one that has.

They are real processes with a group, streams, environment and end of their own, so that they can be killed, stopped and
waited for like any other. What a test wants to know about the loading itself needs a cold process.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
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
import traceback
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

from tests.environment import ENVIRONMENT, ROOT

LOADED = {
    "training": (
        "medssl_cli.cli.app",
        "lightning_fabric",
        "medssl_cli.engine.finetune",
        "medssl_cli.engine.pretrain",
        "medssl_cli.methods.voco",
    ),
    "reading": (
        "medssl_cli.cli.app",
        "SimpleITK",
        "blosc2",
        "medssl_cli.deploy.session",
        "medssl_cli.formats.dicom.series",
        "medssl_cli.formats.images.dicom",
        "medssl_cli.formats.images.metaimage",
        "medssl_cli.formats.images.nifti",
        "medssl_cli.formats.images.nrrd",
        "medssl_cli.formats.images.picture",
        "medssl_cli.formats.labels.rtstruct",
        "medssl_cli.formats.labels.seg",
        "medssl_cli.formats.series",
        "medssl_cli.ingest.annotations",
        "medssl_cli.ingest.ingest",
        "medssl_cli.ingest.label_maps",
        "medssl_cli.ingest.tasks",
        "medssl_cli.work.child",
        "onnxruntime",
        "scipy.ndimage",
    ),
}
"""What a process has imported before it is asked for a fork: of those that train, of those that read or infer."""
MODULES_WITH_CHILDREN = ("medssl_cli.work.workers", "medssl_cli.deploy.model_process")
_NUMBER = struct.Struct("i")
_OUT_OF_THE_WAY = 512
_MAX_FILES = 8
_ASKING = threading.Lock()
_ENVIRONMENT_BEFORE = frozenset(os.environ)


@dataclass(frozen=True)
class Request:
    """What a fork is to be: its command line, environment, folder, code, and the numbers of files that it is given."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    module: str
    code: str | None = None
    files: list[int] = field(default_factory=list)
    has_warm_children: bool = False


class WarmChild:
    """A running fork; the part of `subprocess.Popen` that those who watch over a child use."""

    def __init__(self, status: int) -> None:
        self._status = status
        self.pid = self._number()
        self.returncode: int | None = None

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

    def send_signal(self, number: int) -> None:
        """To the process alone; nothing happens if it has ended, as with `subprocess.Popen`."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process alone, now."""
        self.send_signal(signal.SIGKILL)

    def _number(self) -> int:
        return int(_NUMBER.unpack(os.read(self._status, _NUMBER.size))[0])

    def _end(self) -> None:
        self.returncode = self._number()
        os.close(self._status)


class WarmProcess(WarmChild):
    """A running command, with text as streams; whoever starts it closes it, and else `close_others` does."""

    running: ClassVar[set["WarmProcess"]] = set()

    def __init__(self, status: int, stdout: int, stderr: int) -> None:
        super().__init__(status)
        self.running.add(self)
        self.stdout: IO[str] = os.fdopen(stdout, encoding="utf-8", errors="surrogateescape")
        self.stderr: IO[str] = os.fdopen(stderr, encoding="utf-8", errors="surrogateescape")

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
        self._close_streams()
        self.wait(timeout)
        return found[0], found[1]

    def close(self) -> None:
        """End it and its group, whatever they do, and close its streams."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self._close_streams()

    @classmethod
    def close_others(cls, known: Collection["WarmProcess"]) -> None:
        """Close all that are not among those that are known."""
        for process in cls.running - {*known}:
            process.close()

    def _close_streams(self) -> None:
        self.stdout.close()
        self.stderr.close()
        self.running.discard(self)


def start(
    arguments: Sequence[object],
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    kind: str = "training",
    folder: Path | None = None,
    module: str = "medssl_cli",
    code: str | None = None,
    has_warm_children: bool = False,
) -> WarmProcess:
    """A command in a process group of its own.

    Args:
        arguments: Of the command line.
        environment: Of the process.
        kind: What it has imported, of `LOADED`.
        folder: Where it works; that of this process if none is named.
        module: What is run, as `python -m` does.
        code: What is run instead, as `python -c` does.
        has_warm_children: Its children that read are forks, too; then they need not die with it.
    """
    words, where = [*map(str, arguments)], str(folder or Path.cwd())
    request = Request(words, {**environment}, where, module, code, has_warm_children=has_warm_children)
    outputs = [os.pipe() for _ in range(2)]
    status = _ask(_server(kind), request, [end for _, end in outputs])
    for _, end in outputs:
        os.close(end)
    return WarmProcess(status, *(end for end, _ in outputs))


def run(
    *arguments: object, environment: Mapping[str, str] = ENVIRONMENT, kind: str = "training", folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """`medssl ARGUMENTS`, when it has ended; the rest as for `start`."""
    process = start(arguments, environment, kind=kind, folder=folder, has_warm_children=True)
    out, talk = process.communicate()
    return subprocess.CompletedProcess(["medssl", *map(str, arguments)], process.wait(), out, talk)


def start_child(
    module: str, *numbers: int, keep: Sequence[int] = (), kind: str = "reading", server: socket.socket | None = None
) -> tuple[WarmChild, Connection]:
    """As `medssl_cli.work.workers.start_child`; the parent whose death it looks for is the one that waits for it."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Path(os.devnull).open("r+b") as nothing:
        files = [theirs.fileno(), *keep]
        call = ", ".join(map(str, (theirs.fileno(), "os.getppid()", *numbers)))
        code = f"import os, sys; sys.path[:] = {sys.path!r}; from {module} import serve; serve({call})"
        request = Request([], {**os.environ}, str(Path.cwd()), module, code, files)
        status = _ask(server or _server(kind), request, [nothing.fileno(), nothing.fileno(), *files])
        return WarmChild(status), Connection(ours.detach())


def _ask(server: socket.socket, request: Request, descriptors: Sequence[int]) -> int:
    """Let a server start something; returns where its process number and its end are told."""
    ours, theirs = os.pipe()
    data = json.dumps(asdict(request)).encode()
    with _ASKING:
        socket.send_fds(server, [_NUMBER.pack(len(data))], [theirs, *descriptors])
        server.sendall(data)
    os.close(theirs)
    return ours


@functools.cache
def _server(kind: str) -> socket.socket:
    """One of each kind for all tests of this process; it ends with it."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "tests.warm", kind, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=ENVIRONMENT, cwd=ROOT)
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(requests: socket.socket) -> Request:
    """Fork for each request, until there are no more; returns only in the fork, with what it is to run."""
    forks: set[int] = set()
    while True:
        head, descriptors, _, _ = socket.recv_fds(requests, _NUMBER.size, _MAX_FILES)
        forks -= {fork for fork in forks if os.waitpid(fork, os.WNOHANG)[0]}
        if not head:
            os._exit(0)
        data = requests.recv(_NUMBER.unpack(head)[0], socket.MSG_WAITALL)
        fork = os.fork()
        if not fork:
            requests.close()
            request = Request(**json.loads(data))
            if _is_command(request, *descriptors):
                return request
        forks.add(fork)
        for descriptor in descriptors:
            os.close(descriptor)


def _is_command(request: Request, status: int, *descriptors: int) -> bool:
    """Fork again: one that waits for the command and tells how it ended, and the command."""
    child = os.fork()
    if child:
        os.write(status, _NUMBER.pack(child))
        for descriptor in descriptors:
            os.close(descriptor)
        os.write(status, _NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)
    os.setsid()
    os.close(status)
    sources = [os.open(os.devnull, os.O_RDONLY), *descriptors]
    apart = [fcntl.fcntl(source, fcntl.F_DUPFD, _OUT_OF_THE_WAY) for source in sources]
    for source in sources:
        os.close(source)
    for target, source in zip((0, 1, 2, *request.files), apart, strict=True):
        os.dup2(source, target)
        os.close(source)
    return True


def _warm_children() -> None:
    """Fork once more, before the command begins: its children come from there."""
    ours, theirs = socket.socketpair()
    if not os.fork():
        ours.close()
        _live(_serve(theirs))
    theirs.close()
    for module in MODULES_WITH_CHILDREN:
        importlib.import_module(module).start_child = functools.partial(start_child, server=ours)


class Spare(subprocess.Popen[bytes]):
    """A second process of a command: a fork from before the command began, which waits for what it is to run."""

    waiting: ClassVar[tuple[int, int]]

    @classmethod
    def prepare(cls) -> None:
        """Fork, and let it be what Lightning starts when it starts one."""
        theirs, orders = os.pipe()
        child = os.fork()
        if not child:
            os.close(orders)
            with os.fdopen(theirs) as stream:
                text = stream.read()
            if text:
                _live(Request(**json.loads(text)))
            os._exit(0)
        os.close(theirs)
        cls.waiting = (child, orders)
        launcher = importlib.import_module("lightning_fabric.strategies.launchers.subprocess_script")
        launcher.subprocess = types.SimpleNamespace(Popen=cls)  # type: ignore[attr-defined]

    def _execute_child(self, arguments: Sequence[str], *rest: Any) -> None:
        (python, option, module, *words), (*_, folder, environment) = arguments, rest[:6]
        assert (python, option) == (sys.executable, "-m")
        self.pid, orders = self.waiting
        self._child_created = True
        with os.fdopen(orders, "w") as stream:
            stream.write(json.dumps(asdict(Request(words, environment, folder or str(Path.cwd()), module))))


def _live(request: Request) -> NoReturn:
    """Run to the end. Python's own end takes apart, one by one, what has been loaded: more than a second of torch."""
    status = 0
    try:
        _run(request)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
    except BaseException:  # noqa: BLE001 - a process ends with whatever nobody caught
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(request: Request) -> None:
    """What `python -m` and `python -c` do; what imports have added to the environment stays."""
    os.chdir(request.folder)
    for name in _ENVIRONMENT_BEFORE - request.environment.keys():
        os.environ.pop(name, None)
    os.environ.update(request.environment)
    sys.argv = ["medssl", *request.arguments]
    if request.code is None:
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    else:
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(request.code, main.__dict__)


if __name__ == "__main__":
    for name in LOADED[sys.argv[1]]:
        importlib.import_module(name)
    gc.freeze()
    chosen = _serve(socket.socket(fileno=int(sys.argv[2])))
    if "--devices" in chosen.arguments:
        Spare.prepare()
    if chosen.has_warm_children:
        _warm_children()
    _live(chosen)
