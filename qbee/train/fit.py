"""Training of any Keras model on mel images; an interrupted run continues after its last epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from qbee import arrays
from qbee.audio import mel
from qbee.errors import DataError
from qbee.keras import keras, tf
from qbee.records import FrontEnd, Record
from qbee.train import metrics, schedule, weights
from qbee.train.augment import Augmentation, augment
from qbee.train.objective import CrossEntropy, Objective
from qbee.train.schedule import Schedule

Progress = Callable[[int, int, str], None]
AfterStep = Callable[[tf.Variable], None]


class TrainSettings(Record):
    """Training as in the bee paper: Adam, 1-cycle to ``max_rate``, clip by value, batch 64.

    With the schedule 'constant', the rate is ``max_rate`` in all steps.

    An epoch visits every training window once, and windows again, each time with another
    augmentation, until it has ``epoch_windows``: on a few hundred windows an epoch would
    otherwise be a handful of steps.
    """

    epochs: int = Field(20, ge=1)
    batch_windows: int = Field(64, ge=1)
    epoch_windows: int = Field(1, ge=1)
    max_rate: float = Field(1e-3, gt=0)
    schedule: Schedule = "one_cycle"
    clip_value: float = Field(0.1, gt=0)
    balance_classes: bool = False
    stop_after_epochs: int | None = Field(None, ge=1)
    augmentation: Augmentation | None = None


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; F1 is the highest of all thresholds, on the validation windows."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_f1: float


class Examples:
    """Labelled dB mel images and the front end that standardises them.

    Parameters
    ----------
    images : np.ndarray [shape=(n, n_mels, n_frames)], dB, may be memory-mapped
    labels : np.ndarray [shape=(n,)], bool, True is buzz
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, front_end: FrontEnd):
        self.images, self.labels, self.front_end = images, np.asarray(labels, bool), front_end

    def inputs(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Standardised model inputs [n, n_mels, n_frames, 1] of some windows."""
        return self.standardised(self.images[np.asarray(indices, int)])

    def standardised(self, images: np.ndarray) -> np.ndarray:
        """Standardised model inputs [n, n_mels, n_frames, 1] of dB images."""
        return mel.standardize(images, self.front_end)[..., None]


def predict(model, examples: Examples, indices, *, batch_windows: int = 128) -> np.ndarray:
    """Logits [n, 2] of some windows, in inference mode, float32."""
    indices = np.asarray(indices, int)
    parts = [
        model(examples.inputs(indices[i : i + batch_windows]), training=False).numpy()
        for i in range(0, len(indices), batch_windows)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.float32)


def _batches(
    examples: Examples, train: np.ndarray, settings: TrainSettings, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches of one epoch; an incomplete last batch is left to the next epochs."""
    order = np.concatenate([rng.permutation(train) for _ in range(_rounds(train, settings))])
    quiet = train[~examples.labels[train]]
    size = min(settings.batch_windows, len(order))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        images = examples.images[chosen]
        if settings.augmentation is not None:
            background = examples.images[rng.choice(quiet, size)]
            images = augment(images, background, settings.augmentation, rng=rng)
        yield examples.standardised(images), examples.labels[chosen].astype(np.int32)


def _rounds(train: np.ndarray, settings: TrainSettings) -> int:
    """How often an epoch visits every training window."""
    return -(-settings.epoch_windows // len(train))


def _class_weights(labels: np.ndarray, settings: TrainSettings) -> np.ndarray:
    """Weight of (no buzz, buzz) in the loss; balanced weights average to 1 over the windows."""
    if not settings.balance_classes:
        return np.ones(2, np.float32)
    counts = np.bincount(labels.astype(int), minlength=2)
    return (len(labels) / (2 * counts)).astype(np.float32)


class Trainer:
    """A model with its optimizer and a training step that is compiled once for many trainings.

    Parameters
    ----------
    model : Keras model or ``Supernet``
    clip_value : of gradients
    objective : what the steps go down; without it, the cross-entropy with the labels
    after_step : callable (learning rate), optional
        changes the model's variables after every step, in TensorFlow ops
    """

    def __init__(
        self,
        model,
        *,
        clip_value: float,
        objective: Objective | None = None,
        after_step: AfterStep | None = None,
    ):
        self.model, self.objective = model, objective or CrossEntropy()
        self.variables = [*model.trainable_variables, *self.objective.variables]
        self.after_step = after_step
        self.optimizer = keras.optimizers.Adam(clipvalue=clip_value)
        self.optimizer.build(self.variables)
        self._step = tf.function(self._stepped)

    def _stepped(self, inputs, labels, class_weights):
        """One step down; the loss before it."""
        with tf.GradientTape() as tape:
            loss = self.objective.loss(self.model, inputs, labels, class_weights)
        # An objective may leave layers out, as hints do with those after the hint.
        gradients = tape.gradient(
            loss, self.variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        if self.after_step is not None:
            self.after_step(self.optimizer.learning_rate)
        return loss

    def restart(self) -> None:
        """Forget moments and step count of a training that was run before."""
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def epoch(
        self,
        examples: Examples,
        train: np.ndarray,
        settings: TrainSettings,
        number: int,
        seed: int,
        on_progress: Progress | None = None,
    ) -> float:
        """Run one epoch, counted from 0, and return its mean loss.

        Raises
        ------
        DataError
            if the training windows have one class only.
        """
        labels = examples.labels[train]
        if len(set(labels)) < 2:
            raise DataError(f"training needs both classes; the {len(labels)} windows have one")
        class_weights = tf.constant(_class_weights(labels, settings))
        per_epoch = max(1, len(train) * _rounds(train, settings) // settings.batch_windows)
        total = per_epoch * settings.epochs
        losses = []
        batches = _batches(examples, train, settings, np.random.default_rng([seed, number]))
        for i, (inputs, targets) in enumerate(batches):
            done = number * per_epoch + i
            rate = schedule.rate(
                settings.schedule, done, total_steps=total, max_rate=settings.max_rate
            )
            self.optimizer.learning_rate.assign(rate)
            losses.append(float(self._step(inputs, targets, class_weights)))
            if on_progress is not None:
                on_progress(done + 1, total, f"epoch {number + 1}/{settings.epochs}")
        return float(np.mean(losses))

    def run(
        self, examples: Examples, *, train: Sequence[int], settings: TrainSettings, seed: int
    ) -> None:
        """Train for ``settings.epochs`` epochs, from the beginning, and keep what comes out."""
        self.restart()
        for number in range(settings.epochs):
            self.epoch(examples, np.asarray(train, int), settings, number, seed)


class _Run:
    """State of a training run that is saved after every epoch."""

    def __init__(self, trainer: Trainer, checkpoint: Path | None):
        self.model, self.checkpoint = trainer.model, checkpoint
        # Under the prefixes of their names in the file.
        self.variables = {
            "optimizer_": trainer.optimizer.variables,
            "objective_": trainer.objective.variables,
        }
        self.history: list[Epoch] = []
        self.best = self.model.get_weights()
        if checkpoint is not None and checkpoint.exists():
            self._restore(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        stored, values = arrays.load(checkpoint)
        self.history = [Epoch(**entry) for entry in values["history"]]
        groups = {
            p: weights.from_arrays({k[len(p) :]: v for k, v in stored.items() if k.startswith(p)})
            for p in ("now_", "best_", *self.variables)
        }
        self.best = groups["best_"]
        self.model.set_weights(groups["now_"])
        for prefix, variables in self.variables.items():
            for variable, value in zip(variables, groups[prefix], strict=True):
                variable.assign(value)

    def add(self, epoch: Epoch) -> None:
        """Append an epoch, keep its weights if it is the best so far, save everything."""
        self.history.append(epoch)
        now = self.model.get_weights()
        if best_epoch(self.history) is epoch:
            self.best = now
        if self.checkpoint is None:
            return
        groups = {"now_": now, "best_": self.best} | {
            prefix: [v.numpy() for v in variables] for prefix, variables in self.variables.items()
        }
        stored = {
            prefix + name: array
            for prefix, group in groups.items()
            for name, array in weights.to_arrays(group).items()
        }
        entries = [asdict(entry) for entry in self.history]
        arrays.save(self.checkpoint, stored, {"history": entries})


def best_epoch(history: list[Epoch]) -> Epoch:
    """Epoch of highest validation F1; among equals the one of lowest validation loss."""
    return max(history, key=lambda e: (e.validation_f1, -e.validation_loss))


def fit(
    model,
    examples: Examples,
    *,
    train: Sequence[int],
    validation: Sequence[int],
    settings: TrainSettings,
    seed: int,
    objective: Objective | None = None,
    checkpoint: Path | None = None,
    on_progress: Progress | None = None,
) -> list[Epoch]:
    """Train ``model`` in place and leave it with the weights of its best epoch.

    Parameters
    ----------
    train, validation : indices into ``examples``
    objective : Objective, optional
        what is trained for, such as a distillation; otherwise the labels.
    checkpoint : Path, optional
        file that holds the state after every finished epoch; if it exists, training continues
        from it and ends with the same weights as an undisturbed run.
    on_progress : callable (done steps, all steps, text), optional

    Raises
    ------
    DataError
        if the training windows have one class only.
    """
    indices = np.asarray(train, int)
    trainer = Trainer(model, clip_value=settings.clip_value, objective=objective)
    run = _Run(trainer, checkpoint)
    while len(run.history) < settings.epochs and not _has_stalled(run.history, settings):
        number = len(run.history)
        loss = trainer.epoch(examples, indices, settings, number, seed, on_progress)
        run.add(_validated(model, examples, validation, number, loss))
    model.set_weights(run.best)
    return run.history


def _has_stalled(history: list[Epoch], settings: TrainSettings) -> bool:
    """Whether the best epoch lies ``stop_after_epochs`` or more back."""
    if settings.stop_after_epochs is None or not history:
        return False
    return history[-1].epoch - best_epoch(history).epoch >= settings.stop_after_epochs


def _validated(model, examples, validation, number: int, loss: float) -> Epoch:
    """The record of an epoch, scored on the validation windows."""
    logits = predict(model, examples, validation)
    labels = examples.labels[np.asarray(validation, int)]
    return Epoch(
        epoch=number + 1,
        train_loss=loss,
        validation_loss=metrics.cross_entropy(labels, logits),
        validation_f1=metrics.best_f1(labels, metrics.probabilities(logits)),
    )
