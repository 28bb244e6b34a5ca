"""How much memory an ingest takes: of one large series, and of very many small files."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.ingest import ingest_command, prepare, timed
from tests.bench.synthetic import write_synthetic_series, write_tiny_series

COLUMNS: Final = ("input", "s", "CPU s", "peak of the largest process, MB", "limit, MB", "held")


@dataclass(frozen=True)
class Peak:
    """The memory of one ingest with one worker.

    Args:
        name: Of the input.
        wall_s: From start to end.
        cpu_s: User and system time of all processes.
        peak_bytes: Resident memory of the largest process; there are two, and the other is far smaller.
        limit_bytes: What it may be.
        is_done: It ended with exit code 0.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    limit_bytes: int
    is_done: bool

    def row(self) -> tuple[str, ...]:
        """For a table."""
        held = "failed" if not self.is_done else "yes" if self.peak_bytes < self.limit_bytes else "no"
        sizes = (f"{size / 1e6:.0f}" for size in (self.peak_bytes, self.limit_bytes))
        return (self.name, f"{self.wall_s:.1f}", f"{self.cpu_s:.1f}", *sizes, held)


def bench_memory(*, num_slices: int = 600, size: int = 512, num_files: int = 200_000) -> Iterator[Peak]:
    """Ingest a large series, then many small files, each into a cache of its own.

    Args:
        num_slices: Of the large series.
        size: Its rows and columns.
        num_files: Small files, rounded up to hundreds; 0 for none.

    Raises:
        StorageError: `E_IO`.
    """
    inputs: list[tuple[str, int, Any]] = [
        (
            f"one series of {num_slices} slices of {size} x {size}",
            1_500_000_000,
            lambda folder: write_synthetic_series(folder / "1", number=1, num_slices=num_slices, size=size),
        )
    ]
    if num_files:
        inputs.append(
            (
                f"{num_files} files of 16 x 16",
                1_000_000_000,
                lambda folder: write_tiny_series(folder, num_files=num_files),
            )
        )
    for name, limit, write in inputs:
        with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
            folder = Path(scratch)
            write(folder / "dicom")
            bytecode = prepare(folder)
            run = timed(name, ingest_command(folder, folder / "cache", 1), bytecode=bytecode)
        yield Peak(name, run.wall_s, run.cpu_s, run.peak_bytes, limit, run.is_done)
