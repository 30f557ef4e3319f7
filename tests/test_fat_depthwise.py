"""The benchmark of adjustable thresholds in small: one network, its order and its recovery."""

import numpy as np
import pytest

from benchmarks import adjustable_thresholds as benchmark
from qbee.quantize import thresholds


@pytest.fixture(scope="module")
def data():
    return benchmark.digits()


@pytest.fixture(scope="module")
def net(data):
    return benchmark.trained(data, is_relu6=True)


@pytest.fixture(scope="module")
def variants(data, net):
    """Two spreads of each kind."""
    return {
        label: [benchmark.spread(net, data.calibration, extent, seed=seed) for seed in range(2)]
        for label, extent in benchmark.EXTENTS.items()
    }


def test_the_network_is_right_about_digits_that_it_has_not_seen(data, net):
    found = data.accuracy(thresholds.logits(net, data.held_out))
    assert found > benchmark.LEAST_ACCURACY
    assert not {x.tobytes() for x in data.images} & {x.tobytes() for x in data.held_out}


def test_spread_filters_differ_a_hundredfold_and_compute_the_same(data, net, variants):
    expected = thresholds.logits(net, data.held_out)
    for several in variants.values():
        for spread in several:
            assert benchmark.least_spread(spread) > benchmark.LEAST_SPREAD
            error = thresholds.logits(spread, data.held_out) - expected
            # Held-out digits may reach 6 where those of the calibration did not.
            assert np.sqrt(np.mean(error**2)) < 0.01 * expected.std()
    assert benchmark.least_spread(net) < 10


def test_8_bits_are_ordered_scalar_rescaled_vector_as_in_the_paper(data, variants):
    rows = [benchmark.calibrated(net, data, 8) for net in variants["mixed"]]
    scalar, rescaled, vector = np.mean([list(row.values()) for row in rows], axis=0)
    assert scalar + 0.02 < rescaled <= vector + benchmark.SAME


def test_thresholds_recover_most_of_what_4_bit_scalar_quantization_lost(data, net, variants):
    whole = data.accuracy(thresholds.logits(net, data.held_out))
    for label, start in benchmark.STARTS.items():
        share = benchmark.by_thresholds(variants[label][:1], data, whole, start=start)
        assert share >= benchmark.LEAST_RECOVERED, label


def test_thresholds_cannot_bring_filters_back_that_one_step_for_all_has_lost(data, net, variants):
    whole = data.accuracy(thresholds.logits(net, data.held_out))
    assert benchmark.by_thresholds(variants["shrunk"][:1], data, whole, start="scalar") < 0.3
