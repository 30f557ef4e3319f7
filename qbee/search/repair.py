"""Points that break a limit are cut until they meet it (no TensorFlow).

After Rusci et al., "Memory-driven mixed low precision quantization" (arXiv:1905.13082): first
feature maps for the RAM, then kernels for the flash, the largest first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from qbee.errors import ParameterError
from qbee.search import instructions
from qbee.search.limits import Limits, as_text
from qbee.search.trial import WIDTH, Point

Menus = Mapping[str, Sequence[int]]
Costs = Mapping[str, float]
_ROLES = ("kernel", "map", "bias")


class Cut(NamedTuple):
    """One hyperparameter from one width to a lower one."""

    name: str
    before: int
    after: int

    @property
    def role(self) -> str:
        """What the hyperparameter is the width of."""
        return self.name.rpartition(".")[2]

    @property
    def map_name(self) -> str:
        """Hyperparameter of the feature map of the same group."""
        return f"{self.name.rpartition('.')[0]}.map"


def _fewer_bits(cut: Cut, elements: Mapping[str, int]) -> float:
    return elements[cut.name] * (cut.before - cut.after)


def _fewer_file_bytes(cut: Cut, elements: Mapping[str, int]) -> float:
    return _fewer_bits(cut, elements) / 8 if cut.role == "kernel" else 0


def _fewer_map_bytes(cut: Cut, elements: Mapping[str, int]) -> float:
    """Bytes of the map; narrow ones lie in int8, and a wide kernel computes its map in int16."""
    if cut.role == "bias" or not cut.before > 8 >= cut.after:
        return 0
    return elements.get(cut.map_name, 0)


# Estimates in the cost's own unit.
_ESTIMATES = {
    "bits": _fewer_bits,
    "tflite_bytes": _fewer_file_bytes,
    "arena_bytes": _fewer_map_bytes,
}
# Estimates that only rank.
_RANKS = {f"instructions_{device.name}": _fewer_map_bytes for device in instructions.DEVICES}
# Costs to which every cut adds, so that several cuts are chosen at once.
_SUMS = ("bits", "tflite_bytes")


def repair(
    point: Point,
    *,
    menus: Menus,
    costs_of: Callable[[Point], Costs],
    limits: Limits,
    elements: Mapping[str, int],
) -> Point:
    """The point itself if it meets the limits, or one with lower widths that does.

    While a limit is broken, the hyperparameter whose next lower width is estimated to save most
    is lowered, of equal ones a map's, then the first; the arena comes before other costs. What
    turns out to have saved less than estimated, or more than was needed, is taken back if the
    limits allow.
    Only if the lowest widths do not suffice, the network gets fewer channels.

    Parameters
    ----------
    menus : sorted choices by hyperparameter
    costs_of : callable
        at least the limited costs of a point; called once, and about once per limited cost or,
        where costs do not simply add up, per cut, and once for each cut in doubt
    elements : by hyperparameter, as a ``Domain`` counts them

    Raises
    ------
    ParameterError
        if even the lowest widths break a limit.
    """
    return _Repair(point, menus, costs_of, limits, elements).whole()


class _Repair:
    """A point that is being repaired, and its costs."""

    def __init__(self, point: Point, menus: Menus, costs_of, limits: Limits, elements):
        self.start, self.point, self.menus = point, dict(point), menus
        self.costs_of, self.limits, self.elements = costs_of, limits, elements
        self.lowest: dict[str, float] = {}
        self.costs = self._look(self.point)
        # Cuts in their order, and hyperparameters whose cut may have been in vain.
        self.cuts: list[Cut] = []
        self.doubtful: set[str] = set()

    def _look(self, point: Point) -> Costs:
        costs = self.costs_of(point)
        for name in self.limits.at_most.keys() & costs.keys():
            self.lowest[name] = min(costs[name], self.lowest.get(name, math.inf))
        return costs

    def whole(self) -> Point:
        """The repaired point."""
        while broken := self.limits.broken(self.costs):
            self._cut("arena_bytes" if "arena_bytes" in broken else next(iter(broken)))
        for name in reversed(dict.fromkeys(cut.name for cut in self.cuts)):
            while self._taken_back(name):
                pass
        return self.point

    def _possible(self, point: Point) -> Iterator[Cut]:
        """The next cut of every width that can be lowered."""
        for name, menu in self.menus.items():
            lower = [choice for choice in menu if choice < point[name]]
            if lower and name.rpartition(".")[2] in _ROLES:
                yield Cut(name, point[name], max(lower))

    def _saving(self, cost: str, cut: Cut) -> float:
        estimate = _ESTIMATES.get(cost) or _RANKS.get(cost, _fewer_bits)
        return estimate(cut, self.elements)

    def _cut(self, cost: str) -> None:
        """Lower what is estimated to bring a cost to its limit, or else everything."""
        cuts = self._chosen(cost)
        expected = sum(self._saving(cost, cut) for cut in cuts)
        if not cuts:
            cuts = [
                Cut(c.name, c.before, self.menus[c.name][0]) for c in self._possible(self.point)
            ]
        if not cuts and self._narrowed():
            return
        if not cuts:
            raise ParameterError(
                f"{cost}={as_text(self.lowest[cost])} is the lowest this network can reach, "
                f"the limit is {as_text(self.limits.at_most[cost])}"
            )
        before = self.costs[cost]
        self.point = self.point | {cut.name: cut.after for cut in cuts}
        self.costs = self._look(self.point)
        self.cuts += cuts
        is_in_vain = not expected or before - self.costs[cost] < expected
        if cost not in _ESTIMATES or is_in_vain:
            self.doubtful |= {cut.name for cut in cuts}

    def _narrowed(self) -> bool:
        """Begin again with fewer channels, if the menus have fewer."""
        fewer = [percent for percent in self.menus.get(WIDTH, ()) if percent < self.point[WIDTH]]
        if not fewer:
            return False
        self.start = self.start | {WIDTH: max(fewer)}
        self.point, self.cuts, self.doubtful = dict(self.start), [], set()
        self.costs = self._look(self.point)
        return True

    def _chosen(self, cost: str) -> list[Cut]:
        """The most saving cut, or as many as are estimated to suffice."""
        point, found = dict(self.point), []
        excess = self.costs[cost] - self.limits.at_most[cost]
        while excess > 0:
            ranks = [(self._saving(cost, c), c.role == "map", c) for c in self._possible(point)]
            saving, _, best = max(ranks, key=lambda rank: rank[:2], default=(0, False, None))
            if best is None or saving <= 0:
                break
            found.append(best)
            point[best.name] = best.after
            excess = excess - saving if cost in _SUMS else 0
        return found

    def _taken_back(self, name: str) -> bool:
        """Whether a width could be raised by one step of its menu."""
        higher = [c for c in self.menus[name] if self.point[name] < c <= self.start[name]]
        if not higher or not self._may_rise(Cut(name, higher[0], self.point[name])):
            return False
        point = self.point | {name: higher[0]}
        costs = self._look(point)
        if not self.limits.are_met(costs):
            return False
        self.point, self.costs = point, costs
        return True

    def _may_rise(self, cut: Cut) -> bool:
        """Whether undoing a cut could keep the limits, as far as estimates tell."""
        if cut.name in self.doubtful:
            return True
        return all(
            self._saving(cost, cut) <= limit - self.costs[cost]
            for cost, limit in self.limits.at_most.items()
            if cost in _ESTIMATES
        )
