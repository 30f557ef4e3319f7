"""A network whose leading layers run in horizontal strips: the same integers in less memory.

The leading nodes are cut into segments, and each segment into strips of rows. A strip computes
the rows it needs of every node of its segment, so neighbours compute the rows at their border
(the halo) twice. A segment's strips read the strips of the segment before, each of which is made
just before it is first needed and kept no longer than it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from qbee.errors import ParameterError
from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.quantize.graph import INPUT, NO_PADDING, Node

_BY_ROWS = (
    "conv",
    "depthwise",
    "dense",
    "add",
    "multiply",
    "rescale",
    "sigmoid",
    "concat_channels",
)
_POOLS = ("max_pool", "average_pool")

Rows = tuple[int, int]


def layer_of(name: str) -> str:
    """Name of the layer of the whole network that a strip or group belongs to."""
    return name.partition("@")[0].partition("#")[0]


@dataclass(frozen=True)
class Segment:
    """Nodes after the segment before, up to ``end``, computed in ``strips`` strips."""

    end: str
    strips: int


def ends(net: FixedNet) -> list[str]:
    """Names of the nodes at which a leading segment may end, in order.

    All nodes so far work row by row, and no later node uses any but the last of them.
    """
    found, inside = [], {INPUT}
    for position, item in enumerate(net.nodes):
        if not _works_by_rows(net, item):
            break
        inside.add(item.name)
        later = {name for other in net.nodes[position + 1 :] for name in other.node.inputs}
        if later & inside == {item.name}:
            found.append(item.name)
    return found


def _works_by_rows(net: FixedNet, item: FixedNode) -> bool:
    node = item.node
    if node.op in _POOLS:
        return node.padding == NO_PADDING
    # A strip of rows that are computed from padding alone would read no row.
    if max(node.padding[0]) >= node.window[0]:
        return False
    # Of maps that are joined, only the number of channels may differ.
    axes = 2 if node.op == "concat_channels" else 3
    shapes = {_shape(net, name)[:axes] for name in node.inputs}
    return node.op in _BY_ROWS and len(node.shape) == 3 and len(shapes) == 1


def _shape(net: FixedNet, name: str) -> tuple[int, ...]:
    if name == INPUT:
        return net.input_shape
    return next(item.node.shape for item in net.nodes if item.name == name)


def macs(net: FixedNet) -> int:
    """Multiplications and additions of all kernels."""
    total = 0
    for item in net.nodes:
        if item.weights is not None:
            kernel = item.weights.kernel
            # A dense kernel is used once, another at every place before the node's max-pool.
            places = math.prod(item.node.shape[:-1]) * item.node.pool**2
            total += places * kernel.size
    return total


def grouped(net: FixedNet, name: str, groups: int) -> FixedNet:
    """The network with one convolution computed in groups of output channels.

    Each group has its own convolution and max-pool, so only a part of the large map before the
    pool exists at a time. Group i is named ``<name>#<i>``; the joined map keeps the name.

    Raises
    ------
    ParameterError
        if the node is no convolution, or has fewer channels than groups.
    """
    if groups == 1:
        return net
    item = next((item for item in net.nodes if item.name == name), None)
    if item is None or item.weights is None or item.node.op != "conv":
        raise ParameterError(f"name={name!r} must be a convolution")
    if not 1 <= groups <= len(item.weights.bias):
        raise ParameterError(f"groups={groups} must be in [1, {len(item.weights.bias)}]")
    bounds = [i * len(item.weights.bias) // groups for i in range(groups + 1)]
    parts = tuple(
        _channels(item, begin, stop, f"{name}#{i}")
        for i, (begin, stop) in enumerate(itertools.pairwise(bounds))
    )
    node = Node(name, "concat_channels", tuple(p.name for p in parts), item.node.shape)
    joined = FixedNode(node, (item.target,) * groups, item.target)
    at = net.nodes.index(item)
    return replace(net, nodes=(*net.nodes[:at], *parts, joined, *net.nodes[at + 1 :]))


def _channels(item: FixedNode, begin: int, stop: int, name: str) -> FixedNode:
    """Some output channels of a convolution."""
    assert item.weights is not None
    weights = replace(
        item.weights,
        kernel=item.weights.kernel[..., begin:stop],
        steps=item.weights.steps[begin:stop],
        bias=item.weights.bias[begin:stop],
    )
    node = replace(item.node, name=name, shape=(*item.node.shape[:-1], stop - begin))
    return replace(item, node=node, weights=weights)


def with_dense_pointwise(net: FixedNet) -> FixedNet:
    """The network with 1x1 convolutions of one step as dense layers, which are the same sums.

    TFLite Micro keeps a multiplier and a shift for every channel of a convolution, even if all
    are equal, but only one of each for such a dense layer.
    """
    return replace(net, nodes=tuple(_as_dense(item) for item in net.nodes))


def _as_dense(item: FixedNode) -> FixedNode:
    node, weights = item.node, item.weights
    is_pointwise = node.op == "conv" and node.window == node.strides == (1, 1)
    if weights is None or not is_pointwise or len(np.unique(weights.steps)) > 1:
        return item
    kernel = replace(weights, kernel=weights.kernel[0, 0])
    return replace(item, node=replace(node, op="dense"), weights=kernel)


def cut(net: FixedNet, segments: tuple[Segment, ...]) -> FixedNet:
    """The network with its leading nodes in strips.

    Nodes of strip i are named ``<name>@<i>``; the last segment's result keeps its name.

    Raises
    ------
    ParameterError
        if a segment cannot end where it should, or has more strips than rows.
    """
    if not segments:
        return net
    possible = ends(net)
    positions = [possible.index(s.end) if s.end in possible else -1 for s in segments]
    for segment, position, before in zip(segments, positions, [-1, *positions], strict=False):
        if position <= before:
            raise ParameterError(
                f"end={segment.end!r} must be one of {', '.join(possible)}, in order"
            )
        height = _shape(net, segment.end)[0]
        if not 1 <= segment.strips <= height:
            raise ParameterError(f"strips={segment.strips} must be in [1, {height}]")
    return _Cutter(net, segments).whole()


class _Cutter:
    """Collects the nodes of a network in strips, in the order in which they run."""

    def __init__(self, net: FixedNet, segments: tuple[Segment, ...]):
        self.net, self.segments = net, segments
        self.made: list[FixedNode] = []
        self.items = {item.name: item for item in net.nodes}
        self.order = [item.name for item in net.nodes]
        # Strips of each segment's result that exist: number -> name.
        self.strips: list[dict[int, str]] = [{} for _ in segments]

    def whole(self) -> FixedNet:
        """All strips, the joined map and the nodes after it."""
        last = len(self.segments) - 1
        end = self.items[self.segments[last].end]
        parts = [self._strip(last, i) for i in range(self.segments[last].strips)]
        self._joined(parts, end, end.name)
        rest = self.order.index(end.name) + 1
        nodes = (*self.made, *self.net.nodes[rest:])
        return replace(self.net, nodes=nodes)

    def _members(self, number: int) -> list[FixedNode]:
        begin = self.order.index(self._source(number)) + 1 if number else 0
        stop = self.order.index(self.segments[number].end) + 1
        return list(self.net.nodes[begin:stop])

    def _source(self, number: int) -> str:
        """Name of the map that a segment reads."""
        return self.segments[number - 1].end if number else INPUT

    def _range(self, number: int, strip: int) -> Rows:
        """Rows of a segment's result that one of its strips makes."""
        height = _shape(self.net, self.segments[number].end)[0]
        strips = self.segments[number].strips
        return strip * height // strips, (strip + 1) * height // strips

    def _strip(self, number: int, strip: int) -> str:
        """Name of a strip of a segment's result, made if it does not exist."""
        if strip not in self.strips[number]:
            needed = self._needed(number, self._range(number, strip))
            values = {self._source(number): self._assembled(number, strip, needed)}
            for item in self._members(number):
                if item.name in needed:
                    self._part(item, strip, needed, values)
            self.strips[number][strip] = values[self.segments[number].end]
        return self.strips[number][strip]

    def _needed(self, number: int, rows: Rows) -> dict[str, Rows]:
        """Rows of every map that these rows of a segment's result depend on."""
        needed = {self.segments[number].end: rows}
        for item in reversed(self._members(number)):
            if item.name not in needed:
                continue
            for name in item.node.inputs:
                begin, stop = self._read(item.node, name, needed[item.name])[0]
                before = needed.get(name, (begin, stop))
                needed[name] = min(begin, before[0]), max(stop, before[1])
        return needed

    def _read(self, node: Node, name: str, rows: Rows) -> tuple[Rows, Rows]:
        """Rows of an input that rows of the result need, and rows of padding beside them."""
        begin, stop = rows[0] * node.pool, rows[1] * node.pool
        top = node.padding[0][0]
        first = begin * node.strides[0] - top
        last = (stop - 1) * node.strides[0] - top + node.window[0]
        height = _shape(self.net, name)[0]
        inside = max(first, 0), min(last, height)
        return inside, (inside[0] - first, last - inside[1])

    def _assembled(self, number: int, strip: int, needed: dict[str, Rows]) -> str:
        """Name of the rows of a segment's source that one strip reads."""
        source = self._source(number)
        begin, stop = needed[source]
        if not number:
            return self._cut_out(INPUT, self.net.input_map, (begin, stop), strip)
        item, parts = self.items[source], []
        for i in range(self.segments[number - 1].strips):
            first, last = self._range(number - 1, i)
            if first < stop and begin < last:
                rows = max(begin, first) - first, min(stop, last) - first
                name = self._strip(number - 1, i)
                parts.append(self._cut_out(name, item.target, rows, strip))
        return self._joined(parts, item, f"{source}@to{strip}")

    def _part(
        self, item: FixedNode, strip: int, needed: dict[str, Rows], values: dict[str, str]
    ) -> None:
        """Make the rows of one node that a strip needs."""
        rows, inputs = needed[item.name], []
        padding = NO_PADDING
        for name, number in zip(item.node.inputs, item.sources, strict=True):
            (begin, stop), above_below = self._read(item.node, name, rows)
            padding = (above_below, item.node.padding[1])
            start = needed[name][0]
            inside = begin - start, stop - start
            inputs.append(self._cut_out(values[name], number, inside, strip))
        node = replace(
            item.node,
            name=f"{item.name}@{strip}",
            inputs=tuple(inputs),
            shape=(rows[1] - rows[0], *item.node.shape[1:]),
            padding=padding,
        )
        self.made.append(replace(item, node=node))
        values[item.name] = node.name

    def _height(self, name: str) -> tuple[int, ...]:
        if name == INPUT:
            return self.net.input_shape
        return next(item.node.shape for item in reversed(self.made) if item.name == name)

    def _cut_out(self, name: str, number, rows: Rows, strip: int) -> str:
        """Name of these rows of an existing map."""
        shape = self._height(name)
        if rows == (0, shape[0]):
            return name
        stem = f"{name.partition('@')[0]}@{strip}[{rows[0]}:{rows[1]}]"
        taken = {item.name for item in self.made}
        label = next(c for c in _candidates(stem) if c not in taken)
        node = Node(label, "rows", (name,), (rows[1] - rows[0], *shape[1:]), first_row=rows[0])
        self.made.append(FixedNode(node, (number,), number))
        return label

    def _joined(self, parts: list[str], item: FixedNode, name: str) -> str:
        """Name of strips below one another."""
        if len(parts) == 1 and name != item.name:
            return parts[0]
        height = sum(self._height(part)[0] for part in parts)
        node = Node(name, "concat_rows", tuple(parts), (height, *item.node.shape[1:]))
        self.made.append(FixedNode(node, (item.target,) * len(parts), item.target))
        return name


def _candidates(stem: str) -> Iterator[str]:
    """The name, and others like it."""
    yield stem
    number = 2
    while True:
        yield f"{stem}~{number}"
        number += 1
