"""What proposes trials: one interface, and strategies by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qbee.errors import ParameterError
from qbee.registry import Registry
from qbee.search import cost
from qbee.search.domain import Domain
from qbee.search.trial import Fidelity, Point, Proposal, Trial
from qbee.train import metrics

# Random points that are looked at for one that was not tried.
ATTEMPTS = 200


class Probe(Protocol):
    """What can be known of points without a trial."""

    def costs(self, point: Point) -> dict[str, float]:
        """Costs of a point with the float network's weights."""

    def damage(self, point: Point) -> float:
        """Mean squared change of the logits of training windows, not trained."""


@dataclass(frozen=True)
class Task:
    """What a strategy works on.

    Attributes
    ----------
    fidelity : of a whole trial
    objectives : a metric and a cost, or more of them, by name
    repaired : a point with widths low enough for all limits
    """

    domain: Domain
    fidelity: Fidelity
    objectives: tuple[str, ...]
    max_trials: int
    search_seed: int
    probe: Probe
    repaired: Callable[[Point], Point]

    def rng(self, trials: Sequence[Trial]) -> np.random.Generator:
        """Random numbers for the next proposal: the same whenever it is asked for."""
        return np.random.default_rng([self.search_seed, len(trials)])

    def untried(
        self, trials: Sequence[Trial], points: Iterable[Point], fidelity: Fidelity | None = None
    ) -> Point | None:
        """First of some points, within the limits, that no trial has at this fidelity."""
        fidelity = fidelity or self.fidelity
        tried = [t.point for t in trials if t.proposal.fidelity == fidelity]
        repaired = (self.repaired(point) for point in points)
        return next((point for point in repaired if point not in tried), None)

    def finished(self, trials: Sequence[Trial]) -> list[Trial]:
        """Finished trials of points of the domain, which has fewer with another limit."""
        return [t for t in trials if t.state == "finished" and self.domain.has(t.point)]

    def random(self, trials: Sequence[Trial], *, origin: str) -> Proposal | None:
        """A random point that was not tried."""
        rng = self.rng(trials)
        point = self.untried(trials, (self.domain.random(rng) for _ in range(ATTEMPTS)))
        return None if point is None else self.whole(point, origin=origin)

    def next_seed(self, trials: Sequence[Trial]) -> Proposal | None:
        """The next of the space's seeds that was not tried."""
        for name, point in self.domain.seed_points().items():
            found = self.untried(trials, [point])
            if found is not None:
                return self.whole(found, origin=name if found == point else f"{name}, cut")
        return None

    def whole(self, point: Point, *, origin: str, notes: dict[str, str] | None = None) -> Proposal:
        """Proposal of a whole trial."""
        return Proposal(point=point, fidelity=self.fidelity, origin=origin, notes=notes or {})


class Strategy(Protocol):
    """Proposes the next trial; a function of the trials so far and nothing else."""

    def __init__(self, task: Task): ...

    def propose(self, trials: list[Trial]) -> Proposal | None:
        """What to measure next; None if there is nothing, or not before running trials end."""


# Stock AutoQKeras is a search of its own.
STOCK = "autoqkeras"
_STRATEGIES: Registry[type[Strategy]] = Registry("strategy", others=(STOCK,))
register, names, get = _STRATEGIES.register, _STRATEGIES.names, _STRATEGIES.get


def objective(trial: Trial, name: str) -> float:
    """A metric or cost of a finished trial, turned so that lower is better."""
    assert trial.measured is not None
    if name in trial.measured.costs:
        return trial.measured.costs[name]
    value = trial.measured.metrics[name]
    return value if name in metrics.LOSSES else -value


def check_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The names themselves: at least a metric and a cost.

    Raises
    ------
    ParameterError
        listing the known names.
    """
    known = [*metrics.names(), *cost.names()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ParameterError(f"objective={unknown[0]!r} must be one of {', '.join(known)}")
    if not set(names) & set(metrics.names()) or not set(names) & set(cost.names()):
        raise ParameterError(f"objectives={list(names)} must have a metric and a cost")
    return tuple(names)


@register("random")
class Random:
    """Points that are all equally likely, without seeds: the baseline."""

    def __init__(self, task: Task):
        self.task = task

    def propose(self, trials: list[Trial]) -> Proposal | None:
        """A random point that was not tried."""
        return self.task.random(trials, origin="random")
