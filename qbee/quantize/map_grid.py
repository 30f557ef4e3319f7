"""Grids of feature maps in TensorFlow: the same numbers in graphs as in eager mode."""

from __future__ import annotations

import math

from qbee.keras import tf
from qbee.quantize.power_of_two import CANDIDATES
from qbee.quantize.quantizers import power_of_two

# The published class takes smaller values for 0, and this off every code before it rounds.
PUBLISHED_ZERO, PUBLISHED_NUDGE = 1e-7, 0.00001526


def divided(value, divisor: int):
    """Float32 quotient, correctly rounded.

    TensorFlow's graphs multiply by a rounded reciprocal instead; in float64 its error is too
    small to change the float32 result.
    """
    return tf.cast(tf.cast(value, tf.float64) / divisor, tf.float32)


def codes_of(x, lowest, highest, step):
    """``floor(x / step + 1/2)``, saturated, float64 [same shape].

    In float32 the largest number below 1/2 plus 1/2 would be 1. ``floordiv`` is exact, whereas
    ``/`` by a constant becomes a product with its reciprocal in graphs.
    """
    codes = tf.math.floordiv(tf.cast(x, tf.float64) + step / 2, step)
    return tf.clip_by_value(codes, lowest, highest)


def _exponent(step, mantissa_added: int):
    """Exponent of a positive float32 after its mantissa, in units of 2^-23, was added to."""
    return tf.bitwise.right_shift(tf.bitcast(step, tf.int32) + mantissa_added, 23) - 127


def nearest_power_of_two(step):
    """Power of two nearest to a positive float32; 3 * 2^k becomes 4 * 2^k."""
    return power_of_two(_exponent(step, 2**22))


def best_power_of_two(x, step, lowest: int, highest: int):
    """Power of two of least squared error near ``step``, with which the grid covers ``x``.

    ``step`` itself if it is 0 or not finite.
    """
    covering = _exponent(step, 2**23 - 1)
    # In units of the covering step, as squares of tiny errors would underflow.
    scaled = x / power_of_two(covering)
    errors = []
    for candidate in CANDIDATES:
        unit = 2.0**candidate
        rounded = tf.clip_by_value(tf.floor(scaled / unit + 0.5), lowest, highest) * unit
        errors.append(tf.reduce_mean((rounded - scaled) ** 2))
    best = tf.gather(tf.constant(CANDIDATES), tf.argmin(tf.stack(errors)))
    return tf.where((step > 0) & (step < math.inf), power_of_two(covering + best), step)


def _half_away(x):
    return tf.sign(x) * tf.floor(tf.abs(x) + 0.5)


def _published_parts(x, bits: int, scale_axis: int | None):
    """Codes, zero points and steps of ``x`` without tiny values."""
    limit, rank = 2 ** (bits - 1) - 1, len(x.shape)
    kept = rank - 1 if scale_axis is None else scale_axis
    axes = [axis for axis in range(rank) if axis != kept] or [0]
    low, high = (f(x, axes, keepdims=True) for f in (tf.reduce_min, tf.reduce_max))
    step = divided(tf.maximum(high, -low), limit)
    span = high * float(-limit) - low * float(limit)
    zero_point = _half_away(tf.math.divide_no_nan(span, high - low))
    scaled = tf.math.divide_no_nan(x, step) + zero_point - PUBLISHED_NUDGE
    return tf.clip_by_value(_half_away(scaled), -limit, limit), zero_point, step


def published(x, *, bits: int, scale_axis: int | None):
    """Values and codes of the published class; its numpy twin is ``published.featuremap``.

    The gradient is 1, and 0 where ``x`` was taken for 0.
    """
    x = tf.where(tf.abs(x) < PUBLISHED_ZERO, tf.zeros_like(x), x)
    codes, zero_point, step = _published_parts(x, bits, scale_axis)
    return x + tf.stop_gradient(step * (codes - zero_point) - x), codes
