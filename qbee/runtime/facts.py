"""What ``inspection`` finds in a .tflite: records that are equal after a trip through JSON."""

from __future__ import annotations

from qbee.records import Record


class TensorFacts(Record):
    """An input, an output or an operator's result.

    Attributes
    ----------
    scale, zero_point : float and int, or None
        ``value = scale * (integer - zero_point)``; None if it is not quantized
    scale_exponent : int or None
        k if the scale is 2^k
    """

    name: str
    shape: tuple[int, ...]
    type: str
    bits: int
    scale: float | None = None
    scale_exponent: int | None = None
    zero_point: int | None = None


class KernelFacts(Record):
    """The constants of an operator with weights.

    Attributes
    ----------
    bytes, bias_bytes : int
        as in the file; 0 for one that is no constant
    bias_type : str or None
        None if there is no bias
    scales : int
        1: for the whole kernel; more: one per output channel; 0: not quantized
    is_power_of_two : bool or None
        whether all scales are 2^k; None if there is none
    exponents : (int, int) or None
        least and largest k, if all are 2^k
    """

    shape: tuple[int, ...]
    type: str
    bits: int
    bytes: int
    bias_type: str | None
    bias_bytes: int
    scales: int
    is_power_of_two: bool | None
    exponents: tuple[int, int] | None


class OperatorFacts(Record):
    """An operator, numbered from 0 in the order in which they run.

    Attributes
    ----------
    outputs : tuple of TensorFacts
        its results; none for an operator that only sets a variable
    activation : str or None
        the one that is fused into it
    macs : int
        multiplications and additions of a convolution or dense operator; 0 for others
    live_bytes : int
        bytes of the arena in use while it runs
    """

    number: int
    op: str
    outputs: tuple[TensorFacts, ...]
    kernel: KernelFacts | None
    activation: str | None
    macs: int
    live_bytes: int

    @property
    def output(self) -> TensorFacts | None:
        """Its first result."""
        return self.outputs[0] if self.outputs else None


class Stretch(Record):
    """Bytes of the arena in use from operator ``first`` (-1: before them) to ``last``.

    ``tensor`` is None for an operator's scratch buffer.
    """

    tensor: int | None
    name: str
    offset_bytes: int
    size_bytes: int
    first: int
    last: int


class ArenaFacts(Record):
    """Arena on TFLite Micro, predicted; the tail is that of 64-bit machines.

    Attributes
    ----------
    is_planned : bool
        whether the file brings an offline plan of the arena
    peak_operator : int or None
        the one that has most bytes in use; None if there is no operator
    """

    head_bytes: int
    tail_bytes: int
    total_bytes: int
    is_planned: bool
    peak_operator: int | None
    stretches: tuple[Stretch, ...]


class Inspection(Record):
    """A .tflite file; operators and arena are those of the first of its graphs.

    Attributes
    ----------
    constants_bytes : int
        content of all constants; what tensors share counts once
    metadata : dict of str to int
        bytes of each entry
    graphs : int
        how many graphs the file has
    """

    source: str
    file_bytes: int
    constants_bytes: int
    metadata_bytes: int
    metadata: dict[str, int]
    graphs: int
    macs: int
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    operators: tuple[OperatorFacts, ...]
    arena: ArenaFacts
