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

import numpy as np
from pydantic import Field

from qbee.errors import ParameterError
from qbee.keras import keras, tf
from qbee.quantize import ops
from qbee.quantize.calibrate import Maps
from qbee.quantize.fold import FoldedNet
from qbee.quantize.quantizers import Alpha
from qbee.quantize.scheme import Scheme
from qbee.quantize.sharing import OneStep
from qbee.quantize.student import Student
from qbee.records import Record
from qbee.train.distill import losses

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
    """A fine-tuned network and its number formats.

    ``losses`` are RMSE of logits over all inputs: before training, and after each epoch. The
    network is that of the smallest.
    """

    net: FoldedNet
    maps: Maps
    losses: tuple[float, ...]


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

    def __init__(
        self,
        student: Student,
        inputs: np.ndarray,
        settings: FatSettings,
        teacher: FoldedNet | None = None,
    ):
        self.student, self.inputs = student, inputs
        self.wanted = logits(teacher or student.net, inputs)
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
            loss = losses.rmse(self.student.logits(x), wanted)
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
    is_per_tensor: OneStep = False,
    teacher: FoldedNet | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Tuned:
    """Fine-tune a quantized network on inputs without labels, towards a float network's logits.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n, *input_shape)]
        training inputs; a tenth of a training set is FAT's amount.
    alpha, is_per_tensor
        as in ``quantized_model``, which takes the result.
    teacher : FoldedNet, optional
        float network, of the same inputs and outputs; ``net`` itself by default. Another one
        where ``net`` has the weights of a quantized network that was trained already.
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
    student = Student(
        net,
        scheme,
        maps,
        thresholds=settings.thresholds,
        points=settings.points,
        alpha=alpha,
        is_per_tensor=is_per_tensor,
    )
    training = Training(student, inputs, settings, teacher)
    rng = np.random.default_rng(seed)
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
