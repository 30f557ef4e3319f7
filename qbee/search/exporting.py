"""The files that an export would write of many schemes, planning memory once for alike ones."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from qbee.errors import ExportError
from qbee.export import order, planner, targets, tflite
from qbee.export.delivery import MAX_RECOMPUTE, ExportSettings
from qbee.export.planner import Layout
from qbee.export.tflite import Exported
from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.quantize.fixed_point import MapType


def _filled_map(number: MapType) -> MapType:
    """A format that uses all codes of its container."""
    bits = 16 if number.is_wide else 8
    # An affine map keeps its lowest code.
    is_full = number.lowest == -(2 ** (number.bits - 1))
    return MapType(bits, -(2 ** (bits - 1)) if is_full else number.lowest, number.step)


def _filled_node(item: FixedNode) -> FixedNode:
    weights = item.weights
    if weights is not None:
        weights = replace(weights, bits=16 if weights.bits > 8 else 8)
    sources = tuple(_filled_map(number) for number in item.sources)
    return replace(item, sources=sources, target=_filled_map(item.target), weights=weights)


def filled(net: FixedNet) -> FixedNet:
    """The network with 8 or 16 bits instead of fewer: a stand-in for all with its containers."""
    nodes = tuple(_filled_node(item) for item in net.nodes)
    return replace(net, input_map=_filled_map(net.input_map), nodes=nodes)


def _signature(net: FixedNet) -> Hashable:
    """What the memory of a network depends on: its nodes and which of their integers are wide."""
    return net.input_shape, net.input_map.is_wide, tuple(_node_signature(i) for i in net.nodes)


def _node_signature(item: FixedNode) -> Hashable:
    weights = item.weights
    if weights is None:
        return item.node, item.target.is_wide
    has_one_step = len(np.unique(weights.steps)) == 1
    return item.node, item.target.is_wide, weights.bits > 8, has_one_step


class Exporter:
    """Writes what ``delivery.deliver`` would write, without its table of fidelity.

    Where memory is to be planned, which takes seconds, the layout is found for the ``filled``
    network and used for all networks with the same nodes and containers; so a network's layout
    does not depend on which was exported before. Only if the file then needs more than
    ``max_arena_bytes``, the network is planned itself. Networks of which ``deliver`` would say
    that no layout fits have the layout with the smallest arena. With planning, therefore, arena
    and bytes are those that ``deliver`` would reach with this layout; its own plan may be better.
    ``is_strict`` is not looked at.
    """

    def __init__(self, settings: ExportSettings, metadata: dict[str, bytes]):
        self.settings, self.target = settings, targets.get(settings.target)
        self.metadata = metadata if settings.has_metadata else None
        self._layouts: dict[Hashable, Layout] = {}
        self._unfit: set[Hashable] = set()

    def export(self, net: FixedNet) -> tuple[FixedNet, Exported]:
        """The network as the file computes it, and the file.

        Raises
        ------
        ExportError
            naming a layer that the target cannot run.
        """
        net = order.with_lowest_peak(net)
        if not self.settings.has_limit:
            return net, self._written(net)
        key = _signature(net)
        if key not in self._layouts:
            self._layouts[key], fits = self._planned(filled(net))
            self._unfit |= set() if fits else {key}
        laid_out = self._layouts[key].of(net)
        exported = self._written(laid_out)
        if key in self._unfit or not self._exceeds(exported):
            return laid_out, exported
        laid_out = self._planned(net)[0].of(net)
        return laid_out, self._written(laid_out)

    def _written(self, net: FixedNet) -> Exported:
        return tflite.write(
            net,
            target=self.target,
            plan_memory=self.settings.has_limit,
            metadata=self.metadata,
        )

    def _exceeds(self, exported: Exported) -> bool:
        limit = self.settings.max_arena_bytes
        return limit is not None and exported.arena.total_bytes > limit

    def _planned(self, net: FixedNet) -> tuple[Layout, bool]:
        """The layout of a network, and whether it fits; if none does, the smallest."""
        try:
            return self._layout(net, self.settings.max_arena_bytes), True
        except ExportError:
            return self._layout(net, None), False

    def _layout(self, net: FixedNet, max_arena_bytes: int | None) -> Layout:
        return planner.plan(
            net,
            max_arena_bytes=max_arena_bytes,
            max_recompute=self.settings.max_recompute or MAX_RECOMPUTE,
            target=self.target,
        ).layout
