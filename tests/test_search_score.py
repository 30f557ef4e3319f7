"""The forgiving factor counts bits as the thesis printed them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee.errors import ParameterError
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import Node
from qbee.quantize.scheme import uniform
from qbee.search import cost
from qbee.search.score import ForgivingFactor

GOLDEN = Path(__file__).parent / "golden"
SIZES = st.integers(min_value=1, max_value=10**12)
PRINTED = {
    "fc_autoencoder": (1259512, 4321016, 8.89),
    "ds_cnn": (574820, 1535460, 7.09),
    "mobilenet_v2": (24252296, 58384302, 6.34),
    "efficientnet_b0": (61175468, 110699218, 4.28),
}


@pytest.fixture(params=PRINTED)
def thesis(request):
    """One of the thesis' best configurations, and what it prints of it: bits and percents."""
    return json.loads((GOLDEN / f"thesis_{request.param}.json").read_text()), PRINTED[request.param]


def sizes_of(config):
    """Bits of a configuration and of its reference, as we count them and as the thesis does.

    The thesis' MobileNetV2 has a softmax layer of 2 x 8 bits, both as searched and as reference.
    """
    elements = {slot: count for slot, count, _ in config["slots"]}
    bits = {slot: width for slot, _, width in config["slots"]}
    reference = cost.reference_slots(elements, ForgivingFactor())
    return [cost.total_bits(elements, b) + config["softmax_bits"] for b in (bits, reference)]


def test_the_thesis_sizes_are_reproduced_exactly(thesis):
    config, (trial, reference, _) = thesis
    assert sizes_of(config) == [trial, reference]
    assert (config["trial_bits"], config["reference_bits"]) == (trial, reference)


def test_the_thesis_deltas_are_reproduced_to_the_digits_printed(thesis):
    config, (_, _, percent) = thesis
    trial, reference = sizes_of(config)
    delta = ForgivingFactor().delta(trial_bits=trial, reference_bits=reference)
    assert round(100 * delta, 2) == config["delta_percent"] == percent
    score = ForgivingFactor().score(0.83, trial_bits=trial, reference_bits=reference)
    assert score == pytest.approx(0.83 * (1 + percent / 100), abs=1e-4)


def test_a_model_of_the_reference_size_keeps_its_metric():
    assert ForgivingFactor().score(0.8, trial_bits=1000, reference_bits=1000) == 0.8


def test_a_model_of_half_the_size_gains_delta_p_and_one_of_twice_the_size_loses_delta_n():
    factor = ForgivingFactor(delta_p=3.0, delta_n=7.0, rate=2.0)
    assert factor.delta(trial_bits=500, reference_bits=1000) == pytest.approx(0.03)
    assert factor.delta(trial_bits=2000, reference_bits=1000) == pytest.approx(-0.07)


def test_stress_makes_the_reference_larger_or_smaller():
    stressed = ForgivingFactor(stress=0.5).delta(trial_bits=500, reference_bits=1000)
    assert stressed == pytest.approx(0.0)


@given(SIZES, SIZES, SIZES)
def test_a_smaller_model_never_scores_less(reference, one, other):
    factor = ForgivingFactor()
    small, large = sorted((one, other))
    scores = [factor.score(0.9, trial_bits=b, reference_bits=reference) for b in (small, large)]
    # Logarithms of nearly equal sizes may differ by a rounding.
    assert scores[0] >= scores[1] or math.isclose(*scores)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (-1, 5)])
def test_a_size_that_is_not_positive_is_an_error(sizes):
    with pytest.raises(ParameterError, match="must be positive"):
        ForgivingFactor().delta(trial_bits=sizes[0], reference_bits=sizes[1])


NET = FoldedNet(
    "net",
    (10, 10, 1),
    (
        Node("a", "conv", ("input",), (5, 5, 2), (3, 3)),
        Node("pooled", "max_pool", ("a",), (4, 4, 2), (2, 2)),
        Node("sum", "add", ("pooled", "pooled"), (4, 4, 2)),
        Node("flat", "reshape", ("sum",), (32,)),
        Node("b", "dense", ("flat",), (3,)),
    ),
    {"a": np.zeros((3, 3, 1, 2)), "b": np.zeros((32, 3))},
    {"a": np.zeros(2), "b": np.zeros(3)},
)


def test_elements_are_those_of_kernels_biases_and_maps_with_a_format_of_their_own():
    assert cost.elements(NET) == {
        "input": 100, "a.kernel": 18, "a.bias": 2, "a.map": 50, "sum.map": 32,
        "b.kernel": 96, "b.bias": 3, "b.map": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("map_bits", "narrower"), [(None, 0), (8, 8), (4, 12)])
def test_a_uniform_scheme_of_16_bits_costs_the_reference_but_for_its_narrower_maps(
    map_bits, narrower
):
    elements, scheme = cost.elements(NET), uniform(NET, bits=16, map_bits=map_bits)
    trial = cost.total_bits(elements, cost.slots(scheme))
    reference = cost.total_bits(elements, cost.reference_slots(elements, ForgivingFactor()))
    # Input and output have at least 8 bits.
    ends = min(narrower, 8) * (100 + 3)
    assert reference - trial == narrower * (50 + 32) + ends
