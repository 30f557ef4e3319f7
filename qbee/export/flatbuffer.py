"""A thin author layer over the TFLite schema: tensors and operators in, one flatbuffer out."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

Type = schema.TensorType
Op = schema.BuiltinOperator
Activation = schema.ActivationFunctionType

_NUMPY = {Type.INT8: "<i1", Type.INT16: "<i2", Type.INT32: "<i4", Type.INT64: "<i8"}
# The schema asks for 16 bytes; microcontrollers need it to load int32 and int64 biases.
_ALIGNMENT = 16


def pack_int4(codes: np.ndarray) -> np.ndarray:
    """Two int4 codes per byte, row-major, low nibble first, uint8; an odd last one is padded."""
    flat = np.asarray(codes, np.int8).ravel()
    flat = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0xF
    return flat[0::2] | (flat[1::2] << 4)


class _AlignedBuffer(schema.BufferT):
    """Buffer whose bytes are aligned, which the generated Python code leaves undone."""

    def Pack(self, builder):  # noqa: N802 - the schema's name
        offset = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            offset = builder.EndVector()
        schema.BufferStart(builder)
        if offset is not None:
            schema.BufferAddData(builder, offset)
        return schema.BufferEnd(builder)


class Author:
    """Collects tensors and operators of one model; ``finish`` gives its bytes."""

    def __init__(self) -> None:
        self._buffers = [_AlignedBuffer()]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._metadata: list[Any] = []

    def _buffer(self, content: bytes) -> int:
        buffer = _AlignedBuffer()
        buffer.data = content
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def tensor(
        self,
        shape: tuple[int, ...],
        type_: int,
        *,
        scale: float | np.ndarray | None = None,
        zero_point: int = 0,
        axis: int = 0,
        data: np.ndarray | None = None,
        name: str | None = None,
    ) -> int:
        """Add a tensor and return its index; ``data`` makes it a constant.

        Equal scales of all channels are stored once.
        """
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.name = [int(n) for n in shape], type_, name
        tensor.buffer, tensor.hasRank = 0, True
        if data is not None:
            codes = np.ascontiguousarray(np.asarray(data).reshape(shape))
            packed = pack_int4(codes) if type_ == Type.INT4 else codes.astype(_NUMPY[type_])
            tensor.buffer = self._buffer(packed.tobytes())
        if scale is not None:
            scales = np.unique(scale) if len(np.unique(scale)) == 1 else np.asarray(scale)
            numbers = schema.QuantizationParametersT()
            numbers.scale = scales.astype(np.float32)
            numbers.zeroPoint = np.full(scales.size, zero_point, np.int64)
            numbers.quantizedDimension = axis
            tensor.quantization = numbers
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def rename(self, index: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[index].name = name

    def operator(self, code: int, inputs: list[int], output: int, options: Any = None) -> int:
        """Add an operator and return the index of its output."""
        if code not in self._codes:
            self._codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._operators.append(operator)
        return output

    def metadata(self, name: str, content: bytes) -> None:
        """Add a named metadata buffer."""
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(content)
        self._metadata.append(entry)

    def _operator_codes(self) -> list[Any]:
        codes = []
        for code in self._codes:
            entry = schema.OperatorCodeT()
            # Readers take the larger of the two fields; the old one is an int8.
            entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
            entry.version = 1
            codes.append(entry)
        return codes

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        """The model as a TFLite flatbuffer."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model = schema.ModelT()
        model.version, model.description = 3, "qbee"
        model.operatorCodes = self._operator_codes()
        model.subgraphs, model.buffers, model.metadata = [graph], self._buffers, self._metadata
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())
