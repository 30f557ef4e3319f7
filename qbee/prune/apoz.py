"""Pruning of channels that are mostly zero (APoZ)."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from qbee.keras import keras, tf
from qbee.prune.method import Pruned, Task, cut, register
from qbee.prune.network import network_of
from qbee.prune.selection import Scores, by_ratio
from qbee.records import Record

# Keras takes the word 'relu6' to mean TensorFlow's function.
_RELUS = (keras.activations.relu, tf.nn.relu, tf.nn.relu6)
# Windows that go through the network at once; all their maps are in memory.
BATCH_WINDOWS = 8


def _is_relu(layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope
    return getattr(layer, "activation", None) in _RELUS


def zero_shares(model, inputs: np.ndarray) -> Scores:
    """Average percentage of zeros (0 to 1) of each channel by group (Hu et al., 2016).

    It is the share of zeros in the outputs of a ReLU over all windows and positions, averaged
    over the ReLUs of the group. Groups without a ReLU are missing.

    Parameters
    ----------
    inputs : np.ndarray [shape=(windows, ...)], standardised
    """
    network = network_of(model)
    layers = [
        layer
        for layer in model.layers
        if _is_relu(layer) and network.targets[layer.name].group in network.channels
    ]
    outputs = keras.Model(model.inputs, [layer.output for layer in layers])
    shares: dict[str, list[np.ndarray]] = {}
    for layer, share in zip(layers, _mean_zeros(outputs, inputs), strict=True):
        axis = network.targets[layer.name]
        shares.setdefault(axis.group, []).append(axis.summed(share) / axis.repeats)
    return {group: np.mean(values, axis=0) for group, values in shares.items()}


def _mean_zeros(outputs, inputs: np.ndarray) -> list[np.ndarray]:
    """Share of zeros in each channel of several maps."""
    totals: list[np.ndarray] = []
    for start in range(0, len(inputs), BATCH_WINDOWS):
        batch = inputs[start : start + BATCH_WINDOWS]
        maps = outputs(batch, training=False)
        maps = maps if isinstance(maps, list) else [maps]
        zeros = [np.mean(m.numpy() == 0, axis=tuple(range(m.ndim - 1))) for m in maps]
        weighted = [len(batch) / len(inputs) * share for share in zeros]
        totals = [a + b for a, b in zip(totals, weighted, strict=True)] if totals else weighted
    return totals


@register("apoz")
class ApoZ(Record):
    """One cut through the shares of zeros of all channels, measured on training windows."""

    windows: int = Field(256, ge=1)

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model with the kept weights as they were.

        Raises
        ------
        ParameterError
            if the groups that have a ReLU cannot lose so many parameters.
        """
        inputs = task.required_data().some_inputs(self.windows, task.seed)
        scores = {group: -share for group, share in zero_shares(model, inputs).items()}
        return cut(model, by_ratio(network_of(model), scores, task.ratio))
