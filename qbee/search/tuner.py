"""Bayesian search over schemes with keras-tuner: seeded, never repeating, resumable."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from sklearn.exceptions import ConvergenceWarning

from qbee.files import write_text
from qbee.keras import keras_tuner
from qbee.quantize.scheme import Scheme
from qbee.records import Record, read_as
from qbee.search.space import Point, SearchSpace

# Untried points among which the oracle chooses.
CANDIDATES = 2000


class Measured(Record):
    """What a trial found out about its scheme, on validation windows.

    ``f1_error`` is the standard error of the difference to the float model's F1.
    """

    f1: float
    f1_error: float
    bits: int
    tflite_bytes: int
    score: float
    cpu_seconds: float


class Trial(Record):
    """One finished trial; ``origin`` says who proposed it."""

    number: int
    origin: str
    point: Point
    scheme: Scheme
    measured: Measured


class Journal:
    """Finished trials in one JSON file, rewritten whole after each."""

    def __init__(self, path: Path):
        self.path = path
        self.trials: list[Trial] = []
        if path.exists():
            self.trials = read_as(path, TypeAdapter(list[Trial]))

    def find(self, point: Point) -> Trial | None:
        """The trial of this point, if there was one."""
        return next((trial for trial in self.trials if trial.point == point), None)

    def add(self, trial: Trial) -> None:
        """Keep a finished trial."""
        self.trials.append(trial)
        write_text(self.path, json.dumps([t.model_dump() for t in self.trials], indent=1) + "\n")


class _SeededOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """keras-tuner's Gaussian process for menus: given starting points, no repetitions.

    keras-tuner minimises the acquisition with 50 runs of L-BFGS over a continuous box and rounds
    the result to the menus, which costs seconds and may give a point that was tried. Here the
    lower confidence bound is computed for many untried points of the menus at once.
    """

    def __init__(self, first: list[Point], **settings):
        super().__init__(num_initial_points=len(first), **settings)
        self.first = first

    def populate_space(self, trial_id):
        tried = [t.hyperparameters.values for t in self.trials.values()]
        waiting = [point for point in self.first if point not in tried]
        if waiting:
            return {"status": "RUNNING", "values": dict(waiting[0])}
        values, vectors = self._untried(tried)
        if not values:
            return {"status": "STOPPED", "values": None}
        return {"status": "RUNNING", "values": values[self._most_promising(vectors)]}

    def _untried(self, tried: list[Point]) -> tuple[list[Point], list[list[float]]]:
        """Random points of the menus that no trial had, and their vectors."""
        space = self._nonfixed_space()
        values, vectors = [], []
        for row in self._random_state.uniform(size=(CANDIDATES, len(space))):
            point = self._vector_to_values(row)
            if point not in tried:
                values.append(point)
                vectors.append([hp.value_to_prob(point[hp.name]) for hp in space])
        return values, vectors

    def _most_promising(self, vectors: list[list[float]]) -> int:
        x, y = self._vectorize_trials()
        if len(y) < 2:
            return 0
        with warnings.catch_warnings():
            # A dozen trials often cannot tell the length scale of the process.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.gpr.fit(x, y)
        mean, deviation = self.gpr.predict(np.array(vectors), return_std=True)
        return int(np.argmin(mean - self.beta * deviation))


class SchemeTuner(keras_tuner.BayesianOptimization):
    """``keras_tuner.BayesianOptimization`` whose trials measure schemes.

    The journal, not keras-tuner's folder, is what a search resumes from: a trial whose point is
    in it returns its result at once, so the oracle sees the same history again.
    """

    def __init__(
        self,
        space: SearchSpace,
        kernel_elements: dict[str, int],
        measure: Callable[[Scheme, int], Measured],
        journal: Journal,
        *,
        max_trials: int,
        seed: int,
        directory: Path,
        on_trial: Callable[[Trial], None],
    ):
        self.space, self.layer_names, self.measure = space, list(kernel_elements), measure
        self.journal, self.on_trial = journal, on_trial
        self.seed_points = space.seed_points(kernel_elements)
        parameters = keras_tuner.HyperParameters()
        for name, menu in space.menus(self.layer_names).items():
            if len(menu) > 1:
                parameters.Choice(name, list(menu), ordered=True)
            else:
                parameters.Fixed(name, menu[0])
        oracle = _SeededOracle(
            list(self.seed_points.values()),
            objective=keras_tuner.Objective("score", "max"),
            max_trials=max_trials,
            seed=seed,
            hyperparameters=parameters,
        )
        # BayesianOptimization's own constructor would build an oracle without starting points.
        keras_tuner.Tuner.__init__(
            self, oracle=oracle, directory=str(directory), project_name="oracle", overwrite=True
        )

    def run_trial(self, trial, *_args, **_kwargs) -> dict[str, float]:
        """Score of the trial's scheme, from the journal if it is known."""
        point = dict(trial.hyperparameters.values)
        known = self.journal.find(point)
        if known is None:
            number = len(self.journal.trials)
            scheme = self.space.scheme(point, self.layer_names)
            known = Trial(
                number=number,
                origin=self._origin(point),
                point=point,
                scheme=scheme,
                measured=self.measure(scheme, number),
            )
            self.journal.add(known)
        self.on_trial(known)
        return {"score": known.measured.score}

    def _origin(self, point: Point) -> str:
        named = (name for name, seed in self.seed_points.items() if seed == point)
        return next(named, "bayesian")


