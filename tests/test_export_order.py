"""The order of operators: exact against all orders of small graphs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbee.export import order
from qbee.quantize import fixed_net
from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.quantize.fixed_point import MapType
from qbee.quantize.graph import INPUT, Node

NUMBER = MapType(8, -128, 2.0**-5)


def rescale(name, source, shape):
    return FixedNode(Node(name, "rescale", (source,), shape), (NUMBER,), NUMBER)


def add(name, a, b, shape):
    return FixedNode(Node(name, "add", (a, b), shape), (NUMBER, NUMBER), NUMBER)


def mean(name, source, channels):
    return FixedNode(Node(name, "mean", (source,), (1, 1, channels)), (NUMBER,), NUMBER)


@st.composite
def graphs(draw):
    """Nodes that read one or two of the maps before them; sizes are halved by chance."""
    nodes, names = [], [INPUT]
    for number in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["rescale", "add", "mean"]))
        a, b = (draw(st.sampled_from(names)) for _ in range(2))
        name = f"n{number}"
        shapes = {INPUT: (4, 4, 2)} | {item.name: item.node.shape for item in nodes}
        if kind == "mean":
            nodes.append(mean(name, a, 2))
        elif kind == "add":
            shape = tuple(np.broadcast_shapes(shapes[a], shapes[b]))
            nodes.append(add(name, a, b, shape))
        else:
            nodes.append(rescale(name, a, shapes[a]))
        names.append(name)
    return FixedNet("net", (4, 4, 2), NUMBER, tuple(nodes))


def possible_orders(net):
    """Orders in which every node comes after what it reads; the output stays the last."""
    names = [item.name for item in net.nodes]
    for chosen in itertools.permutations(range(len(names))):
        if chosen[-1] != len(names) - 1:
            continue
        done = {INPUT}
        for i in chosen:
            if not set(net.nodes[i].node.inputs) <= done:
                break
            done.add(names[i])
        else:
            yield chosen


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_no_other_order_has_a_lower_peak_and_the_output_is_the_same(net):
    found = order.with_lowest_peak(net)
    search = order._Search(net)
    places = {item.name: i for i, item in enumerate(net.nodes)}
    chosen = [places[item.name] for item in found.nodes]
    assert search.peak_bytes(chosen) == min(search.peak_bytes(o) for o in possible_orders(net))
    codes = np.random.default_rng(0).integers(-128, 128, (1, 4, 4, 2))
    last = net.nodes[-1].name
    assert found.nodes[-1].name == last
    expected = fixed_net.forward(net, codes)[last]
    np.testing.assert_array_equal(fixed_net.forward(found, codes)[last], expected)


def test_a_branch_that_shrinks_runs_before_one_that_stays_large():
    """a and b are large; summing the mean of each up first frees them one by one."""
    large = (8, 8, 4)
    nodes = (
        rescale("a", INPUT, large),
        rescale("b", INPUT, large),
        rescale("c", INPUT, large),
        mean("ma", "a", 4),
        mean("mb", "b", 4),
        mean("mc", "c", 4),
        add("ab", "ma", "mb", (1, 1, 4)),
        add("out", "ab", "mc", (1, 1, 4)),
    )
    net = FixedNet("net", large, NUMBER, nodes)
    found = [item.name for item in order.with_lowest_peak(net).nodes]
    assert found.index("ma") < max(found.index("b"), found.index("c"))
    search = order._Search(net)
    places = {item.name: i for i, item in enumerate(nodes)}
    assert search.peak_bytes([places[n] for n in found]) < search.peak_bytes(range(len(nodes)))


def test_a_chain_is_left_alone():
    nodes = (rescale("a", INPUT, (4, 4, 2)), rescale("b", "a", (4, 4, 2)))
    net = FixedNet("net", (4, 4, 2), NUMBER, nodes)
    assert order.with_lowest_peak(net) is net


def test_a_graph_with_too_many_orders_is_left_alone(monkeypatch):
    monkeypatch.setattr(order, "_LARGEST_SEARCH", 1)
    large = (8, 8, 4)
    nodes = (
        rescale("a", INPUT, large),
        rescale("b", INPUT, large),
        mean("ma", "a", 4),
        mean("mb", "b", 4),
        add("out", "ma", "mb", (1, 1, 4)),
    )
    net = FixedNet("net", large, NUMBER, nodes)
    assert order.with_lowest_peak(net) is net


@pytest.mark.parametrize("pool", [1, 2])
def test_the_map_before_a_max_pool_counts(pool):
    item = FixedNode(
        Node("a", "rescale", (INPUT,), (4 // pool, 4, 2), pool=pool), (NUMBER,), NUMBER
    )
    search = order._Search(FixedNet("net", (4, 4, 2), NUMBER, (item,)))
    own = 4 // pool * 4 * 2
    assert search.peak_bytes([0]) == 32 + own * (1 if pool == 1 else 5)
