"""What a traced graph computes from constants alone, computed once: at export, not whenever the file is loaded.

Windows of attention come with masks and with indices of a table of biases, which a tracer records as hundreds of small
steps; ONNX Runtime would repeat them at every start. A mask is large and mostly repeats itself, so only its different
parts are kept, and which of them follows which.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_ELEMENTS: Final = 2**26
"""Elements of a constant that is computed here, at most."""
LARGE_BYTES: Final = 2**22
"""From here on a constant is looked at for parts that repeat."""
MAX_GROWTH: Final = 1.25
"""By which a file may grow for it."""


def folded(model: Any) -> Any:
    """An equal `onnx.ModelProto` without steps that depend on no input, or the same one where it would grow too much.

    Args:
        model: With all its weights inside.
    """
    import onnx
    from onnxscript import optimizer

    given = {tensor.name for tensor in model.graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    optimizer.fold_constants(result, input_size_limit=MAX_ELEMENTS, output_size_limit=MAX_ELEMENTS)
    optimizer.remove_unused_nodes(result)
    for tensor in [each for each in result.graph.initializer if each.name not in given]:
        _keep_parts_once(result.graph, tensor)
    return result if result.ByteSize() <= MAX_GROWTH * model.ByteSize() else model


def _keep_parts_once(graph: Any, tensor: Any) -> None:
    """Replace a large constant whose parts repeat by these parts and the order that puts them together again."""
    from onnx import helper, numpy_helper

    array = numpy_helper.to_array(tensor)
    if array.nbytes < LARGE_BYTES:
        return
    axis = next(axis for axis, length in enumerate(array.shape) if length > 1)
    firsts, order = different_parts(array, axis)
    if 2 * len(firsts) > len(order):
        return
    name = tensor.name
    parts = [numpy_helper.from_array(array.take(firsts, axis), f"{name}_parts")]
    parts.append(numpy_helper.from_array(np.array(order, np.int64), f"{name}_order"))
    graph.initializer.remove(tensor)
    graph.initializer.extend(parts)
    graph.node.insert(0, helper.make_node("Gather", [part.name for part in parts], [name], f"{name}_gather", axis=axis))


def different_parts(array: NDArray[Any], axis: int) -> tuple[list[int], list[int]]:
    """Places along an axis where a part appears first, and for each place the number of its part among these.

    >>> different_parts(np.array([[5, 5], [7, 7], [5, 5]]), 0)
    ([0, 1], [0, 1, 0])
    """
    numbers: dict[bytes, int] = {}
    firsts, order = [], []
    for place in range(array.shape[axis]):
        part = array.take(place, axis).tobytes()
        if part not in numbers:
            numbers[part] = len(numbers)
            firsts.append(place)
        order.append(numbers[part])
    return firsts, order
