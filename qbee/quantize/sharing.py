"""Which kernels have one step for all their channels: smaller files, where it costs little."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import numpy as np

from qbee.quantize.graph import CHANNEL_AXIS

if TYPE_CHECKING:
    from qbee.quantize.fold import FoldedNet

Steps = Literal["channel", "similar", "kernel"]
# All kernels or none, or those of some layers.
OneStep = bool | Collection[str]
# Two of eight bits is what a channel of a quarter of the largest range loses.
LARGEST_RATIO = 4.0
# Steps of fewer channels are hardly worth a byte.
LEAST_CHANNELS = 64


def has_one_step(one_step: OneStep, layer: str) -> bool:
    """Whether the kernel of a layer has one step."""
    return one_step if isinstance(one_step, bool) else layer in one_step


def layers_of_similar_channels(net: FoldedNet) -> frozenset[str]:
    """Layers of many channels whose ranges differ little.

    The largest range is at most four times the median one.
    """
    found = set()
    for name in net.weighted:
        kernel = net.kernels[name]
        axis = CHANNEL_AXIS[net.node(name).op]
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        ranges = np.abs(kernel).max(others)
        is_large = len(ranges) >= LEAST_CHANNELS
        if is_large and ranges.max() <= LARGEST_RATIO * np.median(ranges):
            found.add(name)
    return frozenset(found)


def one_step_of(steps: Steps, net: FoldedNet) -> OneStep:
    """Kernels with one step, in words: none, those of similar channels, or all."""
    return layers_of_similar_channels(net) if steps == "similar" else steps == "kernel"
