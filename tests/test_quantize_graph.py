"""The graph's geometry against TensorFlow's own."""

import dataclasses
import itertools
from typing import get_args

import numpy as np
import pytest

from qbee.keras import tf
from qbee.quantize import graph
from qbee.quantize.graph import NO_PADDING, Node, same_padding, window_outputs

OPS = get_args(graph.Op)
SIZES = [(5, 8), (7, 9), (12, 6)]
WINDOWS = [(1, 1), (2, 2), (3, 3), (2, 5), (1, 4)]
STRIDES = [(1, 1), (2, 2), (3, 3), (1, 2), (4, 1)]


def summed(padded, window, strides, padding):
    """TensorFlow's sums over windows of [height, width], whose result shows how it padded."""
    x = padded[None, ..., None].astype(np.float64)
    ones = np.ones((*window, 1, 1))
    return tf.nn.conv2d(x, ones, [1, *strides, 1], padding).numpy()[0, ..., 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("strides", STRIDES)
def test_same_padding_is_tensorflows(size, window, strides):
    x = np.random.default_rng(0).integers(1, 1000, size)
    expected = summed(x, window, strides, "SAME")
    padding = same_padding((*size, 7), window, strides)
    np.testing.assert_array_equal(summed(np.pad(x, padding), window, strides, "VALID"), expected)
    assert window_outputs(size, window, strides, padding) == expected.shape


def test_same_padding_puts_the_odd_row_last_and_nothing_where_strides_skip_it():
    assert same_padding((4, 5), (2, 3), (1, 1)) == ((0, 1), (1, 1))
    assert same_padding((4, 5), (2, 3), (2, 2)) == ((0, 0), (1, 1))
    assert same_padding((7, 7), (1, 1), (3, 2)) == NO_PADDING


@pytest.mark.parametrize("padding", [NO_PADDING, ((1, 2), (0, 3)), ((2, 0), (1, 1))])
def test_a_sliding_window_makes_as_many_results_as_in_tensorflow(padding):
    for size, window, strides in itertools.product(SIZES, WINDOWS, STRIDES):
        expected = summed(np.pad(np.ones(size), padding), window, strides, "VALID").shape
        assert window_outputs((*size, 3), window, strides, padding) == expected


def test_nodes_with_weights_or_arithmetic_have_a_number_format_of_their_own():
    nodes = {op: Node("n", op, ("input",), (3,)) for op in OPS}
    assert [op for op in OPS if nodes[op].is_weighted] == ["conv", "depthwise", "dense"]
    keep_their_inputs_format = {
        *("max_pool", "average_pool", "sigmoid", "reshape"),
        *("rows", "concat_rows", "concat_channels"),
    }
    assert {op for op in OPS if not nodes[op].has_own_map} == keep_their_inputs_format
    assert set(graph.CHANNEL_AXIS) == set(graph.WEIGHTED)


def test_a_node_cannot_be_changed_in_place():
    node = Node("n", "dense", ("input",), (3,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.activation = "relu"
    assert (node.window, node.strides, node.padding) == ((1, 1), (1, 1), NO_PADDING)
    assert (node.activation, node.pool) == ("linear", 1)
