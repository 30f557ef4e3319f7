"""Bayesian search with keras-tuner's Gaussian process: seeded, never repeating."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from qbee.keras import keras_tuner
from qbee.search.space import Domain
from qbee.search.strategy import Task, register
from qbee.search.trial import Proposal, Trial

# Untried points among which the process chooses.
CANDIDATES = 2000


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
        with warnings.catch_warnings():
            # A dozen trials often cannot tell the length scale of the process.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.gpr.fit(x, y)
        space = self._nonfixed_space()
        vectors = [[hp.value_to_prob(point[hp.name]) for hp in space] for point in points]
        mean, deviation = self.gpr.predict(np.array(vectors), return_std=True)
        return [points[i] for i in np.argsort(mean - self.beta * deviation, kind="stable")]


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
