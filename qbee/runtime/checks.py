"""Checks of a .tflite before C++ code is trusted with it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qbee.errors import ModelFileError
from qbee.runtime import bounds, op_rules
from qbee.runtime.arena_sizes import listed, tensor_bytes
from qbee.runtime.bounds import UnsupportedError
from qbee.runtime.flatbuffer import BITS, OFFLINE_PLAN, Op, code_of, schema
from qbee.runtime.operations import OP_NAMES, TYPE_NAMES, Operation, operations_of, tensors_of

# What reading a damaged flatbuffer with the generated Python code ends in.
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, MemoryError)
# Kernels count elements and bytes with 32 bits.
_MOST_BYTES = 2**31 - 1
# Options that name another graph of the file.
_CALLS = (
    "thenSubgraphIndex",
    "elseSubgraphIndex",
    "condSubgraphIndex",
    "bodySubgraphIndex",
    "initSubgraphIndex",
)


def parsed(content: bytes, source: str) -> Any:
    """The flatbuffer as a ``ModelT`` whose offsets, indices, sizes and operators are consistent.

    Raises
    ------
    ModelFileError
        naming what is wrong.
    """
    if content[4:8] != b"TFL3":
        raise ModelFileError(f"{source}: not a .tflite file")
    try:
        bounds.check(content)
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        problem = next(_problems(model), None)
    except UnsupportedError as error:
        raise ModelFileError(f"{source}: {error}") from error
    except bounds.OutOfBoundsError as error:
        raise ModelFileError(f"{source}: damaged .tflite file: it {error}") from error
    except _DAMAGE as error:
        raise ModelFileError(f"{source}: damaged .tflite file") from error
    if problem:
        raise ModelFileError(f"{source}: damaged .tflite file: {problem}")
    return model


def refuse_on_micro(model: Any, source: str) -> None:
    """Refuse a sound file that TFLite Micro would run wrongly without noticing.

    Raises
    ------
    ModelFileError
        naming the operator.
    """
    for graph in model.subgraphs:
        for op in operations_of(model, graph, tensors_of(model, graph)):
            problem = op_rules.micro_problem(op)
            if problem:
                raise ModelFileError(f"{source}: {problem}: operator {op.number} ({op.name})")


def offline_offsets(model: Any) -> tuple[int, ...]:
    """Offset of each tensor in the arena (-1: none) if the file brings a plan; else empty."""
    for entry in model.metadata or []:
        if entry.name == OFFLINE_PLAN.encode():
            data = model.buffers[entry.buffer].data
            words = np.frombuffer(b"" if data is None else bytes(data), "<i4")
            # Before the offsets: version, number of the graph, number of offsets.
            return tuple(int(v) for v in words[3:])
    return ()


def _problems(model: Any) -> Iterator[str]:
    """Inconsistencies of a model; later ones rely on the absence of earlier ones."""
    if model.version != 3 or not model.subgraphs or not model.buffers or not model.operatorCodes:
        yield "no graph"
    for buffer in model.buffers:
        if buffer.offset or buffer.size:
            raise UnsupportedError("constants behind the flatbuffer are not supported")
    for entry in model.metadata or []:
        if not 0 <= entry.buffer < len(model.buffers):
            yield "metadata without content"
    for graph in model.subgraphs:
        yield from _of_structure(model, graph)
    first = model.subgraphs[0]
    if not listed(first.inputs) or not listed(first.outputs):
        yield "no input or output"
    yield from _of_plan(model)
    yield from _of_calls(model)
    for graph in model.subgraphs:
        yield from _of_operators(model, graph)


def _of_structure(model: Any, graph: Any) -> Iterator[str]:
    """Problems of tensors and indices."""
    if graph.tensors is None or graph.operators is None:
        yield "an empty graph"
    count = len(graph.tensors)
    for i, tensor in enumerate(graph.tensors):
        yield from _of_tensor(model, i, tensor)
    for i, operator in enumerate(graph.operators):
        if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
            yield f"operator {i} is of no kind"
        code = model.operatorCodes[operator.opcodeIndex]
        kind = code_of(model, operator)
        if kind not in OP_NAMES or (kind == Op.CUSTOM and not code.customCode):
            yield f"operator {i} is of no kind"
        written = listed(operator.outputs)
        used = [*listed(operator.inputs), *written, *listed(operator.intermediates)]
        if not all(-1 <= index < count for index in used) or min(written, default=0) < 0:
            yield f"operator {i} uses a tensor that does not exist"
    ends = [*listed(graph.inputs), *listed(graph.outputs)]
    if not all(0 <= index < count for index in ends):
        yield "an input or output that does not exist"


def _of_tensor(model: Any, index: int, tensor: Any) -> Iterator[str]:
    """Problems of a tensor's type, shape and, if it is constant, content."""
    if tensor.type not in BITS:
        name = TYPE_NAMES.get(tensor.type, str(tensor.type))
        raise UnsupportedError(f"tensors of type {name} are not supported")
    if min(listed(tensor.shape), default=0) < 0:
        yield f"tensor {index} has a negative length"
    if not 0 <= tensor.buffer < len(model.buffers):
        yield f"tensor {index} and its content do not match"
    if tensor_bytes(tensor) > _MOST_BYTES:
        yield f"tensor {index} has {tensor_bytes(tensor)} bytes"
    data = model.buffers[tensor.buffer].data
    if data is not None and len(data) not in (0, tensor_bytes(tensor)):
        yield f"tensor {index} and its content do not match"


