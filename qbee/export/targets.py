"""What runs the file: the operators and types each target takes, as data."""

from __future__ import annotations

from dataclasses import dataclass

from qbee.errors import ExportError, ParameterError
from qbee.runtime.flatbuffer import WITH_KERNEL, Op, Type, names

_MAPS = (Type.INT8, Type.INT16)
_OF_MAPS = (
    Op.ADD,
    Op.MUL,
    Op.MEAN,
    Op.PAD,
    Op.RESHAPE,
    Op.MAX_POOL_2D,
    Op.AVERAGE_POOL_2D,
    Op.QUANTIZE,
    Op.MAXIMUM,
    Op.MINIMUM,
    Op.CONCATENATION,
    Op.SLICE,
)
_TYPE_NAMES = names(Type)
_OP_NAMES = names(Op)


@dataclass(frozen=True)
class Target:
    """A runtime and what it takes.

    Attributes
    ----------
    operators : operator -> types of its map
    kernels : (type of the map, type of the kernel) that weighted operators take
    has_int4 : bool
        whether 4-bit kernels may be packed; they are int8 where not.
    has_offline_plan : bool
        whether the file may hold a plan of the arena
    largest_stride : int or None
        of convolutions
    """

    name: str
    description: str
    operators: dict[int, tuple[int, ...]]
    kernels: tuple[tuple[int, int], ...]
    has_int4: bool = True
    has_offline_plan: bool = True
    largest_stride: int | None = None

    def check(
        self,
        layer: str,
        operator: int,
        map_type: int,
        *,
        kernel_type: int | None = None,
        stride: int = 1,
    ) -> None:
        """Refuse what the target cannot run.

        Raises
        ------
        ExportError
            naming the layer.
        """
        types = self.operators.get(operator, ())
        fits = kernel_type is None or (map_type, kernel_type) in self.kernels
        if self.largest_stride is not None and stride > self.largest_stride:
            raise ExportError(
                f"layer {layer!r}: {self.name} does not run {_OP_NAMES[operator]} with a stride of "
                f"{stride}, only up to {self.largest_stride}"
            )
        if map_type in types and fits:
            return
        kernel = "" if kernel_type is None else f" with {_TYPE_NAMES[kernel_type]} kernels"
        raise ExportError(
            f"layer {layer!r}: {self.name} does not run {_OP_NAMES[operator]} on "
            f"{_TYPE_NAMES[map_type]} maps{kernel}"
        )


_COMMON: dict[int, tuple[int, ...]] = {op: _MAPS for op in (*WITH_KERNEL, *_OF_MAPS)}
_COMMON[Op.LOGISTIC] = (Type.INT8,)
_INT4_AND_INT8 = (
    (Type.INT8, Type.INT4),
    (Type.INT8, Type.INT8),
    (Type.INT16, Type.INT8),
)

TFLM = Target("tflm", "TensorFlow Lite Micro, any kernels", _COMMON, _INT4_AND_INT8)
LITERT = Target("litert", "LiteRT (TensorFlow Lite) on Linux and phones", _COMMON, _INT4_AND_INT8)
ETHOS_U = Target(
    "ethos-u",
    "Arm Ethos-U, after its compiler Vela",
    _COMMON,
    _INT4_AND_INT8[1:],
    has_int4=False,
    # Vela 5.2 makes other tensors, and keeps the plan of those it was given.
    has_offline_plan=False,
    # Vela 5.2 leaves longer ones to the CPU.
    largest_stride=3,
)
_TARGETS = {target.name: target for target in (TFLM, LITERT, ETHOS_U)}


def get(name: str) -> Target:
    """Target of this name.

    Raises
    ------
    ParameterError
        listing the known names.
    """
    if name not in _TARGETS:
        raise ParameterError(f"target={name!r} must be one of {', '.join(_TARGETS)}")
    return _TARGETS[name]
