"""ONNX Runtime on the device that was asked for, or an error: never another one in silence."""

import contextlib
import ctypes
import io
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medssl_cli.deploy.bundle import Bundle, load_model
from medssl_cli.errors import InputError, UsageError
from medssl_cli.imaging.segment import Progress, segment_volume
from medssl_cli.imaging.volume import Volume
from medssl_cli.parallel import available_cores

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
FATAL_ONLY: Final = 4


class OnnxModel:
    """An exported model, checked and ready to run.

    Args:
        path: `model.onnx` written by `medssl export`.
        device: `auto` (CUDA if it works, else CPU), `cpu`, `cuda`, `cuda:N`; `gpu` is another word for `cuda`.

    Raises:
        UsageError: `E_NOT_FOUND`, `E_MODEL_INVALID`, `E_DEVICE`.
        GateError: `E_MODEL_CORRUPT`.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        self._open(*load_model(path), device=device, name=path.name)

    @classmethod
    def of_bytes(cls, data: bytes, bundle: Bundle, sha256: str, *, device: str = "cpu") -> "OnnxModel":
        """A model that is not a file yet: export proves it before it becomes one."""
        model = cls.__new__(cls)
        model._open(data, bundle, sha256, device=device, name="the exported model")
        return model

    def _open(self, data: bytes, bundle: Bundle, sha256: str, *, device: str, name: str) -> None:
        self.bundle, self.sha256 = bundle, sha256
        self.device, self._session = _open_session(data, device, name)
        self._input: str = self._session.get_inputs()[0].name
        _check_signature(self._session, bundle, name)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[B, K, *tile]` of tiles `[B, C, *tile]`.

        Raises:
            InputError: `E_RUNTIME`, ONNX Runtime failed, most often for want of memory.
        """
        from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

        try:
            (logits,) = self._session.run(None, {self._input: tiles})
        except (EPFail, Fail, RuntimeException) as error:
            name = type(error).__name__
            raise InputError("E_RUNTIME", f"ONNX Runtime failed ({name})", hint="try --device cpu") from error
        return np.asarray(logits, dtype=np.float32)

    def segment(self, volume: Volume, *, progress: Progress | None = None) -> NDArray[np.uint8]:
        """Label map `[X, Y, Z]` of a volume, on its own grid; see `segment_volume`."""
        return segment_volume(
            self.predict,
            volume,
            preprocessing=self.bundle.preprocessing,
            tile=self.bundle.tile_size,
            overlap=self.bundle.overlap,
            mirror_axes=self.bundle.mirror_axes,
            progress=progress,
        )


def parse_device(text: str) -> tuple[str, int]:
    """`auto`, `cpu`, or `cuda` with a device number.

    Raises:
        UsageError: `E_DEVICE`.
    """
    name, _, number = text.strip().lower().partition(":")
    name = "cuda" if name == "gpu" else name
    if name in ("auto", "cpu") and not number:
        return name, 0
    if name == "cuda" and (not number or number.isdecimal()):
        return name, int(number or 0)
    raise UsageError("E_DEVICE", f"no device called {text!r}", hint="choose from: auto, cpu, cuda, cuda:0, cuda:1 ...")


def num_cuda_devices() -> int:
    """Devices that the CUDA driver of this machine offers; 0 without a driver.

    ONNX Runtime cannot be asked: it advertises CUDA on machines that have none.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_int(0)
        is_working = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if is_working else 0


def _open_session(data: bytes, device: str, name: str) -> tuple[str, Any]:
    kind, number = parse_device(device)
    if kind == "auto" and num_cuda_devices():
        session = open_session(data, name, cuda=0)
        if session.get_providers()[0] == CUDA:
            return "cuda:0", session
    if kind in ("auto", "cpu"):
        return "cpu", open_session(data, name, cuda=None)
    available = num_cuda_devices()
    if number >= available:
        raise UsageError(
            "E_DEVICE", f"cuda:{number} was asked for, the CUDA driver offers {available} devices", hint="--device cpu"
        )
    session = open_session(data, name, cuda=number)
    if session.get_providers()[0] != CUDA:
        raise UsageError(
            "E_DEVICE",
            f"ONNX Runtime cannot use cuda:{number} and would have run on the CPU",
            hint="medssl doctor says which CUDA and cuDNN versions it needs; or pass --device cpu",
        )
    return f"cuda:{number}", session


def open_session(data: bytes, name: str, *, cuda: int | None) -> Any:
    """A quiet session on a CUDA device or the CPU; ask `get_providers()` where it really runs.

    Raises:
        UsageError: `E_MODEL_INVALID`.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(FATAL_ONLY)
    options = ort.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = available_cores()
    options.inter_op_num_threads = 1
    providers: list[Any] = [CPU]
    if cuda is not None:
        _preload_cuda(ort)
        providers = [(CUDA, {"device_id": cuda}), CPU]
    try:
        return ort.InferenceSession(data, sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if type(error).__module__.startswith("onnxruntime"):
            raise UsageError("E_MODEL_INVALID", f"ONNX Runtime cannot load {name} ({type(error).__name__})") from error
        raise


def _preload_cuda(ort: Any) -> None:
    """Let ONNX Runtime find CUDA libraries that were installed as Python packages."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _check_signature(session: Any, bundle: Bundle, name: str) -> None:
    """The graph must take and give what the bundle promises."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    wanted = [bundle.in_channels, *bundle.tile_size]
    is_right = len(inputs) == 1 and len(outputs) == 1 and list(inputs[0].shape[1:]) == wanted
    if not is_right or outputs[0].shape[1] != len(bundle.classes) + 1:
        raise UsageError("E_MODEL_INVALID", f"the graph of {name} does not match its bundle")
