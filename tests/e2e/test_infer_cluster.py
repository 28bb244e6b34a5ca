"""The same inference on a Dask cluster: the same masks, the same report, the same resumption."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.batch import make_batch
from tests.toy_model import write_toy_model

pytestmark = pytest.mark.slow


def infer(batch: Path, model: Path, out: Path, *options: object) -> list[dict[str, Any]]:
    command = ("infer", batch, "-t", model, "--device", "cpu", "--no-preview", "--json", "-q", "-o", out, *options)
    done = warm.run(*command, kind="reading")
    assert done.returncode == 3, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return sorted(results, key=lambda entry: str(entry["key"]))


def masks(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*_toy-seg*")}


def test_a_cluster_writes_the_same_masks_and_reports_the_same(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    batch, model = make_batch(tmp_path / "in", 4), write_toy_model(tmp_path / "model.onnx", modality="CT")

    local = infer(batch.folder, model, tmp_path / "here")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        remote = infer(batch.folder, model, tmp_path / "there", "--cluster", cluster.scheduler_address)
        again = infer(batch.folder, model, tmp_path / "there", "--cluster", cluster.scheduler_address)

    assert masks(tmp_path / "there") == masks(tmp_path / "here")
    assert len(masks(tmp_path / "here")) >= 4
    for one, other in zip(local, remote, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert all(entry["resumed"] for entry in again if entry["status"] == "done")
