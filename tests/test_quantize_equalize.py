"""Rescaling of depthwise filters (FAT, section 3.3)."""

import dataclasses

import numpy as np
import pytest

from qbee.quantize import ops
from qbee.quantize.equalize import filter_factors, rescale_depthwise
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import Node
from qbee.quantize.layers import kernel_quantizer

CHANNELS = 4
SHAPE = (6, 6, CHANNELS)
# The factors are float64, but scaled kernels and sums of products float32.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def depthwise(name="dw", source="input", **changes):
    """3x3, padded to the size of the map."""
    padding = ((1, 1), (1, 1))
    return Node(name, "depthwise", (source,), SHAPE, (3, 3), padding=padding, **changes)


def pointwise(name="pw", source="dw", shape=(6, 6, 3)):
    return Node(name, "conv", (source,), shape)


def kernel_of(filter_sizes, seed=0):
    """A depthwise kernel whose filters have these largest magnitudes."""
    kernel = np.random.default_rng(seed).normal(0, 1, (3, 3, len(filter_sizes), 1))
    kernel /= np.abs(kernel).max((0, 1, 3), keepdims=True)
    return kernel * np.reshape(filter_sizes, (1, 1, -1, 1))


def net_of(*nodes, seed=0):
    """Network of random weights; depthwise filters are spread."""
    rng = np.random.default_rng(seed)
    shapes = {"input": SHAPE} | {node.name: node.shape for node in nodes}
    kernels = {}
    for node in nodes:
        sources, outputs = shapes[node.inputs[0]][-1], node.shape[-1]
        if node.op == "depthwise":
            kernels[node.name] = kernel_of(np.geomspace(0.02, 2, CHANNELS), seed)
        elif node.op == "dense":
            kernels[node.name] = rng.normal(0, 1, (sources, outputs))
        elif node.op == "conv":
            kernels[node.name] = rng.normal(0, 1, (*node.window, sources, outputs))
    biases = {name: rng.normal(0, 0.1, shapes[name][-1]) for name in kernels}
    single = [{k: v.astype(np.float32) for k, v in part.items()} for part in (kernels, biases)]
    return FoldedNet("net", SHAPE, nodes, *single)


def images(n=8, seed=1, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, (n, *SHAPE)).astype(np.float32)


def run(net, x):
    """Result of every node, by name."""
    return {name: np.asarray(y) for name, y in ops.run(net, x).items()}


def output(net, x):
    return run(net, x)[net.nodes[-1].name]


def sizes(net, name="dw"):
    return np.abs(net.kernels[name]).max((0, 1, 3))


def spread(net, name="dw"):
    return sizes(net, name).max() / sizes(net, name).min()


def is_untouched(net, inputs):
    after = rescale_depthwise(net, inputs)
    return all(
        np.array_equal(after.kernels[name], net.kernels[name])
        and np.array_equal(after.biases[name], net.biases[name])
        for name in net.kernels
    )


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_without_a_ceiling_all_filters_get_one_size_and_the_function_stays_for_any_input(
    activation,
):
    net = net_of(depthwise(activation=activation), pointwise())
    after = rescale_depthwise(net, images())
    assert spread(net) == pytest.approx(100)
    assert spread(after) == pytest.approx(1, abs=1e-6)
    for x in (images(), images(seed=2, scale=30.0)):
        expected = output(net, x)
        np.testing.assert_allclose(output(after, x), expected, rtol=1e-5, atol=1e-5 * x.max())


def test_with_a_relu6_the_function_stays_on_the_calibration_inputs():
    net = net_of(depthwise(activation="relu6"), pointwise())
    # The largest filters reach 6 in some places, as MobileNet's do.
    net.biases["dw"][-1] = 3.0
    x = images()
    assert run(net, x)["dw"].max((0, 1, 2))[-1] == 6
    after = rescale_depthwise(net, x)
    assert spread(after) < spread(net) / 5
    np.testing.assert_allclose(output(after, x), output(net, x), **ROUNDING)
    # Elsewhere a channel may reach 6 that did not before: the limit is a calibrated one.
    far = images(scale=10.0)
    assert np.abs(output(after, far) - output(net, far)).max() > 0.1


