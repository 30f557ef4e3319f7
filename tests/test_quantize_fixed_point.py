"""The integer specification against TFLite's C++ in Python's integers, loops and TensorFlow."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qbee.errors import ParameterError
from qbee.keras import tf
from qbee.quantize import fixed_point as fp
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import NO_PADDING, same_padding

INT32 = st.integers(-(2**31), 2**31 - 1)
FREE_STEPS = [float(np.float32(step)) for step in (0.0371, 1.7e-5, 3.3)]
NUMBERS = [
    *(
        MapType.of(bits, is_signed=is_signed, exponent=exponent)
        for bits in (4, 8, 16)
        for is_signed in (True, False)
        for exponent in (-20, -3, 5)
    ),
    *(MapType(bits, -37 % 2**bits - 2**bits, s) for bits in (7, 8) for s in FREE_STEPS),
    *(MapType(bits, 0, step) for bits in (4, 16) for step in FREE_STEPS),
]


def multipliers(lowest, highest):
    """Real multipliers: any, powers of two, and the neighbours of powers of two."""
    powers = st.integers(lowest, highest).map(lambda e: 2.0**e)
    nearly = st.tuples(powers, st.sampled_from([0.0, np.inf])).map(lambda p: math.nextafter(*p))
    return powers | nearly | st.floats(2.0**lowest, 2.0**highest)


def rounded_half_away(x):
    """C++'s std::round of a fraction."""
    return math.floor(x + Fraction(1, 2)) if x >= 0 else math.ceil(x - Fraction(1, 2))


def quantize_multiplier(real):
    """``QuantizeMultiplier`` of quantization_util.cc, in fractions."""
    if real == 0:
        return 0, 0
    fraction, shift = Fraction(real), 0
    while fraction >= 1:
        fraction, shift = fraction / 2, shift + 1
    while fraction < Fraction(1, 2):
        fraction, shift = fraction * 2, shift - 1
    fixed = rounded_half_away(fraction * 2**31)
    if fixed == 2**31:
        fixed, shift = fixed // 2, shift + 1
    return (0, 0) if shift < -31 else (fixed, shift)


def doubling_high_multiply(a, b):
    """gemmlowp's SaturatingRoundingDoublingHighMul on two Python integers."""
    if a == b == -(2**31):
        return 2**31 - 1
    product = a * b
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    # C++ division truncates.
    return nudged // (1 << 31) if nudged >= 0 else -(-nudged // (1 << 31))


