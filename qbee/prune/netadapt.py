"""NetAdapt: down to a budget in steps, each in the group where it hurts least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import Field

from qbee.errors import ParameterError
from qbee.prune.kept import Kept
from qbee.prune.magnitude import l1_scores
from qbee.prune.method import Pruned, Task, cut, register
from qbee.prune.network import network_of
from qbee.prune.selection import Scores, best, floor, parameter_share
from qbee.prune.surgery import pruned
from qbee.records import Record
from qbee.train.fit import Epoch, best_epoch, fit

# Channels by group.
Counts = Mapping[str, int]


@register("netadapt")
class NetAdapt(Record):
    """Greedy descent of a cost (Yang et al., 2018).

    Each iteration lowers ``task.cost`` by at least ``step`` of the original, the last one by what
    is missing. It does so in every group in turn, by as few channels as that takes, those of
    lowest L1 norm; every proposal is trained for ``epochs`` epochs of ``task.settings``, and the
    one of highest validation F1 stays. Where no single group is enough, as for an arena with two
    equal peaks, all groups lose the same share. A cost must not rise when a channel goes.

    Attributes
    ----------
    step : share of the original cost
    at_most : the cost to reach; by default (1 - ratio)^2 of the original
    """

    step: float = Field(0.1, gt=0, lt=1)
    epochs: int = Field(1, ge=1)
    at_most: float | None = Field(None, gt=0)

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model, after the short trainings of its iterations.

        Raises
        ------
        ParameterError
            if the groups cannot lower the cost any more.
        """
        floors = {g: floor(n) for g, n in network_of(model).channels.items()}
        found, whole = cut(model, Kept()), task.cost(model)
        wanted = parameter_share(task.ratio) * whole if self.at_most is None else self.at_most
        iteration, now = 0, whole
        while now > wanted:
            limit = max(wanted, now - self.step * whole)
            better = self._step(found.model, floors, limit, task, seed=task.seed + iteration)
            found = Pruned(better.model, found.kept.then(better.kept))
            iteration, now = iteration + 1, task.cost(found.model)
        return found

    def _step(self, model, floors: Counts, limit: float, task: Task, *, seed: int) -> Pruned:
        """The best trained proposal within a limit."""
        # One by one, as all trained proposals of a large network do not fit into memory.
        tried = (
            (self._trained(proposal, task, seed), proposal)
            for proposal in _proposals(model, floors, limit, task)
        )
        best_of = max(
            tried, key=lambda t: (t[0].validation_f1, -t[0].validation_loss), default=None
        )
        if best_of is None:
            raise ParameterError(
                f"no channels can be pruned that lower the cost to {limit:g} "
                f"from {task.cost(model):g}: the target must be higher"
            )
        return best_of[1]

    def _trained(self, proposal: Pruned, task: Task, seed: int) -> Epoch:
        """Train a proposal in place; its best epoch."""
        data = task.required_data()
        history = fit(
            proposal.model,
            data.examples,
            train=data.train,
            validation=data.validation,
            settings=task.settings.model_copy(update={"epochs": self.epochs}),
            seed=seed,
        )
        return best_epoch(history)


def _proposals(model, floors: Counts, limit: float, task: Task) -> Iterator[Pruned]:
    """The widest models within a limit that lack channels of one group, or else of all."""
    scores, channels = l1_scores(model), network_of(model).channels
    narrowings = [
        [{group: count} for count in range(whole - 1, floors[group] - 1, -1)]
        for group, whole in channels.items()
    ]
    is_any = False
    for narrowing in narrowings:
        for proposal in _widest(model, scores, narrowing, limit, task):
            is_any = True
            yield proposal
    if not is_any:
        shares = np.arange(99, -1, -1) / 100
        even = [{g: max(floors[g], round(s * n)) for g, n in channels.items()} for s in shares]
        yield from _widest(model, scores, even, limit, task)


def _widest(
    model, scores: Scores, narrowing: Sequence[Counts], limit: float, task: Task
) -> Iterator[Pruned]:
    """The first within a limit of ever narrower models, if there is one."""

    def narrowed(counts: Counts) -> Pruned:
        kept = Kept(channels={group: best(scores[group], n) for group, n in counts.items()})
        return Pruned(pruned(model, kept), kept)

    fitting = bisect_left(narrowing, True, key=lambda c: task.cost(narrowed(c).model) <= limit)
    yield from (narrowed(counts) for counts in narrowing[fitting : fitting + 1])
