"""Which device trains, in which precision, and a process prepared for it."""

import ctypes
import sys
from typing import Any, Final

import torch

from medssl_cli.errors import UsageError

PRECISIONS: Final = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def resolve_device(request: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N` (`gpu` means `cuda`) to a torch device; never a silent fallback.

    Raises:
        UsageError: `E_DEVICE` if the device is not there.
    """
    name = request.lower().replace("gpu", "cuda")
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return "cpu"
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError("E_DEVICE", f"{request!r} is not auto, cpu, cuda or cuda:N")
    if int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "E_DEVICE",
            f"torch sees {torch.cuda.device_count()} CUDA devices, {request!r} is not among them",
            hint="medssl doctor tells why; --device cpu works everywhere",
        )
    return f"cuda:{int(index or 0)}"


def make_fabric(device: str, precision: str) -> Any:
    """A Lightning Fabric on one device.

    Args:
        device: See `resolve_device`.
        precision: fp32, bf16 or fp16.
    """
    from lightning_fabric import Fabric

    resolved = resolve_device(device)
    is_cuda = resolved.startswith("cuda")
    tune_process()
    return Fabric(
        accelerator="cuda" if is_cuda else "cpu",
        devices=[int(resolved.partition(":")[2])] if is_cuda else 1,
        precision=PRECISIONS[precision],
    )


def lay_out(network: torch.nn.Module, *, channels_last: bool) -> torch.memory_format:
    """Lay out a network's 3D kernels in memory; channels last is faster for many convolutions.

    Returns:
        The format that its inputs should have.
    """
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    for parameter in network.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return layout


def tune_process() -> None:
    """Keep large freed blocks instead of giving them back: 3D training allocates the same sizes every step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
                libc.mallopt(option, value)
