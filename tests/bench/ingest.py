"""How fast DICOM series become usable volumes, beside dcm2niix and dicom2nifti, in one run on one machine."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medssl_cli.work.workers import available_cores
from tests.bench.synthetic import write_synthetic_series

KIB: Final = 1024
WARM_BYTES: Final = 2 * 2**30
LAUNCHER: Final = """
import os, subprocess, sys, time
prefix, *command = sys.argv[1:]
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if prefix:
    os.environ["PYTHONPYCACHEPREFIX"] = prefix
started, null = time.perf_counter(), subprocess.DEVNULL
process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
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


def bench_ingest(*, num_series: int = 8, num_slices: int = 200, size: int = 512) -> IngestBenchmark:
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
        bytecode = prepare(folder)
        runs = tuple(_runs(folder, series, bytecode))
    return IngestBenchmark(num_series, num_slices, size, pixel_bytes, runs)


def prepare(folder: Path) -> Path:
    """Bring files into the page cache, and compile what `medssl ingest` imports, as an installation does.

    Args:
        folder: Scratch; its `dicom` is what will be ingested.

    Returns:
        Where the bytecode is.
    """
    small = folder / "small"
    write_synthetic_series(small / "dicom" / "1", number=0, num_slices=4, size=16)
    bytecode = folder / "bytecode"
    for again in range(2):
        timed("first", ingest_command(small, small / "cache", 1), bytecode=bytecode)
        shutil.rmtree(small / "cache") if again == 0 else shutil.rmtree(small)
    for path in (folder / "dicom").rglob("*.dcm"):
        path.read_bytes()
    return bytecode


def _runs(folder: Path, series: Sequence[Path], bytecode: Path) -> Iterator[Run]:
    cache = folder / "cache"

    def measured(name: str, command: Sequence[str]) -> Run:
        warm_memory(folder / "dicom")
        return timed(name, command, bytecode=bytecode)

    yield measured("medssl, 1 worker", ingest_command(folder, cache, 1))
    yield measured("medssl, again", ingest_command(folder, cache, 1))
    shutil.rmtree(cache, ignore_errors=True)
    for name, options in {"dcm2niix": ["-z", "n", "-b", "n", "-f", "%i", "-o"], "dicom2nifti": ["-C"]}.items():
        if (tool := shutil.which(name)) is None:
            continue
        output = folder / name
        commands = [_conversion(tool, options, path, output / path.name) for path in series]
        yield total(name, [measured(name, command) for command in commands])
        shutil.rmtree(output, ignore_errors=True)
        if options[-1] == "-o":
            yield measured(f"{name}, all series at once", _conversion(tool, options, folder / "dicom", output))
            shutil.rmtree(output, ignore_errors=True)
    workers = 2
    while workers <= min(available_cores(), len(series)):
        yield measured(f"medssl, {workers} workers", ingest_command(folder, cache, workers))
        shutil.rmtree(cache, ignore_errors=True)
        workers *= 2


def warm_memory(folder: Path) -> None:
    """Have the machine hand out memory once, in a process of its own.

    A virtual machine may fetch memory that nobody used lately from its host, which can take longer than the work that
    is done in it; every tool is to find it at hand.

    Args:
        folder: Four times its bytes are touched, at most 2 GiB.
    """
    size = min(WARM_BYTES, 4 * sum(path.stat().st_size for path in folder.rglob("*.dcm")))
    subprocess.run([sys.executable, "-S", "-c", f"bytearray(b'1') * {size}"], check=False)


def ingest_command(folder: Path, cache: Path, workers: int) -> list[str]:
    """`medssl ingest` of what lies in a folder's `dicom`."""
    start = f"import sys; sys.path[:] = {sys.path!r}; from medssl_cli.cli.app import main; main()"
    options = ["--cache", str(cache), "--workers", str(workers), "--quiet"]
    return [sys.executable, "-c", start, "ingest", str(folder / "dicom"), *options]


def _conversion(tool: str, options: Sequence[str], source: Path, output: Path) -> list[str]:
    output.mkdir(parents=True)
    if options[-1] == "-o":
        return [tool, *options, str(output), str(source)]
    return [tool, *options, str(source), str(output)]


def timed(name: str, command: Sequence[str], *, bytecode: Path | None = None) -> Run:
    """Run a command silently and ask the system what it and its children used.

    A small process starts it: the peak of a process counts from the size of the one that started it.

    Args:
        name: Of the run.
        command: Program and arguments.
        bytecode: Where Python keeps compiled modules; by default beside them.
    """
    launcher = [sys.executable, "-S", "-c", LAUNCHER, str(bytecode or "")]
    found = subprocess.run([*launcher, *command], stdout=subprocess.PIPE, check=True).stdout
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