def test_no_output_of_a_free_channel_is_above_6():
    net = net_of(depthwise(activation="relu6"), pointwise())
    x = images()
    is_free = run(net, x)["dw"].max((0, 1, 2)) <= 5.9
    after = rescale_depthwise(net, x)
    nodes = (dataclasses.replace(after.nodes[0], activation="linear"), *after.nodes[1:])
    highest = run(dataclasses.replace(after, nodes=nodes), x)["dw"].max((0, 1, 2))
    assert not is_free.all()
    # One free channel at least is held back by the ceiling.
    assert highest[is_free].max() == pytest.approx(6, rel=1e-5)


def test_factors_bring_filters_to_the_mean_size_of_the_locked_ones_as_far_as_6_lets_them():
    kernel = kernel_of([1, 2, 4, 0.1, 0.5])
    factors = filter_factors(kernel, np.array([6.0, 5.95, 3.0, 1.0, 0.5]))
    # Locked: 1 and 2, so the control value is 1.5.
    np.testing.assert_allclose(factors, [1, 1, 1.5 / 4, 6 / 1.0, 1.5 / 0.5])


def test_a_channel_is_locked_only_above_5_9():
    kernel, above = kernel_of([1.0, 0.99]), np.nextafter(5.9, 6)
    np.testing.assert_array_equal(filter_factors(kernel, np.array([above, above])), [1, 1])
    # The lower channel is free and takes the size of the locked one.
    np.testing.assert_allclose(filter_factors(kernel, np.array([above, 5.9])), [1, 1 / 0.99])


def test_without_a_locked_channel_the_largest_filter_is_the_control_value():
    kernel = kernel_of([1, 4, 0.5])
    np.testing.assert_allclose(filter_factors(kernel, None), [4, 1, 8])
    np.testing.assert_allclose(filter_factors(kernel, np.array([3.0, 5, 0.1])), [2, 1, 8])


def test_an_all_zero_filter_stays_and_does_not_count():
    zero_at_6 = filter_factors(kernel_of([0, 2, 1]), np.array([6.0, 6, 1]))
    np.testing.assert_allclose(zero_at_6, [1, 1, 2])
    np.testing.assert_array_equal(filter_factors(kernel_of([0, 0]), None), [1, 1])
    net = net_of(depthwise(activation="relu"), pointwise())
    net.kernels["dw"][:, :, 1] = 0
    after = rescale_depthwise(net, images())
    np.testing.assert_array_equal(after.kernels["dw"][:, :, 1], 0)
    assert after.biases["dw"][1] == net.biases["dw"][1]
    np.testing.assert_allclose(output(after, images()), output(net, images()), **ROUNDING)


def test_a_channel_that_never_fires_is_scaled_without_a_limit():
    factors = filter_factors(kernel_of([2, 1, 0.01]), np.array([6.0, 1, 0]))
    np.testing.assert_allclose(factors, [1, 2, 200])


def test_locked_channels_stay_as_they_are():
    net = net_of(depthwise(activation="relu6"), pointwise())
    net.biases["dw"][2] = 5.95
    after = rescale_depthwise(net, images())
    np.testing.assert_array_equal(after.kernels["dw"][:, :, 2], net.kernels["dw"][:, :, 2])
    np.testing.assert_array_equal(after.kernels["pw"][:, :, 2], net.kernels["pw"][:, :, 2])
    assert after.biases["dw"][2] == net.biases["dw"][2]
    assert not np.array_equal(after.kernels["dw"][:, :, 0], net.kernels["dw"][:, :, 0])


def test_biases_are_scaled_as_their_filters_are():
    net = net_of(depthwise(activation="relu"), pointwise())
    after = rescale_depthwise(net, images())
    factors = sizes(after) / sizes(net)
    np.testing.assert_allclose(after.biases["dw"], net.biases["dw"] * factors, rtol=1e-6)
    np.testing.assert_array_equal(after.biases["pw"], net.biases["pw"])


def test_one_step_for_all_filters_is_as_good_as_one_for_each_afterwards():
    net = net_of(depthwise(activation="relu"), pointwise())

    def codes(net, is_per_tensor):
        quantizer = kernel_quantizer("depthwise", 4, "auto", is_per_tensor=is_per_tensor)
        kernel = net.kernels["dw"]
        return quantizer.codes(kernel, quantizer.steps(kernel)).numpy()

    after = rescale_depthwise(net, images())
    np.testing.assert_array_equal(codes(after, True), codes(after, False))
    # Before, the smallest filters vanish.
    assert not np.any(codes(net, True)[:, :, 0])


