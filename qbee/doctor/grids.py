"""What a quantizer does to an array: the quantized values and the grid they lie on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from qbee.keras import qkeras, tf
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.graph import CHANNEL_AXIS, Op
from qbee.quantize.power_of_two import covering_exponent
from qbee.quantize.quantizers import Alpha, quantized_bias, quantized_kernel

# log2(1e-7) to the nearest integer: QKeras' auto_po2 has no finer step than 2^(integer-23).
EPSILON_EXPONENT = -23
# Differences of float32 values below this part of the peak are rounding errors.
NOISE = 1e-6


@dataclass(frozen=True, eq=False)
class Grid:
    """Uniform grid: values are codes times ``steps``, which broadcast to the tensor.

    ``lowest`` and ``highest`` are None if only the values tell the grid.
    """

    steps: np.ndarray
    lowest: float | None = None
    highest: float | None = None
    is_relu: bool = False

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Codes, float64, of values on the grid."""
        return np.rint(values / self.steps)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Values without the rounding error that QKeras' straight-through estimator adds."""
        return self.codes(values) * self.steps

    def excess(self, x: np.ndarray) -> np.ndarray | None:
        """Whether each value lies beyond the codes by more than half a step."""
        if self.lowest is None or self.highest is None:
            return None
        beyond = x > (self.highest + 0.5) * self.steps
        return beyond if self.is_relu else beyond | (x < (self.lowest - 0.5) * self.steps)


def is_quantizer(value: Any) -> bool:
    """Whether it is one of QKeras' or ours, rather than an activation function or None."""
    return isinstance(value, qkeras.quantizers.BaseQuantizer)


def is_relu(quantizer) -> bool:
    """Whether a quantizer of maps is a ReLU, too."""
    return isinstance(quantizer, qkeras.quantized_relu) or not getattr(
        quantizer, "keep_negative", True
    )


def quantized(quantizer, x: np.ndarray) -> tuple[np.ndarray, Grid | None]:
    """Quantized ``x``, float32 [same shape], and the grid it lies on (None: not uniform)."""
    if isinstance(quantizer, qkeras.quantized_bits):
        # It keeps the scale of its last call.
        quantizer = copy.copy(quantizer)
    after = np.asarray(quantizer(tf.constant(x, tf.float32)))
    return after, grid_of(quantizer, x, after)


@singledispatch
def grid_of(quantizer, x: np.ndarray, after: np.ndarray) -> Grid | None:
    """Grid of a quantizer that has just made ``after`` of ``x``.

    For unknown quantizers, that of the distinct values of each channel (last axis).
    """
    channels = [inferred_step(values) for values in np.moveaxis(after, -1, 0)]
    steps = np.array([np.nan if step is None else step for step in channels])
    return None if np.isnan(steps).any() else Grid(steps)


@grid_of.register
def _(quantizer: qkeras.quantized_bits, x, after):
    if isinstance(quantizer, qkeras.quantizers.quantized_hswish) or quantizer.bits < 2:
        return None
    keep_negative = bool(quantizer.keep_negative)
    exponent = int(quantizer.integer) - quantizer.bits + keep_negative
    steps = np.asarray(quantizer.scale, np.float64) * 2.0**exponent
    if isinstance(quantizer.alpha, str):
        highest = 2 ** (quantizer.bits - 1) - 1
        return Grid(steps, -highest, highest)
    codes = 2 ** (quantizer.bits - keep_negative)
    lowest = int(bool(quantizer.symmetric)) - codes if keep_negative else 0
    return Grid(steps, lowest, codes - 1, is_relu=not keep_negative)


@grid_of.register
def _(quantizer: qkeras.quantized_relu, x, after):
    if quantizer.negative_slope or quantizer.use_sigmoid:
        return None
    step = 2.0 ** (int(quantizer.integer) - quantizer.bits)
    return Grid(np.array(step), 0, 2**quantizer.bits - 1, is_relu=True)


