"""Methods of pruning: what each of them takes away, and a pruned model on TFLite Micro."""

import warnings

import numpy as np
import pytest
from twin_nets import with_random_weights

import qbee.models  # noqa: F401 - registers the models
from qbee.errors import ParameterError
from qbee.export import tflite
from qbee.keras import keras, make_repeatable, tf
from qbee.models import registry
from qbee.prune import cyclical, methods, slimming
from qbee.prune.apoz import ApoZ, zero_shares
from qbee.prune.cyclical import Cyclical
from qbee.prune.kept import Kept
from qbee.prune.magnitude import GlobalL1, MagnitudeInSteps, l1_scores
from qbee.prune.method import FINE_TUNING, Data, Task, cut, parameters
from qbee.prune.netadapt import NetAdapt
from qbee.prune.network import network_of
from qbee.prune.regression import Regression, lasso_choice
from qbee.prune.slimming import Slimming, gains
from qbee.prune.surgery import pruned
from qbee.quantize import calibrate, convert, fold
from qbee.quantize.scheme import uniform
from qbee.records import FrontEnd
from qbee.runtime.interpreter import MicroModel
from qbee.train.fit import Examples, Trainer, TrainSettings, fit, predict

L = keras.layers
SETTINGS = TrainSettings(epochs=2, batch_windows=8, max_rate=0.01, schedule="constant")


