"""Stock AutoQKeras runs on the present stack, and what it finds reads as our schemes."""

import numpy as np
import pytest
from pydantic import ValidationError

from qbee.errors import ParameterError
from qbee.keras import keras, keras_tuner
from qbee.models import registry
from qbee.quantize import fold
from qbee.search import cost
from qbee.search.autoqkeras import StockSettings, search

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def windows(count, *, seed):
    """Noise, and a stripe across the middle of every window of class 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.normal(size=(count, 16, 16, 1)).astype(np.float32)
    images[:, 6:10] += 1.5 * labels[:, None, None, None]
    return images, labels


# An odd number, so that the last batch is smaller than the others.
TRAIN, VALIDATION = windows(128, seed=1), windows(71, seed=2)


@pytest.fixture(scope="module")
def model():
    """A trained convolution and dense layer with batch norm, ReLU and a pool between."""
    keras.utils.set_random_seed(0)
    x = inputs = L.Input((16, 16, 1))
    # Names that AutoQKeras would misunderstand.
    x = L.Conv2D(4, 3, padding="same", use_bias=False, name="kernel_conv")(x)
    x = L.MaxPooling2D(4)(L.ReLU()(L.BatchNormalization(momentum=0.9)(x)))
    model = keras.Model(inputs, L.Dense(2, name="Dense_bias")(L.Flatten()(x)), name="toy")
    model.compile(keras.optimizers.Adam(0.01), loss=LOSS)
    model.fit(*windows(512, seed=0), epochs=6, verbose=0)
    return model


def no_one(trial, model):
    """Hear nothing."""


def searched(model, folder, *, on_trial=no_one, trials=3, batch=32, rate=1e-4, **menus):
    # QKeras' own quantizers take twice as long to trace.
    given = {"mode": "random", "maps_after": "pool", "quantizers": "featuremap"} | menus
    return search(
        model,
        TRAIN,
        VALIDATION,
        settings=StockSettings.model_validate(given),
        trials=trials,
        epochs=1,
        batch=batch,
        learning_rate=rate,
        seed=3,
        folder=folder,
        on_trial=on_trial,
    )


@pytest.fixture
def untrained(monkeypatch):
    """Trials are built, but neither trained nor evaluated."""

    def fit(*args, **kwargs):
        history = keras.callbacks.History()
        history.history = {f"val_{name}": [0.5] for name in ("loss", "accuracy", "score")}
        return history

    monkeypatch.setattr(keras_tuner.HyperModel, "fit", fit)


@pytest.fixture(scope="module")
def found(model, tmp_path_factory):
    heard = []
    folder = tmp_path_factory.mktemp("stock")
    trials = searched(model, folder, on_trial=lambda trial, model: heard.append(trial))
    assert heard == trials
    return trials


def accuracy(model):
    """Accuracy of the float model on the validation windows."""
    logits = model.predict(VALIDATION[0], verbose=0)
    return np.mean(logits.argmax(1) == VALIDATION[1])


def test_every_trial_has_a_scheme_of_the_folded_network(model, found):
    net = fold.fold(model)
    assert [trial.number for trial in found] == [0, 1, 2]
    for trial in found:
        assert trial.failure is None
        assert trial.scheme.check(net) is trial.scheme
        assert list(trial.scheme.layers) == ["kernel_conv", "Dense_bias"]
        assert trial.cpu_seconds > 0


def test_trials_differ(found):
    assert len({trial.scheme.model_dump_json() for trial in found}) == 3


def test_sizes_and_scores_are_those_of_our_forgiving_factor_with_16_bit_biases(model, found):
    elements, factor = cost.elements(fold.fold(model)), StockSettings().forgiving_factor
    reference = cost.total_bits(elements, cost.reference_slots(elements, factor))
    for trial in found:
        assert trial.bits == cost.total_bits(elements, cost.slots(trial.scheme))
        score = factor.score(
            trial.metrics["accuracy"], trial_bits=trial.bits, reference_bits=reference
        )
        assert trial.score == pytest.approx(score, rel=1e-6)


def test_metrics_are_of_all_validation_windows(found):
    for trial in found:
        hits = trial.metrics["accuracy"] * len(VALIDATION[1])
        assert hits == pytest.approx(round(hits), abs=1e-4)


def test_the_loss_does_not_depend_on_a_smaller_last_batch(model, tmp_path):
    whole, parts = (
        searched(model, tmp_path, trials=1, batch=batch, rate=1e-12)[0].metrics["loss"]
        for batch in (len(VALIDATION[1]), 32)
    )
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("quantizers", ["qkeras", "featuremap"])
def test_8_bits_keep_the_accuracy(model, tmp_path, quantizers):
    menus = {"kernel_bits": (8,), "map_bits": (8,), "bias_bits": (31,)}
    trial, *_ = searched(
        model, tmp_path, trials=1, quantizers=quantizers, maps_after="activation", **menus
    )
    assert accuracy(model) > 0.9
    assert trial.metrics["accuracy"] >= accuracy(model) - 0.03
    assert {bits.map for bits in trial.scheme.layers.values()} == {8}


def test_the_ends_have_8_bits_where_the_menu_has_4_only(model, tmp_path, untrained):
    trial, *_ = searched(model, tmp_path, trials=1, map_bits=(4,))
    assert [bits.map for bits in trial.scheme.layers.values()] == [4, 8]
    assert trial.scheme.input_bits == 8


def test_maps_before_the_pool_are_counted_before_it(model, tmp_path, untrained):
    trial, *_ = searched(model, tmp_path, trials=1, maps_after="activation")
    counted = cost.total_bits(cost.elements(fold.fold(model)), cost.slots(trial.scheme))
    # The pool makes one of 16 values.
    pooled = 4 * 4 * 4 * trial.scheme.layers["kernel_conv"].map
    assert trial.bits == counted + 15 * pooled


@pytest.mark.parametrize("mode", ["random", "bayesian"])
def test_equal_seeds_propose_equal_schemes(model, tmp_path, mode, untrained):
    runs = [searched(model, tmp_path, trials=2, mode=mode) for _ in range(2)]
    schemes = [[trial.scheme for trial in run] for run in runs]
    assert schemes[0] == schemes[1]


@pytest.mark.parametrize("tune_filters", ["layer", "block"])
def test_numbers_of_filters_are_searched_on_request(model, tmp_path, tune_filters, untrained):
    for trial in searched(model, tmp_path, trials=2, tune_filters=tune_filters):
        assert trial.failure is None
        assert list(trial.filters) == ["kernel_conv"]


def test_a_failed_trial_is_reported_and_does_not_end_the_search(model, tmp_path, monkeypatch):
    calls, fit = [], keras_tuner.HyperModel.fit

    def fails_at_first(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return fit(*args, **kwargs)

    monkeypatch.setattr(keras_tuner.HyperModel, "fit", fails_at_first)
    failed, other = searched(model, tmp_path, trials=2)
    assert failed.failure == "RuntimeError: out of memory"
    assert (failed.score, failed.bits, failed.metrics) == (None, None, {})
    assert other.failure is None


def test_a_search_that_only_fails_ends_after_all_its_trials(model, tmp_path, monkeypatch):
    def diverges(*args, **kwargs):
        history = keras.callbacks.History()
        history.history = {"val_score": [0.5], "val_loss": [float("nan")]}
        return history

    monkeypatch.setattr(keras_tuner.HyperModel, "fit", diverges)
    trials = searched(model, tmp_path, trials=4)
    assert len(trials) == 4
    assert all("loss is not finite" in trial.failure for trial in trials)


def test_the_model_and_the_output_of_the_program_are_left_alone(model, tmp_path, capsys):
    before = [array.copy() for array in model.get_weights()]
    searched(model, tmp_path, trials=1, on_trial=lambda trial, model: print("trial", trial.number))
    assert capsys.readouterr().out == "trial 0\n"
    for array, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, old)


GOOD = {"trials": 1, "epochs": 1, "batch": 8, "learning_rate": 0.1, "seed": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch": -1}, "batch=-1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"train": (TRAIN[0][:, :8], TRAIN[1])}, "shape=.128, 8, 16, 1."),
        ({"validation": (VALIDATION[0], VALIDATION[1][:-1])}, "labels of shape=.70,."),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, r"labels=1..2 must be in \[0, 1\]"),
    ],
)
def test_arguments_that_cannot_work_are_errors(model, tmp_path, change, message):
    arguments = {"train": TRAIN, "validation": VALIDATION, **GOOD, **change}
    with pytest.raises(ParameterError, match=message):
        search(
            model,
            **arguments,
            settings=StockSettings(),
            folder=tmp_path,
            on_trial=no_one,
        )


@pytest.mark.parametrize(
    "change", [{"kernel_bits": ()}, {"map_bits": (5,)}, {"rate": 1.0}, {"mode": "hyperband"}]
)
def test_settings_that_cannot_work_are_errors(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        StockSettings.model_validate(change)


def test_filters_of_residual_networks_cannot_be_searched(tmp_path):
    resnet = registry.build("resnet9", n_mels=32, n_frames=32)
    data = np.zeros((2, 32, 32, 1)), np.zeros(2)
    with pytest.raises(ParameterError, match="tune_filters='block'"):
        search(
            resnet,
            data,
            data,
            **GOOD,
            settings=StockSettings(tune_filters="block"),
            folder=tmp_path,
            on_trial=no_one,
        )
