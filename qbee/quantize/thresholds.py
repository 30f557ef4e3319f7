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
from qbee.quantize.fixed_point import MapType
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT
from qbee.quantize.layers import kernel_quantizer
from qbee.quantize.quantizers import Alpha, quantized_kernel, straight_through
from qbee.quantize.scheme import Scheme
from qbee.records import Record

# FAT's limits of the trained factors.
SCALE_LIMITS = (0.5, 1.0)
SHIFT_LIMITS = (-0.2, 0.4)
POINT_LIMITS = (0.75, 1.25)
PREDICT_INPUTS = 256


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
    """A fine-tuned network, its number formats, and the loss (RMSE of logits) of each epoch."""

    net: FoldedNet
    maps: Maps
    losses: tuple[float, ...]


def _factor(shape, limits: tuple[float, float], start: float):
    """Trainable factors that the optimizer keeps within limits."""
    return tf.Variable(tf.fill(shape, start), constraint=lambda v: tf.clip_by_value(v, *limits))


def _on_grid(x, step, lowest, highest):
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
        settings: FatSettings,
    ):
        self.kernel, self.bias, self.quantizer = tf.constant(kernel), tf.constant(bias), quantizer
        self.variables: list[Any] = []
        self.point_factors = self.bias_factors = self.scale = None
        if settings.points:
            self.point_factors = _factor(kernel.shape, POINT_LIMITS, 1.0)
            self.bias_factors = _factor(bias.shape, POINT_LIMITS, 1.0)
            self.variables += [self.point_factors, self.bias_factors]
        if settings.thresholds:
            self.scale = _factor(quantizer.steps(self.kernel).shape, SCALE_LIMITS, 1.0)
            self.variables.append(self.scale)

    def weights(self):
        """Kernel and bias in floating point."""
        if self.point_factors is None:
            return self.kernel, self.bias
        return self.kernel * self.point_factors, self.bias * self.bias_factors

    def steps(self, kernel):
        """Steps of the kernel; those of its present peaks or least error, times the scale."""
        steps = self.quantizer.steps(tf.stop_gradient(kernel))
        return steps if self.scale is None else steps * self.scale

    def quantized(self):
        """Quantized kernel, and bias."""
        kernel, bias = self.weights()
        top = float(self.quantizer.max_code)
        return _on_grid(kernel, self.steps(kernel), -top, top), bias

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel, clipped where its thresholds are, and bias: a new peak is a new step."""
        kernel, bias = self.weights()
        limit = self.steps(kernel) * float(self.quantizer.max_code)
        if self.scale is not None:
            kernel = tf.clip_by_value(kernel, -limit, limit)
        return kernel.numpy(), bias.numpy()


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
            self.scale = _factor((), SCALE_LIMITS, 1.0)
            self.variables.append(self.scale)
            if self.is_affine:
                self.shift = _factor((), SHIFT_LIMITS, 0.0)
                self.variables.append(self.shift)

    def _grid(self):
        """Step, lowest and highest code (FAT, eq. 12-14 and 21-23).

        The left end of an unsigned map stays 0: the device's grid must hold zero, which FAT's
        positive left limits would leave out.
        """
        lowest, highest = (float(code) for code in self.number.codes)
        if self.scale is None:
            return self.number.step, lowest, highest
        step = self.number.step * self.scale
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
        return _on_grid(y, *self._grid())

    def folded(self) -> MapType:
        """Number format with the trained thresholds."""
        step, lowest, _ = self._grid()
        return MapType(self.number.bits, int(lowest), float(np.float32(step)))


class _Student:
    """The quantized network with its factors."""

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
            bits = scheme.layers[name].kernel or 8
            op = net.node(name).op
            quantizer = kernel_quantizer(op, bits, alpha, is_per_tensor=is_per_tensor)
            weights = (net.kernels[name], net.biases[name])
            self.kernels[name] = _Kernel(*weights, quantizer, settings)

    @property
    def variables(self) -> list[Any]:
        """All trained factors."""
        parts: list[_Kernel | _Map] = [*self.kernels.values(), *self.maps.values()]
        return [variable for part in parts for variable in part.variables]

    def logits(self, x):
        """Output of the last node."""
        weights = {name: kernel.quantized() for name, kernel in self.kernels.items()}
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


def _step(student: _Student, optimizer):
    """Compiled training step (inputs, float logits) -> RMSE of the logits (FAT, eq. 25)."""
    variables = student.variables

    @tf.function
    def step(x, wanted):
        with tf.GradientTape() as tape:
            error = student.logits(x) - wanted
            loss = tf.sqrt(tf.reduce_mean(error**2))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return step


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
        if thresholds shall be trained with power-of-two kernel steps, or nothing at all.
    """
    if settings.thresholds and alpha != "auto":
        raise ParameterError(f"thresholds=True must have alpha='auto', is {alpha!r}")
    if not settings.thresholds and not settings.points:
        raise ParameterError("thresholds=False and points=False: nothing is left to train")
    student = _Student(net, scheme, maps, settings, alpha, is_per_tensor)
    wanted = logits(net, inputs)
    size = min(settings.batch_inputs, len(inputs))
    batches = len(inputs) // size
    total = settings.cycle_epochs * batches
    rate = keras.optimizers.schedules.CosineDecay(settings.max_rate, total)
    optimizer = keras.optimizers.Adam(rate)
    step = _step(student, optimizer)
    rng, losses = np.random.default_rng(seed), []
    epochs = settings.cycles * settings.cycle_epochs
    for epoch in range(epochs):
        if epoch % settings.cycle_epochs == 0:
            _reset(optimizer, student)
        order = rng.permutation(len(inputs))
        chosen = (order[i * size : (i + 1) * size] for i in range(batches))
        loss = np.mean([float(step(tf.constant(inputs[i]), wanted[i])) for i in chosen])
        if not math.isfinite(loss):
            raise ParameterError(
                f"max_rate={settings.max_rate} must be smaller: the loss overflows"
            )
        losses.append(float(loss))
        if on_progress is not None:
            on_progress(epoch + 1, epochs, losses[-1])
    return Tuned(*student.folded(maps), tuple(losses))


def _reset(optimizer, student: _Student) -> None:
    """Forget moments and step count: the learning rate starts from its maximum again."""
    optimizer.build(student.variables)
    for variable in optimizer.variables:
        variable.assign(tf.zeros_like(variable))