def divide_by_power_of_two(x, exponent):
    """gemmlowp's RoundingDivideByPOT on Python integers."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if (x & mask) > threshold else 0)


def scaled_int32(x, multiplier, shift):
    """``MultiplyByQuantizedMultiplier(int32)`` of common.cc."""
    high = doubling_high_multiply(x * (1 << max(shift, 0)), multiplier)
    return divide_by_power_of_two(high, max(-shift, 0))


def rescaled_int32(x, real):
    return scaled_int32(x, *quantize_multiplier(real))


def rescaled_int64(x, real):
    """``MultiplyByQuantizedMultiplier(int64)`` of common.cc: a 15-bit multiplier, one rounding."""
    multiplier, shift = quantize_multiplier(real)
    reduced = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    total = 15 - shift
    return (x * reduced + (1 << (total - 1))) >> total


@given(multipliers(-40, 20))
@example(0.0)
@example(math.nextafter(2.0**-32, 0))
@example(1 - 2.0**-32)
@example(1 - 2.0**-33)
@example((2**30 + 0.5) / 2**31)
@settings(max_examples=1000, deadline=None)
def test_multipliers_are_quantized_as_in_tflite(real):
    mantissa, shift = fp.quantized_multiplier(real)
    assert (int(mantissa), int(shift)) == quantize_multiplier(real)
    if mantissa:
        # Half a unit of the 31-bit mantissa, which is at least 2^30.
        assert abs(Fraction(int(mantissa)) * Fraction(2) ** (int(shift) - 31) / Fraction(real) - 1
                   ) <= Fraction(1, 2**31)  # fmt: skip


@given(INT32, st.integers(2**30, 2**31 - 1) | st.just(0), st.integers(-31, 0))
@example(-(2**31), 2**31 - 1, 0)
@example(2**31 - 1, 2**31 - 1, -31)
@settings(max_examples=1000, deadline=None)
def test_int32_codes_are_scaled_as_on_the_device(x, mantissa, shift):
    expected = scaled_int32(x, mantissa, shift)
    assert fp.scaled_int32(np.array([x]), mantissa, shift) == [expected]


@given(INT32, multipliers(-40, 0))
@settings(max_examples=1000, deadline=None)
def test_int32_sums_are_multiplied_as_on_the_device(x, real):
    assert fp.requantize_int32(np.array([x]), real) == [rescaled_int32(x, real)]


@given(INT32, multipliers(0, 8))
@settings(max_examples=500, deadline=None)
def test_int32_sums_are_multiplied_by_more_than_one_as_on_the_device(x, real):
    # Beyond this the device's int32 overflows.
    assume(abs(x) << max(quantize_multiplier(real)[1], 0) < 2**31)
    assert fp.requantize_int32(np.array([x]), real) == [rescaled_int32(x, real)]


@given(st.integers(-(2**47), 2**47 - 1), multipliers(-34, 7))
@example(2**47 - 1, math.nextafter(1.0, 0))
@example(-(2**47), 0x7FFEFFFF / 2**31)
@example(2**40, 0x7FFF0000 / 2**31)
@settings(max_examples=1000, deadline=None)
def test_int64_sums_are_multiplied_as_on_the_device(x, real):
    # The device takes multipliers below 2^7.
    assume(quantize_multiplier(real)[1] < 8)
    assert fp.requantize_int64(np.array([x]), real) == [rescaled_int64(x, real)]


@pytest.mark.parametrize("real", [*(2.0**-k for k in range(-2, 12)), 0.75, 1 / 3, 0.011, 1.9])
def test_small_sums_around_every_tie_are_multiplied_as_on_the_device(real):
    x = np.arange(-5000, 5001)
    reals = np.full(x.shape, real)
    expected_32 = [rescaled_int32(int(a), real) for a in x]
    expected_64 = [rescaled_int64(int(a), real) for a in x]
    np.testing.assert_array_equal(fp.requantize_int32(x, reals), expected_32)
    np.testing.assert_array_equal(fp.requantize_int64(x, reals), expected_64)


def test_the_two_roundings_differ_where_the_device_rounds_twice():
    # 5 / 4 = 1.25 is 1, but 5 / 2 is first rounded to 3 and 3 / 2 then to 2.
    assert fp.requantize_int32(np.array([5, -7, -6]), 0.25).tolist() == [2, -2, -2]
    assert fp.requantize_int64(np.array([5, -7, -6]), 0.25).tolist() == [1, -2, -1]


def test_every_channel_has_its_own_multiplier():
    x, reals = np.array([[100, 100, 100], [-3, -3, -3]]), np.array([0.125, 1.0, 3.3])
    for found, one in (
        (fp.requantize_int32, rescaled_int32),
        (fp.requantize_int64, rescaled_int64),
    ):
        expected = [[one(v, real) for real in reals] for v in (100, -3)]
        np.testing.assert_array_equal(found(x, reals), expected)


def naive_sum(codes, kernel, op, strides, padding):
    """Convolution by loops over Python's own integers."""
    (top, bottom), (left, right) = padding
    n, height, width, channels = codes.shape
    kh, kw = kernel.shape[:2]
    out_h = (height + top + bottom - kh) // strides[0] + 1
    out_w = (width + left + right - kw) // strides[1] + 1
    total = np.zeros((n, out_h, out_w, kernel.shape[3 if op == "conv" else 2]), object)
    for b, y, x, i, j, c in itertools.product(*map(range, (n, out_h, out_w, kh, kw, channels))):
        row, column = y * strides[0] - top + i, x * strides[1] - left + j
        if 0 <= row < height and 0 <= column < width:
            value = int(codes[b, row, column, c])
            if op == "conv":
                total[b, y, x] += [value * int(w) for w in kernel[i, j, c]]
            else:
                total[b, y, x, c] += value * int(kernel[i, j, c, 0])
    return total.astype(np.int64)


