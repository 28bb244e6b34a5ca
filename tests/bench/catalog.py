"""What very many items cost before the first step of a pre-training: seconds and memory, stage by stage."""

import base64
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from medssl_cli.base.errors import MedsslError
from medssl_cli.cache.items import ItemRecord, Provenance
from medssl_cli.cache.prepared import PreparedItems, prepare
from medssl_cli.cache.store import Cache
from medssl_cli.preprocessing import Preprocessing
from medssl_cli.work.workers import supervised_map

COLUMNS: Final = ("stage", "s", "CPU s", "peak above the start, MB")
PREPROCESSING: Final = Preprocessing(spacing_mm=(1.5, 1.5, 1.5), window_hu=(-175, 250))
LABELLED_EVERY: Final = 10
TIMEOUT_S: Final = 3600.0
T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One stage of the way from an opened cache to a data set.

    Args:
        name: What happens.
        wall_s: From start to end.
        cpu_s: Of the process.
        peak_bytes: Highest resident memory so far, above that of the process before the first stage.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_bytes: int

    def row(self) -> tuple[str, ...]:
        """For a table."""
        return (self.name, f"{self.wall_s:.2f}", f"{self.cpu_s:.2f}", f"{self.peak_bytes / 1e6:.0f}")


def bench_catalog(num_items: int) -> list[Stage]:
    """Make a cache of records without voxels and go through it in a fresh process.

    Args:
        num_items: All prepared; every tenth has labels.

    Raises:
        StorageError: `E_IO`.
    """
    with tempfile.TemporaryDirectory(prefix="medssl-bench-") as scratch:
        root = Path(scratch) / "cache"
        write_records(root, num_items)
        (outcome,) = supervised_map(measure, [root], num_workers=1, timeout_s=TIMEOUT_S)
    if outcome.result is None:
        raise MedsslError("E_WORKER_CRASH", f"measuring {num_items} items {outcome.failure}")
    return outcome.result


def write_records(root: Path, num_items: int) -> None:
    """A cache with a catalog and prepared descriptions, but no items on disk."""
    cache = Cache.open_or_create(root)
    cache.catalog.replace_all(lambda: map(_record, range(num_items)))
    description = (
        '{"affine": [[1.5, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 1.5, 0], [0, 0, 0, 1]], '
        '"intensity": [-175, 250, -175, 0.00235], "is_stored": true, "shape": [240, 240, 200]}'
    )
    for path in prepared_descriptions(root, (_key(number, "item") for number in range(num_items))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(description)


def prepared_descriptions(root: Path, item_ids: Iterator[str]) -> Iterator[Path]:
    """Where `prepare` looks whether items are prepared."""
    items = PreparedItems(root, PREPROCESSING, np.array(list(item_ids), dtype=bytes), None)
    return (items.description(place) for place in range(len(items)))


def measure(root: Path) -> list[Stage]:
    """Go from the cache to a data set, as `medssl pretrain` does."""
    from medssl_cli.base.talk import Silence
    from medssl_cli.cache.splits import held_out_patients
    from medssl_cli.data.crops import CropDataset, item_of
    from medssl_cli.data.selection import volumes_of
    from medssl_cli.engine.runs import Manifest

    cache = Cache.open(root)
    start = _peak()
    stages = []

    def stage(name: str, work: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        done = work()
        stages.append(Stage(name, time.perf_counter() - wall, time.process_time() - cpu, _peak() - start))
        return done

    entries = stage("open the catalog", cache.entries)
    volumes = stage("select volumes", lambda: volumes_of(entries, modality="CT", talk=Silence()))
    held_out = stage("leave test patients out", lambda: held_out_patients(entries, 0))
    train = [volume for volume in volumes if volume.patient_key not in held_out]
    stage("manifest", lambda: Manifest({"train": train}, {}).document())
    items = stage("find what is prepared", lambda: prepare(cache, train, PREPROCESSING))
    dataset = CropDataset(items, (192, 192, 64), batch_size=4, seed=0)
    stage("send the data set to a worker", lambda: ForkingPickler.dumps(dataset))
    stage("order an epoch", lambda: item_of(0, 0, batch_size=4, num_items=len(items), seed=0))
    return stages


def _record(number: int) -> ItemRecord:
    label = {"sha256": _digest(number, "label"), "classes": {1: "organ"}, "voxels_per_class": {1: 1000}}
    return ItemRecord.model_validate(
        {
            "item_id": _key(number, "item"),
            "patient_key": _key(number // 2, "patient"),
            "study_key": _key(number, "study"),
            "series_key": _key(number, "series"),
            "has_patient_identity": True,
            "modality": "CT",
            "units": "HU",
            "shape": (512, 512, 200),
            "dtype": "int16",
            "affine": ((0.7, 0.0, 0.0, 1.0), (0.0, 0.7, 0.0, 2.0), (0.0, 0.0, 1.5, 3.0), (0.0, 0.0, 0.0, 1.0)),
            "image_sha256": _digest(number, "image"),
            "fingerprint": _digest(number, "fingerprint")[:16],
            "provenance": Provenance(source_kind="dicom", num_files=200, medssl_version="0", key_id="benchmark"),
            "labels": {} if number % LABELLED_EVERY else {"seg": label},
        }
    )


def _digest(number: int, what: str) -> str:
    return hashlib.sha256(f"{what} {number}".encode()).hexdigest()


def _key(number: int, what: str) -> str:
    return base64.b32encode(hashlib.sha256(f"{what} {number}".encode()).digest()).decode().lower()[:26]


def _peak() -> int:
    """Highest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
