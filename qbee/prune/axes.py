"""Axes of tensors and weights that are channels, and of which group (numpy only)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """The last axis of a tensor: the channels of a group, ``repeats`` times one after another.

    Flattening a map of 4 x 4 repeats its channels 16 times.
    """

    group: str
    channels: int
    repeats: int = 1

    def positions(self, kept: Sequence[int]) -> np.ndarray:
        """Positions [repeats * len(kept)] of some channels on this axis."""
        starts = self.channels * np.arange(self.repeats)[:, None]
        return (starts + np.asarray(kept, int)).ravel()

    def summed(self, values: np.ndarray) -> np.ndarray:
        """Values [repeats * channels] of an axis, summed to [channels]."""
        return values.reshape(self.repeats, self.channels).sum(axis=0)


@dataclass(frozen=True)
class Weight:
    """An array of a layer; ``axes`` says which of its axes are channels, and of what."""

    layer: str
    index: int
    shape: tuple[int, ...]
    axes: dict[int, Axis]
    is_trainable: bool

    def size(self, counts: Mapping[str, int]) -> int:
        """Elements with ``counts`` channels left in some groups."""
        shape = dict(enumerate(self.shape))
        for i, axis in self.axes.items():
            shape[i] = axis.repeats * counts.get(axis.group, axis.channels)
        return math.prod(shape.values())

    def cut(self, value: np.ndarray, kept: Mapping[str, Sequence[int]]) -> np.ndarray:
        """The array without the channels that are not kept."""
        for i, axis in self.axes.items():
            if axis.group in kept:
                value = np.take(value, axis.positions(kept[axis.group]), axis=i)
        return value