@pytest.mark.parametrize("op", ["conv", "depthwise"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 3), (1, 2)])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (4, 9)])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("padding", ["same", NO_PADDING, ((2, 0), (0, 1))], ids=str)
def test_sums_are_those_of_naive_loops(op, strides, size, window, padding):
    padding = same_padding(size, window, strides) if padding == "same" else padding
    rng = np.random.default_rng(7)
    codes = rng.integers(-(2**15), 2**15, (2, *size, 2))
    kernel = rng.integers(-32512, 32513, (*window, 2, 3 if op == "conv" else 1))
    found = fp.accumulate(codes, kernel, op, strides=strides, padding=padding)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, naive_sum(codes, kernel, op, strides, padding))


def test_dense_sums_are_those_of_naive_loops():
    rng = np.random.default_rng(8)
    codes, kernel = rng.integers(-(2**15), 2**15, (3, 12)), rng.integers(-32512, 32513, (12, 5))
    expected = [
        [sum(int(a) * int(w) for a, w in zip(row, column, strict=True)) for column in kernel.T]
        for row in codes
    ]
    np.testing.assert_array_equal(fp.accumulate(codes, kernel, "dense"), expected)


def test_sums_of_the_largest_codes_are_exact():
    codes, kernel = np.full((1, 1, 1, 4096), 32767), np.full((1, 1, 4096, 1), 32511)
    assert fp.accumulate(codes, kernel, "conv") == 4096 * 32767 * 32511


def test_every_16_bit_kernel_code_is_two_int8_parts():
    codes = np.arange(-fp.MAX_KERNEL_16, fp.MAX_KERNEL_16 + 1)
    hi, lo = fp.split(codes)
    np.testing.assert_array_equal(256 * hi + lo, codes)
    for part in (hi, lo):
        np.testing.assert_array_equal(part, part.astype(np.int8))


@given(st.integers(-(2**46), 2**46))
def test_every_bias_is_256_high_parts_and_a_low_part_in_int8(code):
    hi, lo = (int(part) for part in fp.split(np.array(code)))
    assert 256 * hi + lo == code
    assert -128 <= lo <= 127


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_codes_are_equal_after_the_trip_through_real_values(number):
    codes = np.arange(number.codes[0], number.codes[1] + 1)
    real = fp.dequantize(codes, number)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, (codes * number.step).astype(np.float32))
    np.testing.assert_array_equal(fp.quantize(real, number), codes)


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_quantize_rounds_half_up_to_the_nearest_code_and_saturates(number):
    lowest, highest = number.codes
    x = np.random.default_rng(0).uniform(1.5 * min(lowest, -9), 1.5 * highest, 2000)
    codes = fp.quantize(x * number.step, number)
    inside = (x > lowest - 0.5) & (x < highest + 0.5)
    # Multiplying and dividing by the step errs by two float64 roundings of numbers below 2^16.
    assert np.all(np.abs(codes - x)[inside] <= 0.5 + 2.0**-36)
    assert set(codes[~inside]) == {lowest, highest}
    assert fp.quantize(np.array([-1e30, 1e30]), number).tolist() == [lowest, highest]


@pytest.mark.parametrize("exponent", [-20, -3, 0, 5])
def test_quantize_rounds_halves_up(exponent):
    number = MapType.of(8, is_signed=True, exponent=exponent)
    x = np.array([1.5, 2.5, 2.49999, -1.5, -2.5, -2.50001, -0.5, math.nextafter(-0.5, -1)])
    assert fp.quantize(x * number.step, number).tolist() == [2, 3, 2, -1, -2, -3, 0, -1]


