"""How fast DICOM series become usable volumes, beside dcm2niix and dicom2nifti, in one run on one machine."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.bench.synthetic import write_synthetic_series
from medssl_cli.parallel import available_cores

KIB: Final = 1024
LAUNCHER: Final = """
import os, subprocess, sys, time
started, null = time.perf_counter(), subprocess.DEVNULL
process = subprocess.Popen(sys.argv[1:], stdin=null, stdout=null, stderr=null)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - started
sys.stdout.write(f"{os.waitstatus_to_exitcode(status)} {seconds} {usage.ru_utime + usage.ru_stime} {usage.ru_maxrss}")
"""


@dataclass(frozen=True)
class Run:
    """One command, with all its child processes.

    Args:
        name: Of the tool, and how it was run.
        wall_s: From start to end.
        cpu_s: User and system time of all its processes.
        peak_bytes: Resident memory of its largest process.
        is_done: It ended with exit code 0.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    is_done: bool


@dataclass(frozen=True)
class IngestBenchmark:
    """Runs over the same series from the page cache; the first is `medssl ingest` with one worker."""

    num_series: int
    num_slices: int
    size: int
    pixel_bytes: int
    runs: tuple[Run, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """For a table: tool, seconds, CPU seconds, series and MB per CPU second, and their ratio to the first."""
        first = self.runs[0]
        return [
            (
                run.name,
                f"{run.wall_s:.2f}",
                f"{run.cpu_s:.2f}",
                f"{self.num_series / run.cpu_s:.3g}",
                f"{self.pixel_bytes / run.cpu_s / 1e6:.0f}",
                f"{run.wall_s / first.wall_s:.3f}",
                f"{run.cpu_s / first.cpu_s:.3f}",
                f"{run.peak_bytes / 1e6:.0f}",
            )
            if run.is_done
            else (run.name, "failed", "", "", "", "", "", "")
            for run in self.runs
        ]

    def to_json(self) -> dict[str, Any]:
        """All figures, with ratios to the first run."""
        first = self.runs[0]
        return {
            "series": self.num_series,
            "slices": self.num_slices,
            "size": self.size,
            "pixel_bytes": self.pixel_bytes,
            "cores": available_cores(),
            "runs": [
                {**vars(run), "wall_ratio": run.wall_s / first.wall_s, "cpu_ratio": run.cpu_s / first.cpu_s}
                for run in self.runs
            ],
        }


COLUMNS: Final = ("tool", "s", "CPU s", "series/CPU s", "MB/CPU s", "s ratio", "CPU s ratio", "peak MB")


def bench_ingest(*, num_series: int = 4, num_slices: int = 200, size: int = 512) -> IngestBenchmark:
    """Make series, convert them with every tool that is installed, measure.

    Args:
        num_series: Made in a temporary folder, which needs about four times their bytes.
        num_slices: Of each.
        size: Rows and columns.

    Raises:
        StorageError: `E_IO`.
    """
    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        folder = Path(scratch)
        series = [folder / "dicom" / str(number) for number in range(1, num_series + 1)]
        pixel_bytes = sum(
            write_synthetic_series(path, number=number, num_slices=num_slices, size=size)
            for number, path in enumerate(series, start=1)
        )
        for path in (path for folder in series for path in folder.iterdir()):
            path.read_bytes()  # every tool finds the files in the page cache
        runs = tuple(_runs(folder, series))
    return IngestBenchmark(num_series, num_slices, size, pixel_bytes, runs)


def _runs(folder: Path, series: Sequence[Path]) -> Iterator[Run]:
    cache = folder / "cache"
    yield timed("medssl, 1 worker", _ingest(folder, cache, 1))
    yield timed("medssl, again", _ingest(folder, cache, 1))
    shutil.rmtree(cache, ignore_errors=True)
    for name, options in {"dcm2niix": ["-z", "n", "-b", "n", "-o"], "dicom2nifti": ["-C"]}.items():
        if (tool := shutil.which(name)) is None:
            continue
        output = folder / name
        commands = [_conversion(tool, options, path, output / path.name) for path in series]
        yield total(" ".join([name, *options[:-1]]), [timed(name, command) for command in commands])
        shutil.rmtree(output, ignore_errors=True)
    workers = 2
    while workers <= min(available_cores(), len(series)):
        yield timed(f"medssl, {workers} workers", _ingest(folder, cache, workers))
        shutil.rmtree(cache, ignore_errors=True)
        workers *= 2


def _ingest(folder: Path, cache: Path, workers: int) -> list[str]:
    start = f"import sys; sys.path[:] = {sys.path!r}; from medssl_cli.cli.app import main; main()"
    options = ["--cache", str(cache), "--workers", str(workers), "--quiet"]
    return [sys.executable, "-c", start, "ingest", str(folder / "dicom"), *options]


def _conversion(tool: str, options: Sequence[str], source: Path, output: Path) -> list[str]:
    output.mkdir(parents=True)
    if options[-1] == "-o":
        return [tool, *options, str(output), str(source)]
    return [tool, *options, str(source), str(output)]


def timed(name: str, command: Sequence[str]) -> Run:
    """Run a command silently and ask the system what it and its children used.

    A small process starts it: the peak of a process counts from the size of the one that started it.
    """
    found = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *command], stdout=subprocess.PIPE, check=True).stdout
    exit_code, wall_s, cpu_s, peak = (float(number) for number in found.split())
    unit = 1 if sys.platform == "darwin" else KIB
    return Run(name, wall_s, cpu_s, int(peak) * unit, exit_code == 0)


def total(name: str, runs: Sequence[Run]) -> Run:
    """Several commands, one after the other, as one."""
    return Run(
        name,
        sum(run.wall_s for run in runs),
        sum(run.cpu_s for run in runs),
        max(run.peak_bytes for run in runs),
        all(run.is_done for run in runs),
    )