def search(
    space: SearchSpace,
    kernel_elements: dict[str, int],
    measure: Callable[[Scheme, int], Measured],
    *,
    max_trials: int,
    seed: int,
    folder: Path,
    on_trial: Callable[[Trial], None],
) -> tuple[list[Trial], list[str]]:
    """Finished trials of a search in order, and the last line of every failed trial's error.

    Continues the search that ``folder`` holds.

    Parameters
    ----------
    kernel_elements : number of kernel elements by layer, in the order of the network
    measure : callable (scheme, trial number) -> Measured
    on_trial : callable, called with every finished trial, also with those of the journal
    """
    journal = Journal(folder / "trials.json")
    if len(journal.trials) >= max_trials:
        for trial in journal.trials:
            on_trial(trial)
        return journal.trials, []
    tuner = SchemeTuner(
        space,
        kernel_elements,
        measure,
        journal,
        max_trials=max_trials,
        seed=seed,
        directory=folder,
        on_trial=on_trial,
    )
    tuner.search(verbose=0)
    failed = [t.message for t in tuner.oracle.trials.values() if t.status != "COMPLETED"]
    return journal.trials, [message.strip().splitlines()[-1] for message in failed if message]


def _worst_f1(trial: Trial) -> float:
    """F1 less its standard error."""
    return trial.measured.f1 - trial.measured.f1_error


def rule_of(winner: Trial, *, float_f1: float, max_f1_drop: float) -> str:
    """In words, why ``choose`` chose this trial."""
    points = f"{100 * max_f1_drop:.1f} points below the float model's"
    if _worst_f1(winner) >= float_f1 - max_f1_drop:
        return f"smallest .tflite with a validation F1, less its standard error, at most {points}"
    return f"highest validation F1 less its standard error, as no trial was at most {points}"


def choose(trials: list[Trial], *, float_f1: float, max_f1_drop: float) -> Trial:
    """The winner: smallest file whose F1 is surely at most ``max_f1_drop`` below float's.

    Surely means with one standard error of the difference to spare, on the validation windows: a
    scheme that decides many windows differently may have the same F1 there by chance. Among
    equal sizes the higher score wins. If no trial is that good, the best of them wins.
    """
    good = [t for t in trials if _worst_f1(t) >= float_f1 - max_f1_drop]
    if not good:
        return max(trials, key=lambda t: (_worst_f1(t), t.measured.score))
    return min(good, key=lambda t: (t.measured.tflite_bytes, -t.measured.score))
