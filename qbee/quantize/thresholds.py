"""FAT, fast adjustable thresholds: label-free fine-tuning of a quantized network.

Thresholds are trained as factors of calibrated ones (FAT, eq. 12-15, 21-23) and weights as
point-wise factors of themselves, so that the quantized network's logits come close to the float
network's (eq. 24-25). All of it folds into kernels, biases and the steps of maps: the result is
a network and number formats like those that went in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from qbee.errors import ParameterError
from qbee.keras import keras, tf
from qbee.quantize import ops
from qbee.quantize.calibrate import Maps, formats
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT
from qbee.quantize.layers import kernel_quantizer
from qbee.quantize.quantizers import (
    Alpha,
    quantized_bias,
    quantized_kernel,
    straight_through,
)
from qbee.quantize.scheme import Scheme
from qbee.records import Record

# FAT's limits of the trained factors.
SCALE_LIMITS = (0.5, 1.0)
SHIFT_LIMITS = (-0.2, 0.4)
POINT_LIMITS = (0.75, 1.25)
# Of their peaks, at which thresholds of kernels may start.
START_SHARES = np.linspace(0.2, 1, 33, dtype=np.float32)
PREDICT_INPUTS = 256
# The root of the mean squared error has no gradient at 0.
LEAST_SQUARED_ERROR = 1e-30


class FatSettings(Record):
    """Fine-tuning with Adam and cosine annealing; each cycle starts with a new optimizer.

    ``thresholds`` trains those of kernels and maps, which makes their steps free; ``points``
    trains a factor for each weight and bias.
    """

    cycles: int = Field(2, ge=1)
    cycle_epochs: int = Field(20, ge=1)
    batch_inputs: int = Field(25, ge=1)
    max_rate: float = Field(5e-3, gt=0)
    thresholds: bool = False
    points: bool = True


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network and its number formats.

    ``losses`` are RMSE of logits over all inputs: before training, and after each epoch. The
    network is that of the smallest.
    """

    net: FoldedNet
    maps: Maps
    losses: tuple[float, ...]


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


def on_grid(x, step, lowest, highest):
    """Nearest value on the grid; gradients as FAT, eq. 16-19, also with respect to the grid."""
    codes = tf.clip_by_value(x / step, lowest, highest)
    return straight_through(codes, tf.floor(codes + 0.5)) * step


