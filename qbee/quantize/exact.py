"""TensorFlow twins of ``fixed_point``: integer arithmetic in int64, on any graph of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qbee.keras import tf
from qbee.quantize import fixed_point, logistic
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import NO_PADDING, Node
from qbee.quantize.live import LiveMap

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


def shifted_int32(accumulator, multipliers, *, is_signed: bool):
    """``requantize_int32`` for powers of two, in floating point: exact and much faster.

    In float32, sums must be below 2^23; in float64 they always are below its 2^52. What results
    beyond that is saturated anyway, and so are negative results unless ``is_signed``.
    """
    left, right = tf.maximum(multipliers, 0.5) * 2, tf.minimum(multipliers, 0.5) * 2
    # Multipliers below 2^-32 are 0 on the device.
    right = tf.where(multipliers < 2.0**-32, tf.zeros_like(right), right)
    first = tf.floor((accumulator * left + 1) * 0.5)
    if not is_signed:
        return tf.floor(first * right + 0.5)
    return tf.sign(first) * tf.floor(tf.abs(first) * right + 0.5)


def shifted_int64(accumulator, multipliers):
    """``requantize_int64`` for powers of two, in floating point, as ``shifted_int32``."""
    multipliers = tf.where(multipliers < 2.0**-32, tf.zeros_like(multipliers), multipliers)
    return tf.floor(accumulator * multipliers + 0.5)


def float_codes_of(x, number: MapType):
    """Codes, float32, of real values that lie on the grid of ``number``."""
    return tf.round(x * tf.cast(1 / number.step, tf.float32))


def codes_of(x, number: MapType):
    """Codes, int64, of real values that lie on the grid of ``number``."""
    return _int64(tf.round(tf.cast(x, tf.float64) / number.step))


def values_of(codes, number: MapType):
    """Real values, float32, of codes."""
    return tf.cast(codes, tf.float32) * tf.cast(number.step, tf.float32)


def _step(number: MapType):
    # A step is a float32 number, so nothing is lost where TensorFlow takes it for one.
    return tf.cast(number.step, tf.float64)


def add(node: Node, sources: tuple[MapType, ...], target: MapType, a, b):
    """Twin of ``fixed_point.add``."""
    is_narrow = tf.reduce_all([tf.logical_not(m.is_wide) for m in (*sources, target)])
    bits = tf.where(is_narrow, *(_int64(bits) for bits in fixed_point.SUM_SHIFTS))
    twice = 2 * tf.maximum(*(_step(number) for number in sources))
    scaled = [
        requantize_int32(_shift_left(x, bits), _step(m) / twice)
        for x, m in zip((a, b), sources, strict=True)
    ]
    finer = tf.cast(_shift_left(_int64(1), bits), tf.float64)
    return requantize_int32(scaled[0] + scaled[1], twice / (finer * _step(target)))


def multiply(node: Node, sources: tuple[MapType, ...], target: MapType, a, b):
    """Twin of ``fixed_point.multiply``."""
    return requantize_int32(a * b, _step(sources[0]) * _step(sources[1]) / _step(target))


def rescale(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """The same values on another step."""
    return requantize_int32(x, _step(sources[0]) / _step(target))


def mean(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """Twin of ``fixed_point.mean``."""
    count = x.shape[1] * x.shape[2]
    mantissa, shift = quantized_multiplier(_step(sources[0]) / _step(target))
    extra = tf.minimum(_int64(min(count.bit_length() - 1, 32)), 31 + shift)
    total = tf.reshape(tf.reduce_sum(x, [1, 2]), [-1, *node.shape])
    return scaled_int32(total, _shift_left(mantissa, extra) // count, shift - extra)


def average_pool(node: Node, sources: tuple[MapType, ...], target: MapType, x):
    """Twin of ``fixed_point.average_pool``."""
    padding = "VALID" if node.padding == NO_PADDING else "SAME"
    pool = (node.window, node.strides, padding)
    # Codes of at most 16 bits times the window stay exact in float64.
    ones = tf.ones([1, *x.shape[1:3], 1], tf.float64)
    size = node.window[0] * node.window[1]
    share = tf.nn.avg_pool2d(tf.pad(ones, _border(node)), node.window, node.strides, "VALID")
    count = tf.round(share * size)
    zero_point = _int64(target.zero_point)
    stored = tf.cast(x + zero_point, tf.float64)
    total = tf.round(tf.nn.avg_pool2d(stored, *pool) * count)
    half = tf.floor(count / 2)
    rounded = tf.sign(total) * tf.floor((tf.abs(total) + half) / count)
    return _int64(rounded) - zero_point


def _border(node: Node) -> list[tuple[int, int]]:
    return [(0, 0), *node.padding, (0, 0)]


def _logistic_table(number: MapType) -> np.ndarray:
    """The logistic function of all codes of a map, with which only narrow ones are allowed."""
    table = np.zeros(256, np.int64)
    if not number.is_wide:
        lowest, highest = number.codes
        table[: highest - lowest + 1] = logistic.sigmoid(np.arange(lowest, highest + 1), number)
    return table


def sigmoid(node: Node, sources: tuple[MapType | LiveMap, ...], target: MapType, x):
    """Twin of ``logistic.sigmoid``: a table over all codes of the source."""
    source = sources[0]
    if isinstance(source, LiveMap):
        table = source.choice.of([_logistic_table(number) for number in source.formats], tf.int64)
    else:
        table = tf.constant(_logistic_table(source))
    return tf.gather(table, x - _int64(source.codes[0]))


UNWEIGHTED: dict[str, Callable[..., Any]] = {
    "add": add,
    "multiply": multiply,
    "rescale": rescale,
    "mean": mean,
    "average_pool": average_pool,
    "sigmoid": sigmoid,
}
