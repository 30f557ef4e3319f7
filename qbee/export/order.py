"""The order of operators with the lowest peak of memory."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import replace

from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.quantize.graph import INPUT

# Sets of finished nodes to look at before the order is left as it is.
_LARGEST_SEARCH = 20_000


def with_lowest_peak(net: FixedNet) -> FixedNet:
    """The network with its nodes in the order whose largest sum of live maps is smallest.

    Exact, by a search for the path of least peak through sets of finished nodes; a network with
    very many such sets keeps its order, and so does one that has no better.
    """
    search = _Search(net)
    order = search.best()
    if order is None or search.peak_bytes(order) >= search.peak_bytes(range(len(net.nodes))):
        return net
    return replace(net, nodes=tuple(net.nodes[i] for i in order))


def _map_bytes(item: FixedNode) -> int:
    return math.prod(item.node.shape) * (2 if item.target.is_wide else 1)


class _Search:
    """Live bytes of every set of finished nodes of a network."""

    def __init__(self, net: FixedNet):
        self.nodes = net.nodes
        places = {item.name: i for i, item in enumerate(net.nodes)}
        self.inputs = [
            {places[name] for name in item.node.inputs if name != INPUT} for item in net.nodes
        ]
        self.readers: list[set[int]] = [set() for _ in net.nodes]
        for i, sources in enumerate(self.inputs):
            for source in sources:
                self.readers[source].add(i)
        self.sizes = [_map_bytes(item) for item in net.nodes]
        width = 2 if net.input_map.is_wide else 1
        self.input_bytes = math.prod(net.input_shape) * width
        self.input_readers = {i for i, item in enumerate(net.nodes) if INPUT in item.node.inputs}

    def _live_bytes(self, done: frozenset[int]) -> int:
        """Bytes of maps that nodes not yet finished, or the outside, still read."""
        last = len(self.nodes) - 1
        kept = (i for i in done if i == last or not self.readers[i] <= done)
        total = sum(self.sizes[i] for i in kept)
        return total + (0 if self.input_readers <= done else self.input_bytes)

    def _running_bytes(self, done: frozenset[int], i: int) -> int:
        """Bytes in use while a node runs, its map before a max-pool included."""
        pool = self.nodes[i].node.pool
        return self._live_bytes(done) + self.sizes[i] * (pool**2 + (pool > 1))

    def peak_bytes(self, order) -> int:
        """Largest number of bytes in use, in this order."""
        done: frozenset[int] = frozenset()
        peak = 0
        for i in order:
            peak = max(peak, self._running_bytes(done, i))
            done |= {i}
        return peak

    def _next(self, done: frozenset[int]) -> Iterator[int]:
        """Nodes that can run now; the output is the last, even if nothing waits for another."""
        last = len(self.nodes) - 1
        for i, sources in enumerate(self.inputs):
            if i not in done and sources <= done and (i != last or len(done) == last):
                yield i

    def best(self) -> list[int] | None:
        """The order of least peak, earlier nodes first where equal; None if there are too many."""
        queue: list[tuple[int, int, list[int], frozenset[int]]] = [(0, 0, [], frozenset())]
        seen: set[frozenset[int]] = set()
        while queue and len(seen) <= _LARGEST_SEARCH:
            peak, left, order, done = heapq.heappop(queue)
            if len(order) == len(self.nodes):
                return order
            if done in seen:
                continue
            seen.add(done)
            for i in self._next(done):
                higher = max(peak, self._running_bytes(done, i))
                heapq.heappush(queue, (higher, left - 1, [*order, i], done | {i}))
        return None
