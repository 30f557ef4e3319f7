"""TensorFlow's integer arithmetic is numpy's, in eager mode and in graphs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbee.keras import tf
from qbee.quantize import exact, fixed_net, logistic
from qbee.quantize import fixed_point as fp
from qbee.quantize.fixed_net import FixedNode
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType
from qbee.quantize.graph import NO_PADDING, Node, same_padding

EXTREMES_32 = [-(2**31), -(2**31) + 1, -(2**30), -1, 0, 1, 2**30 - 1, 2**30, 2**31 - 1]
EXTREMES_64 = [-(2**47), -(2**46) - 1, -3, -1, 0, 1, 2, 2**46 + 1, 2**47 - 1]
EXTREME_MULTIPLIERS = [
    2.0**-60, 2.0**-33, math.nextafter(2.0**-32, 0), 2.0**-32, 2.0**-31, 2.0**-2, 0.25 + 2.0**-40,
    math.nextafter(0.5, 0), 0.5, 1 - 2.0**-32, 1 - 2.0**-33, math.nextafter(1.0, 0), 1.0, 4.0,
    0x7FFEFFFF / 2**31, 0x7FFF0000 / 2**31, 100.0,
]  # fmt: skip
# Small enough that no product with an int32 or int47 leaves int64.
MULTIPLIERS = st.floats(2.0**-40, 100.0) | st.sampled_from(EXTREME_MULTIPLIERS)
INT32 = st.integers(-(2**31), 2**31 - 1) | st.sampled_from(EXTREMES_32)
INT47 = st.integers(-(2**47), 2**47 - 1) | st.sampled_from(EXTREMES_64)
STEPS = [2.0**-9, 2.0**-5, 1.0, *(float(np.float32(s)) for s in (0.0123, 0.00071, 2.3))]


def results(function, *arguments):
    """What a function of tensors returns in eager mode and in a graph."""
    tensors = [tf.constant(value) for value in arguments]
    found = [function(*tensors), tf.function(function)(*tensors)]
    return [tf.nest.map_structure(lambda t: t.numpy(), value) for value in found]


def assert_twins(function, expected, *arguments):
    for found in results(function, *arguments):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_extreme_multipliers_are_quantized_alike():
    reals = np.array(EXTREME_MULTIPLIERS)
    for found in results(exact.quantized_multiplier, reals):
        np.testing.assert_array_equal(found, fp.quantized_multiplier(reals))


@given(st.lists(st.floats(2.0**-1000, 2.0**30), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_multipliers_are_quantized_alike(reals):
    found = [t.numpy() for t in exact.quantized_multiplier(tf.constant(reals, tf.float64))]
    np.testing.assert_array_equal(found, fp.quantized_multiplier(np.array(reals)))


@pytest.mark.parametrize(
    ("twin", "function", "codes"),
    [
        (exact.requantize_int32, fp.requantize_int32, EXTREMES_32),
        (exact.requantize_int64, fp.requantize_int64, EXTREMES_64),
    ],
)
def test_extreme_sums_are_multiplied_alike(twin, function, codes):
    sums, reals = np.meshgrid(np.array(codes), EXTREME_MULTIPLIERS)
    assert_twins(twin, function(sums, reals), sums, reals)


@given(st.lists(st.tuples(INT32, INT47, MULTIPLIERS), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_sums_are_multiplied_alike(rows):
    narrow, wide, reals = (np.array(column) for column in zip(*rows, strict=True))
    found = exact.requantize_int32(tf.constant(narrow), tf.constant(reals))
    np.testing.assert_array_equal(found, fp.requantize_int32(narrow, reals))
    found = exact.requantize_int64(tf.constant(wide), tf.constant(reals))
    np.testing.assert_array_equal(found, fp.requantize_int64(wide, reals))


@pytest.mark.parametrize("shift", range(-31, 5))
def test_every_tie_is_scaled_alike(shift):
    codes = np.concatenate([np.arange(-600, 601), EXTREMES_32])
    for mantissa in (2**30, 2**31 - 1, 1518500250):
        expected = fp.scaled_int32(codes, mantissa, shift)
        arguments = (codes, np.int64(mantissa), np.int64(shift))
        np.testing.assert_array_equal(exact.scaled_int32(*map(tf.constant, arguments)), expected)


def test_channels_have_multipliers_of_their_own():
    sums = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 4, 5, 6))
    reals = np.geomspace(2.0**-20, 3.0, 6)
    assert_twins(exact.requantize_int32, fp.requantize_int32(sums, reals), sums, reals)
    assert_twins(exact.requantize_int64, fp.requantize_int64(sums, reals), sums, reals)


def formats(bits):
    lowests = {0, -(2 ** (bits - 1))} | ({-(2 ** (bits - 1)) // 3} if bits <= 8 else set())
    return [MapType(bits, lowest, step) for lowest in sorted(lowests) for step in STEPS]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_codes_survive_the_trip_through_real_values(bits):
    for number in formats(bits):
        codes = np.arange(number.codes[0], number.codes[1] + 1)
        values = fp.dequantize(codes, number)
        assert_twins(lambda c, n=number: exact.values_of(c, n), values, codes)
        assert_twins(lambda v, n=number: exact.codes_of(v, n), codes, values)


def random_codes(number, shape, seed):
    """Random codes with both ends of the format among them."""
    lowest, highest = number.codes
    codes = np.random.default_rng(seed).integers(lowest, highest + 1, shape)
    codes.flat[:4] = (lowest, highest, lowest, highest)
    codes.flat[-3:] = (highest, highest, lowest)
    return codes


def random_formats(seed):
    """Formats of two inputs and an output of any width."""
    rng = np.random.default_rng(seed)
    every = [number for bits in (4, 8, 16) for number in formats(bits)]
    return [every[i] for i in rng.integers(0, len(every), 3)]


def assert_node_twins(op, sources, target, *codes, **changes):
    """The twin of an operation gives what the specification does before it saturates."""
    found = fixed_net._RUN[op](FixedNode(node_of(op, codes, **changes), sources, target), *codes)
    twin = exact.UNWEIGHTED[op]
    node = node_of(op, codes, **changes)
    assert_twins(lambda *c: twin(node, sources, target, *c), found, *codes)


def node_of(op, codes, *, shape=None, **changes):
    shape = codes[0].shape[1:] if shape is None else shape
    return Node("n", op, tuple("ab"[: len(codes)]), shape, **changes)


@pytest.mark.parametrize("op", ["add", "multiply"])
@pytest.mark.parametrize("seed", range(12))
def test_sums_and_products_of_maps_are_twins(op, seed):
    one, other, target = random_formats(seed)
    a = random_codes(one, (2, 3, 4, 5), seed)
    b = random_codes(other, ((2, 3, 4, 5), (2, 1, 1, 5))[seed % 2], seed + 1)
    assert_node_twins(op, (one, other), target, a, b)
    assert_node_twins(op, (other, one), target, b, a)


@pytest.mark.parametrize("seed", range(8))
def test_rescaled_maps_are_twins(seed):
    source, target, _ = random_formats(seed)
    assert_node_twins("rescale", (source,), target, random_codes(source, (2, 3, 4, 5), seed))


@pytest.mark.parametrize("shape", [(5,), (1, 1, 5)])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (7, 9), (16, 16)])
@pytest.mark.parametrize("seed", range(4))
def test_means_are_twins(shape, size, seed):
    source, target, _ = random_formats(seed)
    codes = random_codes(source, (2, *size, 5), seed)
    assert_node_twins("mean", (source,), target, codes, shape=shape)


@pytest.mark.parametrize("number", [n for bits in (4, 8, 16) for n in formats(bits)[::6]], ids=str)
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (4, 5)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("is_same", [True, False])
def test_averages_are_twins(number, window, strides, is_same):
    codes = random_codes(number, (2, 7, 9, 3), 1)
    padding = same_padding((7, 9), window, strides) if is_same else NO_PADDING
    pool = {"window": window, "strides": strides, "padding": padding}
    assert_node_twins("average_pool", (number,), number, codes, **pool)


@pytest.mark.parametrize("number", [*formats(4), *formats(8)], ids=str)
def test_sigmoids_are_twins_for_every_code(number):
    codes = np.arange(number.codes[0], number.codes[1] + 1)[None]
    assert_node_twins("sigmoid", (number,), SIGMOID_MAP, codes)
    found = exact.sigmoid(None, (number,), SIGMOID_MAP, tf.constant(codes)).numpy()
    np.testing.assert_array_equal(found, logistic.sigmoid(codes, number))


def test_every_operation_that_computes_has_a_twin():
    moves_codes = {"max_pool", "reshape", "rows", "concat_rows", "concat_channels"}
    assert set(exact.UNWEIGHTED) == set(fixed_net._RUN) - moves_codes - {
        "conv", "depthwise", "dense"
    }  # fmt: skip
