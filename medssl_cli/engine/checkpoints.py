"""Checkpoints that survive: one safetensors file each, never pickled, digested, the last few kept.

`index.json` is written last and names the files that count, with their SHA-256. A damaged file is skipped for the one
before it, never for a silent start from nothing.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from medssl_cli.errors import GateError, StorageError
from medssl_cli.files import remove_temporaries, sha256_file, storage_errors, write_atomic, write_json

KEEP: Final = 3
BEST: Final = "best"


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
        """Write a checkpoint durably, then the index, then remove what the index no longer names.

        Raises:
            StorageError: `E_IO`; earlier checkpoints are intact.
        """
        import safetensors.torch

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        data = safetensors.torch.save(tensors, metadata={"values": json.dumps(checkpoint.values)})
        name = f"{BEST if is_best else 'step'}-{checkpoint.step:08d}.safetensors"
        write_atomic(self._folder / name, data)
        entry = {"file": name, "step": checkpoint.step, "sha256": hashlib.sha256(data).hexdigest()}
        index = self._index()
        if is_best:
            index[BEST] = [entry]
        else:
            index["last"] = [*(old for old in index["last"] if old["step"] < checkpoint.step), entry][-KEEP:]
        write_json(self._folder / "index.json", index)
        named = {entry["file"] for entries in index.values() for entry in entries}
        for path in self._folder.glob("*.safetensors"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def load_last(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint, or None if there never was one.

        Args:
            warn: Told when a damaged one was skipped.

        Raises:
            GateError: `E_CHECKPOINT_CORRUPT` if all are damaged.
        """
        entries = self._index()["last"]
        for position, entry in enumerate(reversed(entries)):
            checkpoint = self._load(entry)
            if checkpoint is not None:
                if position:
                    warn(f"W_CHECKPOINT_FALLBACK: the last checkpoint is damaged, going on from step {checkpoint.step}")
                return checkpoint
        if entries:
            raise GateError("E_CHECKPOINT_CORRUPT", f"all {len(entries)} checkpoints of the run are damaged")
        return None

    def load_best(self) -> Checkpoint | None:
        """The checkpoint with the best validation, or None if there never was one.

        Raises:
            GateError: `E_CHECKPOINT_CORRUPT`.
        """
        entries = self._index()[BEST]
        if not entries:
            return None
        checkpoint = self._load(entries[0])
        if checkpoint is None:
            raise GateError("E_CHECKPOINT_CORRUPT", "the best checkpoint of the run is damaged")
        return checkpoint

    def _index(self) -> dict[str, list[dict[str, Any]]]:
        path = self._folder / "index.json"
        if not path.is_file():
            return {"last": [], BEST: []}
        try:
            index: dict[str, list[dict[str, Any]]] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError("E_CHECKPOINT_CORRUPT", "the checkpoint index of the run cannot be read") from error
        return index

    def _load(self, entry: dict[str, Any]) -> Checkpoint | None:
        from safetensors import safe_open

        path = self._folder / entry["file"]
        if not path.is_file() or sha256_file(path) != entry["sha256"]:
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            values = json.loads(file.metadata()["values"])
        return Checkpoint(entry["step"], tensors, values)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as named tensors; its settings come from the recipe."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, entry in state.items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names with a prefix; `unprefixed` undoes it."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those with the prefix, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
