"""NetAdapt: down to a budget in steps, each in the group where it hurts least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

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


@register("netadapt")
class NetAdapt(Record):
    """Greedy descent of a cost (Yang et al., 2018).

    Each iteration lowers ``task.cost`` by at least ``step`` of the original, the last one by what
    is missing. It does so in every group in turn, by as few channels as that takes, those of
    lowest L1 norm; every proposal is trained for ``epochs`` epochs of ``task.settings``, and the
    one of highest validation F1 stays. A cost must not rise when a channel goes, and single groups
    must be able to lower it: of a maximum of two equal things, as arenas may be, none can.

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
            if no group can lower the cost by a step any more.
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

    def _step(
        self, model, floors: dict[str, int], limit: float, task: Task, *, seed: int
    ) -> Pruned:
        """The best trained proposal within a limit."""
        tried = [
            (self._trained(proposal, task, seed), proposal)
            for proposal in _proposals(model, floors, limit, task)
        ]
        if not tried:
            raise ParameterError(
                f"no group can lower the cost from {task.cost(model):g} to {limit:g}: "
                f"the target must be higher or the step smaller"
            )
        return max(tried, key=lambda t: (t[0].validation_f1, -t[0].validation_loss))[1]

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


def _proposals(model, floors: dict[str, int], limit: float, task: Task) -> Iterator[Pruned]:
    """The model with as many channels of one group as a limit allows, for each group."""
    scores = l1_scores(model)
    for group, channels in network_of(model).channels.items():

        def fits(count: int, group: str = group) -> bool:
            return task.cost(_narrower(model, scores, group, count).model) <= limit

        counts = range(channels - 1, floors[group] - 1, -1)
        place = bisect_left(counts, True, key=fits)
        if place < len(counts):
            yield _narrower(model, scores, group, counts[place])


def _narrower(model, scores: Scores, group: str, count: int) -> Pruned:
    """The model with the ``count`` best channels of one group."""
    kept = Kept(channels={group: best(scores[group], count)})
    return Pruned(pruned(model, kept), kept)
