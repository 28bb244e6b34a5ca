"""What each command imports before it can answer: start-up time is spent on imports, and imports can be counted."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medssl_cli.formats.nifti import write_nifti
from tests.dicom_factory import analytic_phantom, write_volume
from tests.environment import ENVIRONMENT
from tests.toy_model import write_toy_model

SPY = """
import atexit, json, sys
from pathlib import Path
target, sys.argv = Path(sys.argv[1]), ["medssl", *sys.argv[2:]]
atexit.register(lambda: target.write_text(json.dumps(sorted(sys.modules))))
from medssl_cli.cli.app import main
main()
"""
TRAINING = {"torch", "monai", "lightning_fabric", "onnx", "onnxscript", "matplotlib", "scipy.stats", "tensorboard"}
HEAVY = {"numpy", "pydantic", "yaml", "scipy", "SimpleITK", "pydicom", "nibabel", "blosc2", "onnxruntime", *TRAINING}

TYPERS_OWN = {"pydantic"}  # newer Typers check ranges of options with it


def imported_by(folder: Path, *arguments: object) -> set[str]:
    """Modules that a real process has loaded when the command ends."""
    listing = folder / "modules.json"
    command = [sys.executable, "-c", SPY, str(listing), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(listing.read_text()))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["infer", "--help"], ["pretrain", "--help"]])
def test_help_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    loaded = imported_by(tmp_path, *arguments)

    assert "typer" in loaded
    assert not loaded & (HEAVY if len(arguments) == 1 else HEAVY - TYPERS_OWN)


def test_completing_a_command_line_imports_nothing_heavy(tmp_path: Path) -> None:
    environment = {"COMP_WORDS": "medssl inf", "COMP_CWORD": "1", "_MEDSSL_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", SPY, str(tmp_path / "modules.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | environment)

    assert done.stdout.split() == ["infer"]
    assert not set(json.loads((tmp_path / "modules.json").read_text())) & (HEAVY - TYPERS_OWN)


def test_listing_recipes_and_models_imports_no_numbers(tmp_path: Path) -> None:
    assert not imported_by(tmp_path, "recipes", "ls") & (HEAVY - {"pydantic", "yaml"})


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_inference_imports_neither_torch_nor_what_it_does_not_need(tmp_path: Path, kind: str) -> None:
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    scan = tmp_path / ("scan.nii.gz" if kind == "nifti" else "ct")
    if kind == "nifti":
        write_nifti(scan, np.arange(20 * 18 * 10, dtype=np.int16).reshape(20, 18, 10), np.eye(4))
    else:
        write_volume(scan, analytic_phantom())

    loaded = imported_by(tmp_path, "infer", scan, "--task", model, "-o", tmp_path / "out", "--device", "cpu")

    assert list((tmp_path / "out").glob("*.nii.gz"))
    assert "medssl_cli.deploy.runtime" in loaded
    assert not loaded & (TRAINING | {"SimpleITK", "medssl_cli.recipe"})
    assert "onnxruntime" not in loaded  # which the process of the model imports meanwhile
    assert kind == "dicom" or not loaded & {"pydicom", "highdicom", "nibabel", "medssl_cli.formats.dicom"}


def test_ingest_imports_no_training(tmp_path: Path) -> None:
    write_volume(tmp_path / "ct", analytic_phantom())

    loaded = imported_by(tmp_path, "ingest", tmp_path / "ct", "--cache", tmp_path / "cache")

    assert not loaded & (TRAINING | {"onnxruntime", "nibabel", "blosc2"})


def test_an_ingest_of_unchanged_files_imports_nothing_that_could_read_one(tmp_path: Path) -> None:
    write_volume(tmp_path / "ct", analytic_phantom())
    time.sleep(1.1)  # what was changed less than a second ago is not remembered
    command = ["ingest", tmp_path / "ct", "--cache", tmp_path / "cache"]
    imported_by(tmp_path, *command)

    loaded = imported_by(tmp_path, *command)

    assert "medssl_cli.ingest.run" in loaded
    assert not loaded & ((HEAVY | {"PIL", "medssl_cli.ingest.stages"}) - TYPERS_OWN)
