"""TFLite Micro's arena, predicted from the graph: what lives when, where, and the total.

The head (feature maps and scratch buffers) is placed as TFLite Micro's greedy planner does; the
tail (structures that stay) is counted from the sizes of its structures on 64-bit machines, which
are about twice those of a Cortex-M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qbee.runtime.arena_sizes import (
    aligned,
    is_constant,
    listed,
    scratch_bytes,
    tail_bytes,
    tensor_bytes,
)
from qbee.runtime.flatbuffer import Op
from qbee.runtime.packing import Block, Packing


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
        return self.tail_bytes + _packing(self.allocations).bound_bytes

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
    packing = _packing(wanted)
    found = packing.greedy(fixed)
    placed = (replace(a, offset_bytes=at) for a, at in zip(wanted, found, strict=True))
    return Arena(tuple(placed), packing.head_bytes(found), tail_bytes(model))


def offline_offsets(model: Any, *, attempts: int = 1000) -> list[int] | None:
    """Offset of each tensor (-1: none) of a tighter plan, or None if TFLite Micro's is as tight.

    The result of a RESHAPE lies where its input lies if nothing else reads that: TFLite Micro
    then copies nothing.
    """
    wanted = _allocations(model)
    shared = _reshaped(model, wanted)
    merged = [a for a in wanted if a.tensor not in shared]
    for i, one in enumerate(merged):
        heirs = [a.last for a in wanted if a.tensor is not None and _root(a, shared) == one.tensor]
        merged[i] = replace(one, last=max((one.last, *heirs))) if one.tensor is not None else one
    packing = _packing(merged)
    found = packing.tight(attempts)
    if packing.head_bytes(found) >= plan(model).head_bytes:
        return None
    by_tensor = {a.tensor: at for a, at in zip(merged, found, strict=True)}
    offsets = [-1] * len(model.subgraphs[0].tensors)
    for one in wanted:
        if one.tensor is not None:
            offsets[one.tensor] = by_tensor[_root(one, shared)]
    return offsets


def _packing(allocations: Sequence[Allocation]) -> Packing:
    return Packing([Block(a.size_bytes, a.first, a.last) for a in allocations])


def _root(one: Allocation, shared: dict[int | None, int]) -> int | None:
    """Tensor whose place an allocation shares, or its own."""
    tensor = one.tensor
    while tensor in shared:
        tensor = shared[tensor]
    return tensor


def _reshaped(model: Any, allocations: Sequence[Allocation]) -> dict[int | None, int]:
    """Results of RESHAPE and the tensors in whose place they can lie."""
    graph = model.subgraphs[0]
    known = {a.tensor: a for a in allocations}
    kept = set(listed(graph.outputs)) | set(listed(graph.inputs))
    found: dict[int | None, int] = {}
    for number, operator in enumerate(graph.operators):
        source, result = operator.inputs[0], operator.outputs[0]
        is_reshape = model.operatorCodes[operator.opcodeIndex].builtinCode == Op.RESHAPE
        are_maps = source in known and result in known and not {source, result} & kept
        if is_reshape and are_maps and known[source].last == number:
            found[int(result)] = int(source)
    return found


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
