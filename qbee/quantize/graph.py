"""What a network computes, without its numbers: nodes and how they are joined (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Op = Literal[
    "conv",
    "depthwise",
    "dense",
    "add",
    "multiply",
    "rescale",
    "mean",
    "max_pool",
    "average_pool",
    "sigmoid",
    "reshape",
    "rows",
    "concat_rows",
    "concat_channels",
]
Activation = Literal["linear", "relu", "relu6"]
Padding = tuple[tuple[int, int], tuple[int, int]]

INPUT = "input"
WEIGHTED: tuple[Op, ...] = ("conv", "depthwise", "dense")
# Operations whose result has a number format of its own; the others keep that of their input,
# except the sigmoid, whose format is fixed.
OWN_MAP: tuple[Op, ...] = (*WEIGHTED, "add", "multiply", "rescale", "mean")
NO_PADDING: Padding = ((0, 0), (0, 0))
# Axis of the output channels in a Keras kernel of each kind.
CHANNEL_AXIS: dict[Op, int] = {"conv": 3, "depthwise": 2, "dense": 1}


@dataclass(frozen=True)
class Node:
    """One operation, then its activation, then a max-pool.

    Attributes
    ----------
    inputs : tuple of str
        names of nodes, or "input"
    shape : tuple of int
        of the result, without batch: (height, width, channels) or (features,)
    window, strides : (int, int)
        rows and columns of a kernel or pool, and of its steps
    padding : ((top, bottom), (left, right))
        zeros of a convolution; what a pool leaves out of its averages and maxima
    pool : int
        size and stride of the max-pool after the activation; 1 is none
    first_row : int
        where the cut-out of an operation "rows" begins
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    window: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = NO_PADDING
    activation: Activation = "linear"
    pool: int = 1
    first_row: int = 0

    @property
    def is_weighted(self) -> bool:
        """Whether it has a kernel and a bias."""
        return self.op in WEIGHTED

    @property
    def has_own_map(self) -> bool:
        """Whether its result has a number format of its own."""
        return self.op in OWN_MAP


def same_padding(
    size: tuple[int, ...], window: tuple[int, int], strides: tuple[int, int]
) -> Padding:
    """Padding of TensorFlow's 'same' for maps of this height and width."""
    pads = []
    for length, kernel, stride in zip(size[:2], window, strides, strict=True):
        total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


def window_outputs(
    size: tuple[int, ...], window: tuple[int, int], strides: tuple[int, int], padding: Padding
) -> tuple[int, int]:
    """Height and width of what a sliding window makes of a padded map."""
    lengths = [
        (length + sum(pad) - kernel) // stride + 1
        for length, pad, kernel, stride in zip(size[:2], padding, window, strides, strict=True)
    ]
    return lengths[0], lengths[1]
