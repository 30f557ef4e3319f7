"""Feature-map quantizer: one static step per tensor or, on request, the published behaviour."""

from __future__ import annotations

import inspect

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras, known_to_qkeras, qkeras, tf
from qbee.quantize.fixed_point import MapType
from qbee.quantize.map_grid import (
    best_power_of_two,
    codes_of,
    divided,
    nearest_power_of_two,
    published,
)
from qbee.quantize.power_of_two import is_power_of_two
from qbee.quantize.quantizers import straight_through

# Candidates reach 2^-3 of it, and float32 numbers below 2^-126 are not normal.
SMALLEST_STEP = 2.0**-120
POSITIONAL = ("bits", "integer", "symmetric", "keep_negative")
# The moving range of a quantizer that has seen nothing: no minimum, no step.
UNSEEN = (0.0, -1.0)


@known_to_qkeras
class quantized_bits_featuremap(keras.layers.Layer, qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """Feature-map quantizer with one step per tensor, which is static at inference.

    Without ``step`` it is a moving average over training batches, saved with the model's weights
    and frozen at inference and by ``trainable = False``. The first batch that is not all zero
    sets it, in training or not. An all-zero map has step 1.

    Parameters
    ----------
    bits : int in [2, 16]
    integer, symmetric : int
        accepted because QKeras' strings have them; no numerical effect.
    keep_negative : bool
        codes ``-2**(bits-1)..2**(bits-1)-1`` if True; else ``0..2**bits-1`` (16 bits: 2^15-1),
        and the quantizer is a ReLU too.
    alpha : 'auto_po2' or 'auto'
        auto: average of the steps with which the highest code reaches each batch's peak.
        auto_po2: power of two nearest to the average of the batches' powers of two of least
        squared error. The errors cannot be averaged themselves: the candidate steps they belong
        to move with the peak.
    scale_axis : int >= 0 or None
        axis that keeps its own steps if ``dynamic`` (0: each sample; None: the last); else no
        effect.
    dynamic : bool
        the published class: step and zero point of each call from its own data, gradient 1.
    is_affine : bool
        the codes cover [minimum, maximum] and 0; up to 8 bits, alpha='auto'.
    step : float32 number or None
        calibrated step, fixed for ever.
    lowest : int or None
        lowest code of a calibrated affine map.
    momentum : float in [0, 1)
        weight of the past in moving averages.

    Raises
    ------
    ParameterError
        if an argument is out of range or contradicts another one.

    Notes
    -----
    It is a Keras layer because only layers are told ``training`` and have their variables saved
    in every format. QActivation shares an object with its clones and cannot load one from a
    .keras file, whatever the quantizer: give it the string.
    """

    def __init__(
        self,
        bits=8,
        integer=0,
        symmetric=1,
        keep_negative=True,
        alpha="auto_po2",
        scale_axis=None,
        dynamic=False,
        is_affine=False,
        step=None,
        lowest=None,
        momentum=0.99,
    ):
        super().__init__(dtype="float32", autocast=False)
        self.bits, self.integer, self.symmetric = bits, int(integer), int(symmetric)
        self.keep_negative, self.alpha, self.scale_axis = bool(keep_negative), alpha, scale_axis
        # Keras layers have a property named dynamic.
        self.is_dynamic, self.is_affine = bool(dynamic), bool(is_affine)
        self.step, self.lowest, self.momentum = step, lowest, momentum
        _check(self)
        if lowest is None:
            lowest = -(2 ** (bits - 1)) if keep_negative else 0
        # If the step moves, 1 is the step of a map that was always 0.
        self.fixed = MapType(bits, lowest, 1.0 if step is None else step)
        if self.is_moving:
            unseen = keras.initializers.Constant(UNSEEN)
            name = f"{self.name}_range"
            self.moving_range = self.add_weight(name, (2,), "float32", unseen, trainable=False)

    @classmethod
    def of(cls, number: MapType) -> quantized_bits_featuremap:
        """Quantizer with this number format for ever."""
        is_affine = number.lowest not in (0, -(2 ** (number.bits - 1)))
        is_po2 = is_power_of_two(number.step) and not is_affine
        return cls(
            number.bits,
            keep_negative=number.is_signed,
            alpha="auto_po2" if is_po2 else "auto",
            is_affine=is_affine,
            step=number.step,
            lowest=number.lowest if is_affine else None,
        )

    @property
    def is_moving(self) -> bool:
        """Whether the step comes from training batches or ``calibrate``."""
        return self.step is None and not self.is_dynamic

    @property
    def number(self) -> MapType:
        """Number format at inference.

        Raises
        ------
        ParameterError
            if there is none: dynamic, or no data seen yet.
        """
        if self.is_dynamic or (self.is_moving and self.moving_range[1] < 0):
            raise ParameterError(f"{self} must be calibrated, or see a batch, to have a step")
        lowest, _, step = self._grid()
        return MapType(self.bits, int(lowest), float(step))

    def calibrate(self, x) -> MapType:
        """Set the range from ``x`` [any shape] alone and return the number format.

        Raises
        ------
        ParameterError
            if the step does not move, or ``x`` is empty or not finite.
        """
        if not self.is_moving:
            raise ParameterError(f"{self} must have a moving step to be calibrated")
        x = tf.convert_to_tensor(x)
        if 0 in x.shape or not tf.reduce_all(tf.math.is_finite(x)):
            raise ParameterError(f"x of shape={x.shape} must be finite and not empty")
        self.moving_range.assign(self._observed(x))
        return self.number

    def codes(self, x):
        """Codes, float64 [same shape], of ``x`` at the present step."""
        if self.is_dynamic:
            codes = published(x, bits=self.bits, scale_axis=self.scale_axis)[1]
            return tf.cast(codes, tf.float64)
        return codes_of(x, *self._grid())

    def call(self, inputs, training=None):
        """Quantized ``inputs``; on the grid exactly, without gradient outside the range."""
        x = tf.convert_to_tensor(inputs)
        x = x if x.dtype.is_floating else tf.cast(x, tf.float32)
        if self.is_dynamic:
            return published(x, bits=self.bits, scale_axis=self.scale_axis)[0]
        if self.is_moving:
            self._observe(x, training)
        lowest, highest, step = self._grid()
        low, high, values = (
            tf.cast(codes * step, x.dtype)
            for codes in (lowest, highest, codes_of(x, lowest, highest, step))
        )
        return straight_through(tf.clip_by_value(x, low, high), values)

    def _grid(self):
        """Lowest code, highest code and step, float64 scalars."""
        lowest, highest, step = (
            tf.constant(value, tf.float64) for value in (*self.fixed.codes, self.fixed.step)
        )
        if not self.is_moving:
            return lowest, highest, step
        low, average = self.moving_range[0], self.moving_range[1]
        if self.alpha == "auto_po2":
            average = nearest_power_of_two(average)
        step = tf.where(self.moving_range[1] > 0, tf.cast(average, tf.float64), 1.0)
        if self.is_affine:
            low = tf.math.floordiv(tf.cast(low, tf.float64) + step / 2, step)
            lowest = tf.clip_by_value(low, lowest, 0.0)
            highest = lowest + (2.0**self.bits - 1)
        return lowest, highest, step

    def _observe(self, x, training):
        """Move the range when training, and as long as there is none."""
        is_training = False if training is None or not self.trainable else training
        tf.cond(
            tf.logical_or(tf.cast(is_training, tf.bool), self.moving_range[1] <= 0),
            lambda: self.moving_range.assign(self._moved(self._observed(x))).read_value(),
            self.moving_range.read_value,
        )

    def _moved(self, observed):
        """Range after a batch; a batch that is zero or not finite tells nothing about it."""
        is_blank = self.moving_range[1] <= 0
        average = self.momentum * self.moving_range + (1 - self.momentum) * observed
        is_telling = tf.math.is_finite(observed[1]) & (is_blank | (observed[1] > 0))
        return tf.where(is_telling, tf.where(is_blank, observed, average), self.moving_range)

    def _observed(self, x):
        """Minimum (at most 0) of ``x`` and the step that suits it, 0 if ``x`` is zero."""
        x = tf.cast(tf.stop_gradient(x), tf.float32)
        x = x if self.keep_negative else tf.maximum(x, 0.0)
        low, high = tf.minimum(tf.reduce_min(x), 0.0), tf.maximum(tf.reduce_max(x), 0.0)
        lowest, highest = self.fixed.codes
        if self.is_affine:
            span = tf.cast(high, tf.float64) - tf.cast(low, tf.float64)
            # At most half of the codes are negative, however negative the map is.
            step = tf.maximum(divided(span, 2**self.bits - 1), divided(-low, -lowest))
        else:
            step = divided(tf.maximum(high, -low), highest)
        step = tf.where(step > 0, tf.maximum(step, SMALLEST_STEP), step)
        is_po2 = self.alpha == "auto_po2"
        return tf.stack([low, best_power_of_two(x, step, lowest, highest) if is_po2 else step])

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        names = [name for name in _parameters(self) if name != "dynamic"]
        return {name: getattr(self, name) for name in names} | {"dynamic": self.is_dynamic}

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)

    def __str__(self) -> str:
        config = self.get_config()
        # QKeras reads strings back with a parser that does not know None.
        shown = [str(int(config[name])) for name in POSITIONAL] + [f"alpha={self.alpha!r}"]
        for name, parameter in _parameters(self).items():
            if name not in (*POSITIONAL, "alpha") and config[name] != parameter.default:
                shown.append(f"{name}={config[name]!r}")
        return f"quantized_bits_featuremap({','.join(shown)})"


