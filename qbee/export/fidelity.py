"""What the file holds against what was asked for, layer by layer."""

from __future__ import annotations

import math

import numpy as np

from qbee.errors import ExportError
from qbee.export.strips import layer_of
from qbee.export.tflite import Exported
from qbee.quantize.fixed_net import FixedNet, FixedNode
from qbee.records import Record
from qbee.runtime.arena import tensor_bytes
from qbee.runtime.flatbuffer import Type, names

# Sums beyond this are not all exact in float32.
FLOAT32_EXACT = 2**24
_TYPE_NAMES = names(Type)


class LayerFidelity(Record):
    """One layer of the exported file.

    ``kernel_stored`` names the container, with the number of int8 parts where a kernel has
    several; ``largest_sum`` bounds the absolute accumulator; ``widened`` says what is stored in
    more bits than asked for, and why.
    """

    layer: str
    op: str
    kernel_bits: int | None = None
    kernel_stored: str | None = None
    kernel_bytes: int = 0
    bias_stored: str | None = None
    bias_bytes: int = 0
    map_bits: int
    map_stored: str
    largest_sum: int | None = None
    widened: tuple[str, ...] = ()

    @property
    def is_exact_in_float32(self) -> bool:
        """Whether float32 arithmetic, too, gives the sums to the last bit."""
        return self.largest_sum is None or self.largest_sum < FLOAT32_EXACT


class Fidelity(Record):
    """The table of an exported file, whose bytes are all accounted for."""

    layers: tuple[LayerFidelity, ...]
    kernel_bytes: int
    bias_bytes: int
    metadata_bytes: int
    other_bytes: int
    file_bytes: int

    @property
    def widened(self) -> list[str]:
        """Everything stored in more bits than asked for, one line each."""
        return [f"layer {row.layer!r}: {text}" for row in self.layers for text in row.widened]

    def check_strictly(self) -> None:
        """Refuse a file in which anything is stored in more bits than asked for.

        Raises
        ------
        ExportError
            naming the first layer.
        """
        if self.widened:
            more = f" (and {len(self.widened) - 1} more)" if len(self.widened) > 1 else ""
            raise ExportError(self.widened[0] + more)


def table(net: FixedNet, exported: Exported) -> Fidelity:
    """Fidelity of a file.

    Parameters
    ----------
    net : FixedNet
        as it was before any layer was cut into strips or groups
    exported : what was written of it, in strips or not
    """
    stored: dict[str, set[int]] = {}
    biases: dict[str, set[int]] = {}
    for name, constants in exported.kernels.items():
        layer = layer_of(name)
        stored.setdefault(layer, set()).update(c.kernel for c in constants)
        biases.setdefault(layer, set()).update(c.bias for c in constants)
    rows = tuple(
        _row(item, exported, stored.get(item.name, set()), biases.get(item.name, set()))
        for item in net.nodes
        if item.weights is not None or item.node.has_own_map
    )
    kernels = _constant_bytes(exported, set().union(*stored.values()))
    offsets = _constant_bytes(exported, set().union(*biases.values()))
    metadata = sum(
        len(exported.model.buffers[entry.buffer].data) for entry in exported.model.metadata or []
    )
    size = len(exported.content)
    return Fidelity(
        layers=rows,
        kernel_bytes=kernels,
        bias_bytes=offsets,
        metadata_bytes=metadata,
        other_bytes=size - kernels - offsets - metadata,
        file_bytes=size,
    )


def _constant_bytes(exported: Exported, tensors: set[int]) -> int:
    """Bytes of constants, those with equal content counted once as they are stored once."""
    graph = exported.model.subgraphs[0]
    by_buffer = {graph.tensors[i].buffer: tensor_bytes(graph.tensors[i]) for i in tensors}
    return sum(by_buffer.values())


def _row(item: FixedNode, exported: Exported, kernels: set[int], biases: set[int]) -> LayerFidelity:
    tensors = exported.model.subgraphs[0].tensors
    target = item.target
    map_stored = "int16" if target.is_wide else "int8"
    map_widened = _widened("map", target.bits, 16 if target.is_wide else 8, "no narrower maps")
    if item.weights is None:
        return LayerFidelity(
            layer=item.name,
            op=item.node.op,
            map_bits=target.bits,
            map_stored=map_stored,
            widened=map_widened,
        )
    container = tensors[min(kernels)].type
    elements = sum(math.prod(int(n) for n in tensors[i].shape) for i in kernels)
    parts = round(elements / item.weights.kernel.size)
    width = parts * (4 if container == Type.INT4 else 8)
    reason = _reason(item, container, parts)
    return LayerFidelity(
        layer=item.name,
        op=item.node.op,
        kernel_bits=item.weights.bits,
        kernel_stored=f"{parts} x int8" if parts > 1 else _TYPE_NAMES[container],
        kernel_bytes=_constant_bytes(exported, kernels),
        bias_stored=_TYPE_NAMES[tensors[min(biases)].type],
        bias_bytes=_constant_bytes(exported, biases),
        map_bits=target.bits,
        map_stored=map_stored,
        largest_sum=_largest_sum(item),
        widened=(*_widened("kernel", item.weights.bits, width, reason), *map_widened),
    )


def _widened(what: str, asked: int, stored: int, reason: str) -> tuple[str, ...]:
    if stored <= asked:
        return ()
    return (f"{what} of {asked} bits stored in {stored}: {reason}",)


def _reason(item: FixedNode, container: int, parts: int) -> str:
    """Why a kernel has a larger container than asked for."""
    assert item.weights is not None
    if parts == 3:
        return "maps of 256 unsigned codes need a third part"
    if parts == 2:
        return "wide kernels are pairs of int8"
    if container == Type.INT4:
        return "no narrower kernels"
    if item.weights.bits > 4:
        return "no kernels between int4 and int8"
    wide = item.sources[0].is_wide or item.target.is_wide
    return "int4 kernels need int8 maps" if wide else "the target has no int4"


def _largest_sum(item: FixedNode) -> int:
    """Bound of the absolute accumulator, bias included."""
    weights = item.weights
    assert weights is not None
    axes = (0, 1, 3) if item.node.op == "depthwise" else tuple(range(weights.kernel.ndim - 1))
    gains = np.abs(weights.kernel).sum(axes)
    code = max(abs(c) for c in item.sources[0].codes)
    return int((gains * code + np.abs(weights.bias)).max())
