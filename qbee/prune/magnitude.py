"""Pruning by the size of weights, at once or in steps."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from qbee.keras import keras
from qbee.prune.kept import Kept
from qbee.prune.method import Pruned, Task, cut, parameters, register
from qbee.prune.network import Network, network_of
from qbee.prune.selection import Scores, by_ratio
from qbee.records import Record
from qbee.train.fit import fit


def _norms(model, network: Network, *, with_readers: bool) -> dict[str, list[np.ndarray]]:
    """L1 norm of each channel in each kernel that makes (or reads) it, and |gamma|, by group."""
    found: dict[str, list[np.ndarray]] = {group: [] for group in network.channels}
    for weight in network.weights:
        layer = model.get_layer(weight.layer)
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        if weight.index > 0 or (is_norm and not layer.scale):
            continue
        value = np.abs(layer.get_weights()[0])
        for i, axis in weight.axes.items():
            is_reader = network.targets[weight.layer].group != axis.group
            if axis.group in found and (with_readers or not is_reader):
                others = tuple(k for k in range(value.ndim) if k != i)
                found[axis.group].append(axis.summed(value.sum(axis=others)))
    return found


def l1_scores(model, *, with_readers: bool = True) -> Scores:
    """Importance of each channel by group, with mean 1 in each group, as in torch-pruning.

    It is what ``MagnitudePruner`` with ``MagnitudeImportance(p=1)`` and its defaults takes
    (``group_reduction='mean'``, ``normalizer='mean'``): the L1 norm of the channel in every layer
    of its group (the filter that makes it, the depthwise filter, the gain of a batch norm, the
    slice of every kernel that reads it), averaged over these layers, and divided by the mean of
    the group's channels. Without readers, the kernels that make other channels of it are left out.
    """
    norms = _norms(model, network_of(model), with_readers=with_readers)
    means = {group: np.mean(values, axis=0) for group, values in norms.items()}
    # A group of zeros has no worse and no better channels.
    return {group: mean / (mean.mean() or 1.0) for group, mean in means.items()}


@register("global_l1")
class GlobalL1(Record):
    """The channels of lowest L1 norm, over all groups at once (bee paper, 2.3.2)."""

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model with the kept weights as they were."""
        return cut(model, by_ratio(network_of(model), l1_scores(model), task.ratio))


@register("magnitude_3_step")
class MagnitudeInSteps(Record):
    """Prune a trained model, retrain it, and so on (Han et al., 2015, on channels).

    Every step is to leave the same share of the parameters that it finds.
    """

    steps: int = Field(3, ge=1)

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model, retrained after every step with its best epoch on the validation."""
        data, found = task.required_data(), cut(model, Kept())
        for step in range(self.steps):
            left = (1 - task.ratio) ** ((step + 1) / self.steps)
            # Relative to what is there, so that rounding to channels does not add up.
            left *= math.sqrt(parameters(model) / parameters(found.model))
            smaller = GlobalL1().prune(found.model, Task(max(1 - left, 0.0), task.seed))
            fit(
                smaller.model,
                data.examples,
                train=data.train,
                validation=data.validation,
                settings=task.settings,
                seed=task.seed + step,
            )
            found = Pruned(smaller.model, found.kept.then(smaller.kept))
        return found
