"""The first graph of a .tflite as tensors and operators that are pleasant to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbee.runtime.arena_sizes import listed, tensor_bytes
from qbee.runtime.flatbuffer import Op, Type, code_of, names

OP_NAMES, TYPE_NAMES = names(Op), names(Type)
_INTEGERS = {Type.INT8: "<i1", Type.INT16: "<i2", Type.INT32: "<i4", Type.INT64: "<i8"}


@dataclass(frozen=True)
class Tensor:
    """A feature map or a constant.

    Attributes
    ----------
    buffer : int
        number of its content, which tensors may share
    content : uint8 array or None
        bytes of a constant; None for a map
    scales, zero_points, axis : quantization; empty if there is none
    is_dynamic : bool
        whether an axis beside the first gets its length only when it runs; it is 1 here
    """

    index: int
    name: str
    shape: tuple[int, ...]
    type: int
    buffer: int
    content: np.ndarray | None
    size_bytes: int
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int
    is_variable: bool
    is_dynamic: bool

    @property
    def type_name(self) -> str:
        """Name of the type of its numbers."""
        return TYPE_NAMES[self.type]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def integers(self) -> list[int] | None:
        """Integers of a constant, flat; None if it is a map or not of integers."""
        if self.content is None or self.type not in _INTEGERS:
            return None
        return np.frombuffer(self.content.tobytes(), _INTEGERS[self.type]).tolist()


@dataclass(frozen=True)
class Operation:
    """An operator; an optional input that is left out is None."""

    number: int
    code: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options_type: int
    options: Any

    @property
    def name(self) -> str:
        """Name of its kind."""
        return OP_NAMES.get(self.code, f"operator {self.code}")

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """Inputs that are no constants."""
        return tuple(t for t in self.inputs if t is not None and t.content is None)

    def input(self, position: int) -> Tensor | None:
        """Input at a position; None if there is none."""
        return self.inputs[position] if position < len(self.inputs) else None


def text(name: Any) -> str:
    """A name as the schema's objects hold it."""
    return bytes(name).decode(errors="replace") if name is not None else ""


def _array(values: Any, dtype: type) -> np.ndarray:
    return np.asarray([] if values is None else values, dtype)


def tensors_of(model: Any, graph: Any) -> list[Tensor]:
    """All tensors of a graph."""
    found = []
    for index, raw in enumerate(graph.tensors):
        data = model.buffers[raw.buffer].data
        numbers = raw.quantization
        found.append(
            Tensor(
                index=index,
                name=text(raw.name),
                shape=tuple(listed(raw.shape)),
                type=raw.type,
                buffer=raw.buffer,
                content=None if data is None or len(data) == 0 else np.asarray(data, np.uint8),
                size_bytes=tensor_bytes(raw),
                scales=_array(numbers and numbers.scale, np.float32),
                zero_points=_array(numbers and numbers.zeroPoint, np.int64),
                axis=numbers.quantizedDimension if numbers else 0,
                is_variable=bool(raw.isVariable),
                is_dynamic=min(listed(raw.shapeSignature)[1:], default=0) < 0,
            )
        )
    return found


def operations_of(model: Any, graph: Any, tensors: Sequence[Tensor]) -> list[Operation]:
    """All operators of a graph, in the order in which they run."""
    return [
        Operation(
            number=number,
            code=code_of(model, raw),
            inputs=tuple(None if i < 0 else tensors[i] for i in listed(raw.inputs)),
            outputs=tuple(tensors[i] for i in listed(raw.outputs)),
            options_type=raw.builtinOptionsType,
            options=raw.builtinOptions,
        )
        for number, raw in enumerate(graph.operators)
    ]
