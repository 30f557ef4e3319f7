"""Convolutions and dense layers in a .tflite, kernels of 16 bits in int8 parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.export.graph_writer import SAME, VALID, GraphWriter, Value
from qbee.export.targets import Target
from qbee.quantize.fixed_net import SPLIT_FRACTION_BITS, FixedNode, FixedWeights
from qbee.quantize.fixed_point import INT16, MapType, split
from qbee.quantize.graph import NO_PADDING, Padding, same_padding, window_outputs
from qbee.runtime.flatbuffer import Activation, Op, Type

# Axis of the output channels in a TFLite kernel of each kind.
_AXIS = {"conv": 0, "depthwise": 3, "dense": 0}
_WEIGHTED = {
    "conv": Op.CONV_2D,
    "depthwise": Op.DEPTHWISE_CONV_2D,
    "dense": Op.FULLY_CONNECTED,
}
FUSED = {"linear": Activation.NONE, "relu": Activation.RELU, "relu6": Activation.RELU6}


class Stored(NamedTuple):
    """Tensor indices of a kernel and its bias."""

    kernel: int
    bias: int


def _tflite_kernel(kernel: np.ndarray, op: str) -> np.ndarray:
    """Kernel in TFLite's order of axes: [out, h, w, in], [1, h, w, channels] or [out, in]."""
    return kernel.T if op == "dense" else kernel.transpose(3, 0, 1, 2)


def _stack_factors(number: MapType) -> tuple[int, ...]:
    """Multiples of the input that fit int16 and together carry a 16-bit kernel in int8 parts."""
    return (256, 1) if number.codes[1] < 128 else (128, 128, 1)


