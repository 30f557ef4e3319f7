"""TensorFlow twins of ``fixed_point``: integer arithmetic in int64, on any graph of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qbee.keras import tf
from qbee.quantize import fixed_point, logistic
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import NO_PADDING, Node

_shift_left, _shift_right = tf.bitwise.left_shift, tf.bitwise.right_shift


def _int64(value):
    return tf.cast(value, tf.int64)


def quantized_multiplier(real):
    """Mantissas and shifts, int64, of positive float64 multipliers (from their bits)."""
    bits = tf.bitcast(real, tf.int64)
    exponent = _shift_right(bits, _int64(52)) - 1022
    fraction = tf.bitwise.bitwise_and(bits, 2**52 - 1) + 2**52
    mantissa = _shift_right(fraction + 2**21, _int64(22))
    is_one = mantissa == 2**31
    mantissa, shift = tf.where(is_one, _int64(2**30), mantissa), exponent + _int64(is_one)
    is_gone = shift < -31
    return tf.where(is_gone, _int64(0), mantissa), tf.where(is_gone, _int64(0), shift)


def _divide_by_power_of_two(x, shift):
    mask = _shift_left(tf.ones_like(shift), shift) - 1
    threshold = _shift_right(mask, _int64(1)) + _int64(x < 0)
    return _shift_right(x, shift) + _int64(tf.bitwise.bitwise_and(x, mask) > threshold)


def scaled_int32(codes, mantissa, shift):
    """Twin of ``fixed_point.scaled_int32``."""
    left, right = tf.maximum(shift, 0), tf.maximum(-shift, 0)
    product = _shift_left(codes, left) * mantissa
    return _divide_by_power_of_two(_shift_right(product + 2**30, _int64(31)), right)


def requantize_int32(accumulator, multipliers):
    """Twin of ``fixed_point.requantize_int32``."""
    return scaled_int32(accumulator, *quantized_multiplier(multipliers))


def requantize_int64(accumulator, multipliers):
    """Twin of ``fixed_point.requantize_int64``."""
    mantissa, shift = quantized_multiplier(multipliers)
    reduced = tf.minimum(_shift_right(mantissa + 2**15, _int64(16)), 0x7FFF)
    total = 15 - shift
    half = _shift_left(tf.ones_like(total), total - 1)
    return _shift_right(accumulator * reduced + half, total)


def codes_of(x, number: MapType):
    """Codes, int64, of real values that lie on the grid of ``number``."""
    return _int64(tf.round(tf.cast(x, tf.float64) / number.step))


def values_of(codes, number: MapType):
    """Real values, float32, of codes."""
    return tf.cast(codes, tf.float32) * np.float32(number.step)


def _multiplier(real: float):
    return tf.constant(real, tf.float64)


def add(node: Node, sources: tuple[MapType, ...], target: MapType, a, b):
    """Twin of ``fixed_point.add``."""
    bits = fixed_point.sum_shift(sources, target)
    twice = 2 * max(m.step for m in sources)
    scaled = [
        requantize_int32(x * 2**bits, _multiplier(m.step / twice))
        for x, m in zip((a, b), sources, strict=True)
    ]
    return requantize_int32(scaled[0] + scaled[1], _multiplier(twice / (2**bits * target.step)))


def multiply(node: Node, sources: tuple[MapType, ...], target: MapType, a, b):
    """Twin of ``fixed_point.multiply``."""
    return requantize_int32(a * b, _multiplier(sources[0].step * sources[1].step / target.step))


def rescale(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """The same values on another step."""
    return requantize_int32(x, _multiplier(sources[0].step / target.step))


def mean(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """Twin of ``fixed_point.mean``."""
    count = x.shape[1] * x.shape[2]
    real = sources[0].step / target.step
    mantissa, shift = (int(v) for v in fixed_point.quantized_multiplier(real))
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    total = tf.reshape(tf.reduce_sum(x, [1, 2]), [-1, *node.shape])
    return scaled_int32(total, _int64((mantissa << extra) // count), _int64(shift - extra))


def average_pool(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """Twin of ``fixed_point.average_pool``."""
    padding = "VALID" if node.padding == NO_PADDING else "SAME"
    pool = (node.window, node.strides, padding)
    # Codes of at most 16 bits times the window stay exact in float64.
    ones = tf.ones([1, *x.shape[1:3], 1], tf.float64)
    size = node.window[0] * node.window[1]
    share = tf.nn.avg_pool2d(tf.pad(ones, _border(node)), node.window, node.strides, "VALID")
    count = tf.round(share * size)
    stored = tf.cast(x + target.zero_point, tf.float64)
    total = tf.round(tf.nn.avg_pool2d(stored, *pool) * count)
    half = tf.floor(count / 2)
    rounded = tf.sign(total) * tf.floor((tf.abs(total) + half) / count)
    return _int64(rounded) - target.zero_point


def _border(node: Node) -> list[tuple[int, int]]:
    return [(0, 0), *node.padding, (0, 0)]


def sigmoid(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """Twin of ``logistic.sigmoid``: a table over all codes of the source."""
    lowest, highest = sources[0].codes
    table = logistic.sigmoid(np.arange(lowest, highest + 1), sources[0])
    return tf.gather(tf.constant(table), x - lowest)


UNWEIGHTED: dict[str, Callable[..., Any]] = {
    "add": add,
    "multiply": multiply,
    "rescale": rescale,
    "mean": mean,
    "average_pool": average_pool,
    "sigmoid": sigmoid,
}
