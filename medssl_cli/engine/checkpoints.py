"""Checkpoints that survive: one safetensors file each, never pickled, its digest in its name, the last few kept.

A file counts if its bytes have the digest that its name says, so there is no index that could be damaged or out of
step. A damaged file is skipped for the one before it, never for a silent start from nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from medssl_cli.base.errors import GateError
from medssl_cli.base.files import remove_temporaries, sha256_file, storage_errors, write_atomic
from medssl_cli.base.plain_json import parse_json
from medssl_cli.engine.tensor_files import read_tensors, tensor_bytes

KEEP: Final = 3
MAX_STEP: Final = 2**53
Kind = Literal["step", "best"]
NAME: Final = re.compile(r"(step|best)-(\d{8,})-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """State of a run after some steps.

    Args:
        step: Steps done.
        tensors: Everything that is a tensor, by name.
        values: Everything else, JSON.
    """

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


class _Stored(NamedTuple):
    """One file: kind, step and digest are its name's."""

    step: int
    path: Path
    kind: str
    sha256: str


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with storage_errors("the run"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_temporaries(folder)

    def save(self, checkpoint: Checkpoint, *, is_best: bool = False) -> None:
        """Write a checkpoint durably, then remove those that it replaces.

        Raises:
            StorageError: `E_IO`; earlier checkpoints are intact.
        """
        values = json.dumps(checkpoint.values)
        data = tensor_bytes(checkpoint.tensors, {"step": str(checkpoint.step), "values": values})
        kind: Kind = "best" if is_best else "step"
        path = self._folder / f"{kind}-{checkpoint.step:08d}-{hashlib.sha256(data).hexdigest()}.safetensors"
        write_atomic(path, data)
        others = [stored for stored in self._stored(kind) if stored.path != path]
        earlier = [] if is_best else [stored for stored in others if stored.step < checkpoint.step]
        for stored in set(others) - set(earlier[-(KEEP - 1) :]):
            stored.path.unlink(missing_ok=True)

    def load_last(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint, or None if there never was one.

        Args:
            warn: Told when a damaged one was skipped.

        Raises:
            GateError: `E_CHECKPOINT_CORRUPT` if all are damaged.
        """
        candidates = self._stored("step")
        for stored in reversed(candidates):
            checkpoint = _load(stored)
            if checkpoint is not None:
                if stored != candidates[-1]:
                    warn(f"W_CHECKPOINT_FALLBACK: the last checkpoint is damaged, going on from step {checkpoint.step}")
                return checkpoint
        if candidates or self._unreadable_names():
            number = len(candidates) + len(self._unreadable_names())
            raise GateError("E_CHECKPOINT_CORRUPT", f"all {number} checkpoints of the run are damaged")
        return None

    def load_best(self) -> Checkpoint | None:
        """The checkpoint with the best validation, or None if there never was one.

        Raises:
            GateError: `E_CHECKPOINT_CORRUPT`.
        """
        candidates = self._stored("best")
        if not candidates:
            return None
        checkpoint = _load(candidates[-1])
        if checkpoint is None:
            raise GateError("E_CHECKPOINT_CORRUPT", "the best checkpoint of the run is damaged")
        return checkpoint

    def _stored(self, kind: Kind) -> list[_Stored]:
        """Files of a kind by rising step."""
        found = []
        for path in self._folder.iterdir():
            match = NAME.fullmatch(path.name)
            if match is not None and match[1] == kind:
                found.append(_Stored(int(match[2]), path, match[1], match[3]))
        return sorted(found)

    def _unreadable_names(self) -> list[Path]:
        return [path for path in self._folder.glob("*.safetensors") if not NAME.fullmatch(path.name)]


def _load(stored: _Stored) -> Checkpoint | None:
    """None for what is damaged, and for what has the right digest and is no checkpoint: anybody can compute one."""
    if not stored.path.is_file() or stored.step > MAX_STEP or sha256_file(stored.path) != stored.sha256:
        return None
    try:
        tensors, metadata = read_tensors(stored.path)
        values = parse_json(metadata["values"])
        is_ours = int(metadata["step"]) == stored.step and isinstance(values, dict)
    except (ValueError, KeyError):
        return None
    return Checkpoint(stored.step, tensors, values) if is_ours else None


@contextmanager
def refuse_foreign_state() -> Iterator[None]:
    """Around putting a checkpoint into a network and its optimiser.

    Raises:
        GateError: `E_CHECKPOINT_CORRUPT`, it is of another network, or of none.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise GateError("E_CHECKPOINT_CORRUPT", "the checkpoint of the run does not fit its recipe") from error


def require_finite_weights(weights: Mapping[str, Tensor]) -> None:
    """Refuse a trained network that can give no answer.

    Raises:
        GateError: `E_CHECKPOINT_CORRUPT`.
    """
    strange = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if strange:
        raise GateError(
            "E_CHECKPOINT_CORRUPT", f"{len(strange)} of {len(weights)} tensors of the best checkpoint are not finite"
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors; its settings come from the recipe. All processes must call it."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": whole(torch.as_tensor(value))
        for index, entry in state.items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`.

    Raises:
        ValueError: The state is of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            own = parameters[int(index)]
            if tensor.shape != own.shape and tensor.ndim:
                raise ValueError(f"{name} is of another shape than its parameter")
            state.setdefault(int(index), {})[key] = laid_out_as(own, tensor) if tensor.shape == own.shape else tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A network's parameters and buffers, whole also where processes hold parts. All processes must call it."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def restore_module(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Undo `module_tensors`."""
    own = module.state_dict()
    module.load_state_dict({name: laid_out_as(own[name], value) for name, value in tensors.items()})


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, in one piece."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_as(own: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, cut as another one is."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor.to(own.device), own.device_mesh, own.placements)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names with a prefix; `unprefixed` undoes it."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names have the prefix, by their names without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def sha256_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
