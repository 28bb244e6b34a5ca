"""How long one scan takes from file to mask, and how much memory, beside MONAI's eager sliding window in one run."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.bench.eager_infer import OVERLAP, TILE, WINDOW_HU, bench_network
from tests.bench.synthetic import SPACING_MM, synthetic_ct

COLUMNS: Final = ("", "s", "CPU s", "CPU s per million voxels", "peak GB together", "CPU ratio", "memory ratio")
SAMPLE_S: Final = 0.1
KIB: Final = 1024


@dataclass(frozen=True)
class InferRun:
    """One command, with all its processes together.

    Args:
        name: Whose.
        wall_s: From start to end.
        cpu_s: User and system time.
        peak_bytes: The most memory that all processes had at one time; what two share counts once.
        is_done: It ended with exit code 0.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    is_done: bool


@dataclass(frozen=True)
class InferBenchmark:
    """Runs over the same scan; the first is `medssl infer`.

    Args:
        num_voxels: Of the scan.
    """

    num_voxels: int
    runs: tuple[InferRun, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """For a table."""
        first = self.runs[0]
        return [
            (
                run.name,
                f"{run.wall_s:.1f}",
                f"{run.cpu_s:.1f}",
                f"{run.cpu_s / self.num_voxels * 1e6:.3f}",
                f"{run.peak_bytes / 1e9:.2f}",
                f"{run.cpu_s / first.cpu_s:.2f}",
                f"{run.peak_bytes / first.peak_bytes:.2f}",
            )
            if run.is_done
            else (run.name, "failed", "", "", "", "", "")
            for run in self.runs
        ]


def bench_infer(
    *, num_slices: int, size: int, num_classes: int, spacing_mm: float, max_ram_gib: float | None, is_alone: bool
) -> InferBenchmark:
    """Make a scan and a model, and segment the one with the other twice: here, and as MONAI's tutorials do.

    Args:
        num_slices: Of the scan.
        size: Its rows and columns.
        num_classes: Of the network, background included.
        spacing_mm: That the network sees.
        max_ram_gib: For `medssl infer`.
        is_alone: Without MONAI, for scans that it has not the memory for.
    """
    from medssl_cli.formats.nifti import encode_nifti

    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        folder = Path(scratch)
        scan = folder / "scan.nii"
        voxels = synthetic_ct((size, size, num_slices), seed=0)
        x, y, z = SPACING_MM
        scan.write_bytes(encode_nifti(voxels, np.diag([-x, -y, z, 1.0])))
        _write_model(folder / "model.onnx", num_classes, spacing_mm)
        limit = () if max_ram_gib is None else ("--max-ram", str(max_ram_gib))
        ours = (
            *("-m", "medssl_cli", "infer", scan, "-t", folder / "model.onnx", "-o", folder / "out"),
            *("--device", "cpu", "--threads", "1", "--no-preview", *limit),
        )
        theirs = ("-m", "tests.bench.eager_infer", scan, folder / "eager", num_classes, spacing_mm)
        runs = [_run("medssl infer", ours)]
        runs += [] if is_alone else [_run("MONAI eager", theirs)]
    return InferBenchmark(voxels.size, tuple(runs))


def _write_model(path: Path, num_classes: int, spacing_mm: float) -> None:
    import torch

    from medssl_cli.deploy.bundle import attach
    from medssl_cli.preprocessing import Preprocessing
    from tests.toy_model import toy_bundle

    program = torch.onnx.export(
        bench_network(num_classes),
        (torch.zeros(2, 1, *TILE),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    bundle = toy_bundle(
        classes={number: f"class_{number}" for number in range(1, num_classes)},
        tile_size=TILE,
        overlap=OVERLAP,
        preprocessing=Preprocessing(window_hu=WINDOW_HU, spacing_mm=(spacing_mm,) * 3),
    )
    path.write_bytes(attach(program.model_proto.SerializeToString(), bundle))


def _run(name: str, arguments: Sequence[Any]) -> InferRun:
    """Run Python with one thread, and watch all its processes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_S):
            peak[0] = max(peak[0], sum(map(_memory_of, _tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    is_over.set()
    watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return InferRun(name, time.monotonic() - started, cpu_s, peak[0], code == 0)


def _tree(process: int) -> list[int]:
    """A process and its children."""
    found, children = [process], Path(f"/proc/{process}/task/{process}/children")
    try:
        text = children.read_text()
    except OSError:
        return found
    return [*found, *(one for child in text.split() for one in _tree(int(child)))]


def _memory_of(process: int) -> int:
    """Proportional set size in bytes; 0 of a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((KIB * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
