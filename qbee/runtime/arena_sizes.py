"""Sizes of what TFLite Micro keeps in its arena beside the feature maps, on 64-bit machines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from qbee.runtime.flatbuffer import BITS, WITH_KERNEL, Op, Type, code_of

ALIGNMENT = 16
_EVAL_TENSOR_BYTES = 24
# The interpreter's own objects.
_BASE_BYTES = 488
# The description of an input or output, and that of its quantization.
_TENSOR_BYTES, _QUANTIZATION_BYTES = 64, 32
_POINTER_BYTES, _SCRATCH_HANDLE_BYTES = 8, 8
# Node, parameters and data of an operator, without tensors; measured with TFLite Micro on x86-64.
_OPERATOR_BYTES = {
    Op.ABS: 96,
    Op.ADD: 136,
    Op.ARG_MAX: 68,
    Op.ARG_MIN: 68,
    Op.AVERAGE_POOL_2D: 136,
    Op.BATCH_MATMUL: 210,
    Op.CONCATENATION: 152,
    Op.CONV_2D: 172,
    Op.DEPTHWISE_CONV_2D: 172,
    Op.DEPTH_TO_SPACE: 100,
    Op.DEQUANTIZE: 96,
    Op.DIV: 100,
    Op.EQUAL: 96,
    Op.EXPAND_DIMS: 64,
    Op.FULLY_CONNECTED: 176,
    Op.GATHER: 104,
    Op.HARD_SWISH: 96,
    Op.L2_NORMALIZATION: 84,
    Op.LEAKY_RELU: 100,
    Op.LOGISTIC: 80,
    Op.LOG_SOFTMAX: 64,
    Op.MAXIMUM: 64,
    Op.MAX_POOL_2D: 136,
    Op.MEAN: 112,
    Op.MINIMUM: 64,
    Op.MUL: 116,
    Op.PACK: 72,
    Op.PAD: 128,
    Op.PADV2: 128,
    Op.PRELU: 96,
    Op.QUANTIZE: 96,
    Op.REDUCE_MAX: 112,
    Op.RELU: 96,
    Op.RELU6: 80,
    Op.RESHAPE: 100,
    Op.RESIZE_BILINEAR: 66,
    Op.RESIZE_NEAREST_NEIGHBOR: 66,
    Op.RSQRT: 96,
    Op.SLICE: 64,
    Op.SOFTMAX: 148,
    Op.SPLIT: 68,
    Op.SQUARED_DIFFERENCE: 176,
    Op.SQUEEZE: 100,
    Op.STRIDED_SLICE: 184,
    Op.SUB: 136,
    Op.SUM: 112,
    Op.TANH: 80,
    Op.TRANSPOSE: 64,
    Op.TRANSPOSE_CONV: 184,
    Op.UNIDIRECTIONAL_SEQUENCE_LSTM: 760,
    Op.UNPACK: 72,
}
_OTHER_OPERATOR_BYTES = 136
# Two tables of 513 int16 each, of a softmax on 16 bits.
_SOFTMAX_TABLES_BYTES = 2080
# Position of the cell's state among the inputs of an LSTM.
_CELL_STATE = 19
_CONVOLUTIONS = (Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.TRANSPOSE_CONV)


def listed(values: Any) -> list[int]:
    """A vector of the schema, which is None if it is empty."""
    return [] if values is None else [int(v) for v in values]


def aligned(size: int) -> int:
    """Bytes that a buffer takes."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def tensor_bytes(tensor: Any) -> int:
    """Bytes of the content of a tensor."""
    return math.ceil(math.prod(listed(tensor.shape)) * BITS[tensor.type] / 8)


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the file holds the content of a tensor."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def scratch_bytes(model: Any, graph: Any, operator: Any) -> Iterator[int]:
    """Sizes of the buffers that an operator asks for while it runs."""
    code, inputs = code_of(model, operator), listed(operator.inputs)
    if code in WITH_KERNEL and graph.tensors[inputs[1]].type == Type.INT4:
        yield math.prod(listed(graph.tensors[inputs[1]].shape))
    if code == Op.UNIDIRECTIONAL_SEQUENCE_LSTM:
        yield from [tensor_bytes(graph.tensors[inputs[_CELL_STATE]])] * 4
    if code in (Op.MEAN, Op.SUM, Op.REDUCE_MAX):
        result = graph.tensors[operator.outputs[0]]
        # Sums, and two small arrays of indices.
        if code != Op.REDUCE_MAX and result.type != Type.FLOAT32:
            yield 4 * math.prod(listed(result.shape))
        yield from (ALIGNMENT, ALIGNMENT)


def tail_bytes(model: Any) -> int:
    """Bytes of all structures that stay."""
    graph = model.subgraphs[0]
    total = _BASE_BYTES + _EVAL_TENSOR_BYTES * len(graph.tensors)
    for indices in (listed(graph.inputs), listed(graph.outputs)):
        total += aligned(_POINTER_BYTES * len(indices))
        total += sum(_described_bytes(graph.tensors[i]) for i in indices)
    for operator in graph.operators:
        code = code_of(model, operator)
        total += _OPERATOR_BYTES.get(code, _OTHER_OPERATOR_BYTES)
        total += _SCRATCH_HANDLE_BYTES * len(list(scratch_bytes(model, graph, operator)))
        if code in WITH_KERNEL:
            total += _multiplier_bytes(graph, operator, code)
        if code == Op.SOFTMAX and graph.tensors[operator.inputs[0]].type == Type.INT16:
            total += _SOFTMAX_TABLES_BYTES
    # Variables keep their value from one run to the next.
    total += sum(aligned(tensor_bytes(t)) for t in graph.tensors if t.isVariable)
    return aligned(total)


def _scales(tensor: Any) -> int:
    numbers = tensor.quantization
    return 0 if numbers is None or numbers.scale is None else len(numbers.scale)


def _described_bytes(tensor: Any) -> int:
    return _TENSOR_BYTES + (_QUANTIZATION_BYTES if _scales(tensor) else 0)


def _multiplier_bytes(graph: Any, operator: Any, code: int) -> int:
    """Bytes of the multipliers and shifts of the output channels."""
    if code == Op.FULLY_CONNECTED and _scales(graph.tensors[operator.inputs[1]]) <= 1:
        return 0
    channels = listed(graph.tensors[operator.outputs[0]].shape)[-1]
    return 2 * aligned(4 * channels)
