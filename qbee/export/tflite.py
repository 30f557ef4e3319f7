"""A FixedNet as a mixed-precision .tflite that TFLite Micro runs to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.export import arena
from qbee.export.flatbuffer import OFFLINE_PLAN, Activation, Author, Op, Type, packed
from qbee.export.targets import TFLM, Target
from qbee.quantize.fixed_net import SPLIT_FRACTION_BITS, FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import INT16, MapType, split
from qbee.quantize.graph import INPUT, NO_PADDING, Padding, same_padding, window_outputs

SAME, VALID = 0, 1

# Of TFLite Micro's CONCATENATION.
MAX_CONCATENATED = 10
INT8 = (-128, 127)


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph: index, shape, number format and whether it lives in int16."""

    index: int
    shape: tuple[int, ...]
    number: MapType
    is_wide: bool

    @property
    def zero_point(self) -> int:
        """Stored integer of code 0."""
        return 0 if self.is_wide else self.number.zero_point


class Stored(NamedTuple):
    """Tensor indices of a kernel and its bias."""

    kernel: int
    bias: int


# Axis of the output channels in a TFLite kernel of each kind.
_AXIS = {"conv": 0, "depthwise": 3, "dense": 0}
_WEIGHTED = {
    "conv": Op.CONV_2D,
    "depthwise": Op.DEPTHWISE_CONV_2D,
    "dense": Op.FULLY_CONNECTED,
}
_HAS_FUSED = (*_WEIGHTED, "add", "multiply")
_FUSED = {"linear": Activation.NONE, "relu": Activation.RELU, "relu6": Activation.RELU6}


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


def _may_undercut(item: FixedNode, lowest: int) -> bool:
    """Whether a result can lie below its lowest code before saturation."""
    if item.node.op in _HAS_FUSED and item.node.activation != "linear":
        return False
    return item.node.is_weighted or lowest < 0 or any(s.is_signed for s in item.sources)


def _has_fused_upper(item: FixedNode) -> bool:
    """Whether the operator itself cuts at six."""
    is_split = item.weights is not None and item.arithmetic == "int64_split"
    return item.node.op in _HAS_FUSED and item.node.activation == "relu6" and not is_split


def _is_symmetric(padding: Padding) -> bool:
    return all(before == after for before, after in padding)


def _unpooled_shape(item: FixedNode, source: _Value, padding: int, copies: int) -> tuple[int, ...]:
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
    options.fusedActivationFunction = _FUSED["linear" if is_linear else node.activation]
    return options


