"""ONNX Runtime, and the process that it works in: one model, one batch of tiles after another, until it is killed.

A model is a program that somebody else wrote. It runs where it cannot take more memory or time than it was given, and
says what it computes through a buffer that both processes see; all other messages are JSON, which runs no code.
"""

import contextlib
import ctypes
import io
import json
import mmap
import re
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
FATAL_ONLY: Final = 4
OUT_OF_MEMORY: Final = "out of memory"
WRONG_OUTPUT: Final = "wrong output"
NOT_FINITE: Final = "not finite"
FAILED: Final = "failed"
_NO_MEMORY: Final = re.compile(r"allocate memory|bad_alloc|out of memory|std::length_error", re.IGNORECASE)
_OTHER_OUTPUT: Final = re.compile(r"dimensions for output|OrtValue provided for output|output data type")


class LoadError(Exception):
    """ONNX Runtime cannot load a model; the text says why in one of the words of this module."""


def open_session(data: bytes, *, cuda: int | None, threads: int) -> Any:
    """A quiet session on a CUDA device or the CPU; ask `get_providers()` where it really runs.

    Args:
        data: A serialised model.
        cuda: Number of a device; None for the CPU.
        threads: On the CPU.

    Raises:
        LoadError: The model cannot be loaded.
    """
    import onnxruntime as ort

    ort.disable_telemetry_events()
    ort.set_default_logger_severity(FATAL_ONLY)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    providers: list[Any] = [CPU]
    if cuda is not None:
        _preload_cuda(ort)
        providers = [(CUDA, {"device_id": cuda}), CPU]
    try:
        return ort.InferenceSession(data, sess_options=options, providers=providers)
    except MemoryError as error:
        raise LoadError(OUT_OF_MEMORY) from error
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if type(error) is RuntimeError or type(error).__module__.startswith("onnxruntime"):
            raise LoadError(_kind_of(error)) from error
        raise


def missing_cuda_library() -> str:
    """Name of the shared library for want of which ONNX Runtime cannot use CUDA; empty if it is not known."""
    import onnxruntime as ort

    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not provider.is_file():
        return provider.name
    try:
        ctypes.CDLL(str(provider.with_name("libonnxruntime_providers_shared.so")), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        found = re.match(r"(lib[\w.+-]+\.so[\w.]*): cannot open", str(error))
        return found[1] if found else ""
    return ""


def _preload_cuda(ort: Any) -> None:
    """Let ONNX Runtime find CUDA libraries that were installed as Python packages."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _kind_of(error: Exception) -> str:
    text = str(error)
    if _NO_MEMORY.search(text):
        return OUT_OF_MEMORY
    return WRONG_OUTPUT if _OTHER_OUTPUT.search(text) else FAILED


def serve(descriptor: int, parent: int, buffer: int) -> None:
    """Load the model that the parent sends, then compute one batch after another until the socket closes.

    Args:
        descriptor: Of a socket whose other end is the parent's.
        parent: Process number of the parent.
        buffer: Descriptor of the file in memory that holds tiles and logits.
    """
    from medssl_cli.child import confine

    confine(parent)
    import onnxruntime  # noqa: F401 - while the parent still reads the model

    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        settings = json.loads(pipe.recv_bytes())
        _limit_data(settings["memory_bytes"])
        session = _loaded(pipe, settings)
        tiles = _Tiles(buffer)
        while session is not None:
            shapes = json.loads(pipe.recv_bytes())
            answer = _computed(session, *tiles.views(shapes["input"], shapes["output"]))
            pipe.send_bytes(json.dumps({"problem": answer}).encode())


def _limit_data(num_bytes: int) -> None:
    """Bound the private memory; address space is no measure, of which CUDA reserves more than there is memory."""
    import resource

    if num_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def _loaded(pipe: Connection, settings: dict[str, Any]) -> Any:
    """A session, after the parent was told about it; None if there is none."""
    cuda = settings["cuda"]
    try:
        session = open_session(pipe.recv_bytes(), cuda=cuda, threads=settings["threads"])
    except (LoadError, MemoryError) as error:
        problem = OUT_OF_MEMORY if isinstance(error, MemoryError) else str(error)
        pipe.send_bytes(json.dumps({"problem": problem}).encode())
        return None
    provider = session.get_providers()[0]
    answer = {
        "problem": "",
        "provider": provider,
        "missing": missing_cuda_library() if cuda is not None and provider != CUDA else "",
        "inputs": [list(value.shape) for value in session.get_inputs()],
        "outputs": [list(value.shape) for value in session.get_outputs()],
    }
    pipe.send_bytes(json.dumps(answer, default=str).encode())
    return session


class _Tiles:
    """Views of the shared file, mapped again when it has grown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = None

    def views(self, input_shape: list[int], output_shape: list[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Input and output of a batch, which lie behind each other."""
        start, size = buffer_layout(input_shape, output_shape)
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._descriptor, size)
        return buffer_views(self._memory, input_shape, output_shape, start)


def buffer_layout(input_shape: list[int], output_shape: list[int]) -> tuple[int, int]:
    """Where the output begins in the buffer, on a page of its own, and the size of both together in bytes."""
    sizes = [4 * int(np.prod(shape, dtype=np.int64)) for shape in (input_shape, output_shape)]
    start = -(-sizes[0] // mmap.PAGESIZE) * mmap.PAGESIZE
    return start, start + sizes[1]


def buffer_views(
    memory: mmap.mmap, input_shape: list[int], output_shape: list[int], start: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Input and output as arrays in the buffer."""
    arrays = [
        np.frombuffer(memory, np.float32, int(np.prod(shape)), offset).reshape(shape)
        for shape, offset in ((input_shape, 0), (output_shape, start))
    ]
    return arrays[0], arrays[1]


def _computed(session: Any, tiles: NDArray[np.float32], logits: NDArray[np.float32]) -> str:
    """Run the model from one array into the other; what went wrong, or nothing."""
    try:
        binding = session.io_binding()
        for bind, end, array in (
            (binding.bind_input, session.get_inputs()[0], tiles),
            (binding.bind_output, session.get_outputs()[0], logits),
        ):
            bind(end.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        return _kind_of(error)
    # A sum is a fourth of the work, and is infinite for some finite numbers only.
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = bool(np.isfinite(logits.sum()) or np.isfinite(logits).all())
    return "" if is_finite else NOT_FINITE
