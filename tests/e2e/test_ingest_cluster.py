"""The same ingest on a Dask cluster: the same items, the same report."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medssl_cli.formats.nifti import write_nifti
from tests.dicom_factory import ct_series
from tests.environment import ENVIRONMENT

pytestmark = pytest.mark.slow


def ingest(place: Path, *options: str) -> dict[str, Any]:
    """`medssl ingest in --cache cache --json` inside a folder, with the site's key beside it."""
    command = [sys.executable, "-m", "medssl_cli", "ingest", "in", "--cache", "cache", "--json", "--key-file", "key"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=ENVIRONMENT, cwd=place)
    assert done.returncode == 3, done.stderr
    return dict(json.loads(done.stdout))


def items(place: Path) -> dict[str, str]:
    """Digest of every stored file."""
    folder = place / "cache" / "items"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_cluster_stores_the_same_items_and_reports_the_same(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    here, there = tmp_path / "here", tmp_path / "there"
    for number in range(3):
        heights = [100 * number + 5 * slice_number for slice_number in range(5)]
        ct_series(here / "in" / f"s{number}", series_uid=f"1.2.826.0.1.3680043.8.498.7.{number}", positions_mm=heights)
    voxels = np.random.default_rng(0).integers(0, 99, (8, 7, 6)).astype(np.int16)
    for folder, array in (("images", voxels), ("labels", (voxels > 50).astype(np.uint8))):
        (here / "in" / folder).mkdir()
        write_nifti(here / "in" / folder / "p_1.nii.gz", array, np.diag([-1.0, 1.0, 2.0, 1.0]))
    (here / "in" / "broken.nii").write_bytes(b"junk")
    (here / "key").write_bytes(b"k" * 32)
    shutil.copytree(here, there)

    local = ingest(here)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        remote = ingest(there, "--cluster", cluster.scheduler_address)

    assert items(there) == items(here)
    assert len(items(here)) >= 8
    changing = ("started", "duration_s")
    assert {k: v for k, v in remote.items() if k not in changing} == {
        k: v for k, v in local.items() if k not in changing
    }
