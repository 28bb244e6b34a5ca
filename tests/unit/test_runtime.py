"""ONNX Runtime runs what the bundle says, where it was asked to, and nowhere else."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from medssl_cli.base.errors import GateError, InputError, UsageError
from medssl_cli.deploy import devices
from medssl_cli.deploy.bundle import attach
from medssl_cli.deploy.devices import parse_device
from medssl_cli.deploy.runtime import OnnxModel
from medssl_cli.imaging.volume import Volume
from medssl_cli.preprocessing import Preprocessing
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
    monkeypatch.setattr(devices, "num_cuda_devices", lambda: 0)

    assert OnnxModel(path, "auto").device == "cpu"
    with pytest.raises(UsageError, match="offers 0 devices"):
        OnnxModel(path, "cuda")


def test_a_silent_fallback_of_onnx_runtime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toy_model(tmp_path / "model.onnx")
    monkeypatch.setattr(devices, "num_cuda_devices", lambda: 99)  # a driver of which ONNX Runtime finds nothing

    model = OnnxModel(path, "auto")

    assert model.device == "cpu"
    assert model.predict(np.zeros((1, 1, *TILE), np.float32)).shape == (1, 2, *TILE)
    with pytest.raises(UsageError, match=r"would have run on the CPU(: lib[\w.+-]+\.so[\w.]* cannot be loaded)?$"):
        OnnxModel(path, "cuda:98")


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


def integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model_of(path: Path, nodes: list[NodeProto], *constants: TensorProto, **changes: Any) -> Path:
    """A model that takes `image`, gives `logits` of the toy model's shape, and does something else meanwhile."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, *TILE])
        for name, channels in (("image", 1), ("logits", 2))
    ]
    graph = helper.make_graph(nodes, "model", ends[:1], ends[1:], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(attach(model.SerializeToString(), toy_bundle(**changes)))
    return path


def added(bomb: list[NodeProto], *constants: TensorProto) -> tuple[list[NodeProto], list[TensorProto]]:
    """The image twice, and a number that depends on what `bomb` makes."""
    nodes = [
        *bomb,
        helper.make_node("ReduceMax", ["bomb"], ["number"], keepdims=0),
        helper.make_node("Concat", ["image", "image"], ["twice"], axis=1),
        helper.make_node("Add", ["twice", "number"], ["logits"]),
    ]
    return nodes, list(constants)


def endless() -> list[NodeProto]:
    """A loop whose condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    return [helper.make_node("Loop", ["", "yes", "image"], ["bomb"], body=body)]


YES = numpy_helper.from_array(np.array(True), "yes")
BOMBS = {
    "ConstantOfShape": added([helper.make_node("ConstantOfShape", ["size"], ["bomb"])], integers("size", 6 * 2**28)),
    "Expand": added([helper.make_node("Expand", ["image", "size"], ["bomb"])], integers("size", 2**20, 1, *TILE)),
    "Tile": added([helper.make_node("Tile", ["image", "times"], ["bomb"])], integers("times", 2**18, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_model_that_allocates_without_measure_costs_a_code_and_no_memory(tmp_path: Path, bomb: str) -> None:
    nodes, constants = BOMBS[bomb]
    model = OnnxModel(model_of(tmp_path / "model.onnx", nodes, *constants), "cpu")

    # 2 GiB and more are asked for; a network with tiles of 2,048 voxels has no use for two.
    assert model.limits.model_bytes < 2 * 2**30
    with pytest.raises(InputError, match=r"E_MODEL_LIMIT.*GiB of memory"):
        model.predict(np.ones((1, 1, *TILE), np.float32))


def test_an_endless_loop_costs_a_code_and_no_more_than_the_time_allowed(tmp_path: Path) -> None:
    nodes, constants = added(endless(), YES)
    path = model_of(tmp_path / "model.onnx", nodes, *constants)
    model = OnnxModel(path, "cpu", tile_timeout_s=0.3)
    process = model._process._process

    with pytest.raises(InputError, match=r"E_MODEL_LIMIT.*seconds"):
        model.predict(np.ones((1, 1, *TILE), np.float32))

    assert process.poll() == -signal.SIGKILL


def test_a_model_that_never_answers_is_asked_three_times_and_no_more(tmp_path: Path) -> None:
    nodes, constants = added(endless(), YES)
    model = OnnxModel(model_of(tmp_path / "model.onnx", nodes, *constants), "cpu", tile_timeout_s=0.05)
    tiles = np.ones((1, 1, *TILE), np.float32)
    for _ in range(3):
        with pytest.raises(InputError, match="E_MODEL_LIMIT"):
            model.predict(tiles)
    gone = model._process

    with pytest.raises(InputError, match="E_MODEL_LIMIT"):
        model.predict(tiles)

    assert model._process is gone


def test_the_next_scan_gets_a_new_process_when_one_died(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu")
    tiles = np.ones((1, 1, *TILE), np.float32)
    os.kill(model._process._process.pid, signal.SIGKILL)

    with pytest.raises(InputError, match=r"E_RUNTIME: ONNX Runtime died \(signal 9\)"):
        model.predict(tiles)

    np.testing.assert_allclose(model.predict(tiles)[:, 1], 0.5)


def test_a_model_that_was_replaced_meanwhile_is_not_taken_for_the_first(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu")
    model.close()
    write_toy_model(tmp_path / "model.onnx", task="another")

    with pytest.raises(GateError, match=r"E_MODEL_CORRUPT.*replaced"):
        model.predict(np.ones((1, 1, *TILE), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_is_an_error(tmp_path: Path, value: float) -> None:
    number = numpy_helper.from_array(np.array(value, np.float32), "bomb")
    nodes, _ = added([])
    model = OnnxModel(model_of(tmp_path / "model.onnx", nodes, number), "cpu")

    with pytest.raises(InputError, match=r"E_RUNTIME.*not finite"):
        model.segment(Volume(np.zeros((1, *TILE), np.int16), np.eye(4)))


def test_finite_numbers_whose_sum_is_not_are_an_output(tmp_path: Path) -> None:
    nodes, _ = added([])
    number = numpy_helper.from_array(np.array(3e38, np.float32), "bomb")
    model = OnnxModel(model_of(tmp_path / "model.onnx", nodes, number), "cpu")

    assert (model.predict(np.zeros((1, 1, *TILE), np.float32)) == np.float32(3e38)).all()


@pytest.mark.parametrize("times", [(1, 3, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2, 1, 2, 1)])
def test_an_output_of_another_size_is_an_error(tmp_path: Path, times: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),  # so that no size is known before the model runs
        helper.make_node("Mul", ["times", "ones"], ["given"]),
        helper.make_node("Div", ["shape", "shape"], ["ones"]),
        helper.make_node("Tile", ["image", "given"], ["logits"]),
    ]
    nodes = [nodes[0], nodes[2], nodes[1], nodes[3]]
    model = OnnxModel(model_of(tmp_path / "model.onnx", nodes, integers("times", *times)), "cpu")

    with pytest.raises(InputError, match="E_RUNTIME"):
        model.predict(np.ones((1, 1, *TILE), np.float32))


@pytest.mark.parametrize("spacing", [1e-4, 1e-300])
def test_a_spacing_that_needs_more_memory_than_there_is_is_refused_before_it_is_taken(
    tmp_path: Path, spacing: float
) -> None:
    fine = Preprocessing(window_hu=(0.0, 100.0), spacing_mm=(spacing,) * 3)
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx", preprocessing=fine), "cpu")

    with pytest.raises(InputError, match=r"E_TOO_BIG.*GiB are allowed"):
        model.segment(Volume(np.zeros((1, 64, 64, 64), np.int16), np.eye(4)))


def test_tiles_without_number_are_refused(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx", overlap=0.999), "cpu", max_ram_bytes=2**31)

    with pytest.raises(InputError, match="E_TOO_BIG"):
        # A step of one voxel: some 270 million tiles of a scan that would do with 17 bytes per voxel.
        model.require_memory((650, 650, 650), np.eye(4))


@pytest.mark.usefixtures("cold_children")
def test_the_memory_that_is_allowed_counts_the_model_too(tmp_path: Path) -> None:
    volume = Volume(np.zeros((1, 64, 64, 64), np.int16), np.eye(4))  # 262,144 voxels: some 11 MB with two classes
    path = write_toy_model(tmp_path / "model.onnx")

    with pytest.raises(UsageError, match="E_MODEL_LIMIT"):
        OnnxModel(path, "cpu", max_ram_bytes=2**24)
    assert not OnnxModel(path, "cpu", max_ram_bytes=2**29).segment(volume).any()


def test_the_error_of_a_model_on_the_cpu_does_not_advise_the_cpu(tmp_path: Path) -> None:
    number = numpy_helper.from_array(np.array(np.nan, np.float32), "bomb")
    model = OnnxModel(model_of(tmp_path / "model.onnx", added([])[0], number), "cpu")

    with pytest.raises(InputError) as found:
        model.predict(np.ones((1, 1, *TILE), np.float32))

    assert "--device" not in found.value.hint


def test_the_process_of_a_model_ends_with_it(tmp_path: Path) -> None:
    model = OnnxModel(write_toy_model(tmp_path / "model.onnx"), "cpu")
    process = model._process._process
    assert process.poll() is None

    model.close()

    assert process.poll() is not None
