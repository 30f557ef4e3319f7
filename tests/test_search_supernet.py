"""The supernet computes, integer for integer, what the model of a scheme alone computes."""

import numpy as np
import pytest
from twin_nets import NETS, built, random_scheme

from qbee.errors import ParameterError
from qbee.quantize import convert, fixed_net
from qbee.quantize.scheme import uniform
from qbee.search.supernet import Supernet

SCHEMES = 5


@pytest.fixture(scope="module", params=NETS, ids=lambda make: make.__name__)
def pair(request):
    """A network with its calibrations, and its supernet."""
    case = built(request.param)
    return case, Supernet(case.net, case.maps("auto_po2", False))


def alone(case, scheme):
    """Model of one scheme, up to its logits."""
    maps = case.maps("auto_po2", False)
    return convert.logits_model(convert.quantized_model(case.net, scheme, maps))


def schemes_of(case):
    """Random schemes, and a uniform one after them: widths must not linger."""
    return [random_scheme(case.net, seed) for seed in range(SCHEMES)] + [uniform(case.net, bits=8)]


def test_outputs_are_those_of_the_scheme_alone_and_of_the_specification(pair):
    case, supernet = pair
    for scheme in schemes_of(case):
        supernet.assign(scheme)
        found = supernet(case.inputs).numpy()
        np.testing.assert_array_equal(found, alone(case, scheme)(case.inputs, training=False))
        integers = supernet.to_fixed_point()
        np.testing.assert_array_equal(found, fixed_net.predict(integers, case.inputs))


def test_integers_are_those_of_the_scheme_alone(pair):
    case, supernet = pair
    for scheme in schemes_of(case):
        supernet.assign(scheme)
        ours, theirs = supernet.to_fixed_point(), convert.to_fixed_point(alone(case, scheme))
        assert ours.input_map == theirs.input_map
        for one, other in zip(ours.nodes, theirs.nodes, strict=True):
            assert (one.node, one.sources, one.target) == (other.node, other.sources, other.target)
            assert (one.weights is None) == (other.weights is None)
            if one.weights is not None:
                assert one.weights.bits == other.weights.bits
                for name in ("kernel", "steps", "bias"):
                    np.testing.assert_array_equal(
                        getattr(one.weights, name), getattr(other.weights, name)
                    )


def test_outputs_in_training_are_those_of_the_scheme_alone(pair):
    case, supernet = pair
    for scheme in schemes_of(case):
        supernet.assign(scheme)
        np.testing.assert_array_equal(
            supernet(case.inputs, training=True), alone(case, scheme)(case.inputs, training=True)
        )


def test_a_scheme_starts_from_the_float_weights_whatever_was_trained_before(pair):
    case, supernet = pair
    scheme = random_scheme(case.net, 0)
    supernet.assign(scheme)
    before = supernet(case.inputs).numpy()
    for variable in supernet.trainable_variables:
        variable.assign(variable * 3 + 1)
    assert np.any(supernet(case.inputs) != before)
    supernet.assign(scheme)
    np.testing.assert_array_equal(supernet(case.inputs), before)


def test_one_step_for_a_kernel_is_as_in_the_scheme_alone():
    case = built(next(iter(NETS)))
    maps, scheme = case.maps("auto_po2", False), random_scheme(case.net, 1)
    supernet = Supernet(case.net, maps, one_step=True)
    supernet.assign(scheme)
    model = convert.quantized_model(case.net, scheme, maps, is_per_tensor=True)
    np.testing.assert_array_equal(supernet(case.inputs), model(case.inputs, training=False))


def test_integers_without_a_scheme_and_schemes_of_other_networks_are_refused():
    case, other = (built(make) for make in list(NETS)[:2])
    supernet = Supernet(case.net, case.maps("auto_po2", False))
    with pytest.raises(ParameterError, match="a scheme must be assigned first"):
        supernet.to_fixed_point()
    layers = dict(list(uniform(other.net, bits=8).layers.items())[1:])
    with pytest.raises(ParameterError, match="scheme names the layers"):
        supernet.assign(uniform(other.net, bits=8).model_copy(update={"layers": layers}))
