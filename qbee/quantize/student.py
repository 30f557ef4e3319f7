"""The quantized network with trainable factors, in floating point: FAT's student.

Kernels, biases and maps are on the grids they have on the device, and values reach maps through
the device's two roundings, so that training sees what the device computes.
"""

from __future__ import annotations

import numpy as np

from qbee.keras import tf
from qbee.quantize import ops
from qbee.quantize.calibrate import Maps, formats
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType, arithmetic_of
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT, Node
from qbee.quantize.layers import kernel_quantizer
from qbee.quantize.quantizers import (
    Alpha,
    power_of_two,
    quantized_bias,
    quantized_kernel,
    straight_through,
)
from qbee.quantize.scheme import LayerBits, Scheme
from qbee.quantize.sharing import OneStep, has_one_step

# FAT's limits of the trained factors.
SCALE_LIMITS = (0.5, 1.0)
SHIFT_LIMITS = (-0.2, 0.4)
POINT_LIMITS = (0.75, 1.25)
# Of their peaks, at which thresholds of kernels may start.
START_SHARES = np.linspace(0.2, 1, 33, dtype=np.float32)


def _factor(start, lowest, highest):
    """Trainable factors, which the optimizer keeps within limits."""
    return tf.Variable(
        tf.cast(start, tf.float32), constraint=lambda v: tf.clip_by_value(v, lowest, highest)
    )


def best_scales(kernel: np.ndarray, quantizer: quantized_kernel) -> np.ndarray:
    """Shares of the peaks at which clipping gives the least squared error, like the steps.

    Training starts there, while FAT's starts at the peaks: with 4 bits half of a peak can still
    be far too much where a few weights are large.
    """
    peaks = quantizer.steps(tf.constant(kernel)).numpy()
    shared = tuple(i for i, length in enumerate(peaks.shape) if length == 1)
    errors = []
    for share in START_SHARES:
        steps = peaks * share
        quantized = np.asarray(quantizer.codes(kernel, steps)) * steps
        errors.append(np.mean((quantized - kernel) ** 2, axis=shared, keepdims=True))
    return START_SHARES[np.argmin(errors, axis=0)]


def on_grid(x, step, lowest, highest, parts=1.0):
    """Nearest value on the grid; gradients as FAT, eq. 16-19, also with respect to the grid.

    Codes are rounded twice as on the device: to ``parts`` of a code half up, then half away from
    zero.
    """
    codes = tf.clip_by_value(x / step, lowest, highest)
    finer = tf.floor(codes * parts + 0.5) / parts
    return straight_through(codes, tf.sign(finer) * tf.floor(tf.abs(finer) + 0.5)) * step