def residual():
    """The depthwise map is added to the input."""
    return depthwise(activation="relu"), Node("sum", "add", ("dw", "input"), SHAPE)


def shared():
    """Two convolutions read the depthwise map."""
    first, second = pointwise("first"), pointwise("second")
    return (
        depthwise(activation="relu"),
        first,
        second,
        Node("sum", "add", ("first", "second"), (6, 6, 3)),
    )


def behind_a_shared_pool():
    pool = Node("pool", "max_pool", ("dw",), (3, 3, CHANNELS), (2, 2), (2, 2))
    first, second = (pointwise(name, "pool", (3, 3, 3)) for name in ("first", "second"))
    return depthwise(activation="relu"), pool, first, second


def behind_a_sigmoid():
    sigmoid = Node("sigmoid", "sigmoid", ("dw",), SHAPE)
    return depthwise(), sigmoid, pointwise(source="sigmoid")


def behind_a_clipped_mean():
    mean = Node("mean", "mean", ("dw",), (CHANNELS,), activation="relu6")
    return depthwise(), mean, Node("head", "dense", ("mean",), (3,))


def the_output():
    return (depthwise(),)


@pytest.mark.parametrize(
    "make",
    [residual, shared, behind_a_shared_pool, behind_a_sigmoid, behind_a_clipped_mean, the_output],
)
def test_nothing_is_touched_where_factors_cannot_be_undone(make):
    assert is_untouched(net_of(*make()), images())


def flattened():
    flat = Node("flat", "reshape", ("dw",), (6 * 6 * CHANNELS,))
    return flat, Node("head", "dense", ("flat",), (3,))


def averaged():
    return Node("mean", "mean", ("dw",), (CHANNELS,)), Node("head", "dense", ("mean",), (3,))


def pooled():
    window = {"window": (2, 2), "strides": (2, 2)}
    first = Node("first", "max_pool", ("dw",), (3, 3, CHANNELS), **window)
    second = Node("second", "average_pool", ("first",), (1, 1, CHANNELS), **window)
    return first, second, pointwise(source="second", shape=(1, 1, 3))


@pytest.mark.parametrize("make", [flattened, averaged, pooled])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_pools_means_and_flattening_may_come_between(make, activation):
    net = net_of(depthwise(activation=activation), *make())
    after = rescale_depthwise(net, images())
    assert spread(after) < spread(net) / 5
    np.testing.assert_allclose(output(after, images()), output(net, images()), **ROUNDING)


def test_every_depthwise_layer_of_a_chain_is_rescaled():
    net = net_of(
        depthwise(activation="relu"),
        pointwise(shape=SHAPE),
        depthwise("dw2", "pw", activation="relu"),
        pointwise("pw2", "dw2"),
    )
    after = rescale_depthwise(net, images())
    assert spread(after, "dw") == pytest.approx(1, abs=1e-6)
    assert spread(after, "dw2") == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(output(after, images()), output(net, images()), **ROUNDING)


def test_peaks_are_those_of_all_inputs():
    net = net_of(depthwise(activation="relu6"), pointwise())
    x = images(n=70)
    # The image that reaches furthest is alone in the third batch.
    x[65] *= 3
    found = rescale_depthwise(net, x)
    without, turned = rescale_depthwise(net, x[:64]), rescale_depthwise(net, x[::-1])
    assert not np.array_equal(found.kernels["dw"], without.kernels["dw"])
    np.testing.assert_array_equal(found.kernels["dw"], turned.kernels["dw"])


def test_the_network_that_went_in_is_not_changed():
    net = net_of(depthwise(activation="relu6"), pointwise())
    before = {name: kernel.copy() for name, kernel in net.kernels.items()}
    bias = net.biases["dw"].copy()
    after = rescale_depthwise(net, images())
    assert not np.array_equal(after.kernels["dw"], before["dw"])
    for name, kernel in before.items():
        np.testing.assert_array_equal(net.kernels[name], kernel)
    np.testing.assert_array_equal(net.biases["dw"], bias)
    assert all(a.dtype == np.float32 for a in (*after.kernels.values(), *after.biases.values()))
