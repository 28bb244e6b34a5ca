"""Which device trains, in which precision, and a process prepared for it."""

import contextlib
import ctypes
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch

from medssl_cli.base.errors import UsageError
from medssl_cli.engine.processes import TIMEOUT, Spread
from medssl_cli.nn.backbones import Backbone

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


def make_fabric(device: str, precision: str, spread: Spread | None = None) -> Any:
    """A Lightning Fabric, not yet launched.

    Args:
        device: See `resolve_device`; without a number where there are several.
        precision: fp32, bf16 or fp16.
        spread: One device unless given.

    Raises:
        UsageError: `E_DEVICE`, there are not that many.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    spread = spread or Spread()
    resolved = resolve_device(device)
    kind, _, index = resolved.partition(":")
    _check_spread(device, kind, precision, spread)
    tune_process()
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every process
    mixed = {"bf16": "bf16-mixed", "fp16": "16-mixed"}
    # Made here because Fabric silently turns fp16 into bf16 on the CPU.
    plugins = [MixedPrecision(mixed[precision], kind)] if precision in mixed else None
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if kind == "cuda" and spread.size == 1 else spread.num_devices,
        num_nodes=spread.num_nodes,
        strategy=_strategy(spread),
        plugins=plugins,
    )


def _check_spread(device: str, kind: str, precision: str, spread: Spread) -> None:
    if spread.size == 1 and spread.strategy != "fsdp":
        return
    if ":" in device:
        raise UsageError("E_DEVICE", f"--device {device} names one device, but {spread.size} processes are asked for")
    if kind == "cuda" and spread.num_devices > torch.cuda.device_count():
        raise UsageError(
            "E_DEVICE", f"torch sees {torch.cuda.device_count()} CUDA devices, --devices asks for {spread.num_devices}"
        )
    if spread.strategy == "fsdp" and precision == "fp16":
        raise UsageError("E_DEVICE", "--strategy fsdp does not go with precision fp16", hint="use precision: bf16")
    if spread.strategy == "fsdp" and spread.size == 1:
        raise UsageError("E_DEVICE", "--strategy fsdp needs more than one device", hint="raise --devices")


def _strategy(spread: Spread) -> Any:
    if spread.size == 1:
        return "auto"
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if spread.strategy == "fsdp":
        return ModelParallelStrategy(shard, data_parallel_size=spread.size, tensor_parallel_size=1, timeout=TIMEOUT)
    # Memories of methods are buffers, equal everywhere: sending them around at every step would cost more than it.
    return DDPStrategy(timeout=TIMEOUT, gradient_as_bucket_view=True, broadcast_buffers=False)


def shard(module: torch.nn.Module, mesh: Any) -> torch.nn.Module:
    """Leave each process of a mesh its part of every parameter (FSDP2), block by block; returns the module.

    Args:
        module: Its blocks are the children of every `backbone` inside, or its own.
        mesh: Has the dimension `data_parallel`.
    """
    from torch.distributed.fsdp import fully_shard

    backbones = [inner for inner in module.modules() if isinstance(inner, Backbone)]
    for block in [block for backbone in backbones for block in _blocks(backbone)]:
        fully_shard(block, mesh=mesh["data_parallel"])
    # Sharded again after a forward pass without a backward one too: else hooks between steps would change a copy.
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
    return module


def _blocks(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Around what a compiled network computes.

    Raises:
        UsageError: `E_COMPILE`.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        what = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UsageError("E_COMPILE", f"torch.compile failed: {what}") from error


def lay_out(network: torch.nn.Module, *, channels_last: bool) -> dict[int, torch.memory_format]:
    """Lay out a network's kernels in memory; channels last is faster for many convolutions.

    Returns:
        The format that its inputs should have, by their number of axes.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not channels_last:
        formats = dict.fromkeys(formats, torch.contiguous_format)
    for parameter in network.parameters():
        if parameter.ndim in formats:
            # `contiguous` would leave kernels of a single channel as they are, and with them all that follows.
            parameter.data = parameter.data.to(memory_format=formats[parameter.ndim])
    return formats


def tune_process() -> None:
    """Keep large freed blocks instead of giving them back: 3D training allocates the same sizes every step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for option, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
                libc.mallopt(option, value)
