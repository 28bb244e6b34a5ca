"""A model whose answers are known by hand: class 1 where the network input is above one half."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from medssl_cli.deploy.bundle import Bundle, Parity, attach
from medssl_cli.heads import FindingsHead, MasksHead, OperatingPoint
from medssl_cli.preprocessing import Channel, Preprocessing

TILE = (16, 16, 8)


def toy_bundle(**changes: Any) -> Bundle:
    """A complete bundle of the toy model; changes are of the bundle, or of its head."""
    head = {"classes": {1: "bright"}, "tile_size": TILE, "overlap": 0.5, "nsd_tolerance_mm": 2.0}
    own = {name: changes.pop(name) for name in list(changes) if name in MasksHead.model_fields}
    values: dict[str, Any] = {
        "task": "toy-seg",
        "preprocessing": Preprocessing(window_hu=(0.0, 100.0)),
        "head": MasksHead(**{**head, **own}),
        "medssl_version": "0.1.0",
        "recipe_sha256": "a" * 64,
        "weights_sha256": "b" * 64,
        "manifest_sha256": "c" * 64,
        "split_seed": 0,
        "fold": 0,
        "parity": Parity(max_abs_difference=0, argmax_agreement=1, min_dice=1, num_cases=1),
        "intended_use": "Tests",
    }
    return Bundle(**{**values, **changes})


def toy_graph(tile: tuple[int, int, int] = TILE) -> bytes:
    """Logits (0, x - 1/2): a 1x1x1 convolution with weights (0, 1) and biases (0, -1/2)."""
    weight = numpy_helper.from_array(np.array([0, 1], np.float32).reshape(2, 1, 1, 1, 1), "weight")
    bias = numpy_helper.from_array(np.array([0, -0.5], np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"])],
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, *tile])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, *tile])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def write_toy_model(path: Path, **changes: Any) -> Path:
    """The toy model as a sealed file."""
    path.write_bytes(attach(toy_graph(), toy_bundle(**changes)))
    return path


def write_failing_model(path: Path) -> Path:
    """A model of one class that answers air, and gives no number where anything is above 90 HU."""
    half = numpy_helper.from_array(np.full((1, 1, 1, 1, 1), 0.9, np.float32), "most")
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, *TILE])
        for name, count in (("image", 1), ("logits", 2))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["most", "image"], ["below"]),
            helper.make_node("Sqrt", ["below"], ["root"]),
            helper.make_node("Concat", ["root", "image"], ["logits"], axis=1),
        ],
        "failing", ports[:1], ports[1:], [half],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(attach(bytes(model.SerializeToString()), toy_bundle(modality="CT")))
    return path


def write_region_model(path: Path, channels: Sequence[str], regions: Sequence[str], **changes: Any) -> Path:
    """A model whose k-th region is where the k-th channel is above 500; every region holds all later ones by label."""
    count = len(channels)
    assert count == len(regions)
    rules = tuple(Channel(name=name, window_hu=(0.0, 1000.0)) for name in channels)
    bundle = toy_bundle(
        task="toy-regions",
        preprocessing=Preprocessing(channels=rules),
        in_channels=count,
        activation="sigmoid",
        classes=dict(enumerate(regions, start=1)),
        label_classes={name: tuple(range(place, count + 2)) for place, name in enumerate(regions, start=1)},
        **changes,
    )
    weight = numpy_helper.from_array(np.eye(count, dtype=np.float32).reshape(count, count, 1, 1, 1), "weight")
    bias = numpy_helper.from_array(np.full(count, -0.5, np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"])],
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", count, *TILE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", count, *TILE])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(attach(bytes(model.SerializeToString()), bundle))
    return path


def write_findings_model(path: Path, modality: str, *, size: int = 8, threshold: float = 0.6) -> Path:
    """A model of single pictures whose only finding, `bright`, is the sigmoid of their mean brightness."""
    head = FindingsHead(
        names=("bright",),
        label_classes={"bright": ("bright",)},
        operating_points={"bright": OperatingPoint(threshold=threshold, rule="fixed")},
    )
    bundle = toy_bundle(
        task="toy-findings",
        modality=modality,
        preprocessing=Preprocessing(window_hu=(0.0, 4095.0), fit=(size, size)),
    ).model_copy(update={"head": head})
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["pixels"]),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["logits"], keepdims=1),
        ],
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(attach(bytes(model.SerializeToString()), bundle))
    return path


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    """A bundle that says something else, unchecked; changes are of the bundle, or of its head."""
    own = {name: changes.pop(name) for name in list(changes) if name in type(bundle.head).model_fields}
    return bundle.model_copy(update={"head": bundle.head.model_copy(update=own), **changes})