class _Writer:
    """Emits a network node by node; one method per construct."""

    def __init__(self, target: Target) -> None:
        self.author, self.target = Author(), target
        self.kernels: dict[str, list[Stored]] = {}
        self._layer = INPUT
        self._containers: dict[tuple[int, bool], _Value] = {}
        self._margins: dict[tuple[int, Padding], _Value] = {}

    def _operator(self, code: int, inputs: list[int], output: int, options=None) -> int:
        """Add an operator of the present layer, if the target runs it."""
        has_kernel = code in _WEIGHTED.values()
        kernel_type = self.author.type_of(inputs[1]) if has_kernel else None
        map_type = self.author.type_of(inputs[0])
        has_stride = code in (Op.CONV_2D, Op.DEPTHWISE_CONV_2D)
        stride = max(options.strideH, options.strideW) if has_stride else 1
        self.target.check(self._layer, code, map_type, kernel_type=kernel_type, stride=stride)
        return self.author.operator(code, inputs, output, options)

    def map(self, shape, number: MapType, *, is_wide: bool, name: str | None = None) -> _Value:
        """A feature map without operator, in int16 (wide) or int8."""
        value = _Value(-1, tuple(shape), number, is_wide)
        type_ = Type.INT16 if is_wide else Type.INT8
        zero = value.zero_point
        index = self.author.tensor(
            (1, *shape), type_, scale=number.step, zero_point=zero, name=name
        )
        return replace(value, index=index)

    def node(self, item: FixedNode, sources: list[_Value]) -> _Value:
        """All operators of one node, down to its max-pool, its container and its limits."""
        self._layer = item.name
        output = self._pooled(_EMIT[item.node.op](self, item, *sources), item.node.pool)
        output = self.in_container(output, is_wide=item.target.is_wide)
        return self._limited(output, item)

    def in_container(self, value: _Value, *, is_wide: bool) -> _Value:
        """The same codes in int16 or int8; each conversion is made once."""
        if value.is_wide == is_wide:
            return value
        key = (value.index, is_wide)
        if key not in self._containers:
            self._containers[key] = self._requantized(value, value.number, is_wide=is_wide)
        return self._containers[key]

    def _limited(self, value: _Value, item: FixedNode) -> _Value:
        """The result within those limits that saturation and fused activation do not express."""
        if not item.node.has_own_map:
            return value
        lowest, highest = item.limits
        bottom, top = (c - value.zero_point for c in (INT16 if value.is_wide else INT8))
        if lowest > bottom and _may_undercut(item, lowest):
            value = self._bounded(value, Op.MAXIMUM, lowest)
        if highest < top and not _has_fused_upper(item):
            value = self._bounded(value, Op.MINIMUM, highest)
        return value

    def saturated(self, source: _Value) -> _Value:
        """The input, of which int16 can hold negative codes even if its map has none."""
        is_loose = source.is_wide and not source.number.is_signed
        return self._bounded(source, Op.MAXIMUM, 0) if is_loose else source

    def _bounded(self, value: _Value, op: int, code: int) -> _Value:
        """Maximum or minimum with a constant code."""
        type_ = Type.INT16 if value.is_wide else Type.INT8
        stored = np.full((1,) * (len(value.shape) + 1), code + value.zero_point)
        bound = self.author.tensor(
            stored.shape,
            type_,
            scale=value.number.step,
            zero_point=value.zero_point,
            data=stored,
        )
        output = self.map(value.shape, value.number, is_wide=value.is_wide)
        options = schema.MaximumMinimumOptionsT()
        self._operator(op, [value.index, bound], output.index, options)
        return output

    def _requantized(self, value: _Value, number: MapType, *, is_wide: bool) -> _Value:
        """The same real values in another container or step."""
        output = self.map(value.shape, number, is_wide=is_wide)
        options = schema.QuantizeOptionsT()
        self._operator(Op.QUANTIZE, [value.index], output.index, options)
        return output

    def _reshaped(self, value: _Value, shape: tuple[int, ...]) -> _Value:
        size = np.array([1, *shape])
        wanted = self.author.tensor(size.shape, Type.INT32, data=size)
        output = self.map(shape, value.number, is_wide=value.is_wide)
        options = schema.ReshapeOptionsT()
        options.newShape = size.astype(np.int32)
        self._operator(Op.RESHAPE, [value.index, wanted], output.index, options)
        return output

    def _padded(self, value: _Value, padding: Padding) -> _Value:
        """Zeros around the map; each margin is made once."""
        key = (value.index, padding)
        if key not in self._margins:
            self._margins[key] = self._pad(value, padding)
        return self._margins[key]

    def _pad(self, value: _Value, padding: Padding) -> _Value:
        height, width, channels = value.shape
        shape = (height + sum(padding[0]), width + sum(padding[1]), channels)
        amounts = np.array([(0, 0), *padding, (0, 0)])
        around = self.author.tensor(amounts.shape, Type.INT32, data=amounts)
        output = self.map(shape, value.number, is_wide=value.is_wide)
        self._operator(Op.PAD, [value.index, around], output.index, schema.PadOptionsT())
        return output

    def _pooled(self, value: _Value, size: int) -> _Value:
        if size == 1:
            return value
        height, width, channels = value.shape
        shape = (height // size, width // size, channels)
        window = (size, size)
        return self._pool(value, Op.MAX_POOL_2D, shape, window, window, VALID)

    def _pool(self, value: _Value, op: int, shape, window, strides, padding: int) -> _Value:
        output = self.map(shape, value.number, is_wide=value.is_wide)
        options = schema.Pool2DOptionsT()
        options.padding, options.fusedActivationFunction = padding, Activation.NONE
        options.filterHeight, options.filterWidth = window
        options.strideH, options.strideW = strides
        self._operator(op, [value.index], output.index, options)
        return output

    def pool(self, item: FixedNode, source: _Value) -> _Value:
        """A pool that is a node of its own."""
        node = item.node
        op = Op.MAX_POOL_2D if node.op == "max_pool" else Op.AVERAGE_POOL_2D
        padding = VALID if node.padding == NO_PADDING else SAME
        return self._pool(source, op, node.shape, node.window, node.strides, padding)

    def weighted(self, item: FixedNode, source: _Value) -> _Value:
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
        source: _Value,
        kernel: np.ndarray,
        bias: np.ndarray,
        number: MapType,
        *,
        gain: int = 1,
        copies: int = 1,
        is_linear: bool = False,
    ) -> _Value:
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
        self._operator(_WEIGHTED[op], inputs, output.index, options)
        return output

    def _ready(self, item: FixedNode, source: _Value, copies: int) -> tuple[_Value, int]:
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
        return self._padded(source, (rows, (left * copies, right * copies))), VALID

    def _stacked(self, item: FixedNode, source: _Value, kernel: np.ndarray) -> _Value:
        """16-bit kernel on a map of at most 8 bits, exactly: multiples of the map side by side.

        ``sum(factor * part) * x == sum(part * (factor * x))``: one int16 x int8 operator on the
        concatenated multiples, one rounding.
        """
        bias = _weights(item).bias
        factors = _stack_factors(source.number)
        parts = _kernel_parts(kernel, factors)
        by_factor = {f: self._multiple(source, f) for f in dict.fromkeys(factors)}
        last = len(source.shape) - 1
        joined = self._joined([by_factor[f] for f in factors], source.number, axis=last)
        if item.node.op != "depthwise":
            stacked = np.concatenate(parts, axis=-1)
            return self._products(item, joined, stacked, bias, item.target)
        height, width, channels = source.shape
        copies = len(factors)
        joined = self._reshaped(joined, (height, width * copies, channels))
        stacked = np.stack(parts, axis=3).reshape(1, parts[0].shape[1], -1, channels)
        return self._products(item, joined, stacked, bias, item.target, copies=copies)

    def _multiple(self, source: _Value, factor: int) -> _Value:
        """Codes times a power of two: the same values on a finer step."""
        if factor == 1:
            return source
        # The format tells only the step here: the codes fill the whole container.
        finer = MapType(16, INT16[0], source.number.step / factor)
        return self._requantized(source, finer, is_wide=True)

    def _joined(self, values: list[_Value], number: MapType, *, axis: int) -> _Value:
        """Concatenation on an axis (0 is the height), by and by if the values are many."""
        if len(values) == 1:
            return values[0]
        if len(values) > MAX_CONCATENATED:
            size = max(math.ceil(len(values) / MAX_CONCATENATED), 2)
            groups = [values[i : i + size] for i in range(0, len(values), size)]
            values = [self._joined(group, number, axis=axis) for group in groups]
            return self._joined(values, number, axis=axis)
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        output = self.map(shape, number, is_wide=values[0].is_wide)
        options = schema.ConcatenationOptionsT()
        options.axis, options.fusedActivationFunction = axis + 1, Activation.NONE
        self._operator(Op.CONCATENATION, [v.index for v in values], output.index, options)
        return output

    def _split(self, item: FixedNode, source: _Value) -> _Value:
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
        output = self._sum(high, low, number, fused)
        return output if not fraction else self._requantized(output, item.target, is_wide=False)

    def _sum(self, a: _Value, b: _Value, number: MapType, activation: int) -> _Value:
        shape = np.broadcast_shapes(a.shape, b.shape)
        output = self.map(shape, number, is_wide=a.is_wide)
        options = schema.AddOptionsT()
        options.potScaleInt16, options.fusedActivationFunction = False, activation
        self._operator(Op.ADD, [a.index, b.index], output.index, options)
        return output

    def add(self, item: FixedNode, *sources: _Value) -> _Value:
        """Sum of two maps, all three in one container."""
        is_wide = any(number.is_wide for number in (*item.sources, item.target))
        a, b = (self.in_container(source, is_wide=is_wide) for source in sources)
        return self._sum(a, b, item.target, _FUSED[item.node.activation])

    def multiply(self, item: FixedNode, *sources: _Value) -> _Value:
        """Product of two maps, all three in one container."""
        is_wide = any(number.is_wide for number in (*item.sources, item.target))
        a, b = (self.in_container(source, is_wide=is_wide) for source in sources)
        shape = np.broadcast_shapes(a.shape, b.shape)
        output = self.map(shape, item.target, is_wide=is_wide)
        options = schema.MulOptionsT()
        options.fusedActivationFunction = _FUSED[item.node.activation]
        self._operator(Op.MUL, [a.index, b.index], output.index, options)
        return output

    def mean(self, item: FixedNode, source: _Value) -> _Value:
        """Mean over height and width, in the shape that the node gives it."""
        is_wide = source.is_wide or item.target.is_wide
        source = self.in_container(source, is_wide=is_wide)
        axes = self.author.tensor((2,), Type.INT32, data=np.array([1, 2]))
        channels, shape = source.shape[-1], item.node.shape
        keeps = shape == (1, 1, channels)
        output = self.map(shape if keeps else (channels,), item.target, is_wide=is_wide)
        options = schema.ReducerOptionsT()
        options.keepDims = keeps
        self._operator(Op.MEAN, [source.index, axes], output.index, options)
        return output if output.shape == shape else self._reshaped(output, shape)

    def rescale(self, item: FixedNode, source: _Value) -> _Value:
        """The same values in another format."""
        return self._requantized(source, item.target, is_wide=item.target.is_wide)

    def sigmoid(self, item: FixedNode, source: _Value) -> _Value:
        """The logistic function, in 256ths."""
        output = self.map(item.node.shape, item.target, is_wide=False)
        self._operator(Op.LOGISTIC, [source.index], output.index)
        return output

    def reshape(self, item: FixedNode, source: _Value) -> _Value:
        """The same codes in another shape."""
        return self._reshaped(source, item.node.shape)

    def rows(self, item: FixedNode, source: _Value) -> _Value:
        """Some rows of a map."""
        numbers = [(0, item.node.first_row, 0, 0), (1, *item.node.shape)]
        limits = [self.author.tensor((4,), Type.INT32, data=np.array(n)) for n in numbers]
        output = self.map(item.node.shape, source.number, is_wide=source.is_wide)
        options = schema.SliceOptionsT()
        self._operator(Op.SLICE, [source.index, *limits], output.index, options)
        return output

    def concat(self, item: FixedNode, *sources: _Value) -> _Value:
        """Maps below one another, or channel after channel."""
        axis = 0 if item.node.op == "concat_rows" else len(item.node.shape) - 1
        return self._joined(list(sources), item.target, axis=axis)


