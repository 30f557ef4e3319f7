"""The constructs of a .tflite that every node is made of: maps, containers, pads, pools."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.export.targets import Target
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT, Padding
from qbee.runtime.flatbuffer import WITH_KERNEL, Activation, Author, Op, Type

SAME, VALID = 0, 1
# Of TFLite Micro's CONCATENATION.
MAX_CONCATENATED = 10


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: index, shape, number format and whether it lives in int16."""

    index: int
    shape: tuple[int, ...]
    number: MapType
    is_wide: bool

    @property
    def zero_point(self) -> int:
        """Stored integer of code 0."""
        return 0 if self.is_wide else self.number.zero_point


class GraphWriter:
    """Adds tensors and operators to one model; one method per construct."""

    def __init__(self, target: Target) -> None:
        self.author, self.target = Author(), target
        self.layer = INPUT
        self._containers: dict[tuple[int, bool], Value] = {}
        self._margins: dict[tuple[int, Padding], Value] = {}

    def operator(self, code: int, inputs: list[int], output: int, options=None) -> int:
        """Add an operator of the present layer, if the target runs it."""
        has_kernel = code in WITH_KERNEL
        kernel_type = self.author.type_of(inputs[1]) if has_kernel else None
        map_type = self.author.type_of(inputs[0])
        has_stride = code in (Op.CONV_2D, Op.DEPTHWISE_CONV_2D)
        stride = max(options.strideH, options.strideW) if has_stride else 1
        self.target.check(self.layer, code, map_type, kernel_type=kernel_type, stride=stride)
        return self.author.operator(code, inputs, output, options)

    def map(self, shape, number: MapType, *, is_wide: bool, name: str | None = None) -> Value:
        """A feature map without operator, in int16 (wide) or int8."""
        value = Value(-1, tuple(shape), number, is_wide)
        type_ = Type.INT16 if is_wide else Type.INT8
        zero = value.zero_point
        index = self.author.tensor(
            (1, *shape), type_, scale=number.step, zero_point=zero, name=name
        )
        return replace(value, index=index)

    def in_container(self, value: Value, *, is_wide: bool) -> Value:
        """The same codes in int16 or int8; each conversion is made once."""
        if value.is_wide == is_wide:
            return value
        key = (value.index, is_wide)
        if key not in self._containers:
            self._containers[key] = self.requantized(value, value.number, is_wide=is_wide)
        return self._containers[key]

    def bounded(self, value: Value, op: int, code: int) -> Value:
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
        self.operator(op, [value.index, bound], output.index, options)
        return output

    def requantized(self, value: Value, number: MapType, *, is_wide: bool) -> Value:
        """The same real values in another container or step."""
        output = self.map(value.shape, number, is_wide=is_wide)
        options = schema.QuantizeOptionsT()
        self.operator(Op.QUANTIZE, [value.index], output.index, options)
        return output

    def reshaped(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The same codes in another shape."""
        size = np.array([1, *shape])
        wanted = self.author.tensor(size.shape, Type.INT32, data=size)
        output = self.map(shape, value.number, is_wide=value.is_wide)
        options = schema.ReshapeOptionsT()
        options.newShape = size.astype(np.int32)
        self.operator(Op.RESHAPE, [value.index, wanted], output.index, options)
        return output

    def padded(self, value: Value, padding: Padding) -> Value:
        """Zeros around the map; each margin is made once."""
        key = (value.index, padding)
        if key not in self._margins:
            self._margins[key] = self._pad(value, padding)
        return self._margins[key]

    def _pad(self, value: Value, padding: Padding) -> Value:
        height, width, channels = value.shape
        shape = (height + sum(padding[0]), width + sum(padding[1]), channels)
        amounts = np.array([(0, 0), *padding, (0, 0)])
        around = self.author.tensor(amounts.shape, Type.INT32, data=amounts)
        output = self.map(shape, value.number, is_wide=value.is_wide)
        self.operator(Op.PAD, [value.index, around], output.index, schema.PadOptionsT())
        return output

    def pooled(self, value: Value, size: int) -> Value:
        """The max-pool that belongs to a node."""
        if size == 1:
            return value
        height, width, channels = value.shape
        shape = (height // size, width // size, channels)
        window = (size, size)
        return self.pool_by(value, Op.MAX_POOL_2D, shape, window, window, VALID)

    def pool_by(self, value: Value, op: int, shape, window, strides, padding: int) -> Value:
        """A pool of any kind."""
        output = self.map(shape, value.number, is_wide=value.is_wide)
        options = schema.Pool2DOptionsT()
        options.padding, options.fusedActivationFunction = padding, Activation.NONE
        options.filterHeight, options.filterWidth = window
        options.strideH, options.strideW = strides
        self.operator(op, [value.index], output.index, options)
        return output

    def joined(self, values: list[Value], number: MapType, *, axis: int) -> Value:
        """Concatenation on an axis (0 is the height), by and by if the values are many."""
        if len(values) == 1:
            return values[0]
        if len(values) > MAX_CONCATENATED:
            size = max(math.ceil(len(values) / MAX_CONCATENATED), 2)
            groups = [values[i : i + size] for i in range(0, len(values), size)]
            values = [self.joined(group, number, axis=axis) for group in groups]
            return self.joined(values, number, axis=axis)
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        output = self.map(shape, number, is_wide=values[0].is_wide)
        options = schema.ConcatenationOptionsT()
        options.axis, options.fusedActivationFunction = axis + 1, Activation.NONE
        self.operator(Op.CONCATENATION, [v.index for v in values], output.index, options)
        return output
