"""A FixedNet as a mixed-precision .tflite that TFLite Micro runs to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.errors import ParameterError
from qbee.export.flatbuffer import Activation, Author, Op, Type
from qbee.quantize.fixed_point import (
    SPLIT_FRACTION_BITS,
    FixedLayer,
    FixedNet,
    MapType,
    split_kernel,
)

SAME, VALID = 0, 1


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: index, shape, number format and whether it lives in int16."""

    index: int
    shape: tuple[int, ...]
    number: MapType
    is_wide: bool


def zero_point(number: MapType) -> int:
    """Zero point of a map of at most 8 bits in an int8 tensor.

    The highest code lands on 127, so that int8 saturation is the upper limit of the map.
    """
    return 127 - number.codes[1]


# Axis of the output channels in a TFLite kernel of each kind.
_AXIS = {"conv": 0, "depthwise": 3, "dense": 0}
_OPS = {
    "conv": Op.CONV_2D,
    "depthwise": Op.DEPTHWISE_CONV_2D,
    "dense": Op.FULLY_CONNECTED,
}


def _tflite_kernel(kernel: np.ndarray, kind: str) -> np.ndarray:
    """Kernel in TFLite's order of axes: [out, h, w, in], [1, h, w, channels] or [out, in]."""
    return kernel.T if kind == "dense" else kernel.transpose(3, 0, 1, 2)


def _options(layer: FixedLayer, *, stride_w: int, has_relu: bool):
    """Builtin options of the layer's operator."""
    if layer.kind == "dense":
        options = schema.FullyConnectedOptionsT()
    else:
        is_conv = layer.kind == "conv"
        options = schema.Conv2DOptionsT() if is_conv else schema.DepthwiseConv2DOptionsT()
        options.padding, options.strideH, options.strideW = SAME, layer.stride, stride_w
        options.dilationHFactor = options.dilationWFactor = 1
        if not is_conv:
            options.depthMultiplier = 1
    options.fusedActivationFunction = Activation.RELU if has_relu else Activation.NONE
    return options


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


