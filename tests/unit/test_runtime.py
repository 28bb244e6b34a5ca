"""ONNX Runtime runs what the bundle says, where it was asked to, and nowhere else."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from medssl_cli.deploy import runtime
from medssl_cli.deploy.bundle import attach
from medssl_cli.deploy.runtime import OnnxModel, parse_device
from medssl_cli.errors import UsageError
from medssl_cli.imaging.volume import Volume
from medssl_cli.recipe import Preprocessing
from tests.toy_model import TILE, toy_bundle, toy_graph, write_toy_model


def test_logits_are_those_of_the_graph(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu")
    tiles = np.random.default_rng(0).random((3, 1, *TILE), dtype=np.float32)

    logits = model.predict(tiles)

    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(logits[:, 1], tiles[:, 0] - 0.5, atol=1e-7)


@pytest.mark.parametrize("shape", [(16, 16, 8), (5, 40, 9), (33, 17, 21)])
def test_a_volume_of_any_size_is_thresholded_in_its_middle(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu")
    voxels = np.random.default_rng(1).integers(-50, 150, (1, *shape)).astype(np.int16)
    volume = Volume(voxels, np.diag([-1.0, 1.0, 2.0, 1.0]))

    labels = model.segment(volume)

    # The window 0..100 makes 1/2 of 50; voxels at 50 itself are ties and stay background.
    np.testing.assert_array_equal(labels, voxels[0] > 50)


def test_progress_ends_at_the_number_of_tiles(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx", mirror_axes=(0,)), "cpu")
    calls: list[tuple[int, int]] = []

    model.segment(Volume(np.zeros((1, 24, 16, 8), np.int16), np.eye(4)), progress=lambda *call: calls.append(call))

    # 24 voxels need two tiles of 16 with half a tile shared; each is seen twice, once flipped.
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_resampled_volumes_come_back_on_their_own_grid(tmp_path: Path) -> None:
    fine = Preprocessing(window_hu=(0.0, 100.0), spacing_mm=(1.0, 1.0, 1.0))
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx", preprocessing=fine), "cpu")
    voxels = np.zeros((1, 12, 10, 8), np.int16)
    voxels[0, 3:9, 2:8, 2:6] = 100

    labels = model.segment(Volume(voxels, np.diag([2.0, 2.0, 2.0, 1.0])))

    np.testing.assert_array_equal(labels, voxels[0] == 100)


@pytest.mark.parametrize(
    ("text", "device"), [("auto", ("auto", 0)), ("GPU", ("cuda", 0)), ("cuda:3", ("cuda", 3)), ("cpu", ("cpu", 0))]
)
def test_devices_are_understood(text: str, device: tuple[str, int]) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["", "tpu", "cpu:1", "cuda:x", "cuda:-1"])
def test_other_devices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="E_DEVICE"):
        parse_device(text)


def test_a_device_that_is_not_there_is_an_error_and_not_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    monkeypatch.setattr(runtime, "num_cuda_devices", lambda: 0)

    assert OnnxModel(path, "auto").device == "cpu"
    with pytest.raises(UsageError, match="offers 0 devices"):
        OnnxModel(path, "cuda")


def test_a_silent_fallback_of_onnx_runtime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    on_cpu = runtime.open_session
    monkeypatch.setattr(runtime, "num_cuda_devices", lambda: 1)
    monkeypatch.setattr(runtime, "open_session", lambda data, name, cuda: on_cpu(data, name, cuda=None))

    assert OnnxModel(path, "auto").device == "cpu"
    with pytest.raises(UsageError, match="would have run on the CPU"):
        OnnxModel(path, "cuda")


def test_a_graph_that_contradicts_its_bundle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for graph, bundle in (
        (toy_graph((8, 8, 8)), toy_bundle()),
        (toy_graph(), toy_bundle(classes={1: "a", 2: "b"})),
    ):
        path.write_bytes(attach(graph, bundle))
        with pytest.raises(UsageError, match="does not match its bundle"):
            OnnxModel(path, "cpu")


def test_a_graph_that_does_not_load_is_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_graph())
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "model.onnx"
    path.write_bytes(attach(model.SerializeToString(), toy_bundle()))

    with pytest.raises(UsageError, match="cannot load"):
        OnnxModel(path, "cpu")