@given(st.sampled_from(NUMBERS), st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
@settings(max_examples=300, deadline=None)
def test_quantize_is_the_floor_of_the_quotient_plus_a_half(number, values):
    x = np.array(values, np.float32)
    lowest, highest = number.codes
    quotients = [float(value) / number.step for value in x]
    expected = [min(max(math.floor(q + 0.5), lowest), highest) for q in quotients]
    assert fp.quantize(x, number).tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_refuses_what_is_not_finite(bad):
    with pytest.raises(ParameterError, match="x must be finite"):
        fp.quantize(np.array([0.0, bad]), NUMBERS[0])


def test_maps_use_all_codes_of_their_width_and_unsigned_16_bits_stop_at_15():
    def codes(bits, is_signed):
        return MapType.of(bits, is_signed=is_signed, exponent=0).codes

    assert [codes(bits, False) for bits in (4, 8, 16)] == [(0, 15), (0, 255), (0, 32767)]
    assert [codes(bits, True) for bits in (4, 8, 16)] == [(-8, 7), (-128, 127), (-32768, 32767)]
    assert MapType(8, -3, 1.0).codes == (-3, 252)
    assert [fp.max_kernel_code(bits) for bits in (4, 8, 16)] == [7, 127, 127 * 256]


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_codes_and_zero_points_fit_the_container_and_int8_saturates_at_the_highest_code(number):
    lowest, highest = (code + number.zero_point for code in number.codes)
    container = (-32768, 32767) if number.is_wide else (-128, 127)
    assert container[0] <= lowest < highest <= container[1]
    assert container[0] <= number.zero_point <= container[1]
    assert highest == container[1]
    assert number.is_signed == (number.codes[0] < 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, 0, 1.0), "bits=1 must be in"),
        ((17, 0, 1.0), "bits=17 must be in"),
        ((8, 1, 1.0), "lowest=1 must be in"),
        ((8, -129, 1.0), "lowest=-129 must be in"),
        ((16, -5, 1.0), "lowest=-5: a map of 16 bits is not affine"),
        ((8, 0, 0.0), "step=0.0 must be a positive float32"),
        ((8, 0, -1.0), "step=-1.0 must be a positive float32"),
        ((8, 0, 0.1), "step=0.1 must be a positive float32"),
        ((8, 0, math.inf), "step=inf must be a positive float32"),
        ((8, 0, math.nan), "step=nan must be a positive float32"),
    ],
)
def test_a_number_format_the_device_does_not_have_is_refused(arguments, named):
    with pytest.raises(ParameterError, match=named):
        MapType(*arguments)


POOLS = [
    ((1, 1), (1, 1)),
    ((2, 2), (2, 2)),
    ((3, 3), (1, 1)),
    ((3, 2), (2, 3)),
    ((5, 4), (3, 1)),
]


@pytest.mark.parametrize(("window", "strides"), POOLS)
@pytest.mark.parametrize("word", ["VALID", "SAME"])
def test_max_pool_is_tensorflows(window, strides, word):
    codes = np.random.default_rng(3).integers(-(2**15), 2**15, (2, 7, 9, 3))
    padding = NO_PADDING if word == "VALID" else same_padding((7, 9), window, strides)
    expected = tf.nn.max_pool2d(codes.astype(np.float32), window, strides, word).numpy()
    np.testing.assert_array_equal(fp.max_pool(codes, window, strides, padding), expected)


def divided_towards_zero(a, b):
    return a // b if a >= 0 else -(-a // b)


def naive_average(stored, window, strides, padding):
    """``AveragePool`` of integer_ops/pooling.h on one channel [height, width]."""
    (top, bottom), (left, right) = padding
    height, width = stored.shape
    out_h = (height + top + bottom - window[0]) // strides[0] + 1
    out_w = (width + left + right - window[1]) // strides[1] + 1
    result = np.zeros((out_h, out_w), int)
    for y, x in np.ndindex(out_h, out_w):
        rows = range(y * strides[0] - top, y * strides[0] - top + window[0])
        columns = range(x * strides[1] - left, x * strides[1] - left + window[1])
        values = [
            int(stored[i, j])
            for i, j in itertools.product(rows, columns)
            if 0 <= i < height and 0 <= j < width
        ]
        half, total = len(values) // 2, sum(values)
        shifted = total + half if total > 0 else total - half
        result[y, x] = divided_towards_zero(shifted, len(values))
    return result


@pytest.mark.parametrize(("window", "strides"), POOLS)
@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize(
    "number",
    [MapType(8, -128, 1.0), MapType(8, 0, 1.0), MapType(8, -41, 0.5), MapType(4, -8, 1.0),
     MapType(16, -32768, 1.0)],
    ids=str,
)  # fmt: skip
def test_averages_are_rounded_as_stored_integers(number, window, strides, is_same):
    lowest, highest = number.codes
    codes = np.random.default_rng(3).integers(lowest, highest + 1, (2, 7, 9, 2))
    padding = same_padding((7, 9), window, strides) if is_same else NO_PADDING
    found = fp.average_pool(codes, number, window, strides, padding)
    for n, channel in np.ndindex(2, 2):
        stored = codes[n, :, :, channel] + number.zero_point
        expected = naive_average(stored, window, strides, padding) - number.zero_point
        np.testing.assert_array_equal(found[n, :, :, channel], expected)