class _Writer:
    """Emits a network layer by layer; one method per construct."""

    def __init__(self) -> None:
        self.author = Author()

    def map(self, shape, number: MapType, *, is_wide: bool, name: str | None = None) -> _Value:
        """A feature map without operator, in int16 (wide) or int8."""
        type_, zero = (Type.INT16, 0) if is_wide else (Type.INT8, zero_point(number))
        step = 2.0**number.exponent
        index = self.author.tensor((1, *shape), type_, scale=step, zero_point=zero, name=name)
        return _Value(index, tuple(shape), number, is_wide)

    def layer(self, layer: FixedLayer, source: _Value, *, name: str | None) -> _Value:
        """All operators of one layer, down to its max-pool and its output container."""
        if layer.kind == "dense" and len(source.shape) > 1:
            source = self._reshaped(source, (int(np.prod(source.shape)),))
        if layer.arithmetic == "int32":
            kernel = _tflite_kernel(layer.kernel, layer.kind)
            output = self._products(layer, source, kernel, layer.bias, layer.target, name=name)
            return self._pooled(output, layer.pool)
        if not source.is_wide:
            source = self._requantized(source, source.number, is_wide=True)
        if layer.arithmetic == "int64_split":
            output = self._split(layer, source)
        elif layer.kernel_bits == 16:
            output = self._stacked(layer, source)
        else:
            kernel = _tflite_kernel(layer.kernel, layer.kind)
            output = self._products(layer, source, kernel, layer.bias, layer.target)
        output = self._pooled(output, layer.pool)
        if layer.target.bits <= 8:
            output = self._requantized(output, layer.target, is_wide=False, name=name)
        return output

    def _requantized(
        self, value: _Value, number: MapType, *, is_wide: bool, name: str | None = None
    ) -> _Value:
        """The same real values in another container or step."""
        output = self.map(value.shape, number, is_wide=is_wide, name=name)
        options = schema.QuantizeOptionsT()
        self.author.operator(Op.QUANTIZE, [value.index], output.index, options)
        return output

    def _reshaped(self, value: _Value, shape: tuple[int, ...]) -> _Value:
        size = np.array([1, *shape])
        wanted = self.author.tensor(size.shape, Type.INT32, data=size)
        output = self.map(shape, value.number, is_wide=value.is_wide)
        options = schema.ReshapeOptionsT()
        options.newShape = [1, *shape]
        self.author.operator(Op.RESHAPE, [value.index, wanted], output.index, options)
        return output

    def _pooled(self, value: _Value, size: int) -> _Value:
        if size == 1:
            return value
        height, width, channels = value.shape
        shape = (height // size, width // size, channels)
        output = self.map(shape, value.number, is_wide=value.is_wide)
        options = schema.Pool2DOptionsT()
        options.padding, options.fusedActivationFunction = VALID, Activation.NONE
        options.strideH = options.strideW = options.filterHeight = options.filterWidth = size
        self.author.operator(Op.MAX_POOL_2D, [value.index], output.index, options)
        return output

    def _products(
        self,
        layer: FixedLayer,
        source: _Value,
        kernel: np.ndarray,
        bias: np.ndarray,
        number: MapType,
        *,
        gain: int = 1,
        copies: int = 1,
        has_relu: bool | None = None,
        name: str | None = None,
    ) -> _Value:
        """The weighted operator itself.

        ``gain`` multiplies the kernel's steps; ``copies`` of each input column lie side by side
        (depthwise only); ``has_relu`` None is the layer's own.
        """
        is_packed = layer.kernel_bits == 4 and not source.is_wide
        type_ = Type.INT4 if is_packed else Type.INT8
        steps = 2.0 ** layer.kernel_exponents.astype(float) * gain
        axis = _AXIS[layer.kind]
        weights = self.author.tensor(kernel.shape, type_, scale=steps, axis=axis, data=kernel)
        # Only FULLY_CONNECTED looks at the scale of its bias; elsewhere it would be dead bytes.
        scale = 2.0**source.number.exponent * steps if layer.kind == "dense" else None
        bias_type = Type.INT64 if source.is_wide else Type.INT32
        offsets = self.author.tensor(bias.shape, bias_type, scale=scale, data=bias)
        shape = self._output_shape(layer, source, copies)
        output = self.map(shape, number, is_wide=source.is_wide, name=name)
        relu = layer.has_relu if has_relu is None else has_relu
        options = _options(layer, stride_w=layer.stride * copies, has_relu=relu)
        inputs = [source.index, weights, offsets]
        self.author.operator(_OPS[layer.kind], inputs, output.index, options)
        return output

    def _output_shape(self, layer: FixedLayer, source: _Value, copies: int) -> tuple[int, ...]:
        channels = len(layer.bias)
        if layer.kind == "dense":
            return (channels,)
        height, width = source.shape[0], source.shape[1] // copies
        return (-(-height // layer.stride), -(-width // layer.stride), channels)

    def _stacked(self, layer: FixedLayer, source: _Value) -> _Value:
        """16-bit kernel on a map of at most 8 bits, exactly: multiples of the map side by side.

        ``sum(factor * part) * x == sum(part * (factor * x))``: one int16 x int8 operator on the
        concatenated multiples, one rounding.
        """
        factors = _stack_factors(layer.source)
        parts = _kernel_parts(_tflite_kernel(layer.kernel, layer.kind), factors)
        by_factor = {f: self._multiple(source, f) for f in dict.fromkeys(factors)}
        joined = self._joined([by_factor[f] for f in factors], layer.source)
        if layer.kind != "depthwise":
            kernel = np.concatenate(parts, axis=-1)
            return self._products(layer, joined, kernel, layer.bias, layer.target)
        if layer.stride > 1:
            raise ParameterError(
                f"layer {layer.name!r}: a 16-bit depthwise kernel needs stride 1 on this device"
            )
        height, width, channels = source.shape
        joined = self._reshaped(joined, (height, width * len(factors), channels))
        kernel = np.stack(parts, axis=3).reshape(1, parts[0].shape[1], -1, channels)
        copies = len(factors)
        return self._products(layer, joined, kernel, layer.bias, layer.target, copies=copies)

    def _multiple(self, source: _Value, factor: int) -> _Value:
        """Codes times a power of two: the same values on a finer step."""
        if factor == 1:
            return source
        number = source.number
        finer = replace(number, exponent=number.exponent - factor.bit_length() + 1)
        return self._requantized(source, finer, is_wide=True)

    def _joined(self, values: list[_Value], number: MapType) -> _Value:
        """Concatenation on the last axis."""
        shape = (*values[0].shape[:-1], sum(v.shape[-1] for v in values))
        output = self.map(shape, number, is_wide=True)
        options = schema.ConcatenationOptionsT()
        options.axis, options.fusedActivationFunction = len(shape), Activation.NONE
        self.author.operator(Op.CONCATENATION, [v.index for v in values], output.index, options)
        return output

    def _split(self, layer: FixedLayer, source: _Value) -> _Value:
        """16-bit kernel on a 16-bit map: two operators and an addition."""
        fraction = 0 if layer.target.bits == 16 else SPLIT_FRACTION_BITS
        number = replace(layer.target, exponent=layer.target.exponent - fraction)
        hi, lo = split_kernel(_tflite_kernel(layer.kernel, layer.kind))
        silent = np.zeros_like(layer.bias)
        high = self._products(layer, source, hi, silent, number, gain=256, has_relu=False)
        low = self._products(layer, source, lo, layer.bias, number, has_relu=False)
        output = self.map(high.shape, number, is_wide=True)
        options = schema.AddOptionsT()
        options.potScaleInt16 = False
        options.fusedActivationFunction = Activation.RELU if layer.has_relu else Activation.NONE
        self.author.operator(Op.ADD, [high.index, low.index], output.index, options)
        return output


def _check(net: FixedNet) -> None:
    """Refuse what int8 saturation cannot express, with the layer's name."""
    for layer in net.layers:
        if layer.target.is_signed and layer.target.bits == 4:
            raise ParameterError(f"layer {layer.name!r}: a signed 4-bit map needs a ReLU before it")


def write(net: FixedNet, *, metadata: dict[str, bytes] | None = None) -> bytes:
    """The network as a TFLite flatbuffer.

    Input 'mel' [1, height, width, channels] and output 'logits' [1, out] are int8 codes of the
    network's input and output map. 4-bit kernels are packed where the maps have at most 8 bits
    and stored as int8 elsewhere; 16-bit kernels are int8 parts (see ``_stacked``, ``_split``).

    Parameters
    ----------
    metadata : dict of name to bytes, optional

    Raises
    ------
    ParameterError
        naming the layer that the device cannot run.
    """
    _check(net)
    writer = _Writer()
    source = writer.map(net.input_shape, net.input_map, is_wide=False, name="mel")
    value = source
    for layer in net.layers:
        name = "logits" if layer is net.layers[-1] else None
        value = writer.layer(layer, value, name=name)
    for key, content in (metadata or {}).items():
        writer.author.metadata(key, content)
    return writer.author.finish([source.index], [value.index])
