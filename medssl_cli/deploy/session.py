"""ONNX Runtime, and the process that it works in: one model, one batch of tiles after another, until it is killed.

A model is a program that somebody else wrote. It runs where it cannot take more memory or time than it was given, and
says what it computes through a buffer that both processes see; all other messages are JSON, which runs no code.
"""

import contextlib
import ctypes
import io
import json
import mmap
import os
import re
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
OPENVINO_PACKAGE: Final = "onnxruntime-openvino"
FATAL_ONLY: Final = 4
OUT_OF_MEMORY: Final = "out of memory"
WRONG_OUTPUT: Final = "wrong output"
NOT_FINITE: Final = "not finite"
FAILED: Final = "failed"
_NO_MEMORY: Final = re.compile(r"allocate memory|bad_alloc|out of memory|std::length_error", re.IGNORECASE)
_OTHER_OUTPUT: Final = re.compile(r"dimensions for output|OrtValue provided for output|output data type")


Described = tuple[list[int], str]
"""Description of an array: its shape, and `float32` or `bool`."""


class LoadError(Exception):
    """ONNX Runtime cannot load a model; the text says why in one of the words of this module."""


def open_session(model: bytes | Path, *, device: str, threads: int) -> Any:
    """A quiet session on a device; ask `get_providers()` where it really runs.

    Args:
        model: A serialised model, or the file that holds nothing else.
        device: `cpu`, `cuda:N` or `openvino`.
        threads: Threads on the CPU.

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
    options.enable_mem_pattern = False  # a second copy of what a call needs: a third more memory, and no faster
    # Threads that wait between two calls, and within one, would keep their cores busy: a third of all CPU time of two.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, sess_options=options, providers=_providers(ort, device, threads))
    except MemoryError as error:
        raise LoadError(OUT_OF_MEMORY) from error
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if type(error) is RuntimeError or type(error).__module__.startswith("onnxruntime"):
            raise LoadError(_kind_of(error)) from error
        raise


def _providers(ort: Any, device: str, threads: int) -> list[Any]:
    """What ONNX Runtime is asked to use, the best first."""
    if device == "openvino" and OPENVINO in ort.get_available_providers():
        # Where the processor has bfloat16, OpenVINO would compute in it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1"}
        return [(OPENVINO, {"device_type": "CPU", "load_config": json.dumps({"CPU": settings})}), CPU]
    if device.startswith("cuda"):
        _preload_cuda(ort)
        return [(CUDA, {"device_id": int(device.partition(":")[2])}), CPU]
    return [CPU]


def _missing(device: str) -> str:
    """What a device that was not taken lacks: a shared library or a package; empty if it is not known."""
    if device == "openvino":
        return OPENVINO_PACKAGE
    return "" if device == "cpu" else missing_cuda_library()


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
    """Load the model that the parent gives, then compute one batch after another until the socket closes.

    Args:
        descriptor: Descriptor of a socket whose other end is the parent's.
        parent: Process number of the parent.
        buffer: Descriptor of the file in memory that holds the model first, and then tiles and logits.
    """
    from medssl_cli.work.child import confine

    confine(parent)
    import onnxruntime  # noqa: F401 - while the parent still reads the model

    pipe = Connection(descriptor)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        settings = json.loads(pipe.recv_bytes())
        _limit_data(settings["memory_bytes"])
        session = _loaded(pipe, settings, buffer)
        tiles = _Tiles(buffer)
        while session is not None:
            told = json.loads(pipe.recv_bytes())
            answer = _computed(session, *tiles.views(told["inputs"], told["outputs"]))
            pipe.send_bytes(json.dumps({"problem": answer}).encode())


def _limit_data(num_bytes: int) -> None:
    """Bound the private memory; address space is no measure, of which CUDA reserves more than there is memory."""
    import resource

    if num_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def _loaded(pipe: Connection, settings: dict[str, Any], buffer: int) -> Any:
    """A session, after the parent was told about it; None if there is none."""
    device = settings["device"]
    try:
        session = open_session(_given_model(buffer), device=device, threads=settings["threads"])
    except (LoadError, MemoryError) as error:
        problem = OUT_OF_MEMORY if isinstance(error, MemoryError) else str(error)
        pipe.send_bytes(json.dumps({"problem": problem}).encode())
        return None
    provider = session.get_providers()[0]
    answer = {
        "problem": "",
        "provider": provider,
        "missing": _missing(device) if provider == CPU else "",
        "inputs": [[value.name, list(value.shape)] for value in session.get_inputs()],
        "outputs": [[value.name, list(value.shape)] for value in session.get_outputs()],
    }
    pipe.send_bytes(json.dumps(answer, default=str).encode())
    return session


def _given_model(buffer: int) -> bytes | Path:
    """The model in a buffer; where open files have names (Linux), nobody needs a copy of it."""
    path = Path(f"/proc/self/fd/{buffer}")
    return path if path.exists() else os.pread(buffer, os.fstat(buffer).st_size, 0)


class _Tiles:
    """Views of the shared file, mapped again when it has grown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._memory: mmap.mmap | None = None

    def views(self, inputs: list[Described], outputs: list[Described]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Inputs and outputs of a call, which lie behind each other."""
        starts, size = buffer_layout([*inputs, *outputs])
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._descriptor, size)
        arrays = buffer_views(self._memory, [*inputs, *outputs], starts)
        return arrays[: len(inputs)], arrays[len(inputs) :]


def described(array: NDArray[Any]) -> Described:
    """Shape and type of an array, as both processes tell each other."""
    return list(array.shape), "bool" if array.dtype == np.bool_ else "float32"


def buffer_layout(arrays: Sequence[Described]) -> tuple[list[int], int]:
    """Where each array begins in the buffer, on a page of its own, and the size of all together in bytes."""
    starts, end = [], 0
    for shape, dtype in arrays:
        starts.append(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE)
        end = starts[-1] + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
    return starts, end


def buffer_views(memory: mmap.mmap, arrays: Sequence[Described], starts: Sequence[int]) -> list[NDArray[Any]]:
    """Arrays in the buffer."""
    return [
        np.frombuffer(memory, np.dtype(dtype), int(np.prod(shape)), start).reshape(shape)
        for (shape, dtype), start in zip(arrays, starts, strict=True)
    ]


def _computed(session: Any, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> str:
    """Run the model from some arrays into others; what went wrong, or nothing."""
    try:
        binding = session.io_binding()
        for bind, ends, arrays in (
            (binding.bind_input, session.get_inputs(), inputs),
            (binding.bind_output, session.get_outputs(), outputs),
        ):
            for end, array in zip(ends, arrays, strict=True):
                bind(end.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
    except MemoryError:
        return OUT_OF_MEMORY
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base class
        return _kind_of(error)
    # A sum is a fourth of the work, and is infinite for some finite numbers only.
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = all(bool(np.isfinite(each.sum()) or np.isfinite(each).all()) for each in outputs)
    return "" if is_finite else NOT_FINITE
