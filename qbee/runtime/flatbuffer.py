"""A thin author layer over the TFLite schema: tensors and operators in, one flatbuffer out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

Type = schema.TensorType
Op = schema.BuiltinOperator
Activation = schema.ActivationFunctionType

_NUMPY = {Type.INT8: "<i1", Type.INT16: "<i2", Type.INT32: "<i4", Type.INT64: "<i8"}
BITS = {
    Type.INT2: 2,
    Type.INT4: 4,
    Type.UINT4: 4,
    Type.INT8: 8,
    Type.UINT8: 8,
    Type.BOOL: 8,
    Type.INT16: 16,
    Type.UINT16: 16,
    Type.FLOAT16: 16,
    Type.BFLOAT16: 16,
    Type.INT32: 32,
    Type.UINT32: 32,
    Type.FLOAT32: 32,
    Type.RESOURCE: 32,
    Type.INT64: 64,
    Type.UINT64: 64,
    Type.FLOAT64: 64,
}
# Operators with a kernel.
WITH_KERNEL = (Op.CONV_2D, Op.DEPTHWISE_CONV_2D, Op.FULLY_CONNECTED)
# Name that TFLite Micro knows the metadata of an offline plan of the arena by.
OFFLINE_PLAN = "OfflineMemoryAllocation"
# The schema asks for 16 bytes; microcontrollers need it to load int32 and int64 biases.
_ALIGNMENT = 16


def names(enumeration: Any) -> dict[int, str]:
    """Names of the values of one of the schema's enumerations."""
    found = {v: name for name, v in vars(enumeration).items() if isinstance(v, int)}
    return {v: name.lower() if enumeration is Type else name for v, name in found.items()}


def code_of(model: Any, operator: Any) -> int:
    """Kind of an operator; files of before 2020 have it in another field of its code."""
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


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


class _SharingBuilder(flatbuffers.Builder):
    """Builder that writes equal vectors of numbers, and equal tables, once."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self._offsets: dict[Any, int] = {}

    def once(self, key: Any, write: Callable[[], int]) -> int:
        """Offset of what has this key, written if there is none yet."""
        if key not in self._offsets:
            self._offsets[key] = write()
        return self._offsets[key]

    def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - the library's name
        create = super().CreateNumpyVector
        return self.once((x.dtype.str, x.tobytes()), lambda: create(x))


class _SharedTable:
    """A table without offsets to strings, written once however often it is used."""

    def __init__(self, table: Any):
        self.table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def key(self) -> tuple:
        """What makes two tables equal."""
        values = vars(self.table).items()
        content = ((k, v.tobytes() if isinstance(v, np.ndarray) else v) for k, v in values)
        return (type(self.table).__name__, *content)

    def Pack(self, builder: _SharingBuilder) -> int:  # noqa: N802 - the schema's name
        return builder.once(self.key(), lambda: self.table.Pack(builder))


def _quantization(scale: float | np.ndarray, zero_point: int, axis: int) -> _SharedTable:
    """Quantization parameters; equal scales of all channels are one."""
    scales = np.unique(scale) if len(np.unique(scale)) == 1 else np.asarray(scale)
    numbers = schema.QuantizationParametersT()
    numbers.scale = scales.astype(np.float32)
    numbers.zeroPoint = np.full(scales.size, zero_point, np.int64)
    numbers.quantizedDimension = axis if scales.size > 1 else 0
    return _SharedTable(numbers)


def _vector(numbers: Any) -> np.ndarray:
    """Indices or lengths as the array that the builder writes in one go and only once."""
    return np.asarray(numbers, np.int32)


class Author:
    """Collects tensors and operators of one model; ``packed`` makes bytes of its ``model``.

    Equal constants, equal quantization parameters and equal options are stored once.
    """

    def __init__(self) -> None:
        self._buffers = [_AlignedBuffer()]
        self._buffer_of: dict[bytes, int] = {}
        self._constants: dict[Any, int] = {}
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []
        self._metadata: list[Any] = []

    def _buffer(self, content: bytes) -> int:
        if content not in self._buffer_of:
            buffer = _AlignedBuffer()
            buffer.data = content
            self._buffer_of[content] = len(self._buffers)
            self._buffers.append(buffer)
        return self._buffer_of[content]

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

        Equal constants are one tensor, and equal scales of all channels are stored once.
        """
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.name, tensor.buffer = _vector(shape), type_, name, 0
        if scale is not None:
            tensor.quantization = _quantization(scale, zero_point, axis)
        if data is None:
            self._tensors.append(tensor)
            return len(self._tensors) - 1
        codes = np.ascontiguousarray(np.asarray(data).reshape(shape))
        packed = pack_int4(codes) if type_ == Type.INT4 else codes.astype(_NUMPY[type_])
        tensor.buffer = self._buffer(packed.tobytes())
        numbers = tensor.quantization and tensor.quantization.key()
        key = (tuple(shape), type_, tensor.buffer, name, numbers)
        if key not in self._constants:
            self._tensors.append(tensor)
            self._constants[key] = len(self._tensors) - 1
        return self._constants[key]

    def type_of(self, index: int) -> int:
        """Type of a tensor."""
        return self._tensors[index].type

    def rename(self, index: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[index].name = name

    def operator(self, code: int, inputs: list[int], output: int, options: Any = None) -> int:
        """Add an operator and return the index of its output."""
        if code not in self._codes:
            self._codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        operator.inputs, operator.outputs = _vector(inputs), _vector([output])
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = _SharedTable(options)
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

    def model(self, inputs: list[int], outputs: list[int]) -> Any:
        """The model as a tree of the schema's objects."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = _vector(inputs), _vector(outputs)
        model = schema.ModelT()
        model.version, model.description = 3, "qbee"
        model.operatorCodes = self._operator_codes()
        model.subgraphs, model.buffers, model.metadata = [graph], self._buffers, self._metadata
        return model


def packed(model: Any) -> bytes:
    """The model of an ``Author`` as a TFLite flatbuffer."""
    builder = _SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