def small_model():
    """A BeeNet in little, with a residual sum."""
    x = inputs = keras.Input((16, 16, 1), name="mel")
    x = L.Conv2D(8, 3, 2, "same", use_bias=False, name="stem")(x)
    x = L.ReLU(name="stem_relu")(L.BatchNormalization(name="stem_bn")(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw")(x)
    y = L.Conv2D(10, 1, name="expand")(L.ReLU()(L.BatchNormalization(name="dw_bn")(y)))
    y = L.ReLU(name="expand_relu")(L.BatchNormalization(name="expand_bn")(y))
    y = L.Conv2D(8, 3, padding="same", name="project")(y)
    x = L.ReLU(name="sum_relu")(L.Add(name="add")([x, L.BatchNormalization(name="project_bn")(y)]))
    x = L.Flatten(name="flatten")(L.MaxPooling2D(4, name="pool")(x))
    return keras.Model(inputs, L.Dense(2, name="head")(x), name="small")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3 == 0
    images = rng.normal(-70, 8, (60, 16, 16)).astype(np.float32)
    images[labels, 4:8] += 12
    examples = Examples(images, labels, FrontEnd(n_mels=16, n_frames=16))
    return Data(examples, train=range(40), validation=range(40, 60))


@pytest.fixture(scope="module")
def model(data):
    make_repeatable(2)
    found = small_model()
    parts = {"train": data.train, "validation": data.validation}
    fit(found, data.examples, **parts, settings=SETTINGS, seed=1)
    return found


@pytest.fixture
def poisoned(data):
    """The same windows, and a last one that must not be looked at."""
    images = np.concatenate([data.examples.images, np.full((1, 16, 16), np.nan, np.float32)])
    labels = np.append(data.examples.labels, True)
    examples = Examples(images, labels, data.examples.front_end)
    return Data(examples, data.train, data.validation)


# Fewer steps than by default, which are tested below.
QUICKER = {"netadapt": {"step": 0.3}, "cyclical": {"cycles": 1}}


@pytest.mark.parametrize("name", methods.names())
def test_every_method_leaves_the_share_of_parameters_and_the_given_model(name, model, poisoned):
    before = [w.copy() for w in model.get_weights()]
    task = Task(0.3, seed=4, data=poisoned, settings=SETTINGS)
    found = methods.get(name)(**QUICKER.get(name, {})).prune(model, task)
    network = network_of(model)
    # As close as whole channels of this small model allow.
    channel = parameters(model) - network.parameters({"stem": 7})
    assert abs(parameters(found.model) - 0.49 * parameters(model)) < channel
    assert parameters(found.model) == network.parameters(found.kept.counts)
    assert list(found.kept.channels) == list(network.channels)
    assert np.all(np.isfinite(predict(found.model, poisoned.examples, range(60))))
    for weight, untouched in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, untouched)


@pytest.mark.parametrize("name", methods.names())
def test_methods_that_need_windows_say_so(name, model):
    if name == "global_l1":
        assert GlobalL1().prune(model, Task(0.3, seed=0)).model.name == model.name
        return
    with pytest.raises(ParameterError, match="data=None must be labelled windows"):
        methods.get(name)().prune(model, Task(0.3, seed=0))


def test_fine_tuning_is_that_of_the_bee_paper():
    assert FINE_TUNING.epochs == 10
    assert FINE_TUNING.max_rate == 1e-4
    assert FINE_TUNING.schedule == "constant"


def test_steps_retrain_and_end_where_one_step_would(model, data):
    task = Task(0.5, seed=0, data=data, settings=SETTINGS)
    one, three = MagnitudeInSteps(steps=1), MagnitudeInSteps()
    found = one.prune(model, task)
    assert found.kept == GlobalL1().prune(model, task).kept
    untrained = pruned(model, found.kept)
    assert not np.array_equal(
        found.model.get_layer("dw").get_weights()[0], untrained.get_layer("dw").get_weights()[0]
    )
    again = three.prune(model, task)
    assert abs(parameters(again.model) - parameters(found.model)) < 60


def cycle_kernels(model, data, epochs, monkeypatch):
    """Kernel of the head after each epoch with the model trained, and the pruned model."""
    found = []
    epoch = Trainer.epoch

    def recorded(self, *arguments):
        loss = epoch(self, *arguments)
        found.append((self.model.get_layer("head").kernel.numpy(), self.model))
        return loss

    monkeypatch.setattr(Trainer, "epoch", recorded)
    settings = SETTINGS.model_copy(update={"epochs": epochs})
    result = Cyclical(cycles=2).prune(model, Task(0.4, seed=0, data=data, settings=settings))
    return found, result


def test_masked_weights_are_zero_in_a_cycle_and_may_return_in_the_next(model, data, monkeypatch):
    found, result = cycle_kernels(model, data, 3, monkeypatch)
    zeros = [np.mean(kernel == 0) for kernel, _ in found]
    assert len(zeros) == 6
    assert zeros[0] == zeros[3] == 0
    assert 0 < zeros[1] <= zeros[2]
    assert 0 < zeros[4] <= zeros[5]
    # What is cut contributed nothing to the trained model.
    last = found[-1][1]
    inputs = data.examples.inputs(range(10))
    np.testing.assert_allclose(
        result.model(inputs, training=False), last(inputs, training=False), atol=1e-5
    )
    dropped = set(range(8)) - set(result.kept.channels["stem"])
    assert dropped
    rows = [8 * position + channel for position in range(4) for channel in sorted(dropped)]
    np.testing.assert_array_equal(last.get_layer("head").kernel.numpy()[rows], 0)


@pytest.mark.parametrize("group", ["stem", "expand"])
def test_the_mask_of_a_group_does_not_lower_the_scores_that_chose_it(model, group):
    copy = pruned(model, Kept())
    network = network_of(copy)
    masks = cyclical._Masks(copy, network)
    whole = {name: tuple(range(n)) for name, n in network.channels.items()}
    masks.set(Kept(channels={**whole, group: (1, 2)}))
    masks.apply()
    (reader, *_) = network.consumers(group)
    assert np.count_nonzero(np.abs(copy.get_layer(reader).kernel).sum((0, 1, 3))) == 2
    chose, now = (l1_scores(m, with_readers=False)[group] for m in (model, copy))
    np.testing.assert_array_equal(now, chose)
    assert l1_scores(copy)[group][0] < l1_scores(model)[group][0]


def test_the_ratio_of_a_cycle_rises_fast_at_first():
    ratios = cyclical._ratios(0.5, 5)
    assert ratios[0] == 0
    assert ratios[-1] == 0.5
    assert np.all(np.diff(ratios) > 0)
    assert np.all(np.diff(ratios, 2) < 0)


def test_a_cycle_of_one_epoch_is_refused(model, data):
    settings = SETTINGS.model_copy(update={"epochs": 1})
    with pytest.raises(ParameterError, match="epochs=1 must be at least 2"):
        Cyclical().prune(model, Task(0.3, seed=0, data=data, settings=settings))


def test_the_penalty_moves_gains_towards_zero_but_not_beyond(model):
    copy = pruned(model, Kept())
    gamma = copy.get_layer("stem_bn").gamma
    gamma.assign([1, -1, 0.01, -0.01, 0, 0.5, 2, -3])
    slimming._shrinkage(copy, 0.5)(tf.Variable(0.1))
    np.testing.assert_allclose(gamma, [0.95, -0.95, 0, 0, 0, 0.45, 1.95, -2.95], rtol=1e-6)


def test_training_with_the_penalty_makes_gains_smaller(model, data, monkeypatch):
    kept_models = []
    monkeypatch.setattr(slimming, "cut", lambda model, kept: kept_models.append(model))
    task = Task(0.3, seed=0, data=data, settings=SETTINGS)
    for penalty in (1e-6, 0.9):
        Slimming(penalty=penalty).prune(model, task)
    free, slim = (np.mean(np.concatenate(list(gains(m).values()))) for m in kept_models)
    # Ten steps of 0.01 each.
    assert slim == pytest.approx(free - 0.09, abs=0.03)


def test_slimming_drops_the_channels_of_smallest_gain(model, data):
    copy = pruned(model, Kept())
    weak = [1, 4, 7]
    gamma = copy.get_layer("expand_bn").gamma
    gamma.assign(np.where(np.isin(np.arange(10), weak), 1e-3, 5.0))
    settings = SETTINGS.model_copy(update={"epochs": 1, "max_rate": 1e-5})
    found = Slimming().prune(copy, Task(0.2, seed=0, data=data, settings=settings))
    assert not set(weak) & set(found.kept.channels["expand"])
    assert gains(copy)["stem"] == pytest.approx(
        np.mean(
            [np.abs(copy.get_layer(n).gamma) for n in ("stem_bn", "dw_bn", "project_bn")], axis=0
        )
    )


def test_shares_of_zeros_are_those_of_the_maps(model, data):
    inputs = data.examples.inputs(range(40))
    names = ["stem_relu", "sum_relu", "expand_relu"]
    maps = keras.Model(model.inputs, [model.get_layer(n).output for n in names])(inputs)
    zeros = {n: np.mean(m.numpy() == 0, axis=(0, 1, 2)) for n, m in zip(names, maps, strict=True)}
    found = zero_shares(model, inputs)
    np.testing.assert_allclose(found["expand"], zeros["expand_relu"], atol=1e-6)
    depthwise = next(a for a in model.layers if isinstance(a, L.ReLU) and a.name not in names)
    zeros["dw"] = np.mean(
        keras.Model(model.inputs, depthwise.output)(inputs).numpy() == 0, axis=(0, 1, 2)
    )
    expected = np.mean([zeros["stem_relu"], zeros["dw"], zeros["sum_relu"]], axis=0)
    np.testing.assert_allclose(found["stem"], expected, atol=1e-6)
    assert np.ptp(found["stem"]) > 0


def test_apoz_drops_what_is_always_zero(model, data):
    copy = pruned(model, Kept())
    dead = [0, 3, 9]
    copy.get_layer("expand_bn").beta.assign(np.where(np.isin(np.arange(10), dead), -50.0, 1.0))
    found = ApoZ(windows=20).prune(copy, Task(0.2, seed=0, data=data))
    assert not set(dead) & set(found.kept.channels["expand"])


def test_channels_without_a_relu_stay(data):
    inputs = keras.Input((16, 16, 1))
    x = L.Conv2D(4, 3, name="linear")(inputs)
    x = L.Conv2D(20, 3, activation="relu", name="rectified")(x)
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    assert list(zero_shares(model, data.examples.inputs(range(3)))) == ["rectified"]
    found = ApoZ().prune(model, Task(0.3, seed=0, data=data))
    assert found.kept.counts["linear"] == 4
    with pytest.raises(ParameterError, match="ratio=0.9 must be at most 0.[0-9]+: the groups"):
        ApoZ().prune(model, Task(0.9, seed=0, data=data))


def test_netadapt_reaches_a_budget_of_any_cost(model, data):
    def map_elements(found):
        return sum(int(np.prod(layer.output_shape[1:])) for layer in found.layers[1:])

    task = Task(0.0, seed=0, data=data, settings=SETTINGS, cost=map_elements)
    budget = 0.75 * map_elements(model)
    found = NetAdapt(at_most=budget, step=0.15).prune(model, task)
    assert 0.9 * budget < map_elements(found.model) <= budget


def test_netadapt_lowers_two_equal_peaks_together(model, data):
    """A single group cannot: the cost is the largest map, and two groups have maps as large."""

    def largest_map(found):
        return max(int(np.prod(layer.output_shape[1:])) for layer in found.layers[1:])

    even = pruned(model, Kept(channels={"expand": tuple(range(8))}))
    assert largest_map(even) == 8 * 8 * 8
    task = Task(0.0, seed=0, data=data, settings=SETTINGS, cost=largest_map)
    found = NetAdapt(at_most=8 * 8 * 6, step=0.5).prune(even, task)
    assert found.kept.counts == {"stem": 6, "expand": 6}


def test_netadapt_stays_within_a_budget_and_close_to_it(model, data):
    costs = []

    def cost(found):
        costs.append(parameters(found))
        return costs[-1]

    task = Task(0.3, seed=0, data=data, settings=SETTINGS, cost=cost)
    found = NetAdapt(step=0.3).prune(model, task)
    # A channel of the sum has an eighth of the parameters.
    assert 0.49 - 1 / 8 < parameters(found.model) / parameters(model) <= 0.49
    assert parameters(found.model) in costs


def test_netadapt_keeps_the_proposal_of_highest_f1(model, data, monkeypatch):
    """With a training that makes any model but one group's useless, that group is pruned."""

    def spoiling(found, *arguments, **more):
        is_good = found.get_layer("expand").filters < 10
        history = fit(found, *arguments, **more)
        changes = {"validation_f1": 0.9 if is_good else 0.1}
        return [type(epoch)(**{**vars(epoch), **changes}) for epoch in history]

    monkeypatch.setattr("qbee.prune.netadapt.fit", spoiling)
    task = Task(0.0, seed=0, data=data, settings=SETTINGS)
    found = NetAdapt(at_most=0.9 * parameters(model)).prune(model, task)
    assert found.kept.counts["stem"] == 8
    assert found.kept.counts["expand"] < 10


def test_netadapt_names_a_cost_that_does_not_fall(model, data):
    task = Task(0.3, seed=0, data=data, settings=SETTINGS, cost=lambda found: 100)
    with pytest.raises(
        ParameterError, match="no channels can be pruned that lower the cost to 90 from 100"
    ):
        NetAdapt().prune(model, task)


def test_regression_rebuilds_what_repeated_channels_made(data):
    """Every channel of the only group is there twice: half of them is enough."""
    inputs = keras.Input((16, 16, 1))
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(10, 3, strides=2, name="inner")(inputs)))
    outputs = L.GlobalAveragePooling2D()(L.Conv2D(2, 3, name="outer")(x))
    model = with_random_weights(keras.Model(inputs, outputs), 3)
    for layer in model.layers[1:]:
        values = layer.get_weights()
        for value in values:
            axis = 2 if layer.name == "outer" and value.ndim == 4 else value.ndim - 1
            if value.shape[axis] == 10:
                np.swapaxes(value, axis, -1)[..., 5:] = np.swapaxes(value, axis, -1)[..., :5]
        layer.set_weights(values)
    found = Regression().prune(model, Task(0.29, seed=0, data=data))
    assert sorted(channel % 5 for channel in found.kept.channels["inner"]) == list(range(5))
    x = data.examples.inputs(range(40, 60))
    wanted = model(x, training=False).numpy()
    np.testing.assert_allclose(found.model(x, training=False), wanted, atol=0.01)
    assert np.abs(cut(model, found.kept).model(x, training=False) - wanted).max() > 0.1


