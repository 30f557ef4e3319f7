"""Multi-objective search with Optuna's samplers: NSGA-II and a Parzen estimator."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from qbee.search.strategy import Task, objective, register
from qbee.search.trial import Point, Proposal, Trial

# Of NSGA-II: small, as trials are few.
SMALLEST_POPULATION, LARGEST_POPULATION = 8, 50
# What a sampler wrote into a trial, which it wants to find again.
ATTRIBUTES = "sampler"
# Proposals a sampler may repeat before a random point is taken instead.
MAX_REPEATS = 10


class _Sampled:
    """A strategy that asks one of Optuna's samplers.

    A study in memory is made of the trials each time, so that a proposal depends on nothing
    else; bits are ordinal.
    """

    def __init__(self, task: Task, sampler: Callable[[int], BaseSampler], name: str):
        self.task, self.sampler, self.name = task, sampler, name
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(menu) - 1) for name, menu in task.domain.menus.items()
        }

    def propose(self, trials: list[Trial]) -> Proposal | None:
        """The next seed, or what the sampler says."""
        study = optuna.create_study(
            directions=["minimize"] * len(self.task.objectives),
            sampler=self.sampler(int(self.task.rng(trials).integers(2**32))),
        )
        study.add_trials(self._frozen(trials))
        seed = self.task.next_seed(trials)
        if seed is not None:
            # So the sampler sees it as one of its own.
            study.enqueue_trial(self._indices(seed.point))
        for _ in range(MAX_REPEATS):
            asked = study.ask(self.distributions)
            point = self.task.untried(trials, [self._point(asked.params)])
            if point is not None:
                origin = self.name if seed is None else seed.origin
                written = study.get_trials(deepcopy=False)[asked.number].system_attrs
                notes = {ATTRIBUTES: json.dumps(written)}
                return self.task.whole(point, origin=origin, notes=notes)
            study.tell(asked, state=TrialState.FAIL)
        return self.task.random(trials, origin="random")

    def _point(self, indices: dict[str, int]) -> Point:
        return {name: menu[indices[name]] for name, menu in self.task.domain.menus.items()}

    def _indices(self, point: Point) -> dict[str, int]:
        return {name: menu.index(point[name]) for name, menu in self.task.domain.menus.items()}

    def _frozen(self, trials: list[Trial]) -> list[FrozenTrial]:
        """Finished trials as Optuna has them.

        Generations of a domain that was larger are incomplete in this one: what the sampler
        wrote before the last trial of another domain is forgotten.
        """
        others = [trial.number for trial in trials if not self.task.domain.has(trial.point)]
        since = max(others, default=-1)
        return [
            create_trial(
                params=self._indices(trial.point),
                distributions=self.distributions,
                values=[objective(trial, name) for name in self.task.objectives],
                system_attrs=_written(trial) if trial.number > since else {},
            )
            for trial in self.task.finished(trials)
        ]


def _written(trial: Trial) -> dict[str, Any]:
    """What the sampler wrote into a trial."""
    return json.loads(trial.proposal.notes.get(ATTRIBUTES, "{}"))


def _parzen(seed: int) -> TPESampler:
    with warnings.catch_warnings():
        # Considering parameters together has been called experimental for years.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, multivariate=True)


@register("nsga2")
class Nsga2(_Sampled):
    """NSGA-II."""

    def __init__(self, task: Task):
        population = min(max(task.max_trials // 4, SMALLEST_POPULATION), LARGEST_POPULATION)
        super().__init__(
            task, lambda seed: NSGAIISampler(seed=seed, population_size=population), "nsga2"
        )


@register("tpe")
class Tpe(_Sampled):
    """Multi-objective tree-structured Parzen estimator."""

    def __init__(self, task: Task):
        super().__init__(task, _parzen, "tpe")
