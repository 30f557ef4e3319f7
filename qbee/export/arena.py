"""TFLite Micro's arena, predicted from the graph: what lives when, where, and the total.

The head (feature maps and scratch buffers) is placed as TFLite Micro's greedy planner does; the
tail (structures that stay) is counted from the sizes of its structures on 64-bit machines, which
are about twice those of a Cortex-M.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qbee.export.arena_sizes import (
    aligned,
    is_constant,
    listed,
    scratch_bytes,
    tail_bytes,
    tensor_bytes,
)


@dataclass(frozen=True)
class Allocation:
    """A stretch of the arena that is in use from operator ``first`` to operator ``last``.

    Attributes
    ----------
    tensor : int or None
        index of the feature map; None for an operator's scratch buffer
    offset_bytes : int
        where the planner puts it; -1 before that
    """

    tensor: int | None
    size_bytes: int
    first: int
    last: int
    offset_bytes: int = -1

    def meets(self, other: Allocation) -> bool:
        """Whether both are in use at some time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """Predicted arena: placed allocations, bytes of head and tail."""

    allocations: tuple[Allocation, ...]
    head_bytes: int
    tail_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole arena."""
        return self.head_bytes + self.tail_bytes

    @property
    def bound_bytes(self) -> int:
        """Bytes of the arena if there were no gaps in it."""
        last = max((a.last for a in self.allocations), default=0)
        return self.tail_bytes + max(self.live_bytes(i) for i in range(last + 1))

    def live_bytes(self, operator: int) -> int:
        """Bytes in use while this operator (counted from 0) runs."""
        return sum(a.size_bytes for a in self.allocations if a.first <= operator <= a.last)


def plan(model: Any, offsets: Sequence[int] = ()) -> Arena:
    """Arena of the first graph of a model (``ModelT``).

    Parameters
    ----------
    offsets : sequence of int
        fixed offset of each tensor, -1 for those that the planner is to place; as in the
        metadata of an offline plan
    """
    wanted = _allocations(model)
    fixed = {
        i: offsets[a.tensor]
        for i, a in enumerate(wanted)
        if offsets and a.tensor is not None and offsets[a.tensor] >= 0
    }
    # First fit, largest first, of equal ones the last.
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i].size_bytes, i), reverse=True)
    placed = _placed(wanted, [i for i in order if i not in fixed], fixed)
    return Arena(tuple(placed), _head(placed), tail_bytes(model))


def offline_offsets(model: Any, *, attempts: int = 1500) -> list[int] | None:
    """Offset of each tensor (-1: none) of a tighter plan, or None if TFLite Micro's is as tight.

    First fit in several orders, then a local search (seeded, so always with the same result) that
    places those earlier which end at the top.
    """
    begun = plan(model)
    found = _packed(list(begun.allocations), attempts)
    if _head(found) >= begun.head_bytes:
        return None
    offsets = [-1] * len(model.subgraphs[0].tensors)
    for one in found:
        if one.tensor is not None:
            offsets[one.tensor] = one.offset_bytes
    return offsets


def _head(placed: Sequence[Allocation]) -> int:
    return max((a.offset_bytes + a.size_bytes for a in placed), default=0)


def _packed(allocations: list[Allocation], attempts: int) -> list[Allocation]:
    last = max((a.last for a in allocations), default=0)
    live = [
        sum(a.size_bytes for a in allocations if a.first <= time <= a.last)
        for time in range(-1, last + 1)
    ]
    orders = _orders(allocations, live)
    best = min((_placed(allocations, order) for order in orders), key=_head)
    order = min(orders, key=lambda one: _head(_placed(allocations, one)))
    rng = random.Random(0)
    for _ in range(attempts):
        if _head(best) == max(live, default=0):
            break
        tried = _moved(order, best, rng)
        found = _placed(allocations, tried)
        if _head(found) <= _head(best):
            best, order = found, tried
    return best


def _orders(allocations: list[Allocation], live: list[int]) -> list[list[int]]:
    """Orders of placement to begin with: early ones, long-lived ones, those at full times."""

    def duration(one: Allocation) -> int:
        return one.first - one.last

    def fullest(one: Allocation) -> int:
        return -max(live[one.first + 1 : one.last + 2])

    keys: tuple[Callable[[Allocation], Any], ...] = (
        lambda one: (one.first, -one.size_bytes),
        lambda one: (duration(one), -one.size_bytes),
        lambda one: (fullest(one), duration(one)),
        lambda one: (fullest(one), -one.size_bytes),
    )
    return [sorted(range(len(allocations)), key=lambda i: key(allocations[i])) for key in keys]


def _moved(order: list[int], placed: list[Allocation], rng: random.Random) -> list[int]:
    """The order with one of the topmost allocations earlier, now and then two others swapped."""
    head, tried = _head(placed), list(order)
    top = [i for i, one in enumerate(placed) if one.offset_bytes + one.size_bytes == head]
    moved = rng.choice(top)
    at = tried.index(moved)
    tried.pop(at)
    tried.insert(rng.randrange(max(at, 1)), moved)
    if rng.random() < 0.3:
        i, j = rng.randrange(len(tried)), rng.randrange(len(tried))
        tried[i], tried[j] = tried[j], tried[i]
    return tried


def _allocations(model: Any) -> list[Allocation]:
    """Feature maps in the order of their tensors, then scratch buffers, without offsets."""
    graph = model.subgraphs[0]
    # Before the first operator, the inputs are there already.
    first = {i: -1 for i in listed(graph.inputs)}
    last = dict(first)
    scratch = []
    for number, operator in enumerate(graph.operators):
        for i in listed(operator.outputs):
            first.setdefault(i, number)
        for i in (*listed(operator.inputs), *listed(operator.outputs)):
            last[i] = number
        sizes = scratch_bytes(model, graph, operator)
        scratch += [Allocation(None, aligned(size), number, number) for size in sizes]
    for i in listed(graph.outputs):
        last[i] = len(graph.operators) - 1
    maps = [
        Allocation(i, aligned(tensor_bytes(tensor)), first[i], last[i])
        for i, tensor in enumerate(graph.tensors)
        if i in first and not is_constant(model, tensor) and not tensor.isVariable
    ]
    return maps + scratch


def _placed(
    allocations: Sequence[Allocation], order: Sequence[int], fixed: dict[int, int] | None = None
) -> list[Allocation]:
    """Every allocation with its offset: fixed, or the first that fits, in this order."""
    offsets = dict(fixed or {})
    for i in order:
        wanted, offset = allocations[i], 0
        others = sorted(
            (at, allocations[j].size_bytes)
            for j, at in offsets.items()
            if allocations[j].meets(wanted)
        )
        for at, size in others:
            if at - offset >= wanted.size_bytes:
                break
            offset = max(offset, at + size)
        offsets[i] = offset
    return [replace(one, offset_bytes=offsets[i]) for i, one in enumerate(allocations)]