def test_least_squares_keep_outputs_closer_than_the_old_kernels(model, data):
    task = Task(0.3, seed=0, data=data)
    found = Regression().prune(model, task)
    inputs = data.examples.inputs(range(60))
    wanted = model(inputs, training=False).numpy()

    def error(other):
        return np.mean((other(inputs, training=False).numpy() - wanted) ** 2)

    assert error(found.model) < 0.5 * error(cut(model, found.kept).model)
    assert error(found.model) < 0.5 * error(GlobalL1().prune(model, task).model)


def test_lasso_finds_the_channels_that_a_sum_is_made_of():
    rng = np.random.default_rng(0)
    parts = rng.normal(0, 1, (500, 12))
    useful = [2, 5, 11]
    target = parts[:, useful].sum(axis=1)
    assert lasso_choice(parts.T @ parts, parts.T @ target, 3) == tuple(useful)


def test_a_path_that_ends_early_is_filled_without_a_warning():
    rng = np.random.default_rng(0)
    parts = rng.normal(0, 1, (500, 6))
    parts[:, 3:] = parts[:, :3]
    parts[:, 4] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = lasso_choice(parts.T @ parts, parts.T @ parts[:, :3].sum(axis=1), 5)
    assert chosen == (0, 1, 2, 3, 5)


