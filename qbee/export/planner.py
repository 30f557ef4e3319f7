"""Chooses strips and groups of channels for an arena that fits a microcontroller's RAM."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from qbee.errors import ExportError
from qbee.export import strips, tflite
from qbee.export.strips import Segment
from qbee.export.targets import TFLM, Target
from qbee.quantize.fixed_net import FixedNet

_COARSE_STRIPS, _COARSE_SECOND, _COARSE_GROUPS = (2, 4, 8, 12, 16), (1, 2, 4), (1, 2, 4)
_GROUPS = (1, 2, 3, 4, 6, 8)
# Starts of the local search, and plans whose memory is packed before one is chosen.
_STARTS, _PACKED = 3, 4


@dataclass(frozen=True)
class Layout:
    """How the leading layers are computed.

    Attributes
    ----------
    groups : int
        of output channels of the first convolution
    has_dense : bool
        whether 1x1 convolutions of one step are dense layers
    """

    segments: tuple[Segment, ...] = ()
    groups: int = 1
    has_dense: bool = False

    def of(self, net: FixedNet) -> FixedNet:
        """The network so computed."""
        # Groups before dense layers, as only a convolution has groups.
        net = strips.grouped(net, net.nodes[0].name, self.groups)
        net = strips.with_dense_pointwise(net) if self.has_dense else net
        return strips.cut(net, self.segments)


@dataclass(frozen=True)
class Planned:
    """A layout and what it costs.

    Attributes
    ----------
    recompute : float
        multiplications, as a multiple of those of the network as it is
    bound_bytes : int
        arena if the memory could be packed without gaps
    """

    net: FixedNet
    layout: Layout
    recompute: float
    bound_bytes: int
    target: Target

    @cached_property
    def arena_bytes(self) -> int:
        """Predicted arena with planned memory."""
        return tflite.write(self.net, target=self.target, plan_memory=True).arena.total_bytes


class _Search:
    """Layouts of one network that were looked at."""

    def __init__(self, net: FixedNet, max_recompute: float, target: Target):
        self.net, self.max_recompute, self.target = net, max_recompute, target
        self.macs = strips.macs(net)
        self.ends = strips.ends(net)
        self.heights = {item.name: item.node.shape[0] for item in net.nodes}
        self.seen: dict[Layout, Planned | None] = {}

    def look(self, layout: Layout) -> Planned | None:
        """What a layout costs, or None if it computes too much."""
        if layout not in self.seen:
            self.seen[layout] = self._looked(layout)
        return self.seen[layout]

    def _looked(self, layout: Layout) -> Planned | None:
        net = layout.of(self.net)
        recompute = strips.macs(net) / self.macs
        if recompute > self.max_recompute:
            return None
        plan = tflite.write(net, target=self.target).arena
        return Planned(net, layout, recompute, plan.bound_bytes, self.target)

    def coarse(self) -> Iterator[Layout]:
        """Layouts to begin with."""
        counts = (_COARSE_STRIPS, _COARSE_SECOND)
        groups = _COARSE_GROUPS if self._can_group else (1,)
        for depth in (1, 2):
            for chosen in itertools.combinations(self._useful_ends, depth):
                for numbers in itertools.product(*counts[:depth], groups):
                    pairs = zip(chosen, numbers[:-1], strict=True)
                    segments = tuple(Segment(end, n) for end, n in pairs)
                    if self._is_possible(segments):
                        yield Layout(segments, numbers[-1])

    @property
    def _can_group(self) -> bool:
        node = self.net.nodes[0].node
        return node.op == "conv" and node.pool > 1 and node.shape[-1] >= max(_GROUPS)

    @cached_property
    def _can_be_dense(self) -> bool:
        changed = strips.with_dense_pointwise(self.net)
        return any(a is not b for a, b in zip(changed.nodes, self.net.nodes, strict=True))

    @cached_property
    def _useful_ends(self) -> list[str]:
        """Ends whose map is smaller than that of every end before."""
        found: list[str] = []
        smallest = None
        for name in self.ends:
            item = next(item for item in self.net.nodes if item.name == name)
            height, width, channels = item.node.shape
            elements = height * width * channels
            if smallest is None or elements < smallest:
                found.append(name)
                smallest = elements
        return found

    def _is_possible(self, segments: tuple[Segment, ...]) -> bool:
        return all(1 <= s.strips <= self.heights[s.end] for s in segments)

    def neighbours(self, layout: Layout) -> Iterator[Layout]:
        """Layouts with one number a little different."""
        for i, segment in enumerate(layout.segments):
            for step in (-2, -1, 1, 2):
                changed = replace(segment, strips=segment.strips + step)
                segments = (*layout.segments[:i], changed, *layout.segments[i + 1 :])
                if self._is_possible(segments):
                    yield replace(layout, segments=segments)
        if self._can_group:
            for groups in _GROUPS:
                yield replace(layout, groups=groups)
        if self._can_be_dense:
            yield replace(layout, has_dense=True)

    def improved(self, start: Planned) -> Planned:
        """The best layout that is reached from a start step by step."""
        while True:
            near = (self.look(layout) for layout in self.neighbours(start.layout))
            best = min((p for p in near if p is not None), key=_by_memory, default=start)
            if best.bound_bytes >= start.bound_bytes:
                return start
            start = best

    def found(self) -> list[Planned]:
        """All layouts looked at that do not compute too much, those with small arenas first."""
        return sorted((p for p in self.seen.values() if p is not None), key=_by_memory)


def _by_memory(planned: Planned) -> tuple[int, float]:
    return planned.bound_bytes, planned.recompute


def plan(
    net: FixedNet,
    *,
    max_arena_bytes: int | None = None,
    max_recompute: float = 1.3,
    target: Target = TFLM,
) -> Planned:
    """The layout with the smallest arena, or the least computation within ``max_arena_bytes``.

    Parameters
    ----------
    max_recompute : float >= 1
        multiplications allowed, as a multiple of those of the network as it is

    Raises
    ------
    ExportError
        if no layout found fits; the message gives the smallest arena.
    """
    search = _Search(net, max_recompute, target)
    whole = search.look(Layout())
    if whole is None:
        raise ExportError(f"max_recompute={max_recompute} must be at least 1")
    if max_arena_bytes is not None and whole.arena_bytes <= max_arena_bytes:
        return whole
    for layout in search.coarse():
        search.look(layout)
    for start in search.found()[:_STARTS]:
        search.improved(start)
    best = min(search.found()[:_PACKED], key=lambda planned: planned.arena_bytes)
    if max_arena_bytes is None:
        return best
    if best.arena_bytes > max_arena_bytes:
        raise ExportError(
            f"max_arena={max_arena_bytes}: the smallest arena found has {best.arena_bytes} bytes, "
            f"with {best.recompute:.2f} x the multiplications"
        )
    cheapest = sorted(search.found(), key=lambda p: (p.recompute, p.bound_bytes))
    fitting = (p for p in cheapest if p.bound_bytes <= max_arena_bytes)
    return next((p for p in fitting if p.arena_bytes <= max_arena_bytes), best)
