"""Search by sensitivities: a table, a Lagrangian front, a cheap proxy, successive halving.

1. Each hyperparameter alone is set to each of its widths, from a point of 8 bits: how much that
   changes the logits of training windows (damage) and what it saves.
2. Both are taken to add up; minimising damage + lambda * cost for many lambda gives the front of
   a separable problem, exactly and at no expense.
3. Its points and neighbours of them are looked at whole, with the shared network and without
   training; those that no other undercuts in damage and cost are the candidates.
4. Successive halving (Jamieson and Talwalkar, 2016): all candidates train for a short while, the
   better half for twice as long, and so on. What trials are left go to neighbours of the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from qbee.search import pareto
from qbee.search.strategy import ATTEMPTS, Task, objective, register
from qbee.search.trial import Fidelity, Point, Proposal, Trial

REDUCTION = 2
# Trials from which on there are two or three rungs.
TRIALS_OF_RUNGS = (1, 6, 36)
NEIGHBOURS_PER_POINT, MAX_LOOKS = 2, 48
MULTIPLIERS = np.geomspace(1e-4, 1e4, 81)
# Widths from which one hyperparameter at a time is moved.
BASE_BITS = 8
# What the arena counts beside an objective: a map in int16 must be worth its RAM.
ARENA_SHARE = 0.1

# Damage and cost of each width, by hyperparameter and width, relative to the base point.
Table = dict[str, dict[int, tuple[float, float]]]


def lagrangian(table: Table) -> list[Point]:
    """Points that minimise damage + multiplier * cost, for all multipliers, in their order."""
    found: list[Point] = []
    for multiplier in MULTIPLIERS:
        point = {
            name: min(
                widths, key=lambda bits: (widths[bits][0] + multiplier * widths[bits][1], bits)
            )
            for name, widths in table.items()
        }
        if point not in found:
            found.append(point)
    return found


def spread(values: Sequence[float], count: int) -> list[int]:
    """Indices of at most ``count`` values, the extremes and others evenly apart on a log scale."""
    order = np.argsort(values, kind="stable")
    logs = np.log(np.asarray(values, float)[order])
    ends = (logs[0], logs[-1]) if count > 1 else (logs.mean(), logs.mean())
    wanted = np.linspace(*ends, count)
    free, chosen = list(range(len(logs))), []
    # The last is at hand without a look: logarithms of neighbouring floats are equal.
    for i in _ends_first(count)[: len(logs)]:
        is_last = i == count - 1 > 0
        nearest = -1 if is_last else int(np.argmin(np.abs(logs[free] - wanted[i])))
        chosen.append(free.pop(nearest))
    return [int(order[i]) for i in sorted(chosen)]


def _ends_first(count: int) -> list[int]:
    return sorted(range(count), key=lambda i: min(i, count - 1 - i))


class Candidates:
    """Points worth a trial, found with the probe alone."""

    def __init__(self, task: Task):
        self.task, self.domain = task, task.domain
        self.damages: dict[tuple, float] = {}

    def cost(self, point: Point) -> float:
        """The cost objectives and a share of the arena, each relative to the base."""
        found, base = self.task.probe.costs(point), self._base_costs
        names = [name for name in self.task.objectives if name in found]
        arena = ARENA_SHARE * found["arena_bytes"] / base["arena_bytes"]
        return sum(found[name] / base[name] for name in names) + arena

    def damage(self, point: Point) -> float:
        """Damage of a point, looked at once."""
        key = tuple(sorted(point.items()))
        if key not in self.damages:
            self.damages[key] = self.task.probe.damage(point)
        return self.damages[key]

    @cached_property
    def base(self) -> Point:
        """The point from which one hyperparameter at a time is moved."""
        return {
            name: min(menu, key=lambda width: abs(np.log(width / self._middle(name))))
            for name, menu in self.domain.menus.items()
        }

    def _middle(self, name: str) -> int:
        role = name.rpartition(".")[2]
        return {"kernel": BASE_BITS, "map": BASE_BITS}.get(role, max(self.domain.menus[name]))

    @cached_property
    def _base_costs(self) -> dict[str, float]:
        return self.task.probe.costs(self.base)

    def table(self) -> Table:
        """Damage and cost of every width alone, beyond those of the base."""
        damage, cost = self.damage(self.base), self.cost(self.base)
        found: Table = {}
        for name, menu in self.domain.menus.items():
            points = {width: {**self.base, name: width} for width in menu}
            found[name] = {
                width: (self.damage(point) - damage, self.cost(point) - cost)
                for width, point in points.items()
            }
        return found

    def points(self, count: int) -> list[Point]:
        """At most so many candidates, from the smallest to the largest."""
        pool = self._pool()
        values = [(self.damage(point), self.cost(point)) for point in pool]
        front = [pool[i] for i in pareto.front(values)]
        return [front[i] for i in spread([self.cost(point) for point in front], count)]

    def _pool(self) -> list[Point]:
        rng = np.random.default_rng(self.task.search_seed)
        found: list[Point] = []
        starts = [*self.domain.seed_points().values(), *lagrangian(self.table())]
        neighbours = [
            self.domain.neighbour(point, rng)
            for _ in range(NEIGHBOURS_PER_POINT)
            for point in starts
        ]
        for point in map(self.task.repaired, [*starts, *neighbours]):
            if point not in found and len(found) < max(MAX_LOOKS, len(starts)):
                found.append(point)
        return found


@register("sensitivity")
class Sensitivity:
    """Candidates of sensitivities, promoted by successive halving; then neighbours of the front."""

    def __init__(self, task: Task):
        self.task = task
        is_trained = task.fidelity.steps > 0
        rungs = sum(task.max_trials >= least for least in TRIALS_OF_RUNGS) if is_trained else 1
        steps = task.fidelity.windows
        self.rungs = [
            Fidelity(epochs=task.fidelity.epochs, windows=steps // REDUCTION ** (rungs - 1 - i))
            for i in range(rungs)
        ]
        shares = sum(REDUCTION**-i for i in range(rungs))
        first = max(int(task.max_trials / shares), 1)
        self.sizes = [max(first // REDUCTION**i, 1) for i in range(rungs)]

    @cached_property
    def candidates(self) -> list[Point]:
        """Points of the first rung."""
        return Candidates(self.task).points(self.sizes[0])

    def propose(self, trials: list[Trial]) -> Proposal | None:
        """The next of a rung; None as long as a rung has trials running."""
        for number, fidelity in enumerate(self.rungs):
            members = self.candidates if number == 0 else self._promoted(trials, number)
            # An earlier search with fewer trials may have trained a point for longer.
            tried = [t.point for t in trials if t.proposal.fidelity.windows >= fidelity.windows]
            waiting = [point for point in members if point not in tried]
            if waiting:
                return Proposal(point=waiting[0], fidelity=fidelity, origin="sensitivity")
            of_rung = [t for t in trials if t.proposal.fidelity == fidelity]
            if any(t.state == "running" and t.point in members for t in of_rung):
                return None
        return self._neighbour(trials)

    def _promoted(self, trials: list[Trial], number: int) -> list[Point]:
        """The better part of the rung before, by rank and crowding."""
        fidelity = self.rungs[number - 1]
        before = [
            trial
            for trial in self.task.finished(trials)
            if trial.proposal.fidelity == fidelity
            # Limits may have become tighter.
            and self.task.repaired(trial.point) == trial.point
        ]
        values = [[objective(t, name) for name in self.task.objectives] for t in before]
        return [before[i].point for i in pareto.best_first(values)[: self.sizes[number]]]

    def _neighbour(self, trials: list[Trial]) -> Proposal | None:
        """A neighbour of a point on the front of whole trials."""
        finished = self.task.finished(trials)
        whole = [t for t in finished if t.proposal.fidelity == self.task.fidelity]
        values = [[objective(t, name) for name in self.task.objectives] for t in whole]
        front = [whole[i].point for i in pareto.front(values)] or self.candidates
        rng = self.task.rng(trials)
        near = (
            self.task.domain.neighbour(front[int(rng.integers(len(front)))], rng)
            for _ in range(ATTEMPTS)
        )
        point = self.task.untried(trials, near)
        if point is None:
            return self.task.random(trials, origin="random")
        return self.task.whole(point, origin="neighbour")