def _parameters(quantizer) -> dict[str, inspect.Parameter]:
    """Parameters of the constructor by name."""
    return dict(inspect.signature(type(quantizer)).parameters)


def _check(q: quantized_bits_featuremap) -> None:
    """Refuse arguments out of range and contradictions."""
    is_auto = q.alpha == "auto"
    rules = {
        f"bits={q.bits} must be in [2, 16]": 2 <= q.bits <= 16,
        f"alpha={q.alpha!r} must be 'auto' or 'auto_po2'": is_auto or q.alpha == "auto_po2",
        f"momentum={q.momentum} must be in [0, 1)": 0 <= q.momentum < 1,
        f"scale_axis={q.scale_axis} must be None or at least 0": (q.scale_axis or 0) >= 0,
        f"step={q.step} must be a positive float32 number": (
            q.step is None or 0 < q.step == float(np.float32(q.step))
        ),
        f"step={q.step} must be a power of two with alpha='auto_po2'": (
            q.step is None or is_auto or is_power_of_two(q.step)
        ),
        "is_affine=True must have alpha='auto', bits <= 8 and keep_negative=True": (
            not q.is_affine or (is_auto and q.bits <= 8 and q.keep_negative)
        ),
        f"lowest={q.lowest} must be given if is_affine=True has a step, and only then": (
            (q.lowest is not None) == (q.is_affine and q.step is not None)
        ),
        "dynamic=True must have alpha='auto', the only one published": not q.is_dynamic or is_auto,
        "dynamic=True must have keep_negative=True, is_affine=False and step=None": (
            not q.is_dynamic or (q.keep_negative and not q.is_affine and q.step is None)
        ),
    }
    for message, holds in rules.items():
        if not holds:
            raise ParameterError(message)
