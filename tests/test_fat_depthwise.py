"""A depthwise network whose filters differ a hundredfold: quantized, rescaled and tuned."""

import numpy as np
import pytest

from benchmarks import adjustable_thresholds as benchmark
from qbee.quantize import thresholds
from qbee.quantize.equalize import rescale_depthwise


@pytest.fixture(scope="module")
def data():
    return benchmark.digits()


@pytest.fixture(scope="module")
def test(data):
    images, labels = data
    seen = benchmark.TRAINING_IMAGES
    return benchmark.Comparison(images[: seen // 10], images[seen:], labels[seen:])


@pytest.fixture(scope="module")
def net(data):
    images, labels = (part[: benchmark.TRAINING_IMAGES] for part in data)
    return benchmark.trained(images, labels)


@pytest.fixture(scope="module")
def spread(net):
    return benchmark.spread(net)


def test_spread_filters_differ_a_hundredfold_and_compute_the_same(test, net, spread):
    expected = thresholds.logits(net, test.images)
    assert benchmark.range_ratio(spread) > benchmark.LEAST_SPREAD > benchmark.range_ratio(net)
    error = thresholds.logits(spread, test.images) - expected
    # Float32 sums of hundreds of products whose factors were changed: relative 1e-7 each.
    assert np.abs(error).max() < 1e-4 * np.abs(expected).max()


def test_8_bits_are_ordered_scalar_rescaled_vector_as_in_the_paper(test, spread):
    scalar = test.quantized(spread, 8, is_per_tensor=True)
    rescaled = test.quantized(rescale_depthwise(spread, test.calibration), 8, is_per_tensor=True)
    vector = test.quantized(spread, 8, is_per_tensor=False)
    assert scalar < rescaled <= vector


def test_thresholds_recover_most_of_what_4_bit_scalar_quantization_lost(test, spread):
    whole = test.accuracy(thresholds.logits(spread, test.images))
    scalar = test.quantized(spread, 4, is_per_tensor=True)
    settings = benchmark.SETTINGS["thresholds"]
    tuned = test.quantized(spread, 4, is_per_tensor=False, settings=settings)
    assert (tuned - scalar) / (whole - scalar) >= benchmark.LEAST_RECOVERED
