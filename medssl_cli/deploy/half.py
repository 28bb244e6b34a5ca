"""An ONNX graph of float32 as one that computes in float16, for devices that are twice as fast then.

Weights and most operators become float16; inputs and outputs stay float32. Sums over many elements stay float32, too,
since float16 ends at 65,504: normalisations, means, soft-max. The gate of export compares the answers as always.
"""

from typing import Any, Final

SUMS: Final = (
    "BatchNormalization",
    "GlobalAveragePool",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Pow",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Softmax",
    "Sqrt",
)


def in_float16(model: Any) -> Any:
    """An `onnx.ModelProto` that computes in float16 where that is safe; it takes and gives float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    converted = convert_float_to_float16(model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *SUMS])
    once_each = {tuple(node.output): node for node in converted.graph.node}  # shared weights are cast once a use
    del converted.graph.node[:]
    converted.graph.node.extend(once_each.values())
    return converted
