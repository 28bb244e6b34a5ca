"""What a training says while it runs: `metrics.jsonl` always, TensorBoard beside it."""

import json
import math
from pathlib import Path
from typing import Any

from medssl_cli.files import write_atomic


class MetricsLog:
    """Append-only series of numbers by step.

    Args:
        root: Run folder.
        resume_step: Lines after this step belong to work that was lost and will be done again; they go.
    """

    def __init__(self, root: Path, *, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = root / "metrics.jsonl"
        kept = [entry for entry in read_metrics(root) if entry["step"] <= resume_step] if resume_step else []
        write_atomic(self._path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        self._stream = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(root / "tensorboard"), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of one step; NaN becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._stream.write(json.dumps({"step": step, **finite}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both."""
        self._stream.close()
        self._board.close()


def read_metrics(root: Path) -> list[dict[str, Any]]:
    """All recorded steps of a run, in order; a line that a kill tore off is left out."""
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
