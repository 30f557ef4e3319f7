"""The folded graph computes what the Keras model does, and what it cannot is refused by name."""

import numpy as np
import pytest

import qbee.models  # noqa: F401 - registers the models
from qbee.errors import ParameterError
from qbee.keras import keras, make_repeatable, tf
from qbee.models import registry
from qbee.quantize import fold, ops
from qbee.quantize.graph import NO_PADDING

L = keras.layers
SHAPE = (9, 8, 4)
HEADS = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid, None: tf.identity}


def conv(filters=4, size=3, strides=1, padding="same", **more):
    return L.Conv2D(filters, size, strides, padding, **more)


def logits(x):
    return L.Dense(3, name="head")(L.Flatten()(x))


def randomized(model):
    """The model with random biases and batch norms, so that no channel is like another."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.5, layer.bias.shape))
    return model


def model_of(build, shape=SHAPE):
    make_repeatable(5)
    inputs = keras.Input(shape)
    return randomized(keras.Model(inputs, build(inputs), name="net"))


def described(net):
    """Operation, activation and max-pool of every node."""
    return [(node.op, node.activation, node.pool) for node in net.nodes]


def assert_folds(model, n=8):
    """Fold a model and compare it; as many images as rows, so that a lost axis would not fail."""
    x = np.random.default_rng(2).normal(0, 2, (n, *model.input_shape[1:])).astype(np.float32)
    net = fold.fold(model)
    found = ops.run(net, tf.constant(x))
    assert list(found)[1:] == [node.name for node in net.nodes]
    for node in net.nodes:
        assert tuple(found[node.name].shape[1:]) == node.shape, node
    expected = model(x, training=False).numpy()
    # A constant would make the comparison empty.
    assert np.ptp(expected) > 1e-3
    result = HEADS[net.head](found[net.nodes[-1].name]).numpy()
    # Folding a batch norm reorders float32 products: 1e-5 of the largest value.
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return net


PADDINGS = {
    "same": lambda x, s: conv(strides=s)(x),
    "valid": lambda x, s: conv(strides=s, padding="valid")(x),
    "even window": lambda x, s: conv(size=(2, 4), strides=s)(x),
    "zeros": lambda x, s: conv(strides=s, padding="valid")(L.ZeroPadding2D(1)(x)),
    "zeros on some sides": lambda x, s: conv(strides=s, padding="valid")(
        L.ZeroPadding2D(((0, 2), (1, 0)))(x)
    ),
    "depthwise, same": lambda x, s: L.DepthwiseConv2D(3, s, "same")(x),
    "depthwise, valid": lambda x, s: L.DepthwiseConv2D((2, 3), s)(x),
    "depthwise, zeros": lambda x, s: L.DepthwiseConv2D(3, s)(L.ZeroPadding2D(((0, 1), (1, 1)))(x)),
}


@pytest.mark.parametrize("build", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("strides", [1, 2, 3, (1, 2), (3, 1)])
def test_convolutions_of_every_padding_and_stride_are_folded(build, strides):
    net = assert_folds(model_of(lambda x: logits(build(x, strides))))
    assert [op for op, _, _ in described(net)][1:] == ["reshape", "dense"]


ACTIVATIONS = {
    "layer relu": (lambda x: L.ReLU()(conv()(x)), "relu"),
    "layer relu6": (lambda x: L.ReLU(6.0)(conv()(x)), "relu6"),
    "word relu": (lambda x: L.Activation("relu")(conv()(x)), "relu"),
    "word relu6": (lambda x: L.Activation("relu6")(conv()(x)), "relu6"),
    "word linear": (lambda x: L.Activation("linear")(conv()(x)), "linear"),
    "function": (lambda x: L.Activation(tf.nn.relu)(conv()(x)), "relu"),
    "own relu": (lambda x: conv(activation="relu")(x), "relu"),
    "own relu6": (lambda x: conv(activation="relu6")(x), "relu6"),
    "after a batch norm": (lambda x: L.ReLU()(L.BatchNormalization()(conv()(x))), "relu"),
    "after dropout": (lambda x: L.ReLU()(L.SpatialDropout2D(0.5)(conv()(x))), "relu"),
}


@pytest.mark.parametrize(("build", "activation"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_an_activation_becomes_part_of_the_convolution(build, activation):
    net = assert_folds(model_of(lambda x: logits(build(x))))
    assert described(net)[0] == ("conv", activation, 1)
    assert len(net.nodes) == 3


@pytest.mark.parametrize("norm", [{}, {"scale": False}, {"center": False},
                                  {"scale": False, "center": False}, {"epsilon": 0.5}])  # fmt: skip
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_batch_norm_goes_into_the_layer_before_it(norm, use_bias):
    def build(x):
        x = L.BatchNormalization(**norm)(conv(5, use_bias=use_bias)(x))
        x = L.BatchNormalization(**norm)(L.DepthwiseConv2D(3, use_bias=use_bias)(x))
        x = L.Dense(6, use_bias=use_bias)(L.Flatten()(x))
        return L.BatchNormalization(**norm)(x)

    net = assert_folds(model_of(build))
    assert [op for op, _, _ in described(net)] == ["conv", "depthwise", "reshape", "dense"]


BEFORE_A_NORM = {
    "relu": lambda x: L.ReLU()(conv()(x)),
    "own relu": lambda x: conv(activation="relu")(x),
    "max-pool": lambda x: L.MaxPooling2D(2)(conv()(x)),
    "average pool": lambda x: L.AveragePooling2D(2)(conv()(x)),
    "sum": lambda x: L.Add()([conv()(x), conv()(x)]),
    "input": lambda x: x,
    "mean": lambda x: L.GlobalAveragePooling2D(keepdims=True)(conv()(x)),
}


@pytest.mark.parametrize("before", BEFORE_A_NORM.values(), ids=BEFORE_A_NORM)
def test_a_batch_norm_that_follows_no_layer_with_weights_becomes_a_depthwise_one(before):
    net = assert_folds(model_of(lambda x: logits(L.BatchNormalization(name="norm")(before(x)))))
    assert net.node("norm").op == "depthwise"
    assert net.kernels["norm"].shape == (1, 1, 4, 1)


def both(a, b):
    return logits(L.Add()([a, b]))


SHARED = {
    "relu": lambda x: both(y := conv()(x), L.ReLU()(y)),
    "relu6": lambda x: both(y := conv()(x), L.ReLU(6.0)(y)),
    "batch norm": lambda x: both(y := conv()(x), L.BatchNormalization()(y)),
    "after dropout": lambda x: both(y := L.Dropout(0.5)(conv()(x)), L.ReLU()(y)),
    "after a batch norm": lambda x: both(y := L.BatchNormalization()(conv()(x)), L.ReLU()(y)),
    "after a relu": lambda x: both(y := L.ReLU()(conv()(x)), L.BatchNormalization()(y)),
    "before a padding": lambda x: both(
        L.ReLU()(y := conv()(x)), conv(padding="valid")(L.ZeroPadding2D(1)(y))
    ),
    "padded": lambda x: both(
        conv(padding="valid")(y := L.ZeroPadding2D(1)(conv()(x))), conv(padding="valid")(y)
    ),
    "both branches": lambda x: both(L.ReLU()(y := conv()(x)), L.ReLU(6.0)(y)),
    "max-pool": lambda x: logits(
        L.Add()([L.MaxPooling2D(2)(y := conv()(x)), conv(strides=2, padding="valid", size=2)(y)])
    ),
    "the same tensor twice": lambda x: logits(L.ReLU()(L.Add()([y := conv()(x), y]))),
    "the input": lambda x: both(x, L.ReLU()(x)),
    "reshaped mean": lambda x: L.Add()(
        [L.Dense(4)(y := L.GlobalAveragePooling2D()(conv()(x))),
         L.Flatten()(L.Reshape((1, 1, 4))(y))]
    ),
    "reshape to the same shape": lambda x: both(
        y := conv()(x), L.ReLU()(L.Reshape(SHAPE)(y))
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", SHARED.values(), ids=SHARED)
def test_a_tensor_that_is_read_twice_stays_as_it_is(build):
    assert_folds(model_of(build))


def squeeze_excite(x, *, to_map, last):
    gate = L.GlobalAveragePooling2D()(x)
    gate = L.Dense(4, activation="sigmoid")(L.Dense(2, activation="relu")(gate))
    gate = to_map(gate)
    return L.Multiply()([x, gate] if last else [gate, x])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    "to_map", [lambda g: L.Reshape((1, 1, 4))(g), lambda g: g], ids=["reshaped", "of two ranks"]
)
def test_squeeze_excite_blocks_are_folded(to_map, last):
    net = assert_folds(
        model_of(lambda x: logits(squeeze_excite(conv()(x), to_map=to_map, last=last)))
    )
    assert [op for op, _, _ in described(net)] == [
        "conv", "mean", "dense", "dense", "sigmoid", "reshape", "multiply", "reshape", "dense"
    ]  # fmt: skip


def three_summed(x):
    return L.Add(name="add")([conv()(x), conv(2 * 2, 1)(x), x])


MERGED = {
    "three": three_summed,
    "three, relu": lambda x: L.ReLU()(three_summed(x)),
    "four": lambda x: L.Add()([x, conv()(x), x, conv()(x)]),
    "three factors": lambda x: L.Multiply()([conv()(x), x, conv()(x)]),
    # Keras calls its second sum what a part of the first one could be called.
    "names of Keras' own": lambda x: L.Add(name="add_1")([three_summed(x), x]),
    "one channel": lambda x: L.Add()([conv(1)(x), conv()(x)]),
    "two ranks": lambda x: L.Add()([L.GlobalAveragePooling2D()(conv()(x)), conv()(x)]),
    "two ranks, flat second": lambda x: L.Add()([conv()(x), L.Dense(4)(L.Flatten()(x))]),
    "relu6 of a product": lambda x: L.ReLU(6.0)(L.Multiply()([conv()(x), x])),
    "max-pool of a sum": lambda x: L.MaxPooling2D(2)(L.ReLU()(L.Add()([conv()(x), x]))),
}


@pytest.mark.parametrize("build", MERGED.values(), ids=MERGED)
def test_sums_and_products_of_maps_are_folded(build):
    net = assert_folds(model_of(lambda x: logits(build(x))))
    assert len({node.name for node in net.nodes}) == len(net.nodes)


def test_a_sum_of_three_is_two_sums_and_the_activation_comes_last():
    net = assert_folds(model_of(lambda x: logits(L.ReLU()(three_summed(x)))))
    sums = [(node.name, node.activation) for node in net.nodes if node.op == "add"]
    assert sums == [("add_1", "linear"), ("add", "relu")]


POOLS = {
    "max": (lambda x: L.MaxPooling2D(2)(x), ("conv", "linear", 2)),
    "max, incomplete": (lambda x: L.MaxPooling2D(5)(x), ("conv", "linear", 5)),
    "max, oblong": (lambda x: L.MaxPooling2D((2, 1))(x), ("max_pool", "linear", 1)),
    "max, overlapping": (lambda x: L.MaxPooling2D(3, 2)(x), ("max_pool", "linear", 1)),
    "max, same": (lambda x: L.MaxPooling2D(2, padding="same")(x), ("max_pool", "linear", 1)),
    "max, gaps": (lambda x: L.MaxPooling2D(2, 3)(x), ("max_pool", "linear", 1)),
    "max, then relu": (lambda x: L.ReLU()(L.MaxPooling2D(2)(x)), ("conv", "relu", 2)),
    "relu, then max": (lambda x: L.MaxPooling2D(2)(L.ReLU()(x)), ("conv", "relu", 2)),
    "max twice": (lambda x: L.MaxPooling2D(2)(L.MaxPooling2D(2)(x)), ("max_pool", "linear", 1)),
    "average": (lambda x: L.AveragePooling2D(2)(x), ("average_pool", "linear", 1)),
    "average, same": (
        lambda x: L.AveragePooling2D(3, 2, "same")(x),
        ("average_pool", "linear", 1),
    ),
    "average, oblong": (lambda x: L.AveragePooling2D((3, 2), (1, 2))(x),
                        ("average_pool", "linear", 1)),
    "average of all": (lambda x: L.AveragePooling2D((9, 8))(x), ("mean", "linear", 1)),
    "average of all, often": (
        lambda x: L.AveragePooling2D((9, 8), 2, "same")(x),
        ("average_pool", "linear", 1),
    ),
    "average, then relu": (
        lambda x: L.ReLU()(L.AveragePooling2D(2)(x)),
        ("rescale", "relu", 1),
    ),
    "mean": (lambda x: L.GlobalAveragePooling2D()(x), ("mean", "linear", 1)),
    "mean with axes": (lambda x: L.GlobalAveragePooling2D(keepdims=True)(x), ("mean", "linear", 1)),
    "mean, then relu": (lambda x: L.ReLU()(L.GlobalAveragePooling2D()(x)), ("mean", "relu", 1)),
    "mean in another shape": (
        lambda x: L.Reshape((2, 1, 2))(L.GlobalAveragePooling2D()(x)),
        ("mean", "linear", 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "last"), POOLS.values(), ids=POOLS)
def test_pools_are_folded(build, last):
    net = assert_folds(model_of(lambda x: logits(build(conv()(x)))))
    nodes = [node for node in described(net) if node[0] not in ("reshape", "dense")]
    assert nodes[-1] == last


ENDS = {
    "logits": (logits, None),
    "softmax layer": (lambda x: L.Softmax()(logits(x)), "softmax"),
    "softmax word": (lambda x: L.Activation("softmax")(logits(x)), "softmax"),
    "own softmax": (lambda x: L.Dense(3, activation="softmax")(L.Flatten()(x)), "softmax"),
    "own sigmoid": (lambda x: L.Dense(3, activation="sigmoid")(L.Flatten()(x)), "sigmoid"),
    "sigmoid word": (lambda x: L.Activation("sigmoid")(logits(x)), "sigmoid"),
    "two sigmoids": (lambda x: L.Activation("sigmoid")(L.Dense(3, "sigmoid")(L.Flatten()(x))),
                     "sigmoid"),
    "dropout after softmax": (lambda x: L.Softmax()(L.Dropout(0.5)(logits(x))), "softmax"),
    "map": (lambda x: conv()(x), None),
    "map of probabilities": (lambda x: L.Softmax()(conv()(x)), "softmax"),
    "pooled": (lambda x: L.GlobalAveragePooling2D()(conv()(x)), None),
    "reshaped": (lambda x: L.Reshape((3, 1))(logits(x)), None),
    "reshaped probabilities": (lambda x: L.Flatten()(conv(activation="sigmoid")(x)), None),
    "relu": (lambda x: L.ReLU()(logits(x)), None),
}  # fmt: skip


@pytest.mark.parametrize(("build", "head"), ENDS.values(), ids=ENDS)
def test_a_model_may_end_in_logits_probabilities_or_a_map(build, head):
    net = assert_folds(model_of(lambda x: build(conv()(x))))
    assert net.head == head


@pytest.mark.parametrize("name", ["beenet1", "beenet3"])
def test_bee_nets_are_folded(name):
    make_repeatable(3)
    assert_folds(randomized(registry.build(name)), n=2)


def test_a_sequential_model_is_folded():
    make_repeatable(3)
    model = keras.Sequential([keras.Input(SHAPE), conv(), L.ReLU(), L.Flatten(), L.Dense(2)])
    assert [op for op, _, _ in described(assert_folds(model))] == ["conv", "reshape", "dense"]


def test_the_folded_net_describes_the_graph():
    def build(x):
        y = L.ReLU()(L.BatchNormalization()(conv(strides=(1, 2), use_bias=False, name="stem")(x)))
        y = conv(padding="valid", name="padded")(L.ZeroPadding2D(((1, 1), (2, 0)))(y))
        y = L.MaxPooling2D(2)(y)
        return logits(L.Add(name="sum")([y, L.ReLU(6.0, name="clipped")(y)]))

    net = assert_folds(model_of(build))
    assert (net.name, net.input_shape, net.head) == ("net", SHAPE, None)
    assert net.weighted == ["stem", "padded", "head"]
    assert net.maps == ["stem", "padded", "clipped", "sum", "head"]
    assert [node.inputs for node in net.nodes[:-1]] == [
        ("input",), ("stem",), ("padded",), ("padded", "clipped"), ("sum",)
    ]  # fmt: skip
    assert net.nodes[-1].inputs == (net.nodes[-2].name,)
    assert (net.node("stem").strides, net.node("stem").padding) == ((1, 2), ((1, 1), (0, 1)))
    assert net.node("padded").padding == ((1, 1), (2, 0))
    assert net.node("head").padding == NO_PADDING
    assert {name: kernel.shape for name, kernel in net.kernels.items()} == {
        "stem": (3, 3, 4, 4), "padded": (3, 3, 4, 4), "head": (4 * 2 * 4, 3)
    }  # fmt: skip
    assert {name: bias.shape for name, bias in net.biases.items()} == {
        "stem": (4,), "padded": (4,), "head": (3,)
    }  # fmt: skip


def test_other_weights_make_another_net_and_leave_this_one():
    net = fold.fold(model_of(lambda x: logits(conv(name="stem")(x))))
    before = {name: kernel.copy() for name, kernel in net.kernels.items()}
    doubled = net.with_weights({n: 2 * k for n, k in net.kernels.items()}, net.biases)
    for name, kernel in before.items():
        np.testing.assert_array_equal(net.kernels[name], kernel)
        np.testing.assert_array_equal(doubled.kernels[name], 2 * kernel)
    assert doubled.nodes is net.nodes


def test_folding_leaves_the_model_as_it_was():
    model = model_of(lambda x: logits(L.BatchNormalization()(conv()(x))))
    before = [w.copy() for w in model.get_weights()]
    one, other = fold.fold(model), fold.fold(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.nodes == other.nodes


def wrong(layer):
    return lambda x: logits(layer(conv(8)(x)))


class OwnConvolution(L.Conv2D):
    pass


REFUSED = {
    "leaky relu": (wrong(L.LeakyReLU(name="odd")), r"LeakyReLU\) cannot be .*known.*Conv2D, Dense"),
    "subclass": (wrong(OwnConvolution(2, 3, name="odd")), "cannot be quantized"),
    "transposed": (wrong(L.Conv2DTranspose(2, 3, name="odd")), "cannot be quantized"),
    "separable": (wrong(L.SeparableConv2D(2, 3, name="odd")), "cannot be quantized"),
    "concatenation": (
        lambda x: logits(L.Concatenate(name="odd")([x, x])),
        "cannot be quantized",
    ),
    "model": (wrong(keras.Sequential([conv()], name="odd")), "cannot be quantized"),
    "clipped relu": (wrong(L.ReLU(5.0, name="odd")), "must be a plain ReLU or ReLU6"),
    "sloped relu": (wrong(L.ReLU(negative_slope=0.1, name="odd")), "must be a plain ReLU"),
    "shifted relu": (wrong(L.ReLU(threshold=0.1, name="odd")), "must be a plain ReLU"),
    "tanh": (wrong(L.Activation("tanh", name="odd")), "activation='tanh'; known: linear, relu"),
    "own swish": (wrong(conv(activation="swish", name="odd")), "has activation='swish'"),
    "dilation": (wrong(conv(dilation_rate=2, name="odd")), r"no dilation, has \(2, 2\)"),
    "groups": (wrong(conv(groups=2, name="odd")), "must have groups=1"),
    "multiplier": (wrong(L.DepthwiseConv2D(3, 1, "same", 2, name="odd")), "depth_multiplier=1"),
    "dense on a map": (wrong(L.Dense(3, name="odd")), "must follow a Flatten layer"),
    "batch norm of rows": (wrong(L.BatchNormalization(axis=1, name="odd")), "axis=-1, has .1."),
    "batch norm of columns": (wrong(L.BatchNormalization(axis=2, name="odd")), "axis=-1, has .2."),
    "batch norm after relu": (
        lambda x: L.BatchNormalization(name="odd")(L.ReLU()(logits(x))),
        "must follow a convolution or dense layer directly",
    ),
    "softmax inside": (
        lambda x: L.Dense(2, name="odd")(L.Softmax()(logits(x))),
        "follows a softmax, which must be the end",
    ),
    "softmax over rows": (lambda x: L.Softmax(1, name="odd")(conv()(x)), "axis=-1, has 1"),
    "padded twice": (
        lambda x: logits(conv(padding="valid")(L.ZeroPadding2D(1, name="odd")(
            L.ZeroPadding2D(1)(x)))),
        "must not follow another ZeroPadding2D",
    ),
    "padding before same": (
        lambda x: logits(conv(name="odd")(L.ZeroPadding2D(1)(x))),
        "must have padding='valid' after a ZeroPadding2D",
    ),
    "padding before a pool": (
        lambda x: logits(L.MaxPooling2D(2, name="odd")(L.ZeroPadding2D(1)(x))),
        "follows a ZeroPadding2D, which a convolution must follow",
    ),
    "padding before a sum": (
        lambda x: logits(L.Add(name="odd")([y := L.ZeroPadding2D(1)(x), y])),
        "follows a ZeroPadding2D",
    ),
    "padding before a batch norm": (
        lambda x: logits(L.BatchNormalization(name="odd")(L.ZeroPadding2D(1)(conv()(x)))),
        "follows a ZeroPadding2D",
    ),
    "channels first": (wrong(L.Flatten("channels_first", name="odd")), "='channels_last'"),
    "channels first in a mean": (
        lambda x: L.Dense(2)(L.GlobalAveragePooling2D("channels_first", name="odd")(x)),
        "='channels_last'",
    ),
    "channels first in a pool": (
        wrong(L.MaxPooling2D(2, data_format="channels_first", name="odd")),
        "='channels_last'",
    ),
    "channels first in a padding": (
        wrong(L.ZeroPadding2D(1, data_format="channels_first", name="odd")),
        "='channels_last'",
    ),
    "channels first in a convolution": (
        wrong(conv(data_format="channels_first", name="odd")),
        "='channels_last'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "why"), REFUSED.values(), ids=REFUSED)
def test_a_layer_that_cannot_be_converted_is_named(build, why):
    with pytest.raises(ParameterError, match=f"layer 'odd' .*{why}"):
        fold.fold(model_of(build))


def test_a_layer_named_like_the_networks_input_is_refused():
    with pytest.raises(ParameterError, match="layer 'input' .*must have another name"):
        fold.fold(model_of(lambda x: logits(conv(name="input")(x))))


def test_a_layer_that_is_used_twice_is_named():
    layer = conv(name="odd")
    with pytest.raises(ParameterError, match="layer 'odd' .*is used more than once"):
        fold.fold(model_of(lambda x: logits(layer(layer(x)))))


@pytest.mark.parametrize(
    "build",
    [L.Flatten(), L.MaxPooling2D(2), lambda x: L.ZeroPadding2D(1)(conv()(x)), L.Softmax()],
    ids=["flatten", "max-pool", "padding", "softmax"],
)
def test_a_model_without_a_number_format_at_its_end_is_refused(build):
    with pytest.raises(ParameterError, match="model 'net' must end in a layer with weights"):
        fold.fold(model_of(build))


def test_a_model_with_several_inputs_or_outputs_or_none_is_refused():
    one, two = keras.Input(SHAPE), keras.Input(SHAPE)
    several = [
        keras.Model([one, two], L.Add()([one, two]), name="odd"),
        keras.Model(one, [conv()(one), conv()(one)], name="odd"),
        keras.Sequential([conv()], name="odd"),
    ]
    for model in several:
        with pytest.raises(ParameterError, match="'odd' must have one input and one output"):
            fold.fold(model)
