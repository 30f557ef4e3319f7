"""Stock AutoQKeras on the present stack: its own hypermodel, tuner and score, cured to run.

Every trial rebuilds and retraces a QKeras model. What is not stock: the tuner's ``run_trial``,
because keras-tuner 1.4.8 takes Keras 3 models only where Keras 3 is installed, and saves the
weights of every trial.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras, keras_tuner
from qbee.quantize.fold import FoldedNet, fold
from qbee.quantize.scheme import Scheme
from qbee.records import Record
from qbee.search.autoqkeras_menus import StockSettings
from qbee.search.autoqkeras_model import StockModel, StockNet, stock_net

# It imports Keras, so it must come after qbee.keras.
from qkeras.autoqkeras import AutoQKeras  # isort: skip

__all__ = ["StockSettings", "StockTrial", "search"]

# Inputs [n, height, width, channels] and class numbers [n].
Examples = tuple[np.ndarray, np.ndarray]


class StockTrial(Record):
    """One trial; numbers count from 0 without gaps.

    Attributes
    ----------
    filters : factors of the numbers of filters by layer, where they are searched
    score : accuracy times AutoQKeras' forgiving factor, None if the trial failed
    metrics : "loss" (cross-entropy) and "accuracy", on all validation windows
    bits : size of the network as AutoQKeras counts it
    cpu_seconds : of building, tracing, training and evaluating
    failure : the last line of the error, if the trial failed
    """

    number: int
    scheme: Scheme
    filters: dict[str, float]
    score: float | None
    metrics: dict[str, float]
    bits: int | None
    cpu_seconds: float
    failure: str | None = None


# Called with a trial and its trained model, if it has one.
OnTrial = Callable[[StockTrial, keras.Model | None], None]


class _StockTuner(keras_tuner.Tuner):
    """Cures of a tuner of keras-tuner for models of tf_keras; keeps a record of every trial."""

    def __init__(
        self,
        hypermodel,
        *,
        autoqkeras_config: dict[str, Any],
        net: StockNet,
        on_trial: OnTrial,
        **settings,
    ):
        self.net, self.on_trial = net, on_trial
        self.ended: list[StockTrial] = []
        self.quantized: keras.Model | None = None
        self.results: dict[str, float] | None = None
        self.begun = 0.0
        super().__init__(hypermodel, **settings)

    def on_trial_begin(self, trial) -> None:
        """Start the clock, and the random numbers of the trial."""
        super().on_trial_begin(trial)
        self.begun, self.results, self.quantized = time.process_time(), None, None
        keras.utils.set_random_seed(self.oracle.seed + len(self.ended))

    def run_trial(self, trial, *data, callbacks, **settings) -> dict[str, float]:
        """Metrics of the epoch of the highest score."""
        gc.collect()
        keras.backend.clear_session()
        model = self._built(trial.hyperparameters)
        history = self.hypermodel.fit(
            trial.hyperparameters, model, *data, callbacks=copy.deepcopy(callbacks), **settings
        ).history
        best = int(np.argmax(history["val_score"]))
        results = {name: float(values[best]) for name, values in history.items()}
        if not math.isfinite(results["val_loss"]):
            raise keras_tuner.errors.FailedTrialError("the validation loss is not finite")
        self.results, self.quantized = results, model
        return results

    def _built(self, hyperparameters):
        """The quantized model, with an optimizer of its own: AutoQKeras would share one."""
        model = self.hypermodel.model
        optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
        model.compile(optimizer, loss=model.loss)
        with contextlib.redirect_stdout(io.StringIO()):
            return self.hypermodel.build(hyperparameters)

    def on_trial_end(self, trial) -> None:
        """Tell keras-tuner and the listener."""
        lines = (trial.message or "").strip().splitlines()
        super().on_trial_end(trial)
        ended = self._ended(trial.hyperparameters.values, lines)
        self.ended.append(ended)
        self.on_trial(ended, self.quantized)
        self.quantized = None

    def _ended(self, values: dict[str, Any], lines: list[str]) -> StockTrial:
        found = self.results
        return StockTrial(
            number=len(self.ended),
            scheme=self.net.scheme(values),
            filters=self.net.filters(values),
            score=found["val_score"] if found else None,
            metrics={n: found[f"val_{n}"] for n in ("loss", "accuracy")} if found else {},
            bits=int(self.hypermodel.trial_size) if found else None,
            cpu_seconds=time.process_time() - self.begun,
            failure=None if found else (lines or ["unknown"])[-1],
        )


class _RandomTuner(_StockTuner, keras_tuner.RandomSearch):
    """``keras_tuner.RandomSearch`` with the cures."""


class _BayesianTuner(_StockTuner, keras_tuner.BayesianOptimization):
    """``keras_tuner.BayesianOptimization`` with the cures."""


_TUNERS = {"random": _RandomTuner, "bayesian": _BayesianTuner}


def search(
    model,
    train: Examples,
    validation: Examples,
    *,
    settings: StockSettings,
    trials: int,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    folder: Path,
    on_trial: OnTrial,
) -> list[StockTrial]:
    """Trials of AutoQKeras, in order, also those that failed.

    There are fewer than ``trials`` if keras-tuner finds no untried scheme. AutoQKeras stops the
    training of a trial whose validation loss has not sunk for ``epochs // 5`` epochs.

    Parameters
    ----------
    model : keras.Model
        trained float model that gives the logits of two or more classes; it is not changed.
        AutoQKeras gets it with batch norm folded in.
    learning_rate : float
        of Adam, in all steps
    folder : Path
        where keras-tuner keeps its files, each search in a new folder of its own
    on_trial : callable, called with every trial and its trained model, None if it failed

    Raises
    ------
    ParameterError
        if an argument is out of range, the data do not fit the model, or AutoQKeras does not
        know one of its layers.
    """
    _check_positive(trials=trials, epochs=epochs, batch=batch, learning_rate=learning_rate)
    net = fold(model)
    _check_net(net, settings)
    sets = [_checked(net, *pair) for pair in (train, validation)]
    stock = stock_net(net, sets[0][0], settings=settings, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stock.model.compile(keras.optimizers.Adam(learning_rate), loss=loss)
    with contextlib.redirect_stdout(io.StringIO()):
        searcher = _searcher(stock, settings, trials, seed, folder, on_trial)
    searcher.fit(*sets[0], validation_data=sets[1], epochs=epochs, batch_size=batch, verbose=0)
    return searcher.tuner.ended


def _searcher(
    stock: StockNet,
    settings: StockSettings,
    trials: int,
    seed: int,
    folder: Path,
    on_trial: OnTrial,
) -> AutoQKeras:
    return AutoQKeras(
        stock.model,
        metrics=["accuracy"],
        custom_objects={StockModel.__name__: StockModel},
        goal=settings.goal,
        output_dir=str(Path(folder).resolve() / "autoqkeras"),
        mode=settings.mode,
        custom_tuner=partial(_TUNERS[settings.mode], net=stock, on_trial=on_trial),
        transfer_weights=settings.tune_filters == "none",
        limit=stock.limit,
        tune_filters=settings.tune_filters,
        # Its default is not a pattern. The outputs are the classes.
        tune_filters_exceptions=f"^{stock.output_layer}$",
        quantization_config=stock.quantization_config,
        max_trials=trials,
        seed=seed,
        # keras-tuner ends a search after three.
        max_consecutive_failed_trials=trials + 1,
    )


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ParameterError(f"{name}={number} must be positive")


def _check_net(net: FoldedNet, settings: StockSettings) -> None:
    if net.head is not None or net.nodes[-1].shape[-1] < 2:
        raise ParameterError(f"model {net.name!r} must give the logits of two or more classes")
    fixed = [n.name for n in net.nodes if n.op == "add" or (n.op == "reshape" and n.shape[1:])]
    if settings.tune_filters != "none" and fixed:
        raise ParameterError(
            f"tune_filters={settings.tune_filters!r} must be 'none': the layer {fixed[0]!r} "
            "needs maps of fixed shapes"
        )


def _checked(net: FoldedNet, x, y) -> Examples:
    """Inputs and class numbers as float32 and int32."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int32)
    if x.shape[1:] != net.input_shape or not len(x) or y.shape != x.shape[:1]:
        raise ParameterError(
            f"inputs of shape={x.shape} with labels of shape={y.shape} must be [n, "
            f"{', '.join(map(str, net.input_shape))}] with [n]"
        )
    classes = net.nodes[-1].shape[-1]
    if y.min() < 0 or y.max() >= classes:
        raise ParameterError(f"labels={y.min()}..{y.max()} must be in [0, {classes - 1}]")
    return x, y
