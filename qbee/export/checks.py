"""Checks of a .tflite before C++ code is trusted with it."""

from __future__ import annotations

import math
import struct
from typing import Any

from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

from qbee.errors import ModelFileError
from qbee.export.flatbuffer import BITS

# What reading a damaged flatbuffer with the generated Python code ends in.
_DAMAGE = (struct.error, IndexError, ValueError, TypeError, OverflowError, MemoryError)


def parsed(content: bytes, source: str) -> Any:
    """The flatbuffer as a ``ModelT`` whose indices and sizes are consistent.

    Raises
    ------
    ModelFileError
        naming what is wrong.
    """
    if content[4:8] != b"TFL3":
        raise ModelFileError(f"{source}: not a .tflite file")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        problem = _problem(model)
    except _DAMAGE as error:
        raise ModelFileError(f"{source}: damaged .tflite file") from error
    if problem:
        raise ModelFileError(f"{source}: damaged .tflite file: {problem}")
    return model


def _problem(model: Any) -> str | None:
    """First inconsistency of a model, or None."""
    if model.version != 3 or not model.subgraphs or not model.buffers or not model.operatorCodes:
        return "no graph"
    for entry in model.metadata or []:
        if not 0 <= entry.buffer < len(model.buffers):
            return "metadata without content"
    for graph in model.subgraphs:
        found = _graph_problem(model, graph)
        if found:
            return found
    return None


def _graph_problem(model: Any, graph: Any) -> str | None:
    if graph.tensors is None or graph.operators is None:
        return "an empty graph"
    count = len(graph.tensors)
    for i, tensor in enumerate(graph.tensors):
        if not _is_sound(model, tensor):
            return f"tensor {i} and its content do not match"
    for i, operator in enumerate(graph.operators):
        used = [*_indices(operator.inputs), *_indices(operator.outputs)]
        if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
            return f"operator {i} is of no kind"
        if not all(-1 <= index < count for index in used):
            return f"operator {i} uses a tensor that does not exist"
    ends = [*_indices(graph.inputs), *_indices(graph.outputs)]
    if not ends or not all(0 <= index < count for index in ends):
        return "no input or output"
    return None


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def _is_sound(model: Any, tensor: Any) -> bool:
    """Whether a tensor has a known type, a positive shape and, if constant, all its bytes."""
    shape = _indices(tensor.shape)
    if tensor.type not in BITS or min(shape, default=1) < 1:
        return False
    if not 0 <= tensor.buffer < len(model.buffers):
        return False
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return True
    return len(data) == math.ceil(math.prod(shape) * BITS[tensor.type] / 8)
