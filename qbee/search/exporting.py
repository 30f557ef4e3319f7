"""The files that an export would write of many schemes, planning memory once for all of them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from qbee.errors import ExportError
from qbee.export import order, planner, targets, tflite
from qbee.export.delivery import MAX_RECOMPUTE, ExportSettings
from qbee.export.planner import Layout
from qbee.export.tflite import Exported
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import MapType, max_kernel_code

STAND_IN_BITS = 8


def _stand_in_map(number: MapType) -> MapType:
    lowest = -(2 ** (STAND_IN_BITS - 1)) if number.is_signed else 0
    return MapType(STAND_IN_BITS, lowest, number.step)


def _stand_in_weights(item: FixedNode) -> FixedWeights | None:
    weights = item.weights
    if weights is None:
        return None
    top = max_kernel_code(STAND_IN_BITS)
    steps = weights.steps
    if item.node.op == "dense":
        # Whether a dense kernel has one step depends on its bits.
        steps = steps[0] * 2.0 ** -np.arange(len(steps)).clip(0, 1)
    kernel = weights.kernel.clip(-top, top)
    return replace(weights, kernel=kernel, bits=STAND_IN_BITS, steps=steps.astype(np.float32))


def stand_in(net: FixedNet) -> FixedNet:
    """The network with 8 bits everywhere: all schemes for it have the same."""
    nodes = tuple(
        replace(
            item,
            sources=tuple(_stand_in_map(number) for number in item.sources),
            target=_stand_in_map(item.target),
            weights=_stand_in_weights(item),
        )
        for item in net.nodes
    )
    return replace(net, input_map=_stand_in_map(net.input_map), nodes=nodes)


class Exporter:
    """Writes what ``delivery.deliver`` would write, without its table of fidelity.

    Where memory is to be planned, which takes seconds, the layout is found for the ``stand_in``
    and used for all schemes of the network, so that a scheme's costs do not depend on which was
    exported before. With planning, therefore, arena and bytes are those that ``deliver`` would
    reach with this layout; its own plan may be better. If no layout fits, the one with the
    smallest arena is used. ``is_strict`` is not looked at.
    """

    def __init__(self, settings: ExportSettings, metadata: dict[str, bytes]):
        self.settings, self.target = settings, targets.get(settings.target)
        self.metadata = metadata if settings.has_metadata else None
        self._layouts: dict[Hashable, Layout] = {}

    def export(self, net: FixedNet) -> tuple[FixedNet, Exported]:
        """The network as the file computes it, and the file.

        Raises
        ------
        ExportError
            naming a layer that the target cannot run.
        """
        net = order.with_lowest_peak(net)
        if self.settings.has_limit:
            net = self._layout_of(net).of(net)
        return net, tflite.write(
            net,
            target=self.target,
            plan_memory=self.settings.has_limit,
            metadata=self.metadata,
        )

    def _layout_of(self, net: FixedNet) -> Layout:
        key = (net.input_shape, tuple(item.node for item in net.nodes))
        if key not in self._layouts:
            self._layouts[key] = self._planned(stand_in(net))
        return self._layouts[key]

    def _planned(self, net: FixedNet) -> Layout:
        """The layout of a network that fits; if none does, the smallest."""
        try:
            return self._layout(net, self.settings.max_arena_bytes)
        except ExportError:
            return self._layout(net, None)

    def _layout(self, net: FixedNet, max_arena_bytes: int | None) -> Layout:
        return planner.plan(
            net,
            max_arena_bytes=max_arena_bytes,
            max_recompute=self.settings.max_recompute or MAX_RECOMPUTE,
            target=self.target,
        ).layout