def _kernel_parts(kernel: np.ndarray, factors: tuple[int, ...]) -> list[np.ndarray]:
    """int8 parts with ``kernel == sum(factor * part)``."""
    parts, rest = [], kernel
    for factor in factors:
        part = np.clip((rest + factor // 2) // factor, -128, 127)
        parts.append(part)
        rest = rest - factor * part
    return parts


def _weights(item: FixedNode) -> FixedWeights:
    assert item.weights is not None
    return item.weights


def _is_symmetric(padding: Padding) -> bool:
    return all(before == after for before, after in padding)


def _unpooled_shape(item: FixedNode, source: Value, padding: int, copies: int) -> tuple[int, ...]:
    """Shape of the products, before the node's max-pool."""
    node, channels = item.node, len(_weights(item).bias)
    if node.op == "dense":
        return (*source.shape[:-1], channels)
    size = (source.shape[0], source.shape[1] // copies)
    pads = node.padding if padding == SAME else NO_PADDING
    return (*window_outputs(size, node.window, node.strides, pads), channels)


def _weighted_options(item: FixedNode, padding: int, *, copies: int, is_linear: bool):
    """Builtin options of the operator of a weighted node."""
    node = item.node
    if node.op == "dense":
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = len(node.shape) > 1
    else:
        is_conv = node.op == "conv"
        options = schema.Conv2DOptionsT() if is_conv else schema.DepthwiseConv2DOptionsT()
        options.padding = padding
        options.strideH, options.strideW = node.strides[0], node.strides[1] * copies
        options.dilationHFactor = options.dilationWFactor = 1
        if not is_conv:
            options.depthMultiplier = 1
    options.fusedActivationFunction = FUSED["linear" if is_linear else node.activation]
    return options


class WeightedWriter(GraphWriter):
    """Adds weighted nodes, and sums."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.kernels: dict[str, list[Stored]] = {}

    def weighted(self, item: FixedNode, source: Value) -> Value:
        """Convolution, depthwise convolution or dense layer."""
        weights = _weights(item)
        kernel = _tflite_kernel(weights.kernel, item.node.op)
        if item.arithmetic == "int32":
            return self._products(item, source, kernel, weights.bias, item.target)
        source = self.in_container(source, is_wide=True)
        if item.arithmetic == "int64_split":
            return self._split(item, source)
        if weights.bits > 8:
            return self._stacked(item, source, kernel)
        return self._products(item, source, kernel, weights.bias, item.target)

    def _products(
        self,
        item: FixedNode,
        source: Value,
        kernel: np.ndarray,
        bias: np.ndarray,
        number: MapType,
        *,
        gain: int = 1,
        copies: int = 1,
        is_linear: bool = False,
    ) -> Value:
        """The weighted operator itself.

        ``gain`` multiplies the kernel's steps; ``copies`` of each input column lie side by side
        (depthwise only); ``is_linear`` leaves the activation out.
        """
        weights, op = _weights(item), item.node.op
        source, padding = self._ready(item, source, copies)
        is_packed = weights.bits <= 4 and not source.is_wide and self.target.has_int4
        type_ = Type.INT4 if is_packed else Type.INT8
        steps = weights.steps.astype(np.float64) * gain
        codes = self.author.tensor(kernel.shape, type_, scale=steps, axis=_AXIS[op], data=kernel)
        # Only FULLY_CONNECTED with one step looks at that of its bias; else it would be dead bytes.
        is_read = op == "dense" and len(np.unique(steps)) == 1
        scale = source.number.step * steps if is_read else None
        bias_type = Type.INT64 if source.is_wide else Type.INT32
        offsets = self.author.tensor(bias.shape, bias_type, scale=scale, data=bias)
        self.kernels.setdefault(item.name, []).append(Stored(codes, offsets))
        shape = _unpooled_shape(item, source, padding, copies)
        output = self.map(shape, number, is_wide=source.is_wide)
        options = _weighted_options(item, padding, copies=copies, is_linear=is_linear)
        inputs = [source.index, codes, offsets]
        self.operator(_WEIGHTED[op], inputs, output.index, options)
        return output

    def _ready(self, item: FixedNode, source: Value, copies: int) -> tuple[Value, int]:
        """The input, padded if TFLite has no word for it, and TFLite's word.

        TFLite would pad copies of columns one by one, so they are only left to it where it pads
        both sides alike.
        """
        node = item.node
        if node.op == "dense" or node.padding == NO_PADDING:
            return source, VALID
        height, width, _ = source.shape
        same = same_padding((height, width // copies), node.window, node.strides)
        if node.padding == same and (copies == 1 or _is_symmetric(same)):
            return source, SAME
        rows, (left, right) = node.padding
        return self.padded(source, (rows, (left * copies, right * copies))), VALID

    def _stacked(self, item: FixedNode, source: Value, kernel: np.ndarray) -> Value:
        """16-bit kernel on a map of at most 8 bits, exactly: multiples of the map side by side.

        ``sum(factor * part) * x == sum(part * (factor * x))``: one int16 x int8 operator on the
        concatenated multiples, one rounding.
        """
        bias = _weights(item).bias
        factors = _stack_factors(source.number)
        parts = _kernel_parts(kernel, factors)
        by_factor = {f: self._multiple(source, f) for f in dict.fromkeys(factors)}
        last = len(source.shape) - 1
        joined = self.joined([by_factor[f] for f in factors], source.number, axis=last)
        if item.node.op != "depthwise":
            stacked = np.concatenate(parts, axis=-1)
            return self._products(item, joined, stacked, bias, item.target)
        height, width, channels = source.shape
        copies = len(factors)
        joined = self.reshaped(joined, (height, width * copies, channels))
        stacked = np.stack(parts, axis=3).reshape(1, parts[0].shape[1], -1, channels)
        return self._products(item, joined, stacked, bias, item.target, copies=copies)

    def _multiple(self, source: Value, factor: int) -> Value:
        """Codes times a power of two: the same values on a finer step."""
        if factor == 1:
            return source
        # The format tells only the step here: the codes fill the whole container.
        finer = MapType(16, INT16[0], source.number.step / factor)
        return self.requantized(source, finer, is_wide=True)

    def _split(self, item: FixedNode, source: Value) -> Value:
        """16-bit kernel on a 16-bit map: two operators and an addition."""
        weights = _weights(item)
        fraction = 0 if item.target.is_wide else SPLIT_FRACTION_BITS
        number = MapType(16, INT16[0], item.target.step / 2**fraction)
        hi, lo = split(_tflite_kernel(weights.kernel, item.node.op))
        hi_bias, lo_bias = split(weights.bias)
        high = self._products(item, source, hi, hi_bias, number, gain=256, is_linear=True)
        low = self._products(item, source, lo, lo_bias, number, is_linear=True)
        is_linear = item.node.activation == "linear"
        fused = Activation.NONE if is_linear else Activation.RELU
        output = self.sum(high, low, number, fused)
        return output if not fraction else self.requantized(output, item.target, is_wide=False)

    def sum(self, a: Value, b: Value, number: MapType, activation: int) -> Value:
        """Sum of two maps in one container."""
        shape = np.broadcast_shapes(a.shape, b.shape)
        output = self.map(shape, number, is_wide=a.is_wide)
        options = schema.AddOptionsT()
        options.potScaleInt16, options.fusedActivationFunction = False, activation
        self.operator(Op.ADD, [a.index, b.index], output.index, options)
        return output
