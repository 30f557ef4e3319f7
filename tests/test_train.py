"""Training: the schedule, repeatable and resumable runs, weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee import arrays
from qbee.errors import DataError, ModelFileError
from qbee.keras import keras, make_repeatable, tf
from qbee.records import FrontEnd
from qbee.train import metrics, schedule, weights
from qbee.train.augment import Augmentation
from qbee.train.fit import Epoch, Examples, Trainer, TrainSettings, best_epoch, fit, predict

FRONT_END = FrontEnd(n_mels=16, n_frames=16)
SETTINGS = TrainSettings(
    epochs=4,
    batch_windows=8,
    max_rate=0.02,
    augmentation=Augmentation(shift_frames=4, mask_bands=3, mask_frames=3),
)
TRAIN, VALIDATION = range(0, 40), range(40, 60)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3 == 0
    images = rng.normal(-70, 8, (60, 16, 16)).astype(np.float32)
    images[labels, 4:8] += 12
    return Examples(images, labels, FRONT_END)


def small_model(seed=3):
    make_repeatable(seed)
    x = inputs = keras.Input((16, 16, 1))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))


def trained(examples, *, seed=5, model=None, settings=SETTINGS, **more):
    model = small_model() if model is None else model
    history = fit(
        model,
        examples,
        train=TRAIN,
        validation=VALIDATION,
        settings=settings,
        seed=seed,
        **more,
    )
    return model, history


def assert_same_weights(one, other):
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def undisturbed(examples):
    return trained(examples)


@pytest.mark.parametrize("total", [10, 100, 997])
def test_one_cycle_rises_from_a_25th_to_the_maximum_and_falls_to_almost_nothing(total):
    rates = [schedule.one_cycle(i, total_steps=total, max_rate=0.01) for i in range(total)]
    peak = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.01 / 25)
    # The peak lies between two steps where 0.3 * total is no integer.
    assert rates[peak] == pytest.approx(0.01, rel=0.02)
    assert peak == pytest.approx(0.3 * total - 1, abs=1)
    assert rates[-1] == pytest.approx(0.01 / 250_000)
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak:]) < 0)


def rates_of(settings, examples):
    """Learning rate of each step of a training, as the hook after the step is told."""
    model = small_model()
    rates = tf.Variable(tf.zeros(2 * 40 // 8))
    step = tf.Variable(0)

    def remember(rate):
        rates.scatter_update(tf.IndexedSlices(rate, step))
        step.assign_add(1)

    trainer = Trainer(model, clip_value=0.1, after_step=remember)
    trainer.run(examples, train=TRAIN, settings=settings, seed=0)
    assert step.numpy() == len(rates.numpy())
    return rates.numpy()


def test_a_constant_schedule_has_one_rate_and_the_default_is_one_cycle(examples):
    settings = TrainSettings(epochs=2, batch_windows=8, max_rate=0.02)
    expected = [schedule.one_cycle(i, total_steps=10, max_rate=0.02) for i in range(10)]
    np.testing.assert_allclose(rates_of(settings, examples), expected, rtol=1e-6)
    constant = settings.model_copy(update={"schedule": "constant"})
    np.testing.assert_allclose(rates_of(constant, examples), 0.02, rtol=1e-6)


def test_one_cycle_is_pytorchs_at_known_steps():
    # torch.optim.lr_scheduler.OneCycleLR(max_lr=1, total_steps=11): cosine annealing, pct_start
    # 0.3, so the peak is at step 0.3 * 11 - 1 = 2.3 and the end at step 10.
    warm, total = 2.3, 10
    for step in (0, 1, 2):
        expected = 1 + (0.04 - 1) / 2 * (1 + np.cos(np.pi * step / warm))
        assert schedule.one_cycle(step, total_steps=11, max_rate=1.0) == pytest.approx(expected)
    for step in (3, 6, 10):
        share = (step - warm) / (total - warm)
        expected = 4e-6 + (1 - 4e-6) / 2 * (1 + np.cos(np.pi * share))
        assert schedule.one_cycle(step, total_steps=11, max_rate=1.0) == pytest.approx(expected)


@given(st.integers(1, 20))
def test_one_cycle_gives_a_positive_rate_for_runs_of_any_length(total):
    rates = [schedule.one_cycle(i, total_steps=total, max_rate=1.0) for i in range(total)]
    assert all(0 < rate <= 1 for rate in rates)


def test_the_same_seed_gives_the_same_weights_and_history(examples, undisturbed):
    model, history = trained(examples)
    assert history == undisturbed[1]
    assert_same_weights(model, undisturbed[0])


def test_another_seed_gives_other_weights(examples, undisturbed):
    model, _ = trained(examples, seed=6)
    assert not np.array_equal(model.get_weights()[0], undisturbed[0].get_weights()[0])


def test_training_finds_the_louder_bands_and_keeps_the_images(examples, undisturbed):
    before = examples.images.copy()
    model, history = undisturbed
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    best = best_epoch(history)
    # Every window with a buzz is 12 dB louder in a quarter of its bands: easy to find.
    assert best.validation_f1 > 0.8
    logits = predict(model, examples, VALIDATION)
    labels = examples.labels[list(VALIDATION)]
    assert metrics.best_f1(labels, metrics.probabilities(logits)) == best.validation_f1
    np.testing.assert_array_equal(examples.images, before)


class Watched(Examples):
    """Examples that remember the training batches (of 8 windows) that were taken."""

    def standardised(self, images):
        if len(images) == 8:
            self.batches = [*getattr(self, "batches", []), images]
        return super().standardised(images)


def test_every_epoch_takes_every_window_once_in_another_order(examples):
    watched = Watched(examples.images, examples.labels, FRONT_END)
    trained(watched, settings=TrainSettings(epochs=3, batch_windows=8))
    # The first value of an image identifies it.
    epochs = np.concatenate(watched.batches)[:, 0, 0].reshape(3, 40)
    expected = np.sort(examples.images[list(TRAIN), 0, 0])
    for one, other in zip(epochs, np.roll(epochs, 1, axis=0), strict=True):
        np.testing.assert_array_equal(np.sort(one), expected)
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("stopped_in", ["epoch 1/4", "epoch 2/4", "epoch 4/4"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, examples, undisturbed, stopped_in):
    path = tmp_path / "run.npz"

    def interrupt(done, total, text):
        assert 1 <= done <= total == 20
        # In the middle of an epoch of five batches.
        if text == stopped_in and done % 5 == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(examples, checkpoint=path, on_progress=interrupt)
    assert path.exists() == (stopped_in != "epoch 1/4")
    # A new process starts from other weights; the checkpoint decides.
    fresh = small_model(seed=3 if stopped_in == "epoch 1/4" else 99)
    model, history = trained(examples, model=fresh, checkpoint=path)
    assert history == undisturbed[1]
    assert_same_weights(model, undisturbed[0])


def test_a_finished_run_is_not_trained_again(tmp_path, examples):
    path, once = tmp_path / "run.npz", SETTINGS.model_copy(update={"epochs": 1})
    model, history = trained(examples, settings=once, checkpoint=path)
    whole = path.read_bytes()
    again, history_again = trained(examples, settings=once, checkpoint=path, model=small_model(8))
    assert history_again == history
    assert_same_weights(again, model)
    assert path.read_bytes() == whole


def test_the_best_epoch_has_the_highest_f1_and_then_the_lowest_loss():
    history = [Epoch(1, 0.9, 0.8, 0.5), Epoch(2, 0.9, 0.7, 0.6), Epoch(3, 0.9, 0.6, 0.6)]
    assert best_epoch(history) is history[2]
    assert best_epoch(history[:2]) is history[1]
    assert best_epoch([*history, Epoch(4, 0.1, 0.1, 0.59)]) is history[2]


def test_training_stops_when_the_best_epoch_lies_far_enough_back(examples):
    unrelated = Examples(examples.images, np.roll(examples.labels, 1), FRONT_END)
    patient = TrainSettings(epochs=12, batch_windows=20, max_rate=0.1, stop_after_epochs=2)
    _, history = trained(unrelated, settings=patient)
    assert len(history) < 12
    assert history[-1].epoch - best_epoch(history).epoch == 2


def test_balanced_weights_do_nothing_to_balanced_classes_and_something_to_others(examples):
    plain = TrainSettings(epochs=1, batch_windows=10)
    balanced = plain.model_copy(update={"balance_classes": True})
    buzz, quiet = np.flatnonzero(examples.labels), np.flatnonzero(~examples.labels)
    for train, is_same in (([*buzz, *quiet[:20]], True), ([*buzz, *quiet], False)):
        losses = [
            fit(small_model(), examples, train=train, validation=train, settings=s, seed=1)
            for s in (plain, balanced)
        ]
        assert (losses[0] == losses[1]) == is_same


def test_one_class_cannot_be_trained(examples):
    quiet = np.flatnonzero(~examples.labels)
    with pytest.raises(DataError, match=f"both classes; the {len(quiet)} windows have one"):
        fit(small_model(), examples, train=quiet, validation=quiet, settings=SETTINGS, seed=1)


def test_no_windows_have_no_predictions(examples):
    assert predict(small_model(), examples, []).shape == (0, 2)


def test_weights_are_equal_after_the_trip_and_fit_one_model_only(tmp_path, undisturbed):
    weights.save(undisturbed[0], tmp_path / "w.npz")
    model = small_model(seed=9)
    weights.load(model, tmp_path / "w.npz")
    assert_same_weights(model, undisturbed[0])
    other = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))], name="other")
    with pytest.raises(ModelFileError, match=r"w\.npz: holds the weights of another model than o"):
        weights.load(other, tmp_path / "w.npz")
    arrays.save(tmp_path / "named.npz", {"a": np.zeros((3, 2)), "b": np.zeros(2)})
    with pytest.raises(ModelFileError, match=r"named\.npz: holds the weights of another model"):
        weights.load(other, tmp_path / "named.npz")


def test_a_small_training_set_is_visited_several_times_per_epoch(examples):
    told = []
    settings = SETTINGS.model_copy(update={"epochs": 1, "epoch_windows": 100})
    trained(examples, settings=settings, on_progress=lambda done, total, _: told.append(total))
    # 40 windows make at least 100 in three rounds, which are 15 batches of 8.
    assert told == [15] * 15
