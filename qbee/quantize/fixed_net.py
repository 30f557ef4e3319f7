"""A whole network in integers and its forward pass (numpy only)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qbee.errors import ParameterError
from qbee.quantize import fixed_point, logistic
from qbee.quantize.fixed_point import INT16, Arithmetic, MapType
from qbee.quantize.graph import INPUT, Activation, Node

# Extra fraction bits of the two partial sums of a split layer whose output is narrow.
SPLIT_FRACTION_BITS = 6


def limits(activation: Activation, number: MapType) -> tuple[int, int]:
    """Lowest and highest code a map can have after this activation."""
    lowest, highest = number.codes
    if activation == "linear":
        return lowest, highest
    if activation == "relu6":
        # TFLite divides in float32.
        highest = min(highest, int(np.floor(np.float32(6) / np.float32(number.step) + 0.5)))
    return 0, highest


@dataclass(frozen=True)
class FixedWeights:
    """Kernel and bias of a weighted node.

    Attributes
    ----------
    kernel : np.ndarray, int64
        codes, shaped as in Keras
    bits : int
    steps : np.ndarray [shape=(out,)], float32
        step of the kernel's codes by output channel
    bias : np.ndarray [shape=(out,)], int64
        accumulator codes, of step ``source.step * steps``
    """

    kernel: np.ndarray
    bits: int
    steps: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class FixedNode:
    """One operation in integers: what it computes, its number formats and its weights."""

    node: Node
    sources: tuple[MapType, ...]
    target: MapType
    weights: FixedWeights | None = None

    @property
    def name(self) -> str:
        """Name of the node."""
        return self.node.name

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code of the result."""
        return limits(self.node.activation, self.target)

    @property
    def multipliers(self) -> np.ndarray:
        """Real multipliers [out], float64, from accumulator codes to codes of the result."""
        assert self.weights is not None
        steps = self.weights.steps.astype(np.float64)
        return self.sources[0].step * steps / self.target.step

    @property
    def arithmetic(self) -> Arithmetic:
        """Which of the device's three ways computes this weighted node."""
        assert self.weights is not None
        return fixed_point.arithmetic_of(self.sources[0], self.weights.bits, self.target)


@dataclass(frozen=True)
class FixedNet:
    """A network of integer nodes in an order that can be run; the last one is the output."""

    name: str
    input_shape: tuple[int, ...]
    input_map: MapType
    nodes: tuple[FixedNode, ...]

    @property
    def output_map(self) -> MapType:
        """Number format of the output."""
        return self.nodes[-1].target


def _split(item: FixedNode, codes: np.ndarray) -> np.ndarray:
    """Two convolutions with the kernel's high and low part, rounded, saturated and added."""
    node, weights = item.node, item.weights
    assert weights is not None
    fraction = 0 if item.target.is_wide else SPLIT_FRACTION_BITS
    hi, lo = fixed_point.split(weights.kernel)
    # The bias is split too: without it, the high sums of a map that fits could saturate.
    high, low = fixed_point.split(weights.bias)
    parts = []
    for kernel, factor, bias in ((hi, 256, high), (lo, 1, low)):
        total = fixed_point.accumulate(
            codes, kernel, node.op, strides=node.strides, padding=node.padding
        )
        multipliers = item.multipliers * factor * 2**fraction
        parts.append(np.clip(fixed_point.requantize_int64(total + bias, multipliers), *INT16))
    # The addition has a fused ReLU; it is exact because all three maps have one step.
    lowest = INT16[0] if node.activation == "linear" else 0
    total = np.clip(parts[0] + parts[1], lowest, INT16[1])
    return fixed_point.requantize_int32(total, 2.0**-fraction)


def _weighted(item: FixedNode, codes: np.ndarray) -> np.ndarray:
    node, weights = item.node, item.weights
    assert weights is not None
    if item.arithmetic == "int64_split":
        return _split(item, codes)
    total = fixed_point.accumulate(
        codes, weights.kernel, node.op, strides=node.strides, padding=node.padding
    )
    is_int32 = item.arithmetic == "int32"
    rescale = fixed_point.requantize_int32 if is_int32 else fixed_point.requantize_int64
    return rescale(total + weights.bias, item.multipliers)


def _pair(item: FixedNode) -> tuple[MapType, MapType]:
    return item.sources[0], item.sources[1]


_RUN: dict[str, Callable[..., np.ndarray]] = {
    "conv": _weighted,
    "depthwise": _weighted,
    "dense": _weighted,
    "add": lambda item, a, b: fixed_point.add(a, b, _pair(item), item.target),
    "multiply": lambda item, a, b: fixed_point.multiply(a, b, _pair(item), item.target),
    "rescale": lambda item, x: fixed_point.requantize_int32(
        x, item.sources[0].step / item.target.step
    ),
    "mean": lambda item, x: fixed_point.mean(x, item.sources[0], item.target).reshape(
        -1, *item.node.shape
    ),
    "max_pool": lambda item, x: fixed_point.max_pool(
        x, item.node.window, item.node.strides, item.node.padding
    ),
    "average_pool": lambda item, x: fixed_point.average_pool(
        x, item.target, item.node.window, item.node.strides, item.node.padding
    ),
    "sigmoid": lambda item, x: logistic.sigmoid(x, item.sources[0]),
    "reshape": lambda item, x: x.reshape(-1, *item.node.shape),
    "rows": lambda item, x: x[:, item.node.first_row : item.node.first_row + item.node.shape[0]],
    "concat_rows": lambda item, *parts: np.concatenate(parts, axis=1),
    "concat_channels": lambda item, *parts: np.concatenate(parts, axis=-1),
}


def run_node(item: FixedNode, *codes: np.ndarray) -> np.ndarray:
    """Codes of the result of one node, its activation and its max-pool."""
    output = np.clip(_RUN[item.node.op](item, *codes), *item.limits)
    pool = (item.node.pool, item.node.pool)
    return fixed_point.max_pool(output, pool, pool)


def forward(net: FixedNet, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Codes of the result of every node, by name, for input codes [n, *input_shape].

    Raises
    ------
    ParameterError
        if the input has another shape.
    """
    if codes.shape[1:] != net.input_shape:
        raise ParameterError(f"codes.shape={codes.shape} must be (n, *{net.input_shape})")
    found = {INPUT: codes}
    for item in net.nodes:
        found[item.name] = run_node(item, *(found[name] for name in item.node.inputs))
    del found[INPUT]
    return found


def predict(net: FixedNet, x: np.ndarray) -> np.ndarray:
    """Real output [n, *shape], float32, of real inputs [n, *input_shape]."""
    codes = forward(net, fixed_point.quantize(x, net.input_map))
    return fixed_point.dequantize(codes[net.nodes[-1].name], net.output_map)
