"""How long one scan takes from file to mask, and how much memory, beside what others do with it, in one run."""

import compileall
import contextlib
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
from typing import Any, Final, Literal

import numpy as np

import medssl_cli
from medssl_cli.imaging.constant_tiles import constant_values
from medssl_cli.imaging.preprocessing import network_input
from medssl_cli.imaging.tiling import padded_to, tile_starts
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
from tests.bench.eager_infer import OVERLAP, TILE, WINDOW_HU, NetworkName, bench_network
from tests.bench.first_tile import Moment, bench_first_tile
from tests.bench.synthetic import SPACING_MM, UID_ROOT, synthetic_ct

COLUMNS: Final = ("", "s", "CPU s", "CPU s per million voxels", "peak GB together", "CPU ratio", "memory ratio")
Other = Literal["monai", "nnunetv2"]
"""Whose program runs beside `medssl infer`: MONAI's eager sliding window, or nnU-Net's predictor."""
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
        num_constant: How many tiles hold one value.
        num_tiles: How many there are.
    """

    num_voxels: int
    num_constant: int
    num_tiles: int
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


@dataclass(frozen=True)
class InferSetup:
    """What is measured.

    Args:
        num_slices: Slices of the scan.
        size: Its rows and columns.
        body: See `synthetic_ct`.
        network: See `bench_network`.
        num_classes: Outputs of the network, background included.
        spacing_mm: Spacing that the network sees.
        max_ram_gib: For `medssl infer`.
        has_every_tile: Also run `medssl infer --every-tile`.
        is_dicom: The scan is a series; else a NIfTI file.
        others: What runs beside; nothing for scans that others have not the memory for.
        nnunet_python: Python of an environment with `nnunetv2`, where that is among them.
        model: Where the model is, or is kept; made anew, and not kept, without.
    """

    num_slices: int
    size: int
    body: float
    network: NetworkName
    num_classes: int
    spacing_mm: float
    max_ram_gib: float | None
    has_every_tile: bool
    is_dicom: bool = False
    others: tuple[Other, ...] = ("monai",)
    nnunet_python: Path | None = None
    model: Path | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """What both sides do to the scan."""
        return Preprocessing(window_hu=WINDOW_HU, spacing_mm=(self.spacing_mm,) * 3)


def bench_infer(setup: InferSetup) -> InferBenchmark:
    """Make a scan and a model, and segment the one with the other: here, and as others do."""
    _compile_as_installed()
    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        folder = Path(scratch)
        image = _synthetic_scan(setup)
        nifti, scan = _write_scan(folder, image, is_dicom=setup.is_dicom)
        ours = ("-m", "medssl_cli", *_command(setup, scan, folder))
        monai = (
            *("-m", "tests.bench.eager_infer", scan, folder / "eager"),
            *(setup.network, setup.num_classes, setup.spacing_mm),
        )
        nnunet = ("-m", "tests.bench.nnunet_infer", nifti, folder / "nnunet", setup.num_classes, setup.spacing_mm)
        runs = [watched_run("medssl infer", ours)]
        if setup.has_every_tile:
            runs.append(watched_run("medssl infer --every-tile", (*ours, "--every-tile", "-o", folder / "every")))
        if "monai" in setup.others:
            runs.append(watched_run("MONAI eager", monai))
        if "nnunetv2" in setup.others:
            runs.append(watched_run("nnU-Net's predictor", nnunet, python=setup.nnunet_python))
        constant = constant_tiles(image, setup.preprocessing)
    return InferBenchmark(image.voxels.size, *constant, tuple(runs))


def bench_start(setup: InferSetup) -> list[Moment]:
    """Make a scan and a model, and see what the command takes until the network is given the first tile."""
    _compile_as_installed()
    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        folder = Path(scratch)
        _, scan = _write_scan(folder, _synthetic_scan(setup), is_dicom=setup.is_dicom)
        return bench_first_tile(_command(setup, scan, folder), folder)


def _compile_as_installed() -> None:
    """Keep the bytecode of this checkout, as pip does of what it installs."""
    compileall.compile_dir(Path(medssl_cli.__file__).parent, quiet=2)


def _synthetic_scan(setup: InferSetup) -> Volume:
    voxels = synthetic_ct((setup.size, setup.size, setup.num_slices), seed=0, body=setup.body)
    x, y, z = SPACING_MM
    return Volume(voxels[np.newaxis], np.diag([-x, -y, z, 1.0]), modality="CT", units="HU")


def _command(setup: InferSetup, scan: Path, folder: Path) -> tuple[Any, ...]:
    """`medssl infer` of a scan with a model, which is made where it is not there."""
    model = setup.model or folder / "model.onnx"
    if not model.exists():
        _write_model(model, setup)
    limit = () if setup.max_ram_gib is None else ("--max-ram", str(setup.max_ram_gib))
    where = ("infer", scan, "-t", model, "-o", folder / "out")
    return (*where, "--device", "cpu", "--threads", "1", "--no-preview", *limit)


def constant_tiles(image: Volume, preprocessing: Preprocessing) -> tuple[int, int]:
    """How many tiles of an image hold one value, and how many there are."""
    voxels, _ = padded_to(network_input([image], preprocessing).voxels, TILE)
    _, x, y, z = voxels.shape
    starts = tile_starts((x, y, z), TILE, OVERLAP)
    boxes = ([slice(low, low + size) for low, size in zip(start, TILE, strict=True)] for start in starts)
    found = [constant_values(np.ascontiguousarray(voxels[(np.newaxis, slice(None), *box)])) for box in boxes]
    return sum(values is not None for values in found), len(found)


def _write_scan(folder: Path, image: Volume, *, is_dicom: bool) -> tuple[Path, Path]:
    """The NIfTI file, and what is to be segmented: the same, or the folder of a series."""
    from medssl_cli.formats.dicom import write_ct_series
    from medssl_cli.formats.nifti import encode_nifti

    nifti, series = folder / "scan.nii", folder / "series"
    nifti.write_bytes(encode_nifti(image.voxels[0], image.affine))
    if is_dicom:
        write_ct_series(
            series,
            image,
            patient_id="BENCH",
            patient_name="Bench",
            study_uid=f"{UID_ROOT}.1",
            series_uid=f"{UID_ROOT}.2",
            frame_of_reference_uid=f"{UID_ROOT}.3",
            series_description="benchmark",
        )
    return nifti, series if is_dicom else nifti


def _write_model(path: Path, setup: InferSetup) -> None:
    """A model as export writes it, with the memory that it was seen to take."""
    from medssl_cli.deploy.bundle import attach
    from medssl_cli.deploy.proven_file import onnx_graph
    from medssl_cli.deploy.runtime import OnnxModel
    from tests.toy_model import toy_bundle

    bundle = toy_bundle(
        classes={number: f"class_{number}" for number in range(1, setup.num_classes)},
        tile_size=TILE,
        overlap=OVERLAP,
        preprocessing=setup.preprocessing,
    )
    graph = onnx_graph(bench_network(setup.network, setup.num_classes), bundle.inputs, bundle.outputs)
    path.write_bytes(attach(graph, bundle))
    with contextlib.closing(OnnxModel(path, "cpu", threads=1)) as model:
        model.predict(np.zeros((1, 1, *TILE), np.float32))
    path.write_bytes(attach(graph, bundle.model_copy(update={"memory_bytes": model.measured_bytes})))


def watched_run(name: str, arguments: Sequence[Any], *, python: Path | None = None) -> InferRun:
    """Run Python with one thread, and watch the memory of all its processes.

    Args:
        name: Whose command it is.
        arguments: Arguments of Python.
        python: Another one than this.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_def_n_proc": "1"}
    process = subprocess.Popen(
        [str(python or sys.executable), *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
