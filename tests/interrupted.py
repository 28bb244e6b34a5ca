"""Runs of pre-training that have lost what came after a checkpoint, as a kill leaves them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from medssl_cli.engine.metrics_log import read_metrics
from medssl_cli.engine.pretrain import PretrainSummary


def interrupted_copy(run: Path, folder: Path, *, step: int) -> Path:
    """A copy of a finished run as it was after a step, whose checkpoint is the only one that is left."""
    shutil.copytree(run, folder)
    for path in [folder / "summary.json", folder / "encoder.safetensors", *(folder / "checkpoints").iterdir()]:
        if not path.name.startswith(f"step-{step:08d}-"):
            path.unlink()
    return folder


def whole_runs(root: Path, train: Callable[[str, Path], PretrainSummary], *, steps: int) -> Callable[[str], Path]:
    """Undisturbed runs below a folder by their names, each trained when it is asked for first."""

    def run(name: str) -> Path:
        if not (root / name).is_dir():
            assert train(name, root / name).steps == steps
        return root / name

    return run


def losses(run: Path) -> list[float]:
    """Of every logged step."""
    return [entry["loss"] for entry in read_metrics(run)]


def require_the_same_bits(run: Path, whole: Path) -> None:
    """The same losses, and the same tensors of everything that is kept."""
    assert losses(run) == losses(whole)
    kept = [path.name for path in whole.glob("*.safetensors")]
    assert "encoder.safetensors" in kept
    for name in kept:
        expected, found = (safetensors.numpy.load_file(root / name) for root in (whole, run))
        assert found.keys() == expected.keys()
        for key, value in found.items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