def test_channels_that_contribute_nothing_are_chosen_from_the_first_on():
    assert lasso_choice(np.zeros((4, 4)), np.zeros(4), 2) == (0, 1)


def test_a_pruned_network_is_equal_in_keras_and_on_tflite_micro():
    make_repeatable(3)
    whole = with_random_weights(registry.build("beenet3", n_mels=32, n_frames=32), 1)
    small = GlobalL1().prune(whole, Task(0.5, seed=0)).model
    x = np.random.default_rng(1).normal(0, 1, (4, 32, 32, 1)).astype(np.float32)
    x *= np.array([1, 2, 4, 20], np.float32)[:, None, None, None]
    net = fold.fold(small)
    maps = calibrate.calibrate(net, x, seed=0)
    quantized = convert.quantized_model(net, uniform(net, bits=8), maps)
    content = tflite.write(convert.to_fixed_point(quantized)).content
    on_device = MicroModel(content).predict(x)
    np.testing.assert_array_equal(on_device, quantized(x, training=False).numpy())
    assert len(np.unique(on_device)) > 4
    kernels = [sum(k.size for k in n.kernels.values()) for n in (net, fold.fold(whole))]
    assert kernels[0] < 0.3 * kernels[1]


def test_scores_of_a_dead_group_are_equal(model):
    copy = pruned(model, Kept())
    for name in ("expand", "expand_bn"):
        layer = copy.get_layer(name)
        layer.set_weights([0 * value for value in layer.get_weights()])
    layer = copy.get_layer("project")
    layer.set_weights([0 * value for value in layer.get_weights()])
    np.testing.assert_array_equal(l1_scores(copy)["expand"], 0)
