"""Pruning: groups of channels, smaller models, the record of what stays, shares of parameters."""

from functools import cache

import numpy as np
import pytest
from pydantic import ValidationError
from twin_nets import NETS, autoencoder, mobilenet, padded, resnet, with_random_weights

import qbee.models  # noqa: F401 - registers the models
from qbee.errors import ModelFileError, ParameterError
from qbee.keras import keras
from qbee.models import registry
from qbee.prune import methods
from qbee.prune.kept import Kept
from qbee.prune.magnitude import GlobalL1, l1_scores
from qbee.prune.method import DEFAULT, Task
from qbee.prune.network import network_of
from qbee.prune.selection import FLOOR, by_ratio, evenly
from qbee.prune.surgery import pruned, rebuilt

L = keras.layers
NAMES = ("beenet1", "beenet2", "beenet3", "mobilenet_v2", "resnet9")
TOYS = {make.__name__: make for make in (autoencoder, mobilenet, padded, resnet)}
# The smallest images of a power of two that leave one element before the heads of all.
SIDE = 64


@cache
def build(name):
    """A model with random batch norms and biases, so that zeros alone leave no zero."""
    if name in NAMES:
        return with_random_weights(registry.build(name, n_mels=SIDE, n_frames=SIDE), 1)
    if name == "padded":
        return with_random_weights(padded_without_reshape(), 1)
    inputs = keras.Input(NETS[TOYS[name]])
    return with_random_weights(keras.Model(inputs, TOYS[name](inputs), name=name), 1)


def padded_without_reshape():
    x = inputs = keras.Input((12, 17, 2))
    x = L.Conv2D(6, (3, 2), (1, 2), activation="relu")(L.ZeroPadding2D(((2, 0), (0, 1)))(x))
    x = L.DepthwiseConv2D(3, 2, activation="sigmoid")(L.ZeroPadding2D(((0, 1), (2, 0)))(x))
    x = L.Flatten()(L.AveragePooling2D((2, 3), (1, 2))(L.Dropout(0.5)(x)))
    x = L.Dense(10, activation="relu")(L.BatchNormalization()(x))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(x))


def images(model, count=2):
    shape = (count, *model.input_shape[1:])
    return np.random.default_rng(5).normal(0, 1, shape).astype(np.float32)


def random_kept(channels, seed):
    rng = np.random.default_rng(seed)
    chosen = {g: rng.choice(n, rng.integers(1, n), replace=False) for g, n in channels.items()}
    return Kept(channels={g: tuple(sorted(map(int, c))) for g, c in chosen.items()})


def masked(model, kept):
    """The unpruned layers with zeros in all channels that go, after every single layer."""
    network = network_of(model)
    whole, model = model, keras.models.clone_model(model)
    model.set_weights(whole.get_weights())
    values = {id(model.inputs[0]): model.inputs[0]}
    for layer in model.layers:
        if isinstance(layer, L.InputLayer):
            continue
        read = layer.input if isinstance(layer.input, list) else [layer.input]
        read = [values[id(tensor)] for tensor in read]
        value = layer(read if len(read) > 1 else read[0])
        axis = network.targets[layer.name]
        if axis.group in kept.channels:
            mask = np.zeros(axis.channels, np.float32)
            mask[list(kept.channels[axis.group])] = 1
            value = value * np.tile(mask, axis.repeats)
        values[id(layer.output)] = value
    return keras.Model(model.inputs, values[id(model.outputs[0])])


def parameters(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize("name", [*NAMES, *TOYS])
@pytest.mark.parametrize("seed", range(2))
def test_a_pruned_model_computes_what_the_masked_one_does(name, seed):
    model = build(name)
    before = [w.copy() for w in model.get_weights()]
    network = network_of(model)
    kept = random_kept(network.channels, seed)
    smaller = pruned(model, kept)
    x = images(model)
    expected = masked(model, kept)(x, training=False).numpy()
    np.testing.assert_allclose(smaller(x, training=False).numpy(), expected, rtol=1e-5, atol=1e-5)
    # Zeros matter here: the whole model gives something else.
    assert np.abs(model(x, training=False).numpy() - expected).max() > 1e-4
    assert parameters(smaller) == network.parameters(kept.counts) < parameters(model)
    for weight, untouched in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, untouched)


@pytest.mark.parametrize("name", [*NAMES, *TOYS])
def test_a_model_that_keeps_everything_is_a_copy(name):
    model = build(name)
    smaller = pruned(model, Kept())
    assert smaller.name == model.name
    assert [a.name for a in smaller.layers] == [a.name for a in model.layers]
    assert [a.get_config() for a in smaller.layers] == [a.get_config() for a in model.layers]
    for one, other in zip(smaller.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_depthwise_convolutions_and_batch_norms_follow_what_they_read():
    model = build("beenet3")
    smaller = pruned(model, Kept(channels={"stem": (1, 5), "block1_pw": (0, 2, 4)}))
    shapes = {a.name: [w.shape for w in a.get_weights()] for a in smaller.layers}
    assert shapes["stem"] == [(3, 3, 1, 2)]
    assert shapes["stem_bn"] == shapes["block1_dw_bn"] == [(2,)] * 4
    assert shapes["block1_dw"] == [(3, 3, 2, 1)]
    assert shapes["block1_pw"] == [(1, 1, 2, 3)]
    assert shapes["block2_pw"] == [(1, 1, 3, 64)]
    np.testing.assert_array_equal(
        smaller.get_layer("block1_pw").kernel,
        model.get_layer("block1_pw").kernel[:, :, 1:6:4, 0:5:2],
    )


def test_maps_that_are_added_are_one_group():
    groups = network_of(build("resnet9")).channels
    assert groups == {
        "conv1": 64, "conv2": 128, "res1_1": 128, "conv3": 256, "conv4": 512, "res2_1": 512,
    }  # fmt: skip
    network = network_of(build("mobilenet_v2"))
    projections = ["block3_1_project", "block3_2_project", "block3_3_project", "block3_3_add"]
    assert {network.targets[name].group for name in projections} == {"block3_1_project"}


def test_flattening_repeats_channels_for_the_classifier():
    model = build("beenet3")
    smaller = pruned(model, Kept(channels={"block2_pw": (3, 60)}))
    positions = 2 * 2
    assert smaller.get_layer("head").kernel.shape == (positions * 2, 2)
    rows = [64 * position + channel for position in range(positions) for channel in (3, 60)]
    whole = model.get_layer("head").kernel.numpy()
    np.testing.assert_array_equal(smaller.get_layer("head").kernel, whole[rows])


def test_channels_that_are_added_to_inputs_or_outputs_are_never_pruned():
    x = inputs = keras.Input((8, 8, 4))
    y = L.Conv2D(4, 3, padding="same", name="on_the_input")(L.Conv2D(6, 1, name="inner")(x))
    x = L.Conv2D(3, 1, name="on_the_output")(L.Add()([x, y]))
    logits = L.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, L.Add()([logits, L.Dense(3)(logits)]))
    assert network_of(model).channels == {"inner": 6}


def test_softmax_inside_a_model_ties_its_channels():
    inputs = keras.Input((6,))
    x = L.Dense(4, activation="softmax", name="attention")(L.Dense(5, name="hidden")(inputs))
    assert network_of(keras.Model(inputs, L.Dense(2)(x))).channels == {"hidden": 5}


def refused(layer, shape=(8, 8, 4)):
    inputs = keras.Input(shape)
    x = layer(L.Conv2D(4, 1)(inputs))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (L.Conv2DTranspose(3, 2, name="up"), r"layer 'up' \(Conv2DTranspose\) cannot be pruned"),
        (L.SeparableConv2D(3, 2, name="two"), r"layer 'two' \(SeparableConv2D\) cannot be pruned"),
        (L.Conv2D(4, 1, groups=2, name="c"), r"layer 'c' \(Conv2D\) must have groups=1"),
        (L.DepthwiseConv2D(3, depth_multiplier=2, name="d"), "'d' .* must have depth_multiplier=1"),
        (L.BatchNormalization(axis=1, name="b"), r"'b' .* must have axis=-1, has \[1\]"),
    ],
)
def test_a_layer_whose_channels_cannot_be_followed_is_named(layer, message):
    with pytest.raises(ParameterError, match=message):
        network_of(refused(layer))


def test_sums_of_one_channel_and_many_and_shared_layers_are_named():
    inputs = keras.Input((8, 8, 4))
    x = L.Add(name="sum")([L.Conv2D(4, 1)(inputs), L.Conv2D(1, 1)(inputs)])
    with pytest.raises(ParameterError, match="'sum' .* must add maps of equal channels"):
        network_of(keras.Model(inputs, x))
    twice = L.Conv2D(4, 1, name="twice")
    with pytest.raises(ParameterError, match="'twice' .* is used more than once"):
        network_of(keras.Model(inputs, twice(twice(inputs))))


def test_the_record_is_equal_after_a_file_and_rebuilds_the_architecture(tmp_path):
    model = build("mobilenet_v2")
    found = GlobalL1().prune(model, Task(0.5, seed=0))
    found.kept.save(tmp_path / "kept.json")
    kept = Kept.load(tmp_path / "kept.json")
    assert kept == found.kept
    assert list(kept.channels) == list(network_of(model).channels)
    again = rebuilt(registry.build("mobilenet_v2", n_mels=SIDE, n_frames=SIDE), kept)
    assert [a.name for a in again.layers] == [a.name for a in model.layers]
    assert not np.array_equal(again.get_layer("last").kernel, found.model.get_layer("last").kernel)
    again.set_weights(found.model.get_weights())
    np.testing.assert_array_equal(again(images(model)), found.model(images(model)))


def test_two_prunings_are_one():
    model = build("beenet2")
    first = random_kept(network_of(model).channels, 1)
    once = pruned(model, first)
    second = random_kept(network_of(once).channels, 2)
    second = Kept(channels={g: c for g, c in second.channels.items() if g != "stem"})
    twice, directly = pruned(once, second), pruned(model, first.then(second))
    for one, other in zip(twice.get_weights(), directly.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("channels", [[], [3, 2], [2, 2], [-1, 0]])
def test_a_record_of_no_or_unordered_channels_is_refused(channels, tmp_path):
    with pytest.raises(ValidationError, match="ascending"):
        Kept(channels={"stem": channels})
    path = tmp_path / "kept.json"
    path.write_text(f'{{"channels": {{"stem": {channels}}}}}')
    with pytest.raises(ModelFileError, match=r"kept.json: channels.stem: .*ascending"):
        Kept.load(path)


@pytest.mark.parametrize("make", [pruned, rebuilt])
def test_a_record_of_another_model_is_refused(make):
    model = build("beenet3")
    with pytest.raises(ParameterError, match="group='conv1' must be one of stem, block1_pw"):
        make(model, Kept(channels={"conv1": (0,)}))
    with pytest.raises(ParameterError, match="channel 32 of group 'stem' must be below 32"):
        make(model, Kept(channels={"stem": (0, 32)}))


@pytest.mark.parametrize("name", NAMES)
def test_the_default_leaves_the_share_of_parameters_that_its_ratio_says(name):
    model = registry.build(name)
    for ratio in (0.2, 0.3, 0.5):
        found = methods.get(DEFAULT)().prune(model, Task(ratio, seed=0))
        share = parameters(found.model) / parameters(model) / (1 - ratio) ** 2
        assert share == pytest.approx(1, abs=0.03)
        for group, channels in network_of(model).channels.items():
            assert found.kept.counts[group] >= FLOOR * channels


def test_a_ratio_of_nothing_keeps_everything():
    model = build("beenet3")
    assert GlobalL1().prune(model, Task(0.0, seed=0)).kept.counts == network_of(model).channels


def test_scores_are_the_mean_norm_of_a_channel_in_the_layers_of_its_group():
    model = build("beenet3")
    norms = [
        np.abs(model.get_layer("block1_pw").kernel).sum((0, 1, 2)),
        np.abs(model.get_layer("block1_pw_bn").gamma),
        np.abs(model.get_layer("block2_dw").depthwise_kernel).sum((0, 1, 3)),
        np.abs(model.get_layer("block2_dw_bn").gamma),
        np.abs(model.get_layer("block2_pw").kernel).sum((0, 1, 3)),
    ]
    expected = np.mean(norms, axis=0)
    np.testing.assert_allclose(l1_scores(model)["block1_pw"], expected / expected.mean(), rtol=1e-6)
    head = np.abs(model.get_layer("head").kernel).sum(1).reshape(4, 64).sum(0)
    pw = np.abs(model.get_layer("block2_pw").kernel).sum((0, 1, 2))
    expected = np.mean([pw, np.abs(model.get_layer("block2_pw_bn").gamma), head], axis=0)
    np.testing.assert_allclose(l1_scores(model)["block2_pw"], expected / expected.mean(), rtol=1e-6)


def test_the_weakest_channels_of_all_groups_go_first():
    network = network_of(build("beenet3"))
    scores = {g: np.linspace(1, 2, n) for g, n in network.channels.items()}
    scores["stem"] = scores["stem"] + 5
    kept = by_ratio(network, scores, 0.3)
    assert kept.counts["stem"] == 32
    cut = [scores[g][c[0]] for g, c in kept.channels.items() if g != "stem"]
    assert max(cut) - min(cut) < 2 / 32
    assert all(c[-1] == network.channels[g] - 1 for g, c in kept.channels.items())


def test_an_even_cut_takes_the_same_share_of_every_group():
    network = network_of(build("mobilenet_v2"))
    counts = evenly(network, 0.4)
    shares = [counts[g] / n for g, n in network.channels.items()]
    assert max(shares) - min(shares) <= 1 / min(network.channels.values())
    assert network.parameters(counts) == pytest.approx(0.36 * network.parameters({}), rel=0.01)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ParameterError, match=f"ratio={ratio} must be at least 0 and below 1"):
        Task(ratio, seed=0)


def test_a_ratio_below_the_floor_is_refused_with_what_is_possible():
    with pytest.raises(ParameterError, match=r"ratio=0.99 must be at most 0\.84"):
        GlobalL1().prune(build("beenet3"), Task(0.99, seed=0))


def test_an_unknown_method_is_answered_with_the_known_ones():
    with pytest.raises(ParameterError, match=f"method='l2' must be one of .*{DEFAULT}"):
        methods.get("l2")
