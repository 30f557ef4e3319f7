"""Places stretches of memory that live for a while each, so that they end as low as possible."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """Bytes in use from time ``first`` to time ``last``."""

    size_bytes: int
    first: int
    last: int


class Packing:
    """Blocks and which of them live together."""

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks
        self.meeting = [
            [j for j, b in enumerate(blocks) if a.first <= b.last and b.first <= a.last]
            for a in blocks
        ]
        begun = min((b.first for b in blocks), default=0)
        times = range(begun, max((b.last for b in blocks), default=0) + 1)
        self._begun = begun
        self._live = [sum(b.size_bytes for b in blocks if b.first <= t <= b.last) for t in times]

    @property
    def bound_bytes(self) -> int:
        """Largest number of bytes that live together: no placement can be lower."""
        return max(self._live, default=0)

    def head_bytes(self, offsets: Sequence[int]) -> int:
        """Where the highest block ends."""
        ends = (at + b.size_bytes for at, b in zip(offsets, self.blocks, strict=True))
        return max(ends, default=0)

    def first_fit(self, order: Sequence[int], fixed: Mapping[int, int] | None = None) -> list[int]:
        """Offset of every block: fixed, or the lowest gap that is free, in this order."""
        offsets = [-1] * len(self.blocks)
        for i, at in (fixed or {}).items():
            offsets[i] = at
        for i in order:
            size, offset = self.blocks[i].size_bytes, 0
            others = sorted(
                (offsets[j], self.blocks[j].size_bytes) for j in self.meeting[i] if offsets[j] >= 0
            )
            for at, taken in others:
                if at - offset >= size:
                    break
                offset = max(offset, at + taken)
            offsets[i] = offset
        return offsets

    def greedy(self, fixed: Mapping[int, int] | None = None) -> list[int]:
        """Offsets as TFLite Micro's planner chooses them.

        First fit, largest first, of equal ones the last.
        """
        order = sorted(
            range(len(self.blocks)), key=lambda i: (self.blocks[i].size_bytes, i), reverse=True
        )
        return self.first_fit([i for i in order if i not in (fixed or {})], fixed)

    def tight(self, attempts: int) -> list[int]:
        """Offsets that end lower, as a rule.

        First fit in several orders, then a local search (seeded, so always with the same result)
        that places those earlier which end at the top.
        """
        order = min(self._orders(), key=lambda one: self.head_bytes(self.first_fit(one)))
        best = self.first_fit(order)
        head, rng = self.head_bytes(best), random.Random(0)
        for _ in range(attempts):
            if head == self.bound_bytes:
                break
            tried = self._moved(order, best, head, rng)
            found = self.first_fit(tried)
            reached = self.head_bytes(found)
            if reached <= head:
                best, order, head = found, tried, reached
        return best

    def _orders(self) -> Iterator[list[int]]:
        """Orders to begin with: early blocks, long-lived ones, those that live at full times."""

        def duration(i: int) -> int:
            return self.blocks[i].first - self.blocks[i].last

        def fullest(i: int) -> int:
            first, last = (t - self._begun for t in self.blocks[i][1:])
            return -max(self._live[first : last + 1])

        indices = range(len(self.blocks))
        yield sorted(indices, key=lambda i: (self.blocks[i].first, -self.blocks[i].size_bytes))
        yield sorted(indices, key=lambda i: (duration(i), -self.blocks[i].size_bytes))
        yield sorted(indices, key=lambda i: (fullest(i), duration(i)))
        yield sorted(indices, key=lambda i: (fullest(i), -self.blocks[i].size_bytes))

    def _moved(
        self, order: Sequence[int], offsets: Sequence[int], head: int, rng: random.Random
    ) -> list[int]:
        """The order with a topmost block earlier, now and then two others swapped."""
        top = [i for i, at in enumerate(offsets) if at + self.blocks[i].size_bytes == head]
        tried, moved = list(order), rng.choice(top)
        at = tried.index(moved)
        tried.pop(at)
        tried.insert(rng.randrange(max(at, 1)), moved)
        if rng.random() < 0.3:
            i, j = rng.randrange(len(tried)), rng.randrange(len(tried))
            tried[i], tried[j] = tried[j], tried[i]
        return tried
