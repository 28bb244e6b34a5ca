"""What a training says while it runs: `metrics.jsonl` always, TensorBoard beside it, others on request."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from medssl_cli.files import write_atomic


class Sink(Protocol):
    """Another place for the numbers."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record finite numbers of one step."""

    def close(self) -> None:
        """Hand over what is left."""


class MetricsLog:
    """Append-only series of numbers by step.

    Args:
        root: Run folder.
        resume_step: Lines after this step belong to work that was lost and will be done again; they go.
        sinks: Get the same numbers.
    """

    def __init__(self, root: Path, *, resume_step: int, sinks: Sequence[Sink] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = root / "metrics.jsonl"
        kept = [entry for entry in _read(root) if entry["step"] <= resume_step] if resume_step else []
        write_atomic(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._stream = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(root / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)
        self._sinks = sinks

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of one step; NaN becomes null."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        shown = {name: finite.get(name) for name in values}
        self._stream.write(json.dumps({"step": step, **shown}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        for sink in self._sinks:
            sink.write(step, finite)

    def close(self) -> None:
        """Flush all."""
        self._stream.close()
        self._board.close()
        for sink in self._sinks:
            sink.close()


class NoLog:
    """In the processes that do not write."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Drop it."""

    def close(self) -> None:
        """Nothing to flush."""


def read_metrics(root: Path) -> list[dict[str, Any]]:
    """All recorded training steps of a run, in order; a line that a kill tore off is left out."""
    return [entry for entry in _read(root) if "loss" in entry]


def read_health(root: Path) -> list[dict[str, Any]]:
    """The figures of the embeddings' health, in order; the first are those of the untrained network."""
    return [entry for entry in _read(root) if "loss" not in entry]


def _read(root: Path) -> list[dict[str, Any]]:
    path = root / "metrics.jsonl"
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries
