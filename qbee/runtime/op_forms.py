"""Inputs, outputs and options that each kind of operator has, as data."""

from __future__ import annotations

from typing import NamedTuple

from qbee.runtime.flatbuffer import Op, schema

_OPTIONS = schema.BuiltinOptions


class Form(NamedTuple):
    """Least and most inputs, outputs, kind of options and whether they must be there."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    options: int
    needs_options: bool = False


def _form(least: int, most: int, options: int = 0, *, needs: bool = False) -> Form:
    return Form((least, most), (1, 1), options, needs)


_MANY = 1 << 16
_ONE = _form(1, 1)
_TWO = _form(2, 2)
_POOL = _form(1, 1, _OPTIONS.Pool2DOptions, needs=True)
_REDUCTION = _form(2, 2, _OPTIONS.ReducerOptions)
FORMS: dict[int, Form] = {
    Op.CONV_2D: _form(2, 3, _OPTIONS.Conv2DOptions, needs=True),
    Op.DEPTHWISE_CONV_2D: _form(2, 3, _OPTIONS.DepthwiseConv2DOptions, needs=True),
    Op.FULLY_CONNECTED: _form(2, 3, _OPTIONS.FullyConnectedOptions, needs=True),
    Op.TRANSPOSE_CONV: _form(3, 4, _OPTIONS.TransposeConvOptions, needs=True),
    Op.MAX_POOL_2D: _POOL,
    Op.AVERAGE_POOL_2D: _POOL,
    Op.L2_POOL_2D: _POOL,
    Op.ADD: _form(2, 2, _OPTIONS.AddOptions),
    Op.SUB: _form(2, 2, _OPTIONS.SubOptions),
    Op.MUL: _form(2, 2, _OPTIONS.MulOptions),
    Op.DIV: _form(2, 2, _OPTIONS.DivOptions),
    Op.MAXIMUM: _form(2, 2, _OPTIONS.MaximumMinimumOptions),
    Op.MINIMUM: _form(2, 2, _OPTIONS.MaximumMinimumOptions),
    Op.SQUARED_DIFFERENCE: _form(2, 2, _OPTIONS.SquaredDifferenceOptions),
    Op.PRELU: _TWO,
    Op.MEAN: _REDUCTION,
    Op.SUM: _REDUCTION,
    Op.REDUCE_MAX: _REDUCTION,
    Op.REDUCE_MIN: _REDUCTION,
    Op.CONCATENATION: _form(1, _MANY, _OPTIONS.ConcatenationOptions, needs=True),
    Op.PAD: _form(2, 2, _OPTIONS.PadOptions),
    Op.PADV2: _form(3, 3, _OPTIONS.PadV2Options),
    Op.MIRROR_PAD: _form(2, 2, _OPTIONS.MirrorPadOptions),
    Op.RESHAPE: _form(1, 2, _OPTIONS.ReshapeOptions),
    Op.SQUEEZE: _form(1, 1, _OPTIONS.SqueezeOptions),
    Op.EXPAND_DIMS: _form(2, 2, _OPTIONS.ExpandDimsOptions),
    Op.SLICE: _form(3, 3, _OPTIONS.SliceOptions),
    Op.STRIDED_SLICE: _form(4, 4, _OPTIONS.StridedSliceOptions),
    Op.SPLIT: Form((2, 2), (1, _MANY), _OPTIONS.SplitOptions),
    Op.PACK: _form(1, _MANY, _OPTIONS.PackOptions),
    Op.UNPACK: Form((1, 1), (1, _MANY), _OPTIONS.UnpackOptions),
    Op.TRANSPOSE: _form(2, 2, _OPTIONS.TransposeOptions),
    Op.RESIZE_BILINEAR: _form(2, 2, _OPTIONS.ResizeBilinearOptions),
    Op.RESIZE_NEAREST_NEIGHBOR: _form(2, 2, _OPTIONS.ResizeNearestNeighborOptions),
    Op.ARG_MAX: _form(2, 2, _OPTIONS.ArgMaxOptions),
    Op.ARG_MIN: _form(2, 2, _OPTIONS.ArgMinOptions),
    Op.GATHER: _form(2, 2, _OPTIONS.GatherOptions),
    Op.QUANTIZE: _form(1, 1, _OPTIONS.QuantizeOptions),
    Op.DEQUANTIZE: _form(1, 1, _OPTIONS.DequantizeOptions),
    Op.SOFTMAX: _form(1, 1, _OPTIONS.SoftmaxOptions, needs=True),
    Op.LOG_SOFTMAX: _form(1, 1, _OPTIONS.LogSoftmaxOptions),
    Op.L2_NORMALIZATION: _form(1, 1, _OPTIONS.L2NormOptions),
    Op.HARD_SWISH: _form(1, 1, _OPTIONS.HardSwishOptions),
    Op.LEAKY_RELU: _form(1, 1, _OPTIONS.LeakyReluOptions),
    Op.BATCH_MATMUL: _form(2, 2, _OPTIONS.BatchMatMulOptions),
    Op.UNIDIRECTIONAL_SEQUENCE_LSTM: _form(
        20, 24, _OPTIONS.UnidirectionalSequenceLSTMOptions, needs=True
    ),
    **dict.fromkeys((Op.LOGISTIC, Op.TANH, Op.RELU, Op.RELU6, Op.RELU_N1_TO_1, Op.ELU), _ONE),
}
