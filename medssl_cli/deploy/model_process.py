"""The process that runs a model, seen from the one that uses it: it is given tiles, watched, and killed if need be."""

import contextlib
import json
import mmap
import os
import tempfile
import time
import weakref
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.base.files import storage_errors
from medssl_cli.deploy.session import OUT_OF_MEMORY, buffer_layout, buffer_views, described
from medssl_cli.work.workers import DIED, DYING_S, START_TIMEOUT_S, TIMED_OUT, end_child, start_child

POLL_S: Final = 0.05
"""How long the process is waited for before it is looked at, at first; twice as long each time, up to the longest."""
LONGEST_POLL_S: Final = 0.4
MAX_ANSWER_BYTES: Final = 2**20
COPIED_BYTES: Final = 2**20
"""Bytes of a model that are copied at a time: few enough to stay in the processor's cache."""


class ModelFailure(Exception):  # noqa: N818 - a value for `OnnxModel`, which makes an error with a code of it
    """Why a model did not answer: a word of `deploy.session`, `TIMED_OUT`, or a text that begins with `DIED`."""


class ModelProcess:
    """A child process with one model. It dies with this one, or when it is closed; afterwards a new one is needed."""

    def __init__(self) -> None:
        self._file = _file_in_memory()
        self._memory: mmap.mmap | None = None
        self._process, self._pipe = start_child("medssl_cli.deploy.session", self._file, keep=[self._file])
        self._end = weakref.finalize(self, _end, self._process, self._pipe, self._file)

    @property
    def is_alive(self) -> bool:
        """Whether it can be given work."""
        return self._end.alive

    @property
    def resident_bytes(self) -> int:
        """Memory that it holds now, without the buffer; 0 where the system does not tell."""
        with contextlib.suppress(OSError, ValueError):
            _, resident, shared = Path(f"/proc/{self._process.pid}/statm").read_text().split()[:3]
            return (int(resident) - int(shared)) * mmap.PAGESIZE
        return 0

    def take(self, stream: BufferedReader) -> memoryview:
        """Copy a model to where the process will find it; nothing is loaded.

        Returns:
            What the process will find, to be checked before it is loaded, and not to be kept: tiles take its place.

        Raises:
            StorageError: `E_IO`, there is no memory, or no disk, for a copy of it.
        """
        size, place, piece = os.fstat(stream.fileno()).st_size, 0, memoryview(bytearray(COPIED_BYTES))
        with storage_errors("the model"):
            while place < size and (num_bytes := stream.readinto(piece[: size - place])):
                os.pwrite(self._file, piece[:num_bytes], place)
                place += num_bytes
            return memoryview(mmap.mmap(self._file, place, access=mmap.ACCESS_READ)) if place else memoryview(b"")

    def begin_load(self, *, device: str, threads: int, memory_bytes: int) -> None:
        """Let the process load what it was given, and do not wait for it: `loaded` says what came of it.

        Args:
            device: See `open_session`.
            threads: Threads on the CPU.
            memory_bytes: Most private memory that the process may have.
        """
        # CUDA maps more memory than it uses, so there the watch of `_answer` must do.
        limit = 0 if device.startswith("cuda") else memory_bytes
        settings = {"device": device, "threads": threads, "memory_bytes": limit}
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(json.dumps(settings).encode())

    def loaded(self, *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """Wait until the model is loaded.

        Args:
            memory_bytes: Most private memory that the process may have.
            timeout_s: Longest time for this.

        Returns:
            `provider`, the shapes of `inputs` and `outputs`, and what is `missing` where the device was not taken.

        Raises:
            ModelFailure: The process has ended.
        """
        answer = self._answer(START_TIMEOUT_S + timeout_s, memory_bytes)
        os.ftruncate(self._file, 0)  # tiles take its place
        return answer

    def compute(
        self,
        inputs: Sequence[NDArray[Any]],
        output_shapes: Sequence[Sequence[int]],
        *,
        memory_bytes: int,
        timeout_s: float,
    ) -> list[NDArray[np.float32]]:
        """What the model gives for float32 and bool arrays, as views that hold until the next call.

        Raises:
            ModelFailure: As the process says, or because it had to be ended.
        """
        given = [described(array) for array in inputs]
        wanted = [(list(shape), "float32") for shape in output_shapes]
        starts, size = buffer_layout([*given, *wanted])
        if self._memory is None or len(self._memory) < size:
            os.ftruncate(self._file, size)
            self._memory = mmap.mmap(self._file, size)
        views = buffer_views(self._memory, [*given, *wanted], starts)
        for view, array in zip(views, inputs, strict=False):
            view[...] = array
        self._send(json.dumps({"inputs": given, "outputs": wanted}).encode())
        self._answer(timeout_s, memory_bytes)
        return views[len(inputs) :]

    def close(self) -> None:
        """End it now."""
        self._end()

    def _send(self, message: bytes) -> None:
        try:
            self._pipe.send_bytes(message)
        except OSError as error:
            raise self._death() from error

    def _answer(self, timeout_s: float, memory_bytes: int) -> dict[str, Any]:
        deadline, poll_s = time.monotonic() + timeout_s, POLL_S
        while not self._pipe.poll(poll_s):
            poll_s = min(2 * poll_s, LONGEST_POLL_S)
            late = time.monotonic() > deadline
            if late or self.resident_bytes > memory_bytes:
                self.close()
                raise ModelFailure(TIMED_OUT if late else OUT_OF_MEMORY)
        try:
            answer: dict[str, Any] = json.loads(self._pipe.recv_bytes(MAX_ANSWER_BYTES))
        except (EOFError, OSError, ValueError) as error:
            raise self._death() from error
        if answer["problem"]:
            self.close()
            raise ModelFailure(str(answer["problem"]))
        return answer

    def _death(self) -> ModelFailure:
        status = end_child(self._process, grace_s=DYING_S)
        self.close()
        return ModelFailure(f"{DIED} ({status})")


def _file_in_memory() -> int:
    """Descriptor of an empty file that has no name and takes no disk (Linux), or of a deleted temporary one."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tiles")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(process: Any, pipe: Any, file: int) -> None:
    pipe.close()
    end_child(process)
    os.close(file)
