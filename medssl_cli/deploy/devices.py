"""Devices by name, and whether this machine has them."""

import ctypes
import sys

from medssl_cli.base.errors import UsageError


def parse_device(text: str) -> tuple[str, int]:
    """`auto`, `cpu`, `openvino`, or `cuda` with a device number.

    Raises:
        UsageError: `E_DEVICE`.
    """
    name, _, number = text.strip().lower().partition(":")
    name = "cuda" if name == "gpu" else name
    if name in ("auto", "cpu", "openvino") and not number:
        return name, 0
    if name == "cuda" and (not number or number.isdecimal()):
        return name, int(number or 0)
    raise UsageError("E_DEVICE", f"no device called {text!r}", hint="choose from: auto, cpu, cuda, cuda:0, openvino")


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


def device_of(kind: str, number: int) -> str:
    """The device to try: `cpu`, `openvino` or `cuda:N`.

    Raises:
        UsageError: `E_DEVICE`, the driver has no device of that number.
    """
    if kind in ("cpu", "openvino"):
        return kind
    available = num_cuda_devices()
    if number < available:
        return f"cuda:{number}"
    if kind == "auto":
        return "cpu"
    raise UsageError(
        "E_DEVICE", f"cuda:{number} was asked for, the CUDA driver offers {available} devices", hint="--device cpu"
    )


def unusable(device: str, missing: str) -> UsageError:
    """The refusal of a device that ONNX Runtime did not take, with the library or package that it misses."""
    if device == "openvino":
        return UsageError(
            "E_DEVICE",
            f"this build of ONNX Runtime has no OpenVINO: {missing} is not installed",
            hint="install it in place of the one that is there (docs/guides/install.md), or pass --device cpu",
        )
    why = f": {missing} cannot be loaded" if missing else ""
    return UsageError(
        "E_DEVICE",
        f"ONNX Runtime cannot use {device} and would have run on the CPU{why}",
        hint="medssl doctor says which CUDA and cuDNN versions it needs; or pass --device cpu",
    )
