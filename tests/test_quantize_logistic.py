"""The logistic function on TFLite Micro: every code of many number formats."""

import numpy as np
import pytest

from qbee.export import tflite
from qbee.quantize import logistic
from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType
from qbee.quantize.graph import INPUT, Node
from qbee.runtime.interpreter import MicroModel

POWERS_OF_TWO = [2.0**exponent for exponent in range(-16, 8)]
FREE_STEPS = [float(s) for s in np.random.default_rng(0).lognormal(-3, 2, 40).astype(np.float32)]


def formats(bits):
    """Signed, unsigned and affine maps of this width."""
    lowests = (-(2 ** (bits - 1)), 0, -(2 ** (bits - 1)) // 3)
    return [MapType(bits, low, s) for low in lowests for s in (*POWERS_OF_TWO, *FREE_STEPS)]


def all_codes(number):
    return np.arange(number.codes[0], number.codes[1] + 1)


def on_device(number):
    """TFLite Micro's codes for all codes of a map."""
    codes = all_codes(number)
    shape = codes.shape
    nodes = (
        FixedNode(Node("same", "rescale", (INPUT,), shape), (number,), number),
        FixedNode(Node("sigmoid", "sigmoid", ("same",), shape), (number,), SIGMOID_MAP),
    )
    model = MicroModel(tflite.write(FixedNet("sigmoid", shape, number, nodes)).content)
    stored = (codes + number.zero_point)[None].astype(np.int8)
    return model.run(stored)[0].astype(int) - SIGMOID_MAP.zero_point


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_of_every_format_is_the_devices(bits):
    for number in formats(bits):
        found = logistic.sigmoid(all_codes(number), number)
        np.testing.assert_array_equal(found, on_device(number), err_msg=str(number))


@pytest.mark.parametrize("step", [2.0**-10, 2.0**-6, 2.0**-5, 2.0**-4, *FREE_STEPS[:10]])
def test_codes_are_256ths_of_the_true_function_up_to_the_devices_cut(step):
    number = MapType(8, -128, step)
    codes = all_codes(number)
    true = 256 / (1 + np.exp(-codes * step))
    # Half a code of rounding, and an error of 1e-8; the device says 255 instead of 256.
    slack = np.where(true > 255, 1, 0.5 + 256e-8)
    assert np.all(np.abs(logistic.sigmoid(codes, number) - true) <= slack)


@pytest.mark.parametrize("step", [2.0**-7, 0.05, 0.11])
def test_it_grows_and_its_values_at_x_and_minus_x_make_one(step):
    number = MapType(8, -128, float(np.float32(step)))
    found = logistic.sigmoid(np.arange(-127, 128), number)
    assert np.all(np.diff(found) >= 0)
    assert found[127] == 128
    sums = found + found[::-1]
    # 256 lies outside the codes, and half a code may be rounded up on both sides.
    assert set(sums.tolist()) <= {255, 256, 257}


def test_the_result_has_the_shape_of_the_codes():
    number = MapType(8, -128, 2.0**-5)
    codes = np.arange(-60, 60).reshape(2, 3, 4, 5)
    found = logistic.sigmoid(codes, number)
    assert (found.shape, found.dtype) == (codes.shape, np.int64)
    np.testing.assert_array_equal(found.ravel(), logistic.sigmoid(codes.ravel(), number))