def _of_plan(model: Any) -> Iterator[str]:
    """Problems of the offline plan of the arena."""
    for entry in model.metadata or []:
        if entry.name != OFFLINE_PLAN.encode():
            continue
        data = model.buffers[entry.buffer].data
        offsets = [] if data is None or len(data) % 4 else offline_offsets(model)
        tensors = sum(len(graph.tensors) for graph in model.subgraphs)
        if len(offsets) != tensors or int.from_bytes(bytes(data)[8:12], "little") != tensors:
            yield "the plan of its arena does not fit its tensors"
        if min(offsets, default=0) < -1 or max(offsets, default=0) > _MOST_BYTES:
            yield "the plan of its arena has a negative place"


def _of_calls(model: Any) -> Iterator[str]:
    """Problems of operators that run other graphs."""
    called = [
        {
            getattr(operator.builtinOptions, name)
            for operator in graph.operators
            for name in _CALLS
            if hasattr(operator.builtinOptions, name)
        }
        for graph in model.subgraphs
    ]
    if any(not 0 <= number < len(called) for numbers in called for number in numbers):
        yield "an operator runs a graph that does not exist"
        return
    # Whatever can be reached in as many steps as there are graphs lies on a circle.
    reached = {0}
    for _ in called:
        reached = {number for one in reached for number in called[one]}
    if reached:
        yield "a graph runs itself"


def _of_operators(model: Any, graph: Any) -> Iterator[str]:
    """Problems of quantization, of operators, and of the order in which they run."""
    tensors = tensors_of(model, graph)
    for tensor in tensors:
        problem = op_rules.tensor_problem(tensor)
        if problem:
            yield f"tensor {tensor.index}: {problem}"
    inputs = listed(graph.inputs)
    if any(tensors[i].content is not None for i in inputs):
        yield "an input is a constant"
    operations = operations_of(model, graph, tensors)
    yield from _of_order(operations, inputs)
    for op in operations:
        problem = op_rules.problem(op)
        if problem:
            yield f"operator {op.number} ({op.name}): {problem}"
    written = {t.index for op in operations for t in op.outputs}
    for i in listed(graph.outputs):
        if i not in written and i not in inputs and tensors[i].content is None:
            yield f"output {i} is written by no operator"


def _of_order(operations: Sequence[Operation], inputs: Sequence[int]) -> Iterator[str]:
    """Problems of what is read and written when."""
    known = set(inputs)
    for op in operations:
        name = f"operator {op.number} ({op.name})"
        for tensor in op.maps:
            # The shape of a single number is a constant without content.
            is_given = tensor.index in known or tensor.is_variable or tensor.elements == 0
            if not is_given:
                yield f"{name} reads tensor {tensor.index} before it is written"
        for tensor in op.outputs:
            if tensor.content is not None or tensor.index in known:
                yield f"{name} writes tensor {tensor.index}, which has its content already"
            if tensor.elements < 1:
                yield f"{name} has an empty result"
            known.add(tensor.index)
