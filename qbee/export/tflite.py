"""A FixedNet as a mixed-precision .tflite that TFLite Micro runs to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.export.graph_writer import SAME, VALID, Value
from qbee.export.targets import TFLM, Target
from qbee.export.weighted_writer import FUSED, Stored, WeightedWriter
from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.quantize.fixed_point import INT16
from qbee.quantize.graph import INPUT, NO_PADDING, WEIGHTED
from qbee.runtime import arena
from qbee.runtime.flatbuffer import OFFLINE_PLAN, Op, Type, packed

INT8 = (-128, 127)
_HAS_FUSED = (*WEIGHTED, "add", "multiply")


def _may_undercut(item: FixedNode, lowest: int) -> bool:
    """Whether a result can lie below its lowest code before saturation."""
    if item.node.op in _HAS_FUSED and item.node.activation != "linear":
        return False
    return item.node.is_weighted or lowest < 0 or any(s.is_signed for s in item.sources)


def _has_fused_upper(item: FixedNode) -> bool:
    """Whether the operator itself cuts at six."""
    is_split = item.weights is not None and item.arithmetic == "int64_split"
    return item.node.op in _HAS_FUSED and item.node.activation == "relu6" and not is_split


class _Writer(WeightedWriter):
    """Emits a network node by node."""

    def node(self, item: FixedNode, sources: list[Value]) -> Value:
        """All operators of one node, down to its max-pool, its container and its limits."""
        self.layer = item.name
        output = self.pooled(_EMIT[item.node.op](self, item, *sources), item.node.pool)
        output = self.in_container(output, is_wide=item.target.is_wide)
        return self._limited(output, item)

    def _limited(self, value: Value, item: FixedNode) -> Value:
        """The result within those limits that saturation and fused activation do not express."""
        if not item.node.has_own_map:
            return value
        lowest, highest = item.limits
        bottom, top = (c - value.zero_point for c in (INT16 if value.is_wide else INT8))
        if lowest > bottom and _may_undercut(item, lowest):
            value = self.bounded(value, Op.MAXIMUM, lowest)
        if highest < top and not _has_fused_upper(item):
            value = self.bounded(value, Op.MINIMUM, highest)
        return value

    def saturated(self, source: Value) -> Value:
        """The input, of which int16 can hold negative codes even if its map has none."""
        is_loose = source.is_wide and not source.number.is_signed
        return self.bounded(source, Op.MAXIMUM, 0) if is_loose else source

    def pool(self, item: FixedNode, source: Value) -> Value:
        """A pool that is a node of its own."""
        node = item.node
        op = Op.MAX_POOL_2D if node.op == "max_pool" else Op.AVERAGE_POOL_2D
        padding = VALID if node.padding == NO_PADDING else SAME
        return self.pool_by(source, op, node.shape, node.window, node.strides, padding)

    def add(self, item: FixedNode, *sources: Value) -> Value:
        """Sum of two maps, all three in one container."""
        is_wide = any(number.is_wide for number in (*item.sources, item.target))
        a, b = (self.in_container(source, is_wide=is_wide) for source in sources)
        return self.sum(a, b, item.target, FUSED[item.node.activation])

    def multiply(self, item: FixedNode, *sources: Value) -> Value:
        """Product of two maps, all three in one container."""
        is_wide = any(number.is_wide for number in (*item.sources, item.target))
        a, b = (self.in_container(source, is_wide=is_wide) for source in sources)
        shape = np.broadcast_shapes(a.shape, b.shape)
        output = self.map(shape, item.target, is_wide=is_wide)
        options = schema.MulOptionsT()
        options.fusedActivationFunction = FUSED[item.node.activation]
        self.operator(Op.MUL, [a.index, b.index], output.index, options)
        return output

    def mean(self, item: FixedNode, source: Value) -> Value:
        """Mean over height and width, in the shape that the node gives it."""
        is_wide = source.is_wide or item.target.is_wide
        source = self.in_container(source, is_wide=is_wide)
        axes = self.author.tensor((2,), Type.INT32, data=np.array([1, 2]))
        channels, shape = source.shape[-1], item.node.shape
        keeps = shape == (1, 1, channels)
        output = self.map(shape if keeps else (channels,), item.target, is_wide=is_wide)
        options = schema.ReducerOptionsT()
        options.keepDims = keeps
        self.operator(Op.MEAN, [source.index, axes], output.index, options)
        return output if output.shape == shape else self.reshaped(output, shape)

    def rescale(self, item: FixedNode, source: Value) -> Value:
        """The same values in another format."""
        return self.requantized(source, item.target, is_wide=item.target.is_wide)

    def sigmoid(self, item: FixedNode, source: Value) -> Value:
        """The logistic function, in 256ths."""
        output = self.map(item.node.shape, item.target, is_wide=False)
        self.operator(Op.LOGISTIC, [source.index], output.index)
        return output

    def reshape(self, item: FixedNode, source: Value) -> Value:
        """The same codes in another shape."""
        return self.reshaped(source, item.node.shape)

    def rows(self, item: FixedNode, source: Value) -> Value:
        """Some rows of a map."""
        numbers = [(0, item.node.first_row, 0, 0), (1, *item.node.shape)]
        limits = [self.author.tensor((4,), Type.INT32, data=np.array(n)) for n in numbers]
        output = self.map(item.node.shape, source.number, is_wide=source.is_wide)
        options = schema.SliceOptionsT()
        self.operator(Op.SLICE, [source.index, *limits], output.index, options)
        return output

    def concat(self, item: FixedNode, *sources: Value) -> Value:
        """Maps below one another, or channel after channel."""
        axis = 0 if item.node.op == "concat_rows" else len(item.node.shape) - 1
        return self.joined(list(sources), item.target, axis=axis)


_EMIT: dict[str, Callable[..., Value]] = {
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
    int8 parts (see ``WeightedWriter``).

    Parameters
    ----------
    plan_memory : bool
        store an offline plan of the arena, if it is tighter than TFLite Micro's own and the
        target takes one.
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
    is_planned = plan_memory and target.has_offline_plan
    offsets = arena.offline_offsets(model) if is_planned else None
    if offsets is None:
        return Exported(model, tensors, writer.kernels)
    writer.author.metadata(OFFLINE_PLAN, np.array([1, 0, len(offsets), *offsets], "<i4").tobytes())
    model = writer.author.model([source.index], [output.index])
    return Exported(model, tensors, writer.kernels, tuple(offsets))
