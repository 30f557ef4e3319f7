"""The device's logistic function in integers (numpy): gemmlowp's fixed-point arithmetic.

Raw int32 values stand for ``raw * 2**(integer_bits - 31)``. The result is within 1e-8 of the true
function, but not equal to it, which shows in values next to a tie.
"""

from __future__ import annotations

import numpy as np

from qbee.quantize.fixed_point import (
    SIGMOID_MAP,
    MapType,
    divide_by_power_of_two,
    quantized_multiplier,
    scaled_int32,
)

INPUT_INTEGER_BITS = 4
FRACTION_BITS = 31 - INPUT_INTEGER_BITS
INT32_MAX = 2**31 - 1
# exp(-2**n) with 31 fraction bits, by n.
_EXP_OF_POWERS = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
}
_EXP_EIGHTH, _THIRD = 1895147668, 715827883
_48_17, _MINUS_32_17 = 1515870810, -1010580540


def _product(a, b):
    """Rounding, doubling high product."""
    return (np.asarray(a, np.int64) * b + 2**30) >> 31


def _shifted_left(x, bits: int):
    return np.clip(np.asarray(x, np.int64) << bits, -(2**31), INT32_MAX)


def _exp_near_zero(a):
    """``exp(a)`` for a in [-1/4, 0), both with 31 fraction bits: Taylor's series at -1/8."""
    x = a + 2**28
    x2 = _product(x, x)
    x3, x4 = _product(x2, x), _product(x2, x2)
    series = _product(divide_by_power_of_two(x4, 2) + x3, _THIRD) + x2
    return _EXP_EIGHTH + _product(_EXP_EIGHTH, x + divide_by_power_of_two(series, 1))


def _exp_of_negative(a):
    """``exp(a)``, 31 fraction bits, for a <= 0 with 27."""
    quarter = 1 << (FRACTION_BITS - 2)
    rest = (a & (quarter - 1)) - quarter
    result = _exp_near_zero(_shifted_left(rest, INPUT_INTEGER_BITS))
    for power, factor in _EXP_OF_POWERS.items():
        is_set = ((rest - a) >> (FRACTION_BITS + power)) & 1
        result = np.where(is_set == 1, _product(result, factor), result)
    return np.where(a == 0, INT32_MAX, result)


def _one_over_one_plus(a):
    """``1 / (1 + a)`` for a in [0, 1], both with 31 fraction bits: three steps of Newton's."""
    half = (a + INT32_MAX + 1) >> 1
    x = _48_17 + _product(half, _MINUS_32_17)
    for _ in range(3):
        x = x + _shifted_left(_product(x, 2**29 - _product(half, x)), 2)
    return _shifted_left(x, 1)


def _logistic(a):
    """``1 / (1 + exp(-a))``, 31 fraction bits, for a with 27."""
    of_magnitude = _one_over_one_plus(_exp_of_negative(-np.abs(a)))
    return np.where(a == 0, 2**30, np.where(a > 0, of_magnitude, INT32_MAX - of_magnitude))


def sigmoid(codes: np.ndarray, source: MapType) -> np.ndarray:
    """Codes of ``SIGMOID_MAP`` of codes of a map of at most 8 bits, int64 [same shape]."""
    codes = np.asarray(codes, np.int64)
    mantissa, shift = quantized_multiplier(source.step * 2.0**FRACTION_BITS)
    radius = int(np.floor((2.0**INPUT_INTEGER_BITS - 1) * 2.0 ** (FRACTION_BITS - float(shift))))
    inside = np.clip(codes, -radius + 1, radius - 1)
    found = divide_by_power_of_two(_logistic(scaled_int32(inside, mantissa, shift)), 23)
    found = np.clip(found, *SIGMOID_MAP.codes)
    return np.where(codes <= -radius, 0, np.where(codes >= radius, 255, found))
