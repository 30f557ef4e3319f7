"""Which channels stay: from scores of channels to a wanted number of parameters."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np

from qbee.errors import ParameterError
from qbee.prune.kept import Kept
from qbee.prune.network import Network

# Share of a group's channels that always stays: a narrower layer starves all that follow it.
FLOOR = 0.05

# Score of each channel by group; higher is better.
Scores = Mapping[str, np.ndarray]


def check_ratio(ratio: float) -> float:
    """``ratio`` itself.

    Raises
    ------
    ParameterError
        unless it is in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ParameterError(f"ratio={ratio} must be at least 0 and below 1")
    return ratio


def parameter_share(ratio: float) -> float:
    """Share of the trainable parameters that a pruning ratio leaves (bee paper, 2.3.2)."""
    return (1 - check_ratio(ratio)) ** 2


def floor(channels: int) -> int:
    """Channels of a group that always stay."""
    return math.ceil(FLOOR * channels)


def best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """The ``count`` channels of highest score, ascending; among equals the first ones."""
    order = np.argsort(-scores, kind="stable")[:count]
    return tuple(sorted(int(i) for i in order))


class _Queue:
    """Channels in the order in which they go; the best of every group never do."""

    def __init__(self, network: Network, scores: Scores):
        self.network, self.groups = network, list(scores)
        candidates = []
        for number, group in enumerate(self.groups):
            worst_last = np.argsort(-scores[group], kind="stable")
            going = worst_last[floor(network.channels[group]) :]
            candidates += [(scores[group][i], -place, number) for place, i in enumerate(going)]
        self.going = np.array([number for *_, number in sorted(candidates)], int)

    def __len__(self) -> int:
        return len(self.going)

    def counts(self, removed: int) -> dict[str, int]:
        """Channels of each group after the first ``removed`` went."""
        gone = np.bincount(self.going[:removed], minlength=len(self.groups))
        return {
            group: self.network.channels[group] - int(n)
            for group, n in zip(self.groups, gone, strict=True)
        }

    def parameters(self, removed: int) -> int:
        return self.network.parameters(self.counts(removed))


def counts_for(network: Network, scores: Scores, ratio: float) -> dict[str, int]:
    """Kept channels by group, with one cut through the scores of all groups.

    The cut is found by bisection, so that the trainable parameters become as close to
    (1 - ratio)^2 of all as single channels allow. At least ``FLOOR`` of each group stays.

    Raises
    ------
    ParameterError
        if ``ratio`` is not in [0, 1) or so high that the floors forbid it.
    """
    queue = _Queue(network, scores)
    wanted = parameter_share(ratio) * queue.parameters(0)
    removed = bisect_left(range(len(queue) + 1), -wanted, key=lambda n: -queue.parameters(n))
    if removed > len(queue):
        least = queue.parameters(len(queue)) / queue.parameters(0)
        raise ParameterError(
            f"ratio={ratio} must be at most {1 - math.sqrt(least):.3f}: "
            f"the groups that have scores cannot lose more"
        )
    near = range(max(removed - 1, 0), removed + 1)
    return queue.counts(min(near, key=lambda n: abs(queue.parameters(n) - wanted)))


def by_ratio(network: Network, scores: Scores, ratio: float) -> Kept:
    """The best channels, with one cut through the scores of all groups (see ``counts_for``).

    Parameters
    ----------
    scores : of each channel, by group; groups that are missing stay whole
    ratio : pruning ratio p in [0, 1): the trainable parameters become (1 - p)^2 of all

    Raises
    ------
    ParameterError
        if ``ratio`` is not in [0, 1) or so high that the floors forbid it.
    """
    counts = counts_for(network, scores, ratio)
    return Kept(channels={group: best(scores[group], counts[group]) for group in counts})


def evenly(network: Network, ratio: float) -> dict[str, int]:
    """Kept channels by group, the same share of every group, for a pruning ratio.

    Raises
    ------
    ParameterError
        if ``ratio`` is not in [0, 1) or so high that the floors forbid it.
    """
    ranks = {g: np.arange(n, 0, -1) / n for g, n in network.channels.items()}
    return counts_for(network, ranks, ratio)
