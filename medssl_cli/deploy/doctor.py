"""What is installed, and which devices really work: each one is tried, none is believed."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from medssl_cli import __version__
from medssl_cli.deploy.devices import num_cuda_devices

PACKAGES: Final = (
    "numpy",
    "torch",
    "monai",
    "lightning-fabric",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxscript",
    "SimpleITK",
    "pydicom",
    "highdicom",
    "blosc2",
)
BUILDS: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
"""Packages of ONNX Runtime, of which one is installed."""
FOR_TRAINING: Final = ("torch", "monai", "lightning-fabric", "onnx", "onnxscript")
"""What an installation that only answers goes without, all together."""
IDENTITY: Final = bytes.fromhex(
    "080a3a3e0a100a017812017922084964656e7469747912086964656e746974795a0f0a01"
    "78120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001014"
)
"""The ONNX model y = x for one float, so that it can be run without the package onnx."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `note` (works, with less) or `problem` (something will fail)."""

    what: str
    status: Literal["ok", "note", "problem"]
    detail: str


def examine() -> list[Finding]:
    """Look at packages and devices; imports torch where it is installed."""
    checks: tuple[Callable[[], Finding], ...] = (_medssl, _runtimes, _driver, _onnx_device, _torch_device)
    return [*(check() for check in checks), *_packages()]


def installed(package: str) -> str | None:
    """A package's version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _medssl() -> Finding:
    detail = f"{__version__} on Python {platform.python_version()}, {sys.platform} {platform.machine()}"
    return Finding("medssl", "ok", detail)


def _packages() -> list[Finding]:
    found = {name: installed(name) for name in PACKAGES}
    missing = [name for name, present in found.items() if present is None and name not in BUILDS]
    lines = [Finding(name, "ok", present) for name, present in found.items() if present is not None]
    if not set(FOR_TRAINING) - set(missing):
        rest = [name for name in missing if name not in FOR_TRAINING]
        note = Finding("training", "note", "not installed: ingest, infer and listen work, training and export do not")
        return [*lines, note, *(Finding(name, "problem", "not installed") for name in rest)]
    return lines + [Finding(name, "problem", "not installed") for name in missing]


def _runtimes() -> Finding:
    """All builds of ONNX Runtime hold the same files: the last installed wins, and removing one breaks it."""
    present = [name for name in BUILDS if installed(name) is not None]
    if len(present) == 1:
        return Finding("ONNX Runtime", "ok", f"{present[0]} {installed(present[0])}")
    detail = f"{' and '.join(present)} are installed, keep one" if present else "not installed"
    return Finding("ONNX Runtime", "problem", detail)


def _driver() -> Finding:
    count = num_cuda_devices()
    return Finding("CUDA driver", "ok" if count else "note", f"{count} devices" if count else "none: the CPU is used")


def _onnx_device() -> Finding:
    """Run a tiny graph and see where it ran."""
    from medssl_cli.deploy.session import CUDA, missing_cuda_library, open_session

    session = open_session(IDENTITY, device="cuda:0" if num_cuda_devices() else "cpu", threads=1)
    session.run(None, {"x": _one()})
    if session.get_providers()[0] == CUDA:
        return Finding("ONNX Runtime device", "ok", "cuda:0")
    if num_cuda_devices():
        missing = missing_cuda_library() or "CUDA or cuDNN of this build"
        return Finding("ONNX Runtime device", "note", f"cpu: the GPU cannot be used, {missing} is missing")
    return Finding("ONNX Runtime device", "ok", "cpu")


def _torch_device() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("torch device", "note", "torch is not installed: infer works, training does not")
    name = "cuda" if torch.cuda.is_available() else "cpu"
    total = float(torch.ones(2, 2, device=name).sum())
    if total != 4:
        return Finding("torch device", "problem", f"{name} computes 1 + 1 + 1 + 1 = {total:g}")
    detail = torch.cuda.get_device_name(0) if name == "cuda" else "cpu"
    if name == "cpu" and num_cuda_devices():
        return Finding("torch device", "note", "cpu: this build of torch cannot use the GPU")
    return Finding("torch device", "ok", detail)


def _one() -> object:
    import numpy as np

    return np.ones(1, dtype=np.float32)