_EMIT: dict[str, Callable[..., _Value]] = {
    "conv": _Writer.weighted,
    "depthwise": _Writer.weighted,
    "dense": _Writer.weighted,
    "add": _Writer.add,
    "multiply": _Writer.multiply,
    "rescale": _Writer.rescale,
    "mean": _Writer.mean,
    "max_pool": _Writer.pool,
    "average_pool": _Writer.pool,
    "sigmoid": _Writer.sigmoid,
    "reshape": _Writer.reshape,
    "rows": _Writer.rows,
    "concat_rows": _Writer.concat,
    "concat_channels": _Writer.concat,
}


@dataclass(frozen=True)
class Exported:
    """An authored .tflite.

    Attributes
    ----------
    model : the schema's objects (``ModelT``)
    tensors : dict of node's name to index of the tensor that holds its map
    kernels : dict of weighted node's name to its constants
    offsets : offline plan of the arena, by tensor; empty if there is none
    """

    model: Any
    tensors: dict[str, int]
    kernels: dict[str, list[Stored]]
    offsets: tuple[int, ...] = ()

    @cached_property
    def content(self) -> bytes:
        """The bytes of the file."""
        return packed(self.model)

    def zero_point(self, node: str) -> int:
        """Stored integer of code 0 in a node's map."""
        return int(self.model.subgraphs[0].tensors[self.tensors[node]].quantization.zeroPoint[0])

    @cached_property
    def arena(self) -> arena.Arena:
        """Predicted arena on TFLite Micro."""
        return arena.plan(self.model, self.offsets)


