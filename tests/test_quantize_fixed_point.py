"""The integer specification against gemmlowp's scalar C code, naive loops and TensorFlow."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qbee.errors import ParameterError
from qbee.keras import tf
from qbee.quantize import fixed_point as fp
from qbee.quantize.fixed_point import MapType

INT32 = st.integers(-(2**31), 2**31 - 1)
NUMBERS = [
    MapType(bits, is_signed, exponent)
    for bits in (4, 8, 16)
    for is_signed in (True, False)
    for exponent in (-20, -3, 0, 5)
]


def multiplier_of(shift):
    """TFLite's QuantizeMultiplier of 2^-shift: a fraction of 2^31 and a left shift."""
    return (0, 0) if 1 - shift < -31 else (1 << 30, 1 - shift)


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


def rescaled_int32(x, shift):
    """TFLite's MultiplyByQuantizedMultiplier(int32)."""
    multiplier, left = multiplier_of(shift)
    high = doubling_high_multiply(x * (1 << max(left, 0)), multiplier)
    return divide_by_power_of_two(high, max(-left, 0))


def rescaled_int64(x, shift):
    """TFLite's MultiplyByQuantizedMultiplier(int64): a 15-bit multiplier, one rounding."""
    multiplier, left = multiplier_of(shift)
    reduced = (multiplier + (1 << 15)) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    return (x * reduced + (1 << (15 - left - 1))) >> (15 - left)


@given(INT32, st.integers(1, 40))
@settings(max_examples=1000, deadline=None)
def test_right_shifts_of_int32_sums_are_gemmlowps(x, shift):
    assert fp.requantize_int32(np.array([x]), shift) == [rescaled_int32(x, shift)]


@given(INT32, st.integers(-8, 0))
@settings(max_examples=300, deadline=None)
def test_left_shifts_of_int32_sums_are_gemmlowps(x, shift):
    # Beyond this the device's int32 overflows.
    assume(abs(x) << (1 - shift) < 2**31)
    assert fp.requantize_int32(np.array([x]), shift) == [rescaled_int32(x, shift)]


@given(st.integers(-(2**47), 2**47 - 1), st.integers(-6, 32))
@settings(max_examples=1000, deadline=None)
def test_int64_sums_are_rescaled_as_on_the_device(x, shift):
    assert fp.requantize_int64(np.array([x]), shift) == [rescaled_int64(x, shift)]


@pytest.mark.parametrize("shift", range(-2, 12))
def test_small_sums_around_every_tie_are_rescaled_as_on_the_device(shift):
    x = np.arange(-5000, 5001)
    shifts = np.full(x.shape, shift)
    expected_32 = [rescaled_int32(int(a), shift) for a in x]
    expected_64 = [rescaled_int64(int(a), shift) for a in x]
    np.testing.assert_array_equal(fp.requantize_int32(x, shifts), expected_32)
    np.testing.assert_array_equal(fp.requantize_int64(x, shifts), expected_64)


def test_the_two_roundings_differ_where_the_device_rounds_twice():
    # 5 / 4 = 1.25 is 1, but 5 / 2 is first rounded to 3 and 3 / 2 then to 2.
    assert fp.requantize_int32(np.array([5, -7, -6]), 2).tolist() == [2, -2, -2]
    assert fp.requantize_int64(np.array([5, -7, -6]), 2).tolist() == [1, -2, -1]


def test_every_channel_has_its_own_shift():
    x, shifts = np.array([[100, 100, 100], [-3, -3, -3]]), np.array([3, 0, -2])
    expected = [[rescaled_int32(a, s) for a, s in ((v, 3), (v, 0), (v, -2))] for v in (100, -3)]
    np.testing.assert_array_equal(fp.requantize_int32(x, shifts), expected)


def naive_sum(codes, kernel, kind, stride):
    """Convolution by loops over Python's own integers, with TensorFlow's 'SAME' padding."""
    n, height, width, channels = codes.shape
    kh, kw = kernel.shape[:2]
    out_h, out_w = -(-height // stride), -(-width // stride)
    top = max((out_h - 1) * stride + kh - height, 0) // 2
    left = max((out_w - 1) * stride + kw - width, 0) // 2
    total = np.zeros((n, out_h, out_w, kernel.shape[3 if kind == "conv" else 2]), object)
    for b, y, x, i, j, c in itertools.product(*map(range, (n, out_h, out_w, kh, kw, channels))):
        row, column = y * stride - top + i, x * stride - left + j
        if 0 <= row < height and 0 <= column < width:
            value = int(codes[b, row, column, c])
            if kind == "conv":
                total[b, y, x] += [value * int(w) for w in kernel[i, j, c]]
            else:
                total[b, y, x, c] += value * int(kernel[i, j, c, 0])
    return total.astype(np.int64)


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (4, 9)])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 5)])
def test_sums_are_those_of_naive_loops_and_of_tensorflow(kind, stride, size, window):
    rng = np.random.default_rng(7)
    codes = rng.integers(-(2**15), 2**15, (2, *size, 3))
    kernel = rng.integers(-32512, 32513, (*window, 3, 4 if kind == "conv" else 1))
    found = fp.accumulate(codes, kernel, kind, stride=stride)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, naive_sum(codes, kernel, kind, stride))
    operator = tf.nn.conv2d if kind == "conv" else tf.nn.depthwise_conv2d
    in_float64 = operator(
        codes.astype(np.float64), kernel.astype(np.float64), [1, stride, stride, 1], "SAME"
    )
    np.testing.assert_array_equal(found, in_float64.numpy())


