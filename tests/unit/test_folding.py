"""A graph is sealed without what depends on no input, gives the same bytes, and hardly grows."""

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from medssl_cli.deploy.folding import MAX_GROWTH, different_parts, folded

WINDOWS, PLACES = 16, 256
SHAPE = (WINDOWS, PLACES, PLACES)


def masked(weights: NDArray[np.float32]) -> onnx.ModelProto:
    """Attention between places of windows, which is -100 between places of different regions: 4 MiB of mask.

    The regions are written into three kinds of windows one after the other, as tracers record it.
    """
    constants = {
        "nothing": np.zeros((WINDOWS, PLACES), np.float32),
        "some": np.array([[1], [2], [7]]),
        "others": np.array([[3], [9]]),
        "halves": np.repeat(np.float32([0, 1]), PLACES // 2)[np.newaxis].repeat(3, 0),
        "quarters": np.repeat(np.float32([0, 1, 2, 3]), PLACES // 4)[np.newaxis].repeat(2, 0),
        "along": np.array([1]),
        "across": np.array([2]),
        "zero": np.float32(0),
        "far": np.float32(-100),
        "weights": weights,
    }
    nodes = [
        helper.make_node("ScatterND", ["nothing", "some", "halves"], ["begun"]),
        helper.make_node("ScatterND", ["begun", "others", "quarters"], ["regions"]),
        helper.make_node("Unsqueeze", ["regions", "along"], ["rows"]),
        helper.make_node("Unsqueeze", ["regions", "across"], ["columns"]),
        helper.make_node("Equal", ["rows", "columns"], ["same"]),
        helper.make_node("Where", ["same", "zero", "far"], ["mask"]),
        helper.make_node("Add", ["image", "mask"], ["seen"]),
        helper.make_node("Add", ["seen", "weights"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("image", "logits")]
    given = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "attention", ends[:1], ends[1:], given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model: onnx.ModelProto, image: NDArray[np.float32]) -> bytes:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {"image": image})[0]
    return found.tobytes()


def test_steps_that_depend_on_no_input_are_gone_and_answers_are_the_same() -> None:
    drawn = np.random.default_rng(0)
    model = masked(drawn.random(SHAPE, dtype=np.float32))
    image = drawn.random(SHAPE, dtype=np.float32)

    found = folded(model)

    assert sorted(node.op_type for node in found.graph.node) == ["Add", "Add", "Gather"]
    # Of 16 windows only three kinds differ; each is 256 kB.
    parts = next(tensor for tensor in found.graph.initializer if tensor.name.endswith("_parts"))
    assert list(parts.dims) == [3, PLACES, PLACES]
    assert found.ByteSize() < MAX_GROWTH * model.ByteSize()
    assert answer(found, image) == answer(model, image)
    assert len(model.graph.node) == 8


def test_a_file_does_not_grow_by_much_more_than_its_weights() -> None:
    # Parts of 0.8 MB beside weights of 1 kB.
    model = masked(np.zeros((1, 1, PLACES), np.float32))

    assert folded(model) is model


def test_parts_are_numbered_in_the_order_of_their_first_place() -> None:
    assert different_parts(np.array([[5, 5], [7, 7], [5, 5], [6, 5]]), 0) == ([0, 1, 3], [0, 1, 0, 2])
    assert different_parts(np.array([[5, 7, 5], [5, 7, 5]]), 1) == ([0, 1], [0, 1, 0])
