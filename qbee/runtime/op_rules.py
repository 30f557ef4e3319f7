"""What an operator of a .tflite must look like: inputs, options, types, quantization, shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from qbee.runtime import op_shapes
from qbee.runtime.flatbuffer import Activation, Op, Type, names, schema
from qbee.runtime.kernel_shapes import ShapeError
from qbee.runtime.op_forms import FORMS
from qbee.runtime.operations import Operation, Tensor

_OPTION_NAMES, _ACTIVATIONS = names(schema.BuiltinOptions), names(Activation)
_QUANTIZED = (Type.INT4, Type.INT8, Type.INT16, Type.UINT8)
_LIMITS = {
    Type.INT8: (-128, 127),
    Type.UINT8: (0, 255),
    Type.INT16: (-(2**15), 2**15 - 1),
    Type.INT32: (-(2**31), 2**31 - 1),
}
# Positions of the kernel and of the map it moves over, and the axis of its output channels.
_KERNELS = {
    Op.CONV_2D: (1, 0, 0),
    Op.DEPTHWISE_CONV_2D: (1, 0, 3),
    Op.FULLY_CONNECTED: (1, 0, 0),
    Op.TRANSPOSE_CONV: (1, 2, 0),
}
# Types of the bias by the type of the map; of others nothing is known.
_BIASES = {
    Type.INT8: (Type.INT32,),
    Type.INT16: (Type.INT32, Type.INT64),
    Type.FLOAT32: (Type.FLOAT32,),
}
# Operators whose maps are all of one type.
_ONE_TYPE = (
    *(Op.MAX_POOL_2D, Op.AVERAGE_POOL_2D, Op.L2_POOL_2D, Op.ADD, Op.SUB, Op.MUL, Op.DIV),
    *(Op.MAXIMUM, Op.MINIMUM, Op.SQUARED_DIFFERENCE, Op.PRELU, Op.CONCATENATION, Op.PACK),
)
# Operators of which the first map and the results have one type.
_KEEPS_TYPE = (
    *(Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.MEAN, Op.SUM, Op.REDUCE_MAX, Op.REDUCE_MIN),
    *(Op.PAD, Op.PADV2, Op.MIRROR_PAD, Op.RESHAPE, Op.SQUEEZE, Op.EXPAND_DIMS, Op.SLICE),
    *(Op.STRIDED_SLICE, Op.UNPACK, Op.TRANSPOSE, Op.RESIZE_BILINEAR, Op.GATHER, Op.TANH),
    *(Op.RESIZE_NEAREST_NEIGHBOR, Op.LOGISTIC, Op.RELU, Op.RELU6, Op.LEAKY_RELU, Op.HARD_SWISH),
)
# Operators that multiply by quotients of scales.
_RESCALES = (
    *_KERNELS,
    *(Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.SQUARED_DIFFERENCE, Op.PRELU, Op.MEAN, Op.SUM),
    *(Op.QUANTIZE, Op.DEQUANTIZE, Op.SOFTMAX, Op.LOGISTIC, Op.TANH, Op.HARD_SWISH),
    *(Op.LEAKY_RELU, Op.RELU, Op.RELU6),
)


def _listed(op: Operation) -> Iterator[str]:
    """Problems of the lists of inputs and outputs."""
    form = FORMS.get(op.code)
    if form is None:
        return
    for what, count, (least, most) in (
        ("inputs", len(op.inputs), form.inputs),
        ("outputs", len(op.outputs), form.outputs),
    ):
        if not least <= count <= most:
            yield f"it has {count} {what}"
    if any(t is None for t in op.inputs[: min(2, form.inputs[0])]):
        yield "an input is missing"


def _of_options(op: Operation) -> Iterator[str]:
    """Problems of the options."""
    form = FORMS.get(op.code)
    if form is not None and op.options_type not in (0, form.options):
        yield f"its options are {_OPTION_NAMES.get(op.options_type, 'of no kind')}"
    if form is not None and form.needs_options and op.options is None:
        yield "it has no options"
    activation = getattr(op.options, "fusedActivationFunction", Activation.NONE)
    if activation not in _ACTIVATIONS:
        yield f"its activation is {activation}"


def _of_types(op: Operation) -> Iterator[str]:
    """Problems of the types."""
    compared: tuple[Tensor | None, ...] = ()
    if op.code in _ONE_TYPE:
        compared = (*op.inputs, *op.outputs)
    elif op.code in _KEEPS_TYPE:
        compared = (op.inputs[0], *op.outputs)
    found = sorted({t.type_name for t in compared if t is not None})
    if len(found) > 1:
        yield f"it mixes {' and '.join(found)}"
    bias, source = _bias_and_map(op)
    if bias is None or source is None:
        return
    if bias.type not in _BIASES.get(source.type, (bias.type,)):
        yield f"a bias of type {bias.type_name} on {source.type_name} maps"


def _bias_and_map(op: Operation) -> tuple[Tensor | None, Tensor | None]:
    """Bias and map of an operator with a kernel."""
    if op.code not in _KERNELS:
        return None, None
    position, source, _ = _KERNELS[op.code]
    return op.input(max(position, source) + 1), op.input(source)


def _of_scales(op: Operation) -> Iterator[str]:
    """Problems of the quantization."""
    if op.code not in _RESCALES:
        return
    position, _, axis = _KERNELS.get(op.code, (-1, 0, 0))
    for i, tensor in enumerate((*op.inputs, *op.outputs)):
        if tensor is None or tensor.type not in _QUANTIZED:
            continue
        if not len(tensor.scales) or not len(tensor.zero_points):
            yield f"tensor {tensor.index} has no scale or no zero point"
        # Kernels and other constants may have a scale for each channel.
        is_map = tensor.content is None and i != position
        if is_map and not (len(tensor.scales) == 1 and tensor.scales[0] > 0):
            yield f"tensor {tensor.index} has not one scale above 0"
    kernel = op.input(position) if position >= 0 else None
    if kernel is None or len(kernel.scales) <= 1:
        return
    if kernel.axis != axis or len(kernel.shape) <= axis:
        yield f"its kernel's scales lie on axis {kernel.axis}"


def _of_ranks(op: Operation) -> Iterator[str]:
    """Problems of the number of axes where there is a kernel."""
    if op.code not in _KERNELS:
        return
    kernel, rank = op.input(_KERNELS[op.code][0]), 2 if op.code == Op.FULLY_CONNECTED else 4
    if kernel is not None and len(kernel.shape) != rank:
        yield f"its kernel {list(kernel.shape)} has not {rank} axes"
    if not op.outputs[0].shape:
        yield "its result has no axes"


def _of_shapes(op: Operation) -> Iterator[str]:
    """Problems of the shapes."""
    tensors = [t for t in (*op.inputs, *op.outputs) if t is not None]
    if not op.outputs or any(t.is_dynamic for t in tensors):
        return
    try:
        expected = op_shapes.of_result(op)
    except ShapeError as error:
        yield str(error)
        return
    if expected is not None and not op_shapes.same([t.shape for t in op.outputs], expected):
        yield f"its result is {list(op.outputs[0].shape)} instead of {list(expected)}"


_RULES: tuple[Callable[[Operation], Iterator[str]], ...] = (
    _listed,
    _of_options,
    _of_types,
    _of_scales,
    _of_ranks,
    _of_shapes,
)


def problem(op: Operation) -> str | None:
    """First thing that is wrong with an operator, or None."""
    for rule in _RULES:
        found = next(rule(op), None)
        if found is not None:
            return found
    return None


def micro_problem(op: Operation) -> str | None:
    """What is sound but not as TFLite Micro takes it, without noticing; or None."""
    bias, source = _bias_and_map(op)
    if op.code != Op.DEPTHWISE_CONV_2D or bias is None or source is None:
        return None
    if source.type == Type.INT16 and bias.type == Type.INT32:
        return "TFLite Micro would take its int32 bias for int64"
    return None


def tensor_problem(tensor: Tensor) -> str | None:
    """First thing that is wrong with the quantization of a tensor, or None."""
    scales, zero_points = tensor.scales, tensor.zero_points
    if not np.all(np.isfinite(scales)) or np.any(scales < 0):
        return "a scale is no number above 0"
    if len(scales) > 1:
        if not 0 <= tensor.axis < len(tensor.shape):
            return f"its scales lie on axis {tensor.axis}"
        if len(scales) != tensor.shape[tensor.axis]:
            return f"{len(scales)} scales for {tensor.shape[tensor.axis]} channels"
    # A zero point for all channels will do.
    if len(zero_points) not in (0, 1, len(scales)):
        return f"{len(zero_points)} zero points for {len(scales)} scales"
    lowest, highest = _LIMITS.get(tensor.type, _LIMITS[Type.INT32])
    if len(scales) and np.any((zero_points < lowest) | (zero_points > highest)):
        return "a zero point beyond its type"
    return None
