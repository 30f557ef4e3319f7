"""The shape of an operator's result, from its inputs; kernels trust what the file claims.

A kernel writes as many numbers as its inputs call for, so a result of a wrong shape makes it
write beyond the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qbee.runtime import kernel_shapes
from qbee.runtime.flatbuffer import Op
from qbee.runtime.kernel_shapes import Shape, ShapeError, axis_of, given, ranked, require
from qbee.runtime.operations import Operation


def of_result(op: Operation) -> Shape | None:
    """Shape of every result of an operator; None if it cannot be told.

    Raises
    ------
    ShapeError
        saying which inputs do not fit.
    """
    return _SHAPES[op.code](op) if op.code in _SHAPES else None


def _broadcast(op: Operation) -> Shape:
    shapes = [given(op, i).shape for i in range(len(op.inputs))]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ShapeError(f"its maps are {' and '.join(str(list(s)) for s in shapes)}") from error


def _unchanged(op: Operation) -> Shape:
    return given(op, 0).shape


def _reshaped(op: Operation) -> Shape:
    """Any shape with as many numbers."""
    source, output = given(op, 0), op.outputs[0]
    require(source.elements == output.elements, f"its result is {list(output.shape)}")
    return output.shape


def _joined(op: Operation) -> Shape:
    shapes = [given(op, i).shape for i in range(len(op.inputs))]
    axis = axis_of(op.options.axis, len(shapes[0]))
    others = {(*s[:axis], *s[axis + 1 :]) for s in shapes}
    is_sound = len(others) == 1 and all(len(s) == len(shapes[0]) for s in shapes)
    require(is_sound, f"its maps are {' and '.join(str(list(s)) for s in shapes)}")
    length = sum(s[axis] for s in shapes)
    return (*shapes[0][:axis], length, *shapes[0][axis + 1 :])


def _padded(op: Operation) -> Shape | None:
    shape, amounts = given(op, 0).shape, given(op, 1).integers()
    if amounts is None:
        return None
    is_sound = len(amounts) == 2 * len(shape) and min(amounts, default=0) >= 0
    require(is_sound, f"its margins are {amounts}")
    pairs = zip(amounts[::2], amounts[1::2], strict=True)
    return tuple(n + sum(pair) for n, pair in zip(shape, pairs, strict=True))


def _reduced(op: Operation) -> Shape | None:
    shape, axes = given(op, 0).shape, given(op, 1).integers()
    if axes is None:
        return None
    dropped = {axis_of(value, len(shape)) for value in axes}
    kept = tuple(n for i, n in enumerate(shape) if i not in dropped)
    # Where the axes of length 1 are is of no importance to a kernel.
    result = op.outputs[0]
    return result.shape if result.elements == math.prod(kept) else kept


def _argument(op: Operation) -> Shape | None:
    shape, axes = given(op, 0).shape, given(op, 1).integers()
    if axes is None or len(axes) != 1:
        return None
    axis = axis_of(axes[0], len(shape))
    return (*shape[:axis], *shape[axis + 1 :])


def _slice(op: Operation) -> Shape | None:
    shape = given(op, 0).shape
    begins, lengths = given(op, 1).integers(), given(op, 2).integers()
    if begins is None or lengths is None:
        return None
    require(len(begins) == len(lengths) == len(shape), f"it cuts {begins} of {list(shape)}")
    rows = list(zip(shape, begins, lengths, strict=True))
    found = tuple(n - begin if length == -1 else length for n, begin, length in rows)
    inside = all(
        0 <= begin <= begin + after <= n for (n, begin, _), after in zip(rows, found, strict=True)
    )
    require(inside, f"it cuts {lengths} at {begins} of {list(shape)}")
    return found


def _strided_slice(op: Operation) -> Shape | None:
    shape, options = given(op, 0).shape, op.options
    limits = [given(op, i).integers() for i in (1, 2, 3)]
    if options is None or None in limits:
        return None
    if options.ellipsisMask or options.newAxisMask or options.offset:
        return None
    begins, ends, steps = (values or [] for values in limits)
    is_sound = len(begins) == len(ends) == len(steps) <= len(shape) and 0 not in steps
    require(is_sound, f"it cuts {begins} to {ends} of {list(shape)}")
    found = []
    for i, length in enumerate(shape):
        if i >= len(begins):
            found.append(length)
        elif options.shrinkAxisMask >> i & 1:
            axis_of(begins[i], length)
        else:
            begin = None if options.beginMask >> i & 1 else begins[i]
            end = None if options.endMask >> i & 1 else ends[i]
            found.append(len(range(length)[begin : end : steps[i]]))
    return tuple(found)


def _split(op: Operation) -> Shape | None:
    axes, shape = given(op, 0).integers(), given(op, 1).shape
    if axes is None or len(axes) != 1:
        return None
    axis, parts = axis_of(axes[0], len(shape)), len(op.outputs)
    require(shape[axis] % parts == 0, f"it splits {list(shape)} into {parts} on axis {axis}")
    return (*shape[:axis], shape[axis] // parts, *shape[axis + 1 :])


def _stacked(op: Operation) -> Shape:
    shapes = {given(op, i).shape for i in range(len(op.inputs))}
    require(len(shapes) == 1, "its maps differ in shape")
    shape, options = shapes.pop(), op.options
    axis = axis_of(options.axis if options else 0, len(shape) + 1)
    return (*shape[:axis], len(op.inputs), *shape[axis:])


def _unstacked(op: Operation) -> Shape:
    shape, options = given(op, 0).shape, op.options
    axis = axis_of(options.axis if options else 0, len(shape))
    require(shape[axis] == len(op.outputs), f"it splits {list(shape)} into {len(op.outputs)}")
    return (*shape[:axis], *shape[axis + 1 :])


def _transpose(op: Operation) -> Shape | None:
    shape, order = given(op, 0).shape, given(op, 1).integers()
    if order is None:
        return None
    require(sorted(order) == list(range(len(shape))), f"its order is {order}")
    return tuple(shape[i] for i in order)


def _resized(op: Operation) -> Shape | None:
    (batch, _, _, channels), size = ranked(given(op, 0), 4, "map"), given(op, 1).integers()
    if size is None:
        return None
    require(len(size) == 2 and min(size) >= 1, f"its size is {size}")
    return (batch, *size, channels)


def _gathered(op: Operation) -> Shape | None:
    shape, places, options = given(op, 0).shape, given(op, 1), op.options
    if options is None or options.batchDims:
        return None
    axis, indices = axis_of(options.axis, len(shape)), places.integers()
    inside = indices is None or all(0 <= i < shape[axis] for i in indices)
    require(inside, f"it takes places {indices} of {list(shape)}")
    return (*shape[:axis], *places.shape, *shape[axis + 1 :])


def same(shapes: Sequence[Shape], expected: Shape) -> bool:
    """Whether shapes are as expected; one number may have any count of axes."""
    return all(s == expected or math.prod(s) == math.prod(expected) == 1 for s in shapes)


_Rule = Callable[[Operation], Shape | None]
_UNARY = (
    *(Op.ABS, Op.CAST, Op.CEIL, Op.COS, Op.DEQUANTIZE, Op.ELU, Op.EXP, Op.FLOOR, Op.GELU),
    *(Op.HARD_SWISH, Op.L2_NORMALIZATION, Op.LEAKY_RELU, Op.LOG, Op.LOGICAL_NOT, Op.LOGISTIC),
    *(Op.LOG_SOFTMAX, Op.NEG, Op.QUANTIZE, Op.RELU, Op.RELU6, Op.RELU_N1_TO_1, Op.ROUND),
    *(Op.RSQRT, Op.SIN, Op.SOFTMAX, Op.SQRT, Op.SQUARE, Op.TANH, Op.ZEROS_LIKE, Op.CUMSUM),
)
_BROADCAST = (
    *(Op.ADD, Op.SUB, Op.MUL, Op.DIV, Op.MAXIMUM, Op.MINIMUM, Op.SQUARED_DIFFERENCE, Op.PRELU),
    *(Op.EQUAL, Op.NOT_EQUAL, Op.GREATER, Op.GREATER_EQUAL, Op.LESS, Op.LESS_EQUAL),
    *(Op.FLOOR_DIV, Op.FLOOR_MOD, Op.POW, Op.LOGICAL_AND, Op.LOGICAL_OR),
)
_REDUCTIONS = (Op.MEAN, Op.SUM, Op.REDUCE_MAX, Op.REDUCE_MIN, Op.REDUCE_PROD)
_SHAPES: dict[int, _Rule] = {
    **dict.fromkeys(_UNARY, _unchanged),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys((Op.MAX_POOL_2D, Op.AVERAGE_POOL_2D, Op.L2_POOL_2D), kernel_shapes.pool),
    **dict.fromkeys((Op.RESHAPE, Op.SQUEEZE, Op.EXPAND_DIMS), _reshaped),
    **dict.fromkeys((Op.PAD, Op.PADV2, Op.MIRROR_PAD), _padded),
    **dict.fromkeys((Op.RESIZE_BILINEAR, Op.RESIZE_NEAREST_NEIGHBOR), _resized),
    **dict.fromkeys((Op.ARG_MAX, Op.ARG_MIN), _argument),
    Op.CONV_2D: kernel_shapes.convolution,
    Op.DEPTHWISE_CONV_2D: kernel_shapes.depthwise,
    Op.TRANSPOSE_CONV: kernel_shapes.transposed,
    Op.FULLY_CONNECTED: kernel_shapes.dense,
    Op.CONCATENATION: _joined,
    Op.SLICE: _slice,
    Op.STRIDED_SLICE: _strided_slice,
    Op.SPLIT: _split,
    Op.PACK: _stacked,
    Op.UNPACK: _unstacked,
    Op.TRANSPOSE: _transpose,
    Op.GATHER: _gathered,
}
