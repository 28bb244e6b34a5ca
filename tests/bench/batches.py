"""Many small scans in one call: the memory that a call of `infer` takes by their number, and what overlapping gains."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from medssl_cli.deploy.infer import infer
from medssl_cli.deploy.limits import Limits
from medssl_cli.deploy.memory_plan import MemoryPlan
from medssl_cli.formats.dicom import write_ct_series
from medssl_cli.formats.nifti import encode_nifti
from medssl_cli.imaging.volume import Volume
from tests.batch import AFFINE
from tests.toy_model import toy_bundle

Kind = Literal["nifti", "series"]
COLUMNS: Final = ("scans", "kind", "slices", "peak MB", "seconds")
OVERLAP_COLUMNS: Final = ("scans", "network", "apart s", "overlapped s", "ratio")
SHAPE: Final = (8, 8, 20)


class StubModel:
    """What stands for a model whose network costs nothing, or a time in which this process has nothing to do.

    Args:
        network_s: How long each answer takes.
    """

    def __init__(self, network_s: float = 0.0) -> None:
        self.bundle, self.sha256, self.device = toy_bundle(modality="CT"), "0" * 64, "cpu"
        self.limits = Limits(2**33, 2**33, 60.0, 2**30)
        self.beside_bytes, self.expected_bytes = 0.0, 2**28
        self._network_s = network_s

    def memory_plan(self, shape: tuple[int, int, int], affine: Any, **sizes: Any) -> MemoryPlan:
        """Twenty bytes a voxel."""
        needed = 20.0 * float(np.prod(shape))
        return MemoryPlan({"scan": needed}, needed, 2**28, self.limits.max_ram_bytes, 1)

    def require_memory(self, *arguments: Any, **sizes: Any) -> MemoryPlan:
        """See `memory_plan`."""
        return self.memory_plan(*arguments, **sizes)

    def answer(self, volume: Volume, *, progress: Any) -> np.ndarray:
        """What is above 50."""
        time.sleep(self._network_s)
        return (volume.voxels[0] > 50).astype(np.uint8)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class BatchMemory:
    """The peak of one call in a process of its own.

    Args:
        scans: How many there were.
        kind: `nifti` files, or DICOM `series`.
        slices: Files of slices in all.
        peak_bytes: Most resident memory.
        seconds: Wall time.
    """

    scans: int
    kind: Kind
    slices: int
    peak_bytes: int
    seconds: float

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        return str(self.scans), self.kind, str(self.slices), f"{self.peak_bytes / 1e6:.0f}", f"{self.seconds:.0f}"


def bench_memory_of_batch(kind: Kind, *, num_scans: int) -> BatchMemory:
    """Answer for so many scans with a stub of a model, in a new process."""
    with tempfile.TemporaryDirectory(prefix="medssl-batch-") as folder:
        root = Path(folder)
        write_scans(root / "in", kind, num_scans)
        start = time.monotonic()
        command = [sys.executable, "-m", "tests.bench.batches", str(root / "in"), str(root / "out")]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, env=os.environ).stdout)
        slices = num_scans * SHAPE[2] if kind == "series" else 0
        return BatchMemory(told["done"], kind, slices, told["peak_bytes"], time.monotonic() - start)


def write_scans(folder: Path, kind: Kind, count: int, shape: tuple[int, int, int] = SHAPE) -> None:
    """Scans that all differ, each in a folder of a thousand."""
    for number in range(count):
        place = folder / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        voxels = np.full(shape, -1000, np.int16)
        voxels[number % 5 : number % 5 + 3, 2:5, 2:5] = 100 + number % 1000
        if kind == "nifti":
            (place / f"s{number:06d}.nii").write_bytes(encode_nifti(voxels, AFFINE))
            continue
        write_ct_series(
            place / f"s{number:06d}",
            Volume(voxels[None], AFFINE, "CT", "HU"),
            patient_id=f"P{number}",
            patient_name="Phantom^Bench",
            study_uid=f"1.2.3.{number}",
            series_uid=f"1.2.3.{number}.1",
            frame_of_reference_uid=f"1.2.9.{number}",
            series_description="bench",
            file_names=[f"{k}.dcm" for k in range(shape[2])],
        )


@dataclass(frozen=True)
class OverlapGain:
    """The same scans apart and overlapped, in one run.

    Args:
        scans: How many there were.
        network_s: What the network takes for each, in which this process waits.
        apart_s: Wall time of one after the other.
        overlapped_s: Wall time of reading, network and writing at once.
    """

    scans: int
    network_s: float
    apart_s: float
    overlapped_s: float

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        ratio = f"{self.apart_s / self.overlapped_s:.2f}"
        return str(self.scans), f"{self.network_s:g} s", f"{self.apart_s:.1f}", f"{self.overlapped_s:.1f}", ratio


def bench_overlap(*, num_scans: int, size: int, network_s: float) -> OverlapGain:
    """Time a batch of NIfTI files both ways, in turn, with a stub that waits as for a network on another device."""
    with tempfile.TemporaryDirectory(prefix="medssl-overlap-") as folder:
        root = Path(folder)
        write_scans(root / "in", "nifti", num_scans, (size, size, size))
        seconds = {}
        for is_overlapped in (False, True):
            start = time.monotonic()
            answer_for(root / "in", root / f"out{is_overlapped}", StubModel(network_s), overlap=is_overlapped)
            seconds[is_overlapped] = time.monotonic() - start
        return OverlapGain(num_scans, network_s, seconds[False], seconds[True])


def answer_for(scans: Path, out: Path, model: StubModel, *, overlap: bool = True) -> int:
    """How many scans are done."""
    stub: Any = model
    report = infer([scans], Path("stub.onnx"), out=out, model=stub, outputs=("nifti",), overlap=overlap)
    return report.count("done")


if __name__ == "__main__":
    done = answer_for(Path(sys.argv[1]), Path(sys.argv[2]), StubModel())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"done": done, "peak_bytes": peak}))
