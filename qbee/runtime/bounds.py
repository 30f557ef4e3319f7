"""Whether everything that a .tflite points to lies within the file, before anybody follows it.

A flatbuffer is a tree of offsets. Neither TFLite Micro nor the generated Python code looks whether
an offset or a length leaves the file; this walk over the tree does, with a bound on its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qbee.runtime.flatbuffer import schema

# A table takes more bytes than this, so that a file cannot hold more of them.
_LEAST_TABLE_BYTES = 4
# Names are copied; tables may share them, but not without an end.
_MOST_COPIES = 16
_OFFSET_BYTES = 4


class OutOfBoundsError(Exception):
    """Something points out of the file."""


class UnsupportedError(Exception):
    """The file may be sound, but has what is not supported here."""


@dataclass(frozen=True)
class _Numbers:
    """A vector of numbers, or a string if it must end with a zero byte."""

    item_bytes: int
    is_text: bool = False


@dataclass(frozen=True)
class _Scalar:
    size_bytes: int


@dataclass(frozen=True)
class _Table:
    """A table, or a vector of tables; fields are numbered as in the schema."""

    fields: Mapping[int, _Field] = field(default_factory=dict)
    is_vector: bool = False


@dataclass(frozen=True)
class _Union:
    """A table of one of several kinds; the field before it holds the kind."""

    kinds: Mapping[int, _Table] = field(default_factory=dict)


@dataclass(frozen=True)
class _Unsupported:
    name: str


_Field = _Numbers | _Scalar | _Table | _Union | _Unsupported

_BYTES, _INTS, _LONGS = _Numbers(1), _Numbers(4), _Numbers(8)
_FLOATS, _TEXT = _Numbers(4), _Numbers(1, is_text=True)
_BYTE, _INT, _LONG = _Scalar(1), _Scalar(4), _Scalar(8)


def _vector(**fields: _Field) -> _Table:
    """Vector of tables whose fields are f0, f1 and so on."""
    return _Table({int(name[1:]): kind for name, kind in fields.items()}, is_vector=True)


# Of operators' options, those that hold vectors.
_OPTIONS = {
    schema.BuiltinOptions.ReshapeOptions: _Table({0: _INTS}),
    schema.BuiltinOptions.SqueezeOptions: _Table({0: _INTS}),
    schema.BuiltinOptions.ConcatEmbeddingsOptions: _Table({1: _INTS, 2: _INTS}),
    schema.BuiltinOptions.BucketizeOptions: _Table({0: _FLOATS}),
    schema.BuiltinOptions.VarHandleOptions: _Table({0: _TEXT, 1: _TEXT}),
}
_QUANTIZATION = _Table(
    {0: _FLOATS, 1: _FLOATS, 2: _FLOATS, 3: _LONGS, 4: _BYTE, 5: _Union(), 6: _INT}
)
_TENSORS = _vector(
    f0=_INTS,
    f1=_BYTE,
    f2=_INT,
    f3=_TEXT,
    f4=_QUANTIZATION,
    f5=_BYTE,
    f6=_Unsupported("sparse tensors"),
    f7=_INTS,
    f8=_BYTE,
    f9=_Unsupported("variant tensors"),
    f10=_INT,
)
_OPERATORS = _vector(
    f0=_INT,
    f1=_INTS,
    f2=_INTS,
    f3=_BYTE,
    f4=_Union(_OPTIONS),
    f5=_BYTES,
    f6=_BYTE,
    f7=_BYTES,
    f8=_INTS,
    f9=_LONG,
    f10=_LONG,
    f11=_BYTE,
    f12=_Union(),
    f13=_INT,
)
_NAMED_TENSORS = _vector(f0=_TEXT, f1=_INT)
_MODEL = _Table(
    {
        0: _INT,
        1: _vector(f0=_BYTE, f1=_TEXT, f2=_INT, f3=_INT),
        2: _vector(f0=_TENSORS, f1=_INTS, f2=_INTS, f3=_OPERATORS, f4=_TEXT, f5=_INT),
        3: _TEXT,
        4: _vector(f0=_BYTES, f1=_LONG, f2=_LONG),
        5: _INTS,
        6: _vector(f0=_TEXT, f1=_INT),
        7: _vector(f0=_NAMED_TENSORS, f1=_NAMED_TENSORS, f2=_TEXT, f4=_INT),
        8: _Unsupported("external buffers"),
        9: _Unsupported("external buffers"),
    }
)


class _Walk:
    """Visits a file from its root; counts tables and bytes of names."""

    def __init__(self, content: bytes):
        self.content = content
        self.tables, self.text_bytes = 0, 0

    def number(self, at: int, size_bytes: int, *, is_signed: bool = False) -> int:
        """Integer at a place in the file."""
        self.require(0 <= at <= len(self.content) - size_bytes)
        place = self.content[at : at + size_bytes]
        return int.from_bytes(place, "little", signed=is_signed)

    def require(self, is_sound: bool, problem: str = "points out of the file") -> None:
        """Stop the walk where a claim does not hold."""
        if not is_sound:
            raise OutOfBoundsError(problem)

    def pointed(self, at: int) -> int:
        """Place that an offset points to."""
        return at + self.number(at, _OFFSET_BYTES)

    def table(self, at: int, fields: Mapping[int, _Field]) -> None:
        """A table, its list of fields, and what they hold."""
        self.tables += 1
        most = len(self.content) // _LEAST_TABLE_BYTES
        self.require(self.tables <= most, "holds more tables than bytes")
        entries = at - self.number(at, _OFFSET_BYTES, is_signed=True)
        entries_bytes, table_bytes = self.number(entries, 2), self.number(entries + 2, 2)
        self.require(entries_bytes >= 4 and entries_bytes % 2 == 0 and table_bytes >= 4)
        self.require(max(entries + entries_bytes, at + table_bytes) <= len(self.content))
        places = {}
        for number in range((entries_bytes - 4) // 2):
            offset = self.number(entries + 4 + 2 * number, 2)
            # The first four bytes of a table point to its list of fields.
            self.require(offset == 0 or 4 <= offset < table_bytes)
            if offset:
                places[number] = at + offset
        for number, kind in fields.items():
            if number in places:
                self.field(kind, places, number)

    def field(self, kind: _Field, places: Mapping[int, int], number: int) -> None:
        """What one field of a table holds."""
        at = places[number]
        if isinstance(kind, _Scalar):
            self.require(at + kind.size_bytes <= len(self.content))
        elif isinstance(kind, _Unsupported):
            raise UnsupportedError(f"{kind.name} are not supported")
        elif isinstance(kind, _Numbers):
            self.numbers(self.pointed(at), kind)
        elif isinstance(kind, _Union):
            type_ = self.number(places[number - 1], 1) if number - 1 in places else 0
            self.table(self.pointed(at), kind.kinds.get(type_, _Table()).fields)
        elif kind.is_vector:
            self.vector(self.pointed(at), kind.fields)
        else:
            self.table(self.pointed(at), kind.fields)

    def vector(self, at: int, fields: Mapping[int, _Field]) -> None:
        """A vector of tables."""
        for number in range(self.numbers(at, _Numbers(_OFFSET_BYTES))):
            self.table(self.pointed(at + _OFFSET_BYTES * (1 + number)), fields)

    def numbers(self, at: int, kind: _Numbers) -> int:
        """Length of a vector that lies within the file."""
        length = self.number(at, _OFFSET_BYTES)
        end = at + _OFFSET_BYTES + length * kind.item_bytes
        self.require(end <= len(self.content))
        if kind.is_text:
            self.require(self.number(end, 1) == 0, "has a name without an end")
            self.text_bytes += length
            most = _MOST_COPIES * len(self.content)
            self.require(self.text_bytes <= most, "has names without an end")
        return length


def check(content: bytes) -> None:
    """Refuse a file in which something points out of it.

    Raises
    ------
    OutOfBoundsError, UnsupportedError
        saying what.
    """
    walk = _Walk(content)
    walk.table(walk.pointed(0), _MODEL.fields)