class StudentKernel:
    """A kernel and bias with their factors."""

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        quantizer: quantized_kernel,
        bias_bits: int,
        *,
        thresholds: bool,
        points: bool,
    ):
        self.kernel, self.bias, self.quantizer = tf.constant(kernel), tf.constant(bias), quantizer
        self.bias_quantizer = quantized_bias(bias_bits)
        self.point_factors = self.bias_factors = self.scale = None
        if points:
            self.point_factors = _factor(np.ones_like(kernel), *POINT_LIMITS)
            self.bias_factors = _factor(np.ones_like(bias), *POINT_LIMITS)
        if thresholds:
            self.start = best_scales(kernel, quantizer)
            lowest, highest = SCALE_LIMITS
            self.scale = _factor(np.ones_like(self.start), lowest * self.start, highest)

    @property
    def variables(self) -> list:
        """Trained factors."""
        found = (self.point_factors, self.bias_factors, self.scale)
        return [factors for factors in found if factors is not None]

    def weights(self):
        """Kernel and bias in floating point."""
        if self.point_factors is None:
            return self.kernel, self.bias
        return self.kernel * self.point_factors, self.bias * self.bias_factors

    def _clipped(self, kernel):
        """The kernel, clipped where its thresholds are."""
        if self.scale is None:
            return kernel
        limit = self.quantizer.steps(kernel) * self.scale * float(self.quantizer.max_code)
        return tf.clip_by_value(kernel, -limit, limit)

    def steps(self, kernel):
        """Steps of the kernel: those of its present peaks or least error, times the scale.

        They are found as those of the folded kernel are, whose peaks are the thresholds.
        """
        kernel = tf.stop_gradient(kernel)
        found = self.quantizer.steps(self._clipped(kernel))
        if self.scale is None:
            return found
        return straight_through(self.quantizer.steps(kernel) * self.scale, found)

    def quantized(self, source_step):
        """Quantized kernel, bias on the grid of accumulators (FAT, eq. 20), and that grid [out]."""
        kernel, bias = self.weights()
        steps, top = self.steps(kernel), float(self.quantizer.max_code)
        by_channel = tf.broadcast_to(tf.reshape(steps, [-1]), tf.shape(bias))
        grid = tf.cast(by_channel, tf.float64) * tf.cast(source_step, tf.float64)
        return on_grid(kernel, steps, -top, top), self.bias_quantizer.on_grid(bias, grid), grid

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel, clipped where its thresholds are, and bias: a new peak is a new step."""
        kernel, bias = self.weights()
        return self._clipped(kernel).numpy(), bias.numpy()


class StudentMap:
    """The number format of a map with the factors of its thresholds."""

    def __init__(self, number: MapType, *, thresholds: bool):
        self.number = number
        lowest, highest = number.codes
        is_affine = lowest not in (0, -(2 ** (number.bits - 1)))
        self.range = (highest - lowest) * number.step
        self.scale = _factor(1.0, *SCALE_LIMITS) if thresholds else None
        self.shift = _factor(0.0, *SHIFT_LIMITS) if thresholds and is_affine else None

    @property
    def variables(self) -> list:
        """Trained factors."""
        return [factor for factor in (self.scale, self.shift) if factor is not None]

    @property
    def step(self):
        """Trained step."""
        return self.number.step if self.scale is None else self.number.step * self.scale

    def _codes(self):
        """Lowest and highest code (FAT, eq. 21-23).

        The left end of an unsigned map stays 0: the device's grid must hold zero, which FAT's
        positive left limits would leave out.
        """
        lowest, highest = (float(code) for code in self.number.codes)
        if self.shift is None:
            return lowest, highest
        left = lowest * self.number.step + self.shift * self.range
        codes = tf.clip_by_value(left / self.step, -(2.0 ** (self.number.bits - 1)), 0.0)
        first = straight_through(codes, tf.floor(codes + 0.5))
        return first, first + (highest - lowest)

    def __call__(self, y, accumulator_step=None):
        """The map on its grid, rounded as the device rounds accumulators of this step."""
        parts = 1.0
        if accumulator_step is not None:
            multiplier = tf.cast(accumulator_step, tf.float32) / self.step
            exponent = tf.floor(tf.math.log(multiplier) / np.float32(np.log(2)))
            parts = power_of_two(tf.maximum(-1 - exponent, 0))
        lowest, highest = self._codes()
        return on_grid(y, self.step, lowest, highest, tf.stop_gradient(parts))

    def folded(self) -> MapType:
        """Number format with the trained thresholds."""
        return MapType(self.number.bits, int(self._codes()[0]), float(np.float32(self.step)))


class Student:
    """The quantized network with its factors.

    Parameters
    ----------
    thresholds, points : bool
        what is trained: thresholds of kernels and maps, a factor for each weight and bias.
    """

    def __init__(
        self,
        net: FoldedNet,
        scheme: Scheme,
        maps: Maps,
        *,
        thresholds: bool,
        points: bool,
        alpha: Alpha,
        is_per_tensor: OneStep,
    ):
        scheme.check(net)
        self.net, self.scheme = net, scheme
        self.widths: dict[str, int] = {INPUT: scheme.input_bits} | {
            n: b.map for n, b in scheme.layers.items()
        }
        self.numbers = formats(net, maps, self.widths)
        self.maps = {
            name: StudentMap(self.numbers[name], thresholds=thresholds)
            for name in (INPUT, *net.maps)
        }
        self.kernels = {}
        for name in net.weighted:
            bits, op = self._bits(name), net.node(name).op
            is_single = has_one_step(is_per_tensor, name)
            quantizer = kernel_quantizer(op, bits.kernel or 8, alpha, is_per_tensor=is_single)
            self.kernels[name] = StudentKernel(
                net.kernels[name],
                net.biases[name],
                quantizer,
                bits.bias or 31,
                thresholds=thresholds,
                points=points,
            )

    def _bits(self, name: str) -> LayerBits:
        return self.scheme.layers[name]

    @property
    def variables(self) -> list:
        """All trained factors."""
        parts: list[StudentKernel | StudentMap] = [*self.kernels.values(), *self.maps.values()]
        return [variable for part in parts for variable in part.variables]

    def start(self) -> None:
        """Move thresholds of kernels from the peaks to where training starts."""
        for kernel in self.kernels.values():
            if kernel.scale is not None:
                kernel.scale.assign(kernel.start)

    def _step(self, name: str):
        """Step of the result of the input or of any node."""
        if name in self.maps:
            return self.maps[name].step
        node = self.net.node(name)
        return SIGMOID_MAP.step if node.op == "sigmoid" else self._step(node.inputs[0])

    def _accumulator_step(self, node: Node, grid):
        """Step of what the device rounds twice to get a map; None if it rounds once."""
        steps = [self._step(name) for name in node.inputs]
        if node.op == "add":
            is_wide = any(self.numbers[name].is_wide for name in (*node.inputs, node.name))
            return tf.maximum(steps[0], steps[1]) / 2.0 ** (14 if is_wide else 19)
        if node.op == "multiply":
            return steps[0] * steps[1]
        if node.op == "rescale":
            return steps[0]
        if node.op == "mean":
            # The division by the count is in the multiplier, but for the power of two.
            source = node.inputs[0]
            shape = self.net.input_shape if source == INPUT else self.net.node(source).shape
            return steps[0] / 2.0 ** ((shape[0] * shape[1]).bit_length() - 1)
        if node.is_weighted and self._is_int32(node):
            return grid
        return None

    def _is_int32(self, node: Node) -> bool:
        source, bits = self.numbers[node.inputs[0]], self._bits(node.name).kernel or 8
        return arithmetic_of(source, bits, self.numbers[node.name]) == "int32"

    def logits(self, x):
        """Output of the last node."""
        found = {
            name: kernel.quantized(self._step(self.net.node(name).inputs[0]))
            for name, kernel in self.kernels.items()
        }
        kernels, biases, grids = ({n: parts[i] for n, parts in found.items()} for i in range(3))
        accumulators = {
            node.name: self._accumulator_step(node, grids.get(node.name))
            for node in self.net.nodes
            if node.has_own_map
        }
        results = ops.run(
            self.net,
            x,
            on_map=lambda name, y: self.maps[name](y, accumulators.get(name)),
            kernels=kernels,
            biases=biases,
        )
        return results[self.net.nodes[-1].name]

    def folded(self, maps: Maps) -> tuple[FoldedNet, Maps]:
        """Network and number formats with the factors in them."""
        weights = {name: kernel.folded() for name, kernel in self.kernels.items()}
        net = self.net.with_weights(
            {name: pair[0] for name, pair in weights.items()},
            {name: pair[1] for name, pair in weights.items()},
        )
        return net, {
            name: {**maps[name], self.widths[name]: one.folded()} for name, one in self.maps.items()
        }
