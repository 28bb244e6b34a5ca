"""Devices by name, and whether this machine has them."""

import ctypes
import sys

from medssl_cli.base.errors import UsageError


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


def cuda_of(kind: str, number: int) -> int | None:
    """The CUDA device to try; None for the CPU.

    Raises:
        UsageError: `E_DEVICE`, the driver has no device of that number.
    """
    if kind == "cpu":
        return None
    available = num_cuda_devices()
    if number < available:
        return number
    if kind == "auto":
        return None
    raise UsageError(
        "E_DEVICE", f"cuda:{number} was asked for, the CUDA driver offers {available} devices", hint="--device cpu"
    )


def unusable(cuda: int, missing: str) -> UsageError:
    """The refusal of a CUDA device that ONNX Runtime did not take, with the library that it misses."""
    why = f": {missing} cannot be loaded" if missing else ""
    return UsageError(
        "E_DEVICE",
        f"ONNX Runtime cannot use cuda:{cuda} and would have run on the CPU{why}",
        hint="medssl doctor says which CUDA and cuDNN versions it needs; or pass --device cpu",
    )