class _Kernel:
    """A kernel and bias with their factors."""

    def __init__(
        self,
        kernel: np.ndarray,
        bias: np.ndarray,
        quantizer: quantized_kernel,
        bias_bits: int,
        settings: FatSettings,
    ):
        self.kernel, self.bias, self.quantizer = tf.constant(kernel), tf.constant(bias), quantizer
        self.bias_quantizer = quantized_bias(bias_bits)
        self.variables: list[Any] = []
        self.point_factors = self.bias_factors = self.scale = None
        if settings.points:
            self.point_factors = _factor(np.ones_like(kernel), *POINT_LIMITS)
            self.bias_factors = _factor(np.ones_like(bias), *POINT_LIMITS)
            self.variables += [self.point_factors, self.bias_factors]
        if settings.thresholds:
            self.start = best_scales(kernel, quantizer)
            lowest, highest = SCALE_LIMITS
            self.scale = _factor(np.ones_like(self.start), lowest * self.start, highest)
            self.variables.append(self.scale)

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
        """Quantized kernel, and bias on the grid of accumulators (FAT, eq. 20)."""
        kernel, bias = self.weights()
        steps, top = self.steps(kernel), float(self.quantizer.max_code)
        by_channel = tf.broadcast_to(tf.reshape(steps, [-1]), tf.shape(bias))
        grid = tf.cast(by_channel, tf.float64) * tf.cast(source_step, tf.float64)
        return on_grid(kernel, steps, -top, top), self.bias_quantizer.on_grid(bias, grid)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel, clipped where its thresholds are, and bias: a new peak is a new step."""
        kernel, bias = self.weights()
        return self._clipped(kernel).numpy(), bias.numpy()


class _Map:
    """The number format of a map with the factors of its thresholds."""

    def __init__(self, number: MapType, settings: FatSettings):
        self.number = number
        lowest, highest = number.codes
        self.is_affine = lowest not in (0, -(2 ** (number.bits - 1)))
        self.range = (highest - lowest) * number.step
        self.variables: list[Any] = []
        self.scale = self.shift = None
        if settings.thresholds:
            self.scale = _factor(1.0, *SCALE_LIMITS)
            self.variables.append(self.scale)
            if self.is_affine:
                self.shift = _factor(0.0, *SHIFT_LIMITS)
                self.variables.append(self.shift)

    @property
    def step(self):
        """Trained step."""
        return self.number.step if self.scale is None else self.number.step * self.scale

    def _grid(self):
        """Step, lowest and highest code (FAT, eq. 12-14 and 21-23).

        The left end of an unsigned map stays 0: the device's grid must hold zero, which FAT's
        positive left limits would leave out.
        """
        lowest, highest = (float(code) for code in self.number.codes)
        step = self.step
        if self.shift is not None:
            left = lowest * self.number.step + self.shift * self.range
            bottom = -(2.0 ** (self.number.bits - 1))
            codes = tf.clip_by_value(left / step, bottom, 0.0)
            span = highest - lowest
            lowest = straight_through(codes, tf.floor(codes + 0.5))
            highest = lowest + span
        return step, lowest, highest

    def __call__(self, y):
        """The map on its grid."""
        return on_grid(y, *self._grid())

    def folded(self) -> MapType:
        """Number format with the trained thresholds."""
        step, lowest, _ = self._grid()
        return MapType(self.number.bits, int(lowest), float(np.float32(step)))


class Student:
    """The quantized network with its factors, in floating point."""

    def __init__(
        self,
        net: FoldedNet,
        scheme: Scheme,
        maps: Maps,
        settings: FatSettings,
        alpha: Alpha,
        is_per_tensor: bool,
    ):
        scheme.check(net)
        self.net = net
        self.widths: dict[str, int] = {INPUT: scheme.input_bits} | {
            n: b.map for n, b in scheme.layers.items()
        }
        numbers = formats(net, maps, self.widths)
        self.maps = {name: _Map(numbers[name], settings) for name in (INPUT, *net.maps)}
        self.kernels = {}
        for name in net.weighted:
            bits = scheme.layers[name]
            assert bits.kernel is not None and bits.bias is not None
            op = net.node(name).op
            quantizer = kernel_quantizer(op, bits.kernel, alpha, is_per_tensor=is_per_tensor)
            weights = (net.kernels[name], net.biases[name])
            self.kernels[name] = _Kernel(*weights, quantizer, bits.bias, settings)

    @property
    def variables(self) -> list[Any]:
        """All trained factors."""
        parts: list[_Kernel | _Map] = [*self.kernels.values(), *self.maps.values()]
        return [variable for part in parts for variable in part.variables]

    def _step(self, name: str):
        """Step of the result of the input or of any node."""
        if name in self.maps:
            return self.maps[name].step
        node = self.net.node(name)
        return SIGMOID_MAP.step if node.op == "sigmoid" else self._step(node.inputs[0])

    def start(self) -> None:
        """Move thresholds of kernels from the peaks to where training starts."""
        for kernel in self.kernels.values():
            if kernel.scale is not None:
                kernel.scale.assign(kernel.start)

    def logits(self, x):
        """Output of the last node."""
        weights = {
            name: kernel.quantized(self._step(self.net.node(name).inputs[0]))
            for name, kernel in self.kernels.items()
        }
        found = ops.run(
            self.net,
            x,
            on_map=lambda name, y: self.maps[name](y),
            kernels={name: pair[0] for name, pair in weights.items()},
            biases={name: pair[1] for name, pair in weights.items()},
        )
        return found[self.net.nodes[-1].name]

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


def logits(net: FoldedNet, x: np.ndarray) -> np.ndarray:
    """Output of the last node of a float network for inputs [n, *input_shape]."""
    run = tf.function(lambda batch: ops.run(net, batch)[net.nodes[-1].name])
    parts = [
        run(tf.constant(x[i : i + PREDICT_INPUTS])).numpy()
        for i in range(0, len(x), PREDICT_INPUTS)
    ]
    return np.concatenate(parts)


class Training:
    """Steps of a student towards the logits of its teacher, the float network."""

    def __init__(self, student: Student, inputs: np.ndarray, settings: FatSettings):
        self.student, self.inputs = student, inputs
        self.wanted = logits(student.net, inputs)
        self.batch_inputs = min(settings.batch_inputs, len(inputs))
        self.batches = len(inputs) // self.batch_inputs
        steps = settings.cycle_epochs * self.batches
        rate = keras.optimizers.schedules.CosineDecay(settings.max_rate, steps)
        self.optimizer = keras.optimizers.Adam(rate)
        self._step, self._error = tf.function(self._trained), tf.function(self._squared_error)

    def _squared_error(self, x, wanted):
        return tf.reduce_mean((self.student.logits(x) - wanted) ** 2)

    def _trained(self, x, wanted):
        """One step down the RMSE of the logits (FAT, eq. 25)."""
        variables = self.student.variables
        with tf.GradientTape() as tape:
            loss = tf.sqrt(tf.maximum(self._squared_error(x, wanted), LEAST_SQUARED_ERROR))
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def restart(self) -> None:
        """Forget moments and step count: the learning rate starts from its maximum again."""
        self.optimizer.build(self.student.variables)
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def epoch(self, order: np.ndarray) -> None:
        """Steps over all inputs in this order, without an incomplete last batch."""
        size = self.batch_inputs
        for start in range(0, self.batches * size, size):
            i = order[start : start + size]
            self._step(tf.constant(self.inputs[i]), tf.constant(self.wanted[i]))

    def loss(self) -> float:
        """RMSE of the logits over all inputs."""
        total = 0.0
        for start in range(0, len(self.inputs), PREDICT_INPUTS):
            part = slice(start, start + PREDICT_INPUTS)
            x, wanted = self.inputs[part], self.wanted[part]
            total += len(x) * float(self._error(tf.constant(x), tf.constant(wanted)))
        if not math.isfinite(total):
            raise ParameterError("inputs, kernels and biases must be smaller: the loss overflows")
        return math.sqrt(total / len(self.inputs))


def tune(
    net: FoldedNet,
    scheme: Scheme,
    maps: Maps,
    inputs: np.ndarray,
    *,
    settings: FatSettings,
    seed: int,
    alpha: Alpha = "auto_po2",
    is_per_tensor: bool = False,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Tuned:
    """Fine-tune a quantized network on inputs without labels; the float network is the teacher.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n, *input_shape)]
        training inputs; a tenth of a training set is FAT's amount.
    alpha, is_per_tensor
        as in ``quantized_model``, which takes the result.
    on_progress : callable (epoch, epochs, loss), optional

    Raises
    ------
    ParameterError
        if thresholds shall be trained with power-of-two kernel steps, or nothing at all, if there
        are no inputs, or if logits overflow.
    """
    if settings.thresholds and alpha != "auto":
        raise ParameterError(f"thresholds=True must have alpha='auto', is {alpha!r}")
    if not settings.thresholds and not settings.points:
        raise ParameterError("thresholds=False and points=False: nothing is left to train")
    if not len(inputs):
        raise ParameterError("inputs must hold at least one input to fine-tune with")
    student = Student(net, scheme, maps, settings, alpha, is_per_tensor)
    training, rng = Training(student, inputs, settings), np.random.default_rng(seed)
    losses, best = [training.loss()], [v.numpy() for v in student.variables]
    student.start()
    epochs = settings.cycles * settings.cycle_epochs
    for epoch in range(epochs):
        if epoch % settings.cycle_epochs == 0:
            training.restart()
        training.epoch(rng.permutation(len(inputs)))
        losses.append(training.loss())
        if losses[-1] < min(losses[:-1]):
            best = [v.numpy() for v in student.variables]
        if on_progress is not None:
            on_progress(epoch + 1, epochs, losses[-1])
    for variable, value in zip(student.variables, best, strict=True):
        variable.assign(value)
    return Tuned(*student.folded(maps), tuple(losses))