def write(
    net: FixedNet,
    *,
    target: Target = TFLM,
    plan_memory: bool = False,
    metadata: dict[str, bytes] | None = None,
) -> Exported:
    """The network as a TFLite flatbuffer.

    Input 'mel' [1, *input_shape] and output 'logits' [1, out] are the codes of
    the network's input and output map, in int8 or int16. 4-bit kernels are packed where the maps
    have at most 8 bits and the target takes them, and stored as int8 elsewhere; 16-bit kernels are
    int8 parts (see ``_stacked``, ``_split``).

    Parameters
    ----------
    plan_memory : bool
        store an offline plan of the arena, if it is tighter than TFLite Micro's own.
    metadata : dict of name to bytes, optional

    Raises
    ------
    ExportError
        naming a layer that the target cannot run.
    """
    writer = _Writer(target)
    is_wide = net.input_map.is_wide
    source = writer.map(net.input_shape, net.input_map, is_wide=is_wide, name="mel")
    values = {INPUT: writer.saturated(source)}
    for item in net.nodes:
        values[item.name] = writer.node(item, [values[name] for name in item.node.inputs])
    output = values[net.nodes[-1].name]
    writer.author.rename(output.index, "logits")
    for key, content in (metadata or {}).items():
        writer.author.metadata(key, content)
    tensors = {name: value.index for name, value in values.items()}
    model = writer.author.model([source.index], [output.index])
    offsets = arena.offline_offsets(model) if plan_memory else None
    if offsets is None:
        return Exported(model, tensors, writer.kernels)
    writer.author.metadata(OFFLINE_PLAN, np.array([1, 0, len(offsets), *offsets], "<i4").tobytes())
    model = writer.author.model([source.index], [output.index])
    return Exported(model, tensors, writer.kernels, tuple(offsets))