@pytest.mark.parametrize("shape", [(3, 12), (3, 2, 2, 3)])
def test_dense_sums_are_those_of_naive_loops(shape):
    rng = np.random.default_rng(8)
    codes, kernel = rng.integers(-(2**15), 2**15, shape), rng.integers(-32512, 32513, (12, 5))
    expected = [
        [sum(int(a) * int(w) for a, w in zip(row, column, strict=True)) for column in kernel.T]
        for row in codes.reshape(3, 12)
    ]
    np.testing.assert_array_equal(fp.accumulate(codes, kernel, "dense", stride=1), expected)


def test_sums_of_the_largest_codes_are_exact():
    codes, kernel = np.full((1, 1, 1, 4096), 32767), np.full((1, 1, 4096, 1), 32511)
    assert fp.accumulate(codes, kernel, "conv", stride=1) == 4096 * 32767 * 32511


def test_every_16_bit_kernel_code_is_two_int8_parts():
    codes = np.arange(-fp.MAX_KERNEL_16, fp.MAX_KERNEL_16 + 1)
    hi, lo = fp.split_kernel(codes)
    np.testing.assert_array_equal(256 * hi + lo, codes)
    for part in (hi, lo):
        np.testing.assert_array_equal(part, part.astype(np.int8))


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_codes_are_equal_after_the_trip_through_real_values(number):
    codes = np.arange(number.codes[0], number.codes[1] + 1)
    real = fp.dequantize(codes, number)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(real, codes * 2.0**number.exponent)
    np.testing.assert_array_equal(fp.quantize(real, number), codes)


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_quantize_rounds_half_up_to_the_nearest_code_and_saturates(number):
    lowest, highest = number.codes
    step = 2.0**number.exponent
    x = np.random.default_rng(0).uniform(1.5 * min(lowest, -9), 1.5 * highest, 2000)
    codes = fp.quantize(x * step, number)
    inside = (x > lowest - 0.5) & (x < highest + 0.5)
    assert np.all(np.abs(codes - x)[inside] <= 0.5)
    assert set(codes[~inside]) == {lowest, highest}
    assert fp.quantize(np.array([1.5, 2.5, 2.49999]) * step, number).tolist() == [2, 3, 2]
    assert fp.quantize(np.array([-1e30, 1e30]), number).tolist() == [lowest, highest]
    if number.is_signed:
        assert fp.quantize(np.array([-1.5, -2.5]) * step, number).tolist() == [-1, -2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_refuses_what_is_not_finite(bad):
    with pytest.raises(ParameterError, match="x must be finite"):
        fp.quantize(np.array([0.0, bad]), NUMBERS[0])


def test_maps_use_all_codes_of_their_width_and_unsigned_16_bits_stop_at_15():
    assert MapType(4, False, 0).codes == (0, 15)
    assert MapType(8, False, 0).codes == (0, 255)
    assert MapType(16, False, 0).codes == (0, 32767)
    assert MapType(4, True, 0).codes == (-8, 7)
    assert MapType(16, True, 0).codes == (-32768, 32767)
    assert [fp.max_kernel_code(bits) for bits in (4, 8, 16)] == [7, 127, 127 * 256]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_max_pool_is_tensorflows_without_padding(size):
    codes = np.random.default_rng(3).integers(-99, 99, (2, 7, 9, 3))
    expected = tf.nn.max_pool2d(codes.astype(np.float32), size, size, "VALID").numpy()
    np.testing.assert_array_equal(fp.max_pool(codes, size), expected)


def small_layer(*, source_bits=8, kernel_bits=8, target_bits=8):
    return fp.FixedLayer(
        name="one",
        kind="dense",
        kernel=np.array([[3], [-2]]),
        kernel_bits=kernel_bits,
        kernel_exponents=np.array([-4]),
        bias=np.array([6]),
        source=MapType(source_bits, True, -5),
        target=MapType(target_bits, True, -7),
        has_relu=False,
        stride=1,
        pool=1,
    )


@pytest.mark.parametrize("widths", list(itertools.product((4, 8, 16), repeat=3)))
def test_the_arithmetic_follows_the_widest_of_source_kernel_and_target(widths):
    source, kernel, target = widths
    expected = "int64" if 16 in widths else "int32"
    expected = "int64_split" if (source, kernel) == (16, 16) else expected
    layer = small_layer(source_bits=source, kernel_bits=kernel, target_bits=target)
    assert layer.arithmetic == expected


def test_one_layer_by_hand():
    # (3 * 10 - 2 * 7 + 6) = 22 of step 2^-9 is 5.5 of step 2^-7: half away from zero is 6.
    net = fp.FixedNet("net", (1, 1, 2), (small_layer(),))
    assert net.layers[0].shifts.tolist() == [2]
    assert fp.forward(net, np.array([[[[10, 7]]]]))[-1].tolist() == [[6]]
    assert (net.input_map, net.output_map) == (MapType(8, True, -5), MapType(8, True, -7))


def test_an_input_of_another_shape_is_refused():
    net = fp.FixedNet("net", (1, 1, 2), (small_layer(),))
    with pytest.raises(ParameterError, match=r"codes.shape=\(1, 2\)"):
        fp.forward(net, np.zeros((1, 2)))
