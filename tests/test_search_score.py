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

PRINTED = json.loads((Path(__file__).parent / "golden/thesis_fc_autoencoder.json").read_text())
SIZES = st.integers(min_value=1, max_value=10**12)


def printed_slots():
    """Elements and bits of the printed network under our names of slots."""
    elements, bits = {}, {}
    source = "input"
    for layer in PRINTED["layers"]:
        if layer["type"] == "activation":
            slot = source if source == "input" else f"{source}.map"
            elements[slot], bits[slot] = layer["elements"], layer["activation_bits"]
        else:
            source = layer["name"]
            for role in ("kernel", "bias"):
                elements[f"{source}.{role}"] = layer[f"{role}_elements"]
                bits[f"{source}.{role}"] = layer[f"{role}_bits"]
    return elements, bits


def test_the_thesis_reference_size_is_reproduced_exactly():
    elements, _ = printed_slots()
    reference = cost.total_bits(elements, cost.reference_slots(elements, ForgivingFactor()))
    assert reference == PRINTED["header"]["reference_size"] == 4321016


def test_the_thesis_trial_size_and_delta_are_reproduced_exactly():
    elements, bits = printed_slots()
    trial = cost.total_bits(elements, bits)
    assert trial == PRINTED["header"]["trial_size"] == 1259512
    delta = ForgivingFactor().delta(trial_bits=trial, reference_bits=4321016)
    # The thesis prints two decimals of a percent.
    assert round(100 * delta, 2) == PRINTED["header"]["delta_percent"] == 8.89


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
