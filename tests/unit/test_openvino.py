"""OpenVINO is used where it is installed and answers as the CPU does, and refused otherwise."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from medssl_cli.base.errors import UsageError
from medssl_cli.deploy import running_model
from medssl_cli.deploy.device_check import TOLERANCE, noise_of, require_agreement
from medssl_cli.deploy.devices import parse_device
from medssl_cli.deploy.model_process import ModelProcess
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.deploy.session import CPU, OPENVINO
from medssl_cli.heads import Port
from medssl_cli.imaging.volume import Volume
from tests.toy_model import write_toy_model

IS_INSTALLED = OPENVINO in onnxruntime.get_available_providers()


class PretendedOpenVino(ModelProcess):
    """The CPU, which says that it is OpenVINO where that is asked for, and is wrong by an error."""

    error = 0.0
    devices: list[str]

    def begin_load(self, *, device: str, **given: Any) -> None:
        self.devices.append(device)
        super().begin_load(device="cpu", **given)

    def loaded(self, **given: Any) -> dict[str, Any]:
        answer = super().loaded(**given)
        return {**answer, "provider": OPENVINO if self.devices[-1] == "openvino" else CPU}

    def compute(self, *given: Any, **more: Any) -> list[NDArray[np.float32]]:
        wrong = self.error if self.devices[-1] == "openvino" else 0.0
        return [values + np.float32(wrong) for values in super().compute(*given, **more)]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[PretendedOpenVino]:
    monkeypatch.setattr(PretendedOpenVino, "devices", [], raising=False)
    monkeypatch.setattr(running_model, "ModelProcess", PretendedOpenVino)
    return PretendedOpenVino


def test_it_is_asked_for_by_name() -> None:
    assert parse_device("OpenVINO") == ("openvino", 0)
    with pytest.raises(UsageError, match="E_DEVICE"):
        parse_device("openvino:1")


@pytest.mark.skipif(IS_INSTALLED, reason="OpenVINO is installed")
def test_without_its_package_it_is_refused_by_the_packages_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"E_DEVICE.*onnxruntime-openvino is not installed") as refusal:
        OnnxModel(write_toy_model(tmp_path / "model.onnx"), "openvino")
    assert "--device cpu" in refusal.value.hint


def test_the_cpu_answers_first_and_then_the_device(tmp_path: Path, pretended: type[PretendedOpenVino]) -> None:
    with closing(OnnxModel(write_toy_model(tmp_path / "model.onnx"), "openvino")) as model:
        assert model.device == "openvino"
        assert pretended.devices == ["cpu", "openvino"]
        bright = model.segment(Volume(np.full((1, 8, 8, 8), 80, np.int16), np.eye(4)))
    assert bright.all()


def test_other_answers_than_the_cpus_are_refused(
    tmp_path: Path, pretended: type[PretendedOpenVino], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretended, "error", 2 * TOLERANCE)
    with pytest.raises(UsageError, match=r"E_DEVICE.*numbers are 2.0e-03 apart"):
        OnnxModel(write_toy_model(tmp_path / "model.onnx"), "openvino")


def test_numbers_are_compared_beside_the_largest_and_classes_voxel_by_voxel() -> None:
    logits = np.zeros((1, 2, 10, 10, 10), np.float32)
    logits[:, 0] = 1e-4
    logits[:, 1, 0, 0] = 100
    narrow = logits.copy()
    narrow[:, 1, 5, 5, :2] = 2e-4  # two of a thousand voxels are of the other class

    require_agreement("openvino", [logits], [logits + np.float32(0.05)], activation="softmax")
    require_agreement("openvino", [logits], [narrow], activation=None)
    with pytest.raises(UsageError, match=r"99\.80 % of voxels are the same"):
        require_agreement("openvino", [logits], [narrow], activation="softmax")
    with pytest.raises(UsageError, match=r"50\.00 % of voxels are the same"):
        require_agreement("openvino", [logits], [np.maximum(logits - 2e-4, 0)], activation="sigmoid")


def test_noise_has_the_shape_of_every_input() -> None:
    images, flags = noise_of(
        [Port(name="a", sizes=("volumes", "slices", 1, 5)), Port(name="b", sizes=("volumes", "slices"), is_bool=True)]
    )
    assert images.shape == (1, 4, 1, 5)
    assert images.std() > 0.1
    assert flags.dtype == np.bool_
    assert flags.all()


@pytest.mark.skipif(not IS_INSTALLED, reason="OpenVINO is not installed (onnxruntime-openvino)")
@pytest.mark.usefixtures("cold_children")
def test_openvino_itself_gives_the_masks_of_the_cpu(tmp_path: Path) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    image = Volume(np.random.default_rng(0).integers(-50, 150, (1, 40, 30, 20)).astype(np.int16), np.eye(4))

    with closing(OnnxModel(path, "cpu")) as cpu, closing(OnnxModel(path, "openvino", threads=1)) as other:
        assert other.device == "openvino"
        np.testing.assert_array_equal(cpu.segment(image), other.segment(image))
