"""Methods of pruning behind one interface, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qbee.errors import ParameterError
from qbee.prune.kept import Kept
from qbee.prune.network import network_of
from qbee.prune.selection import check_ratio
from qbee.prune.surgery import pruned
from qbee.registry import Registry
from qbee.train.fit import Examples, TrainSettings

# Fine-tuning of pruned models (bee paper, 2.4.3).
FINE_TUNING = TrainSettings(epochs=10, max_rate=1e-4, schedule="constant")


@dataclass(frozen=True)
class Data:
    """Labelled windows: those to train on and those to choose by; never those of a test."""

    examples: Examples
    train: Sequence[int]
    validation: Sequence[int]

    def some_inputs(self, count: int, seed: int) -> np.ndarray:
        """Model inputs of at most ``count`` random training windows."""
        order = np.random.default_rng(seed).permutation(np.asarray(self.train, int))
        return self.examples.inputs(order[:count])


def parameters(model) -> int:
    """Trainable parameters of a Keras model."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@dataclass(frozen=True)
class Task:
    """How far to prune, and with what.

    Attributes
    ----------
    ratio : p in [0, 1): the trainable parameters become (1 - p)^2 of the whole
    data : needed by all methods but ``global_l1``
    settings : of every training inside a method; not of the fine-tuning after it
    cost : of a Keras model, what NetAdapt lowers instead of the parameters: bytes, arena, ...

    Raises
    ------
    ParameterError
        if ``ratio`` is out of range.
    """

    ratio: float
    seed: int
    data: Data | None = None
    settings: TrainSettings = FINE_TUNING
    cost: Callable[[Any], float] = parameters

    def __post_init__(self):
        check_ratio(self.ratio)

    def required_data(self) -> Data:
        """The labelled windows.

        Raises
        ------
        ParameterError
            if there are none.
        """
        if self.data is None:
            raise ParameterError("data=None must be labelled windows for this method")
        return self.data


@dataclass(frozen=True)
class Pruned:
    """A smaller Keras model and which channels of the given one it has."""

    model: Any
    kept: Kept


class Method(Protocol):
    """What makes a trained model smaller and leaves the given one as it is.

    A class that is one is a frozen record of its options, which all have a default.
    """

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model, perhaps with changed weights; to be fine-tuned like any other."""


_METHODS: Registry[type[Method]] = Registry("method")
register, names, get = _METHODS.register, _METHODS.names, _METHODS.get

DEFAULT = "global_l1"


def cut(model, kept: Kept) -> Pruned:
    """The model without the other channels; the record lists every group."""
    whole = {g: tuple(range(n)) for g, n in network_of(model).channels.items()}
    return Pruned(pruned(model, kept), Kept(channels=whole).then(kept))