def test_averages_round_half_away_from_the_stored_zero_and_not_from_the_code_0():
    codes = np.array([0, 1]).reshape(1, 1, 2, 1)
    # 127.5 stored and -127.5 stored: one is rounded up and the other one down.
    for number, expected in ((MapType(4, 0, 1.0), 1), (MapType(8, 0, 1.0), 0)):
        assert fp.average_pool(codes, number, (1, 2), (1, 2)).item() == expected


def device_mean(codes, source, target):
    """``QuantizedMeanOrSum`` of reference/reduce.h on codes without zero points."""
    multiplier, shift = quantize_multiplier(source.step / target.step)
    extra = min(len(codes).bit_length() - 1, 32, 31 + shift)
    multiplier = (multiplier << extra) // len(codes)
    return scaled_int32(sum(codes), multiplier, shift - extra)


STEPS = st.floats(2.0**-12, 2.0**4, width=32)


@given(
    st.integers(1, 5), st.integers(1, 7), st.sampled_from([4, 8, 16]), STEPS, STEPS, st.integers(0)
)
@settings(max_examples=300, deadline=None)
def test_means_are_those_of_the_device(height, width, bits, step, other, seed):
    source, target = MapType(bits, -(2 ** (bits - 1)), step), MapType(8, -128, other)
    codes = np.random.default_rng(seed).integers(source.codes[0], source.codes[1] + 1,
                                                 (1, height, width, 2))  # fmt: skip
    # Beyond this the device's int32 overflows.
    assume(height * width * 2 ** (bits - 1) * step / other < 2**29)
    expected = [device_mean(codes[0, :, :, c].ravel().tolist(), source, target) for c in (0, 1)]
    assert fp.mean(codes, source, target).tolist() == [expected]


def device_add(x, y, sources, target, left_shift):
    """``AddFunc`` of integer_ops/add.h on codes without zero points."""
    twice = 2 * max(number.step for number in sources)
    scaled = [
        rescaled_int32(code * (1 << left_shift), number.step / twice)
        for code, number in zip((x, y), sources, strict=True)
    ]
    return rescaled_int32(sum(scaled), twice / ((1 << left_shift) * target.step))


@st.composite
def map_types(draw):
    bits = draw(st.sampled_from([4, 8, 16]))
    lowest = draw(st.sampled_from([0, -(2 ** (bits - 1))]))
    return MapType(bits, lowest, draw(STEPS))


@given(st.data(), map_types(), map_types(), map_types())
@settings(max_examples=500, deadline=None)
def test_sums_of_two_maps_are_those_of_the_device(data, one, other, target):
    is_wide = any(number.bits > 8 for number in (one, other, target))
    left_shift = 15 if is_wide else 20
    # The device demands multipliers below one.
    assume(2 * max(one.step, other.step) / (2**left_shift * target.step) < 1)
    x, y = (data.draw(st.integers(*number.codes)) for number in (one, other))
    expected = device_add(x, y, (one, other), target, left_shift)
    assert fp.add(np.array([x]), np.array([y]), (one, other), target) == [expected]


@given(st.data(), map_types(), map_types(), map_types())
@settings(max_examples=500, deadline=None)
def test_products_of_two_maps_are_those_of_the_device(data, one, other, target):
    x, y = (data.draw(st.integers(*number.codes)) for number in (one, other))
    real = one.step * other.step / target.step
    assume(abs(x * y) << max(quantize_multiplier(real)[1], 0) < 2**31)
    found = fp.multiply(np.array([x]), np.array([y]), (one, other), target)
    assert found == [rescaled_int32(x * y, real)]


@pytest.mark.parametrize("widths", list(itertools.product((4, 8, 16), repeat=3)))
def test_the_arithmetic_follows_the_widest_of_source_kernel_and_target(widths):
    source, kernel, target = widths
    expected = "int64" if 16 in widths else "int32"
    expected = "int64_split" if (source, kernel) == (16, 16) else expected
    maps = (MapType(bits, 0, 1.0) for bits in (source, target))
    assert fp.arithmetic_of(next(maps), kernel, next(maps)) == expected
