"""medssl without the packages that only training needs; `.ci/inference-only` makes such an environment in earnest."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from medssl_cli.base.errors import Exit
from medssl_cli.cli.boundary import TRAINING_PACKAGES
from medssl_cli.deploy import doctor
from medssl_cli.formats.nifti import write_nifti
from tests import command
from tests.batch import AFFINE, phantom
from tests.environment import ENVIRONMENT, ROOT
from tests.toy_model import write_toy_model

WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(TRAINING_PACKAGES)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of processes, and of their children, that find no package of training."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    return {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path / 'without'}:{ROOT}"}


def medssl(environment: dict[str, str], *words: object) -> Any:
    command = [sys.executable, "-m", "medssl_cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_requirements_are_those_of_medssl_without_training() -> None:
    pages = (ROOT / "docs" / "deploy" / "requirements-infer.txt").read_text(encoding="utf-8").splitlines()
    asked = {line for line in pages if line and not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    whole = {line.partition(";")[0].strip() for line in project["dependencies"]}

    left_out = {re.split("[>=<]", line)[0].replace("-", "_") for line in whole - asked}

    assert asked <= whole
    assert left_out == TRAINING_PACKAGES | {"onnxruntime_gpu"}


def test_infer_and_ingest_need_no_package_of_training(tmp_path: Path, environment: dict[str, str]) -> None:
    model = write_toy_model(tmp_path / "model.onnx", modality="CT")
    write_nifti(tmp_path / "scan.nii.gz", phantom(), AFFINE)
    out, cache = tmp_path / "out", tmp_path / "cache"

    answered = medssl(environment, "infer", tmp_path / "scan.nii.gz", "--task", model, "-o", out, "--device", "cpu")
    taken = medssl(environment, "ingest", tmp_path / "scan.nii.gz", "--modality", "CT", "--cache", cache)
    refused = medssl(environment, "finetune", "--task", "heart-seg", "--cache", cache, "--run", tmp_path / "run")

    assert answered.returncode == 0, answered.stderr
    assert list(out.glob("*.nii.gz"))
    assert taken.returncode == 0, taken.stderr
    assert refused.returncode == Exit.USAGE
    assert "E_EXTRA_MISSING" in refused.stderr
    assert "pip install ." in refused.stderr


def test_doctor_takes_an_installation_for_inference_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name in doctor.FOR_TRAINING else real(name))
    whole = command.medssl("doctor", "--cache", tmp_path, "--json")
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "monai" else real(name))
    half = command.medssl("doctor", "--cache", tmp_path, "--json")

    assert whole.exit_code == Exit.OK
    assert {line["what"]: line["status"] for line in json.loads(whole.stdout)}["training"] == "note"
    assert half.exit_code == Exit.GATE


def test_the_model_that_doctor_runs_is_the_identity() -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    assert model.SerializeToString() == doctor.IDENTITY
