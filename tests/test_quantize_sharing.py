"""Kernels with one step: all, none, or those whose channels have similar ranges."""

import numpy as np
import pytest
from twin_nets import built, separable

from qbee.keras import keras, make_repeatable
from qbee.quantize import convert, sharing
from qbee.quantize.fold import fold
from qbee.quantize.scheme import uniform


def net_of(ranges, *, is_depthwise=False):
    """A folded layer whose channels have these ranges, and a small head."""
    channels = len(ranges)
    inputs = keras.Input((4, 4, channels if is_depthwise else 3))
    layer = (
        keras.layers.DepthwiseConv2D(3, name="layer")
        if is_depthwise
        else keras.layers.Conv2D(channels, 3, name="layer")
    )
    x = keras.layers.ReLU()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(keras.layers.Flatten()(x)))
    kernel = np.sign(np.random.default_rng(0).normal(size=layer.get_weights()[0].shape))
    scale = np.asarray(ranges, float)
    kernel = kernel * (scale[:, None] if is_depthwise else scale)
    layer.set_weights([kernel, np.zeros(channels)])
    return fold(model)


@pytest.mark.parametrize("is_depthwise", [False, True])
def test_similar_are_channels_up_to_four_times_the_median(is_depthwise):
    similar = net_of([1.0] * 63 + [4.0], is_depthwise=is_depthwise)
    different = net_of([1.0] * 63 + [4.1], is_depthwise=is_depthwise)
    assert sharing.layers_of_similar_channels(similar) == {"layer"}
    assert sharing.layers_of_similar_channels(different) == frozenset()


def test_layers_of_few_channels_keep_their_steps():
    assert sharing.layers_of_similar_channels(net_of([1.0] * 63)) == frozenset()
    assert sharing.layers_of_similar_channels(net_of([1.0] * 64)) == {"layer"}


def test_the_three_words():
    net = net_of([1.0] * 64)
    assert sharing.one_step_of("channel", net) is False
    assert sharing.one_step_of("kernel", net) is True
    assert sharing.one_step_of("similar", net) == {"layer"}


def test_only_the_layers_named_have_one_step():
    make_repeatable(2)
    case = built(separable, windows=2)
    model = convert.quantized_model(
        case.net, uniform(case.net, bits=8), case.maps("auto_po2", False), is_per_tensor={"pw"}
    )
    steps = {
        item.name: len(np.unique(item.weights.steps))
        for item in convert.to_fixed_point(model).nodes
        if item.weights is not None
    }
    assert steps["pw"] == 1
    assert steps["stem"] > 1