@grid_of.register
def _(quantizer: quantized_kernel, x, after):
    steps = np.asarray(quantizer.steps(tf.constant(x, tf.float32)), np.float64)
    return Grid(steps, -quantizer.max_code, quantizer.max_code)


@grid_of.register
def _(quantizer: quantized_bias, x, after):
    exponent = covering_exponent(np.max(np.abs(x)), quantizer.max_code)
    return Grid(np.array(2.0**exponent), -quantizer.max_code, quantizer.max_code)


@grid_of.register
def _(quantizer: quantized_bits_featuremap, x, after):
    if quantizer.is_dynamic:
        return grid_of.dispatch(object)(quantizer, x, after)
    number = quantizer.number
    return Grid(np.array(number.step), *number.codes, is_relu=not quantizer.keep_negative)


def inferred_step(values: np.ndarray) -> float | None:
    """Largest step whose multiples the distinct values are, up to float32's rounding.

    None if they are no multiples of their smallest difference; 1 if all are 0.
    """
    distinct = np.unique(np.append(np.asarray(values, np.float64), 0.0))
    peak = np.max(np.abs(distinct))
    if peak == 0:
        return 1.0
    differences = np.diff(distinct)
    step = float(np.min(differences[differences > NOISE * peak]))
    codes = distinct / step
    return step if np.max(np.abs(codes - np.rint(codes))) < 0.01 else None


def is_uniform(quantizer) -> bool:
    """Whether its grid is uniform by design, so that one of ours can replace it."""
    kinds = (
        qkeras.quantized_bits,
        qkeras.quantized_relu,
        quantized_kernel,
        quantized_bias,
        quantized_bits_featuremap,
    )
    if isinstance(quantizer, qkeras.quantizers.quantized_hswish) or not isinstance(
        quantizer, kinds
    ):
        return False
    is_bent = isinstance(quantizer, qkeras.quantized_relu) and (
        quantizer.negative_slope or quantizer.use_sigmoid
    )
    return quantizer.bits >= 2 and not is_bent


def finest_step(quantizer) -> float | None:
    """Finest step that the epsilon of QKeras' auto_po2 allows; None for other quantizers."""
    if not isinstance(quantizer, qkeras.quantized_bits) or quantizer.alpha != "auto_po2":
        return None
    return 2.0 ** (int(quantizer.integer) + EPSILON_EXPONENT)


def kernel_remedy(quantizer, op: Op) -> quantized_kernel | None:
    """Our kernel quantizer of the same bits and kind of step, one step per channel."""
    if not is_uniform(quantizer):
        return None
    given = getattr(quantizer, "alpha", None)
    alpha: Alpha = "auto" if isinstance(given, str) and given == "auto" else "auto_po2"
    return quantized_kernel(min(quantizer.bits, 16), alpha, scale_axis=CHANNEL_AXIS[op])


def bias_remedy(quantizer) -> quantized_bias | None:
    """Our bias quantizer of as many bits, or as many as a bias can have."""
    return quantized_bias(31 if quantizer.bits > 16 else 16) if is_uniform(quantizer) else None


def map_remedy(quantizer, *, is_positive: bool) -> str | None:
    """String of our feature-map quantizer of the same bits; its step must be calibrated."""
    if not is_uniform(quantizer):
        return None
    sign = int(not is_positive)
    return f"quantized_bits_featuremap({min(quantizer.bits, 16)},0,1,{sign},alpha='auto_po2')"


def depends_on_call(quantizer, x: np.ndarray) -> bool:
    """Whether what a value becomes depends on the other values of the call.

    Half of the values are made a thousand times as large; the others must stay what they were.
    """
    x = np.asarray(x[:4], np.float32)
    is_kept = np.random.default_rng(0).random(x.shape) < 0.5
    before, _ = quantized(quantizer, x)
    disturbed, _ = quantized(quantizer, np.where(is_kept, x, 1000 * x))
    return not np.array_equal(before[is_kept], disturbed[is_kept])
