"""Bayesian search with keras-tuner's Gaussian process: seeded, never repeating."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qbee.keras import keras_tuner
from qbee.search.domain import Domain
from qbee.search.strategy import Task, register
from qbee.search.trial import Proposal, Trial

# Untried points among which the process chooses.
CANDIDATES = 2000
# Logarithms of length scales that are tried.
LENGTH_SCALES = np.linspace(np.log(0.05), np.log(20), 61)
# Differences below are rounding errors, which depend on where arrays lie in memory.
DIGITS = 8


def _best_of_a_grid(loss: Callable, initial: np.ndarray, bounds: np.ndarray):
    """Logarithm of the likeliest length scale, and its loss.

    sklearn's own L-BFGS turns rounding errors into other optima, so that equal seeds would not
    give equal proposals.
    """
    losses = [round(float(loss(np.array([t]), eval_gradient=False)), DIGITS) for t in LENGTH_SCALES]
    best = int(np.argmin(losses))
    return LENGTH_SCALES[[best]], losses[best]


def hyperparameters(domain: Domain) -> keras_tuner.HyperParameters:
    """The menus, ordered, as keras-tuner has them."""
    found = keras_tuner.HyperParameters()
    for name, menu in domain.menus.items():
        found.Choice(name, list(menu), ordered=True)
    return found


class _Oracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """keras-tuner's Gaussian process, fed with the trials of a journal.

    keras-tuner minimises the acquisition with 50 runs of L-BFGS over a continuous box and rounds
    the result to the menus, which costs seconds and may give a point that was tried. Here the
    lower confidence bound is computed for many points of the menus at once.
    """

    def feed(self, trials: list[Trial]) -> None:
        """Take finished trials as its own."""
        for trial in trials:
            assert trial.measured is not None
            values = self.hyperparameters.copy()
            values.values = dict(trial.point)
            name = str(trial.number)
            entry = keras_tuner.engine.trial.Trial(values, name, status="COMPLETED")
            entry.score = trial.measured.score
            self.trials[name] = entry
            self.end_order.append(name)

    def ranked(self, points: list[dict[str, int]]) -> list[dict[str, int]]:
        """Points by their lower confidence bound, the most promising first."""
        x, y = self._vectorize_trials()
        self.gpr.set_params(optimizer=_best_of_a_grid, n_restarts_optimizer=0)
        self.gpr.fit(x, y)
        space = self._nonfixed_space()
        vectors = [[hp.value_to_prob(point[hp.name]) for hp in space] for point in points]
        mean, deviation = self.gpr.predict(np.array(vectors), return_std=True)
        bound = np.round(mean - self.beta * deviation, DIGITS)
        return [points[i] for i in np.argsort(bound, kind="stable")]


@register("bayesian")
class Bayesian:
    """The seeds, then the points that the Gaussian process finds most promising by score."""

    def __init__(self, task: Task):
        self.task = task

    def propose(self, trials: list[Trial]) -> Proposal | None:
        """The next seed, or what the process says."""
        seed = self.task.next_seed(trials)
        finished = self.task.finished(trials)
        if seed is not None or len(finished) < 2:
            return seed or self.task.random(trials, origin="random")
        rng = self.task.rng(trials)
        points = [self.task.domain.random(rng) for _ in range(CANDIDATES)]
        oracle = _Oracle(
            objective=keras_tuner.Objective("score", "max"),
            max_trials=self.task.max_trials,
            seed=self.task.search_seed,
            hyperparameters=hyperparameters(self.task.domain),
        )
        oracle.feed(finished)
        point = self.task.untried(trials, oracle.ranked(points))
        return None if point is None else self.task.whole(point, origin="bayesian")
