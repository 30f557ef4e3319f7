"""Instructions that a file needs on a microcontroller, estimated from its operators.

Measured (QEMU, Arm, int8, inputs of 128 x 128): BeeNet1, 2 and 3 need 466.1, 447.9 and 422.6
million instructions with TFLite Micro's reference kernels and 86.7, 82.2 and 76.4 million with
CMSIS-NN; BeeNet3 in eight strips needs 95.1 million with CMSIS-NN.

Three numbers fix three coefficients, so the fit reproduces them (0.04 % off for the digits kept
here) and nothing checks it. The rounding of the measurements alone leaves products uncertain by
3 % and 9 %, taps by 5 % and 37 %, results by 12 % and 46 % (reference and CMSIS-NN). The strips,
taken to end at the first pointwise layer, give the last coefficient: what the other three leave,
by elements padded, cut out and joined.

Assumed, not measured: the reference kernels move elements like CMSIS-NN; int16 maps cost what
int8 maps do; a packed int4 kernel costs what an int8 one does (it saves flash, not time). 16-bit
kernels cost what they are written as: two convolutions and a sum on wide maps, one convolution of
two or three times the channels on narrow ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from qbee.runtime.arena_sizes import listed
from qbee.runtime.flatbuffer import WITH_KERNEL, Op, code_of

# Max-pools are in the coefficient of results, as each result of a BeeNet's convolution is pooled.
_FREE = (Op.RESHAPE, Op.MAX_POOL_2D)
_READS_ALL = (Op.MEAN, Op.AVERAGE_POOL_2D)


@dataclass(frozen=True)
class Device:
    """A library of kernels: instructions by product, tap, result and moved element (``Work``)."""

    name: str
    product: float
    tap: float
    result: float
    move: float


DEVICES = (
    Device("reference", product=5.31, tap=36.7, result=137.5, move=35.5),
    Device("cmsis_nn", product=1.53, tap=4.70, result=30.8, move=35.5),
)


@dataclass(frozen=True)
class Work:
    """What operators do.

    Attributes
    ----------
    products : multiplications of weights
    taps : places of a kernel's window (one if it is 1x1 or dense), for every result
    results : elements that operators with a kernel write
    moves : elements that other operators write or, to average them, read
    """

    products: int = 0
    taps: int = 0
    results: int = 0
    moves: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.taps + other.taps,
            self.results + other.results,
            self.moves + other.moves,
        )


def _work(model: Any, operator: Any) -> Work:
    tensors, code = model.subgraphs[0].tensors, code_of(model, operator)
    sizes = [listed(tensors[i].shape) for i in listed(operator.inputs)]
    written = math.prod(listed(tensors[operator.outputs[0]].shape))
    if code in WITH_KERNEL:
        kernel = sizes[1]
        taps = 1 if code == Op.FULLY_CONNECTED else kernel[1] * kernel[2]
        depth = 1 if code == Op.DEPTHWISE_CONV_2D else kernel[-1]
        return Work(written * taps * depth, written * taps, written)
    if code in _FREE:
        return Work()
    return Work(moves=math.prod(sizes[0]) if code in _READS_ALL else written)


def work(model: Any) -> Work:
    """What all operators of a model (``ModelT``) do."""
    return sum((_work(model, operator) for operator in model.subgraphs[0].operators), Work())


def estimate(model: Any, device: Device) -> float:
    """Instructions of one inference of a model (``ModelT``)."""
    done = work(model)
    return (
        device.product * done.products
        + device.tap * done.taps
        + device.result * done.results
        + device.move * done.moves
    )
