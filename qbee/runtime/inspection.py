"""What is inside a .tflite of anybody: operators, kernels, scales, work, memory; as a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qbee.runtime import arena, checks
from qbee.runtime.facts import (
    ArenaFacts,
    Inspection,
    KernelFacts,
    OperatorFacts,
    Stretch,
    TensorFacts,
)
from qbee.runtime.flatbuffer import BITS, Activation, Op, names
from qbee.runtime.operations import Operation, Tensor, operations_of, tensors_of, text

_ACTIVATIONS = names(Activation)
# Positions of kernel and bias among the inputs.
_KERNELS = {
    Op.CONV_2D: (1, 2),
    Op.DEPTHWISE_CONV_2D: (1, 2),
    Op.FULLY_CONNECTED: (1, 2),
    Op.TRANSPOSE_CONV: (1, 3),
}


def inspect(content: bytes, source: str) -> Inspection:
    """Facts about a .tflite file, without running it.

    Raises
    ------
    ModelFileError
        if it is damaged.
    """
    model = checks.parsed(content, source)
    graph = model.subgraphs[0]
    tensors = tensors_of(model, graph)
    offsets = checks.offline_offsets(model)[: len(tensors)]
    planned = arena.plan(model, offsets)
    operators = tuple(_operator(op, planned) for op in operations_of(model, graph, tensors))
    metadata = {text(e.name): _buffer_bytes(model, e.buffer) for e in model.metadata or []}
    everywhere = [t for one in model.subgraphs for t in one.tensors]
    return Inspection(
        source=source,
        file_bytes=len(content),
        constants_bytes=sum(_buffer_bytes(model, b) for b in {t.buffer for t in everywhere}),
        metadata_bytes=sum(metadata.values()),
        metadata=metadata,
        graphs=len(model.subgraphs),
        macs=sum(op.macs for op in operators),
        inputs=tuple(_facts(tensors[i]) for i in graph.inputs),
        outputs=tuple(_facts(tensors[i]) for i in graph.outputs),
        operators=operators,
        arena=_arena(planned, tensors, operators, is_planned=bool(offsets)),
    )


def _buffer_bytes(model: Any, index: int) -> int:
    data = model.buffers[index].data
    return 0 if data is None else len(data)


def exponent(scale: float) -> int | None:
    """The k of a scale that is 2^k, else None."""
    mantissa, power = math.frexp(scale)
    return power - 1 if mantissa == 0.5 else None


def _facts(tensor: Tensor) -> TensorFacts:
    is_quantized = len(tensor.scales) == 1
    scale = float(tensor.scales[0]) if is_quantized else None
    zero_point = int(tensor.zero_points[0]) if len(tensor.zero_points) else 0
    return TensorFacts(
        name=tensor.name,
        shape=tensor.shape,
        type=tensor.type_name,
        bits=BITS[tensor.type],
        scale=scale,
        scale_exponent=None if scale is None else exponent(scale),
        zero_point=zero_point if is_quantized else None,
    )


def _kernel(op: Operation) -> KernelFacts | None:
    """Facts about the constants of an operator with weights; None for others."""
    if op.code not in _KERNELS:
        return None
    kernel, bias = (op.input(position) for position in _KERNELS[op.code])
    assert kernel is not None
    found = [exponent(float(scale)) for scale in np.unique(kernel.scales)]
    powers = [k for k in found if k is not None]
    is_exact = bool(found) and len(powers) == len(found)
    return KernelFacts(
        shape=kernel.shape,
        type=kernel.type_name,
        bits=BITS[kernel.type],
        bytes=_constant_bytes(kernel),
        bias_type=None if bias is None else bias.type_name,
        bias_bytes=_constant_bytes(bias),
        scales=len(kernel.scales),
        is_power_of_two=is_exact if found else None,
        exponents=(min(powers), max(powers)) if is_exact else None,
    )


def _constant_bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.content is None else tensor.size_bytes


def macs(op: Operation) -> int:
    """Multiplications and additions of an operator with weights; 0 for others."""
    if op.code not in _KERNELS:
        return 0
    kernel = op.inputs[1]
    assert kernel is not None
    channels = max(kernel.shape[3 if op.code == Op.DEPTHWISE_CONV_2D else 0], 1)
    # A transposed convolution uses its kernel at every place of its map, others of the result.
    place = op.inputs[2] if op.code == Op.TRANSPOSE_CONV else op.outputs[0]
    assert place is not None
    return place.elements // place.shape[-1] * (kernel.elements // channels) * channels


def live_bytes(allocations: Sequence[arena.Allocation], operator: int) -> int:
    """Bytes in use while an operator runs; those that a plan gives to two tensors count once."""
    live = [a for a in allocations if a.first <= operator <= a.last]
    total = end = 0
    for one in sorted(live, key=lambda a: a.offset_bytes):
        stop = one.offset_bytes + one.size_bytes
        total += max(stop - max(end, one.offset_bytes), 0)
        end = max(end, stop)
    return total


def _operator(op: Operation, planned: arena.Arena) -> OperatorFacts:
    fused = getattr(op.options, "fusedActivationFunction", Activation.NONE)
    return OperatorFacts(
        number=op.number,
        op=op.name,
        outputs=tuple(_facts(tensor) for tensor in op.outputs),
        kernel=_kernel(op),
        activation=None if fused == Activation.NONE else _ACTIVATIONS[fused],
        macs=macs(op),
        live_bytes=live_bytes(planned.allocations, op.number),
    )


def _arena(
    planned: arena.Arena,
    tensors: Sequence[Tensor],
    operators: Sequence[OperatorFacts],
    *,
    is_planned: bool,
) -> ArenaFacts:
    peak = max(operators, key=lambda op: op.live_bytes, default=None)
    return ArenaFacts(
        head_bytes=planned.head_bytes,
        tail_bytes=planned.tail_bytes,
        total_bytes=planned.total_bytes,
        is_planned=is_planned,
        peak_operator=None if peak is None else peak.number,
        stretches=tuple(
            Stretch(
                tensor=one.tensor,
                name="scratch" if one.tensor is None else tensors[one.tensor].name,
                offset_bytes=one.offset_bytes,
                size_bytes=one.size_bytes,
                first=one.first,
                last=one.last,
            )
            for one in planned.allocations
        ),
    )
