"""The integer network: nodes by hand, limits, and what a forward pass returns."""

import numpy as np
import pytest

from qbee.errors import ParameterError
from qbee.quantize import fixed_net, fixed_point
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights, limits
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT, Node

INT8, INT16 = (MapType(bits, -(2 ** (bits - 1)), 2.0**-5) for bits in (8, 16))


def dense_node(*, source=INT8, target=None, kernel=((3,), (-2,)), bits=8, bias=6, **node):
    target = MapType(8, -128, 2.0**-7) if target is None else target
    weights = FixedWeights(np.array(kernel), bits, np.float32([2.0**-4]), np.array([bias]))
    return FixedNode(Node("one", "dense", (INPUT,), (1,), **node), (source,), target, weights)


def net_of(*nodes, shape=(2,), number=INT8):
    return FixedNet("net", shape, number, nodes)


def test_one_layer_by_hand():
    # (3 * 10 - 2 * 7 + 6) = 22 of step 2^-9 is 5.5 of step 2^-7: half away from zero is 6.
    net = net_of(dense_node())
    assert net.nodes[0].multipliers.tolist() == [0.25]
    found = fixed_net.forward(net, np.array([[10, 7]]))
    assert {name: codes.tolist() for name, codes in found.items()} == {"one": [[6]]}
    assert (net.input_map, net.output_map) == (INT8, MapType(8, -128, 2.0**-7))


def test_real_inputs_become_real_outputs():
    x = np.array([[10, 7], [10, 7.49], [1e9, 0]]) * 2.0**-5
    found = fixed_net.predict(net_of(dense_node()), x)
    assert found.dtype == np.float32
    # The last input saturates at 127, whose sum 387 saturates the output in its turn.
    assert found.tolist() == [[6 * 2.0**-7], [6 * 2.0**-7], [97 * 2.0**-7]]


def test_an_input_of_another_shape_is_refused():
    with pytest.raises(ParameterError, match=r"codes.shape=\(1, 3\) must be \(n, \*\(2,\)\)"):
        fixed_net.forward(net_of(dense_node()), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("number", "activation", "expected"),
    [
        (MapType(8, -128, 2.0**-4), "linear", (-128, 127)),
        (MapType(8, -20, 2.0**-4), "linear", (-20, 235)),
        (MapType(8, -128, 2.0**-4), "relu", (0, 127)),
        (MapType(8, 0, 2.0**-4), "relu6", (0, 96)),
        (MapType(8, 0, 2.0**-6), "relu6", (0, 255)),
        (MapType(4, 0, 4.0), "relu6", (0, 2)),
        # 6 / 0.023 = 260.87 and 6 / 0.0236 = 254.24
        (MapType(8, 0, float(np.float32(0.023))), "relu6", (0, 255)),
        (MapType(8, 0, float(np.float32(0.0236))), "relu6", (0, 254)),
        (MapType(16, 0, 2.0**-12), "relu6", (0, 24576)),
    ],
)
def test_an_activation_limits_the_codes(number, activation, expected):
    assert limits(activation, number) == expected


def test_a_relu6_cuts_at_six():
    target = MapType(8, 0, 2.0**-4)
    net = net_of(dense_node(target=target, activation="relu6", kernel=((127,), (127,))))
    assert fixed_net.predict(net, np.array([[3.0, 3.0], [-3.0, 0.0], [0.25, 0.0]])).tolist() == [
        [6.0], [0.0], [2.0]
    ]  # fmt: skip


def test_every_node_reads_its_own_inputs_and_the_last_one_is_the_output():
    shape = (2, 2, 1)
    one = FixedNode(Node("a", "max_pool", (INPUT,), shape), (INT8,), INT8)
    two = FixedNode(Node("b", "rescale", (INPUT,), shape, activation="relu"), (INT8,), INT8)
    both = FixedNode(Node("c", "add", ("a", "b"), (1, 1, 1), pool=2), (INT8, INT8), INT8)
    flat = FixedNode(Node("d", "reshape", ("c",), (1,)), (INT8,), INT8)
    codes = np.array([[-5, 4], [3, -7]]).reshape(1, *shape)
    found = fixed_net.forward(net_of(one, two, both, flat, shape=shape), codes)
    assert list(found) == ["a", "b", "c", "d"]
    assert found["b"].ravel().tolist() == [0, 4, 3, 0]
    assert found["c"].tolist() == [[[[8]]]]
    assert found["d"].tolist() == [[8]]


def test_a_split_layer_adds_two_rounded_sums():
    # 1000 * (256 * 2 + 3) + 700 = 515700, of which the high part has 1000 * 2 + 3 and the low
    # one 1000 * 3 - 68: 2003 / 4 = 500.75 and 2932 / 1024 = 2.86, each rounded half up.
    node = dense_node(source=INT16, target=MapType(16, -32768, 2.0**1), kernel=((515,), (0,)),
                      bits=16, bias=700)  # fmt: skip
    assert (node.arithmetic, node.multipliers.tolist()) == ("int64_split", [2.0**-10])
    assert fixed_net.run_node(node, np.array([[1000, 0]])).tolist() == [[501 + 3]]


def test_the_bias_keeps_the_high_part_of_a_split_layer_from_saturating():
    # Sums beyond int16 that the bias brings back: only the whole need fit the map.
    target = MapType(16, -32768, 2.0**-9)
    node = dense_node(source=INT16, target=target, kernel=((2560,), (0,)), bits=16,
                      bias=-2560 * 20)  # fmt: skip
    codes = np.array([[25, 0], [30, 0], [-7, 0]])
    assert fixed_net.run_node(node, codes).tolist() == [[12800], [25600], [-32768]]


def test_a_split_layer_with_a_narrow_map_adds_finer_sums():
    target = MapType(8, -128, 2.0**3)
    node = dense_node(source=INT16, target=target, kernel=((515,), (0,)), bits=16, bias=700)
    assert node.arithmetic == "int64_split"
    # 515700 / 2^12 = 125.90; 2003 / 2^4 and 2932 / 2^12 in 64ths are 8012 and 46.
    assert fixed_net.run_node(node, np.array([[1000, 0]])).tolist() == [[round((8012 + 46) / 64)]]


def test_real_outputs_are_codes_times_the_output_step():
    x = np.random.default_rng(0).normal(0, 2, (9, 2))
    net = net_of(dense_node())
    codes = fixed_net.forward(net, fixed_point.quantize(x, INT8))["one"]
    np.testing.assert_array_equal(fixed_net.predict(net, x), codes * 2.0**-7)
    assert len(np.unique(codes)) > 5
