"""The quantized tensors of a Keras model, each before and after its quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qbee.doctor.grids import Grid, quantized
from qbee.doctor.layers import Weights, before_activation, map_quantizer, weights_of
from qbee.doctor.records import Kind
from qbee.keras import keras, qkeras
from qbee.quantize import ops
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.graph import CHANNEL_AXIS, Op
from qbee.quantize.layers import QuantizedLayer, QuantizedOp

# Layers that hand the codes of a map on as they are.
KEEPERS = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.MaxPooling2D,
    keras.layers.ReLU,
    keras.layers.Reshape,
    keras.layers.ZeroPadding2D,
)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor before and after its quantizer; ``axis`` is that of its channels.

    ``accumulator`` is the bound of a kernel's sums of products, ``is_on_device`` says that the
    integers are those of the device.
    """

    layer: str
    kind: Kind
    quantizer: Any
    before: np.ndarray
    after: np.ndarray
    grid: Grid | None
    axis: int = -1
    op: Op | None = None
    accumulator: int | None = None
    has_int64: bool = False
    is_on_device: bool = False
    constrained: float = 0.0


@dataclass
class Reader:
    """Walks through a model and hands out its tensors; remembers the grids of its maps."""

    model: Any
    inputs: dict[str, list[np.ndarray]]
    grids: dict[str, Grid | None] = field(default_factory=dict)

    def __post_init__(self):
        self.producers = {id(layer.output): layer for layer in self.model.layers}

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in the order of the network."""
        for layer in self.model.layers:
            if isinstance(layer, QuantizedLayer):
                yield from _device_weights(layer)
            if isinstance(layer, QuantizedOp):
                if layer.node.has_own_map:
                    yield _device_map(layer, self.inputs[layer.name])
                continue
            yield from self._weights(layer)
            if map_quantizer(layer) is not None:
                yield self._map(layer)

    def source(self, layer) -> Grid | None:
        """Grid of the map that a layer reads, if it is one map and quantized."""
        producer = self.producers.get(id(layer.input))
        while producer is not None:
            if producer.name in self.grids:
                return self.grids[producer.name]
            if not isinstance(producer, KEEPERS):
                return None
            producer = self.producers.get(id(producer.input))
        return None

    def _weights(self, layer) -> Iterator[Tensor]:
        weights = weights_of(layer)
        if weights is None:
            return
        for kind, weight, quantizer, constraint in weights.parts:
            before = np.asarray(weight)
            after, grid = quantized(quantizer, before)
            is_kernel = kind == "kernel"
            yield Tensor(
                layer.name,
                kind,
                quantizer,
                before,
                after,
                grid,
                axis=CHANNEL_AXIS[weights.op] if is_kernel else 0,
                op=weights.op,
                constrained=_constrained(before, constraint),
                accumulator=self._largest_sum(layer, weights, after, grid) if is_kernel else None,
                has_int64=is_kernel and self._is_wide(layer, grid),
            )

    def _is_wide(self, layer, grid: Grid | None) -> bool:
        source = self.source(layer)
        return any(g is not None and (g.highest or 0) > 255 for g in (source, grid))

    def _largest_sum(self, layer, weights: Weights, after, grid: Grid | None) -> int | None:
        source = self.source(layer)
        if grid is None or source is None or source.highest is None:
            return None
        largest = max(source.highest, -(source.lowest or 0))
        sums = largest * _by_channel(np.abs(grid.codes(after)), weights.op)
        bias = weights.bias
        if bias is not None and source.steps.size == 1:
            steps = np.broadcast_to(grid.steps, after.shape)
            accumulator = source.steps * _by_channel(steps, weights.op, np.max)
            sums = sums + np.abs(np.rint(np.asarray(bias) / accumulator))
        return int(np.max(sums))

    def _map(self, layer) -> Tensor:
        quantizer, (x,) = map_quantizer(layer), self.inputs[layer.name]
        before = x if isinstance(layer, qkeras.QActivation) else before_activation(layer, x)
        after, grid = quantized(quantizer, before)
        self.grids[layer.name] = grid
        if grid is not None and grid.is_relu:
            before = np.maximum(before, 0)
        return Tensor(layer.name, "map", quantizer, before, after, grid)


def _by_channel(values: np.ndarray, op: Op, reduce=np.sum) -> np.ndarray:
    """Sum, or another reduction, of the weights of each output channel."""
    axes = (0, 1) if op == "depthwise" else tuple(range(values.ndim - 1))
    return np.ravel(reduce(values, axis=axes))


def _constrained(weight: np.ndarray, constraint) -> float:
    """Share of the values that a constraint changes."""
    if not isinstance(constraint, qkeras.qlayers.Clip):
        return 0.0
    low, high = constraint.min_value, constraint.max_value
    return float(np.mean((weight < low) | (weight > high)))


def _device_weights(layer: QuantizedLayer) -> Iterator[Tensor]:
    """Kernel and bias of a layer of ours, in the codes of the device."""
    codes, steps, bias = (np.asarray(value, np.float64) for value in layer.integers())
    axis, op = layer.channel_axis, layer.node.op
    by_channel = steps.reshape([-1 if i == axis else 1 for i in range(codes.ndim)])
    kernel_steps = steps[0] if layer.kernel_quantizer.scale_axis is None else by_channel
    highest = layer.kernel_quantizer.max_code
    largest = max(layer.source.codes[1], -layer.source.codes[0])
    sums = largest * _by_channel(np.abs(codes), op) + np.abs(bias)
    yield Tensor(
        layer.name,
        "kernel",
        layer.kernel_quantizer,
        layer.kernel.numpy(),
        codes * by_channel,
        Grid(np.asarray(kernel_steps), -highest, highest),
        axis=axis,
        op=op,
        accumulator=int(np.max(sums)),
        has_int64=layer.arithmetic != "int32",
        is_on_device=True,
    )
    grid = Grid(steps * layer.source.step)
    before, after = layer.bias.numpy(), bias * grid.steps
    yield Tensor(
        layer.name,
        "bias",
        layer.bias_quantizer,
        before,
        after,
        grid,
        axis=0,
        op=op,
        is_on_device=True,
    )


def _device_map(layer: QuantizedOp, inputs: list[np.ndarray]) -> Tensor:
    """Map of a layer of ours: the real result of its quantized inputs and weights, and its own."""
    node, number = layer.node, layer.target
    if isinstance(layer, QuantizedLayer):
        kernel, _, bias = layer.quantized()
        real = ops.products(node, inputs[0], kernel) + bias
    else:
        real = ops.UNWEIGHTED[node.op](node, *inputs)
    after = layer(inputs if len(inputs) > 1 else inputs[0], training=False)
    quantizer = quantized_bits_featuremap.of(number)
    grid = Grid(np.array(number.step), *number.codes, is_relu=not number.is_signed)
    before = np.asarray(ops.activated(node, real))
    return Tensor(layer.name, "map", quantizer, before, np.asarray(after), grid, is_on_device=True)
