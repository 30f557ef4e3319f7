"""Network slimming: training pushes the gains of batch norms to zero, and the small ones go."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from qbee.keras import keras, tf
from qbee.prune.kept import Kept
from qbee.prune.method import Pruned, Task, cut, register
from qbee.prune.network import network_of
from qbee.prune.selection import Scores, by_ratio
from qbee.prune.surgery import pruned
from qbee.records import Record
from qbee.train.fit import AfterStep, Trainer


def gains(model) -> Scores:
    """Absolute gain of each channel by group, averaged over the batch norms of the group.

    Groups without the gain of a batch norm are missing.
    """
    network = network_of(model)
    found: dict[str, list[np.ndarray]] = {}
    for layer in _norms(model):
        axis = network.targets[layer.name]
        if axis.group in network.channels:
            mean = axis.summed(np.abs(layer.gamma.numpy())) / axis.repeats
            found.setdefault(axis.group, []).append(mean)
    return {group: np.mean(values, axis=0) for group, values in found.items()}


def _norms(model) -> list:
    kind = keras.layers.BatchNormalization
    return [layer for layer in model.layers if isinstance(layer, kind) and layer.scale]


def _shrinkage(model, penalty: float) -> AfterStep:
    """Proximal step of the L1 norm of all gains: towards zero, but not beyond."""
    gammas = [layer.gamma for layer in _norms(model)]

    def shrink(rate: tf.Variable) -> None:
        for gamma in gammas:
            gamma.assign(tf.sign(gamma) * tf.nn.relu(tf.abs(gamma) - rate * penalty))

    return shrink


@register("slimming")
class Slimming(Record):
    """L1 penalty on the gains of batch norms, then one cut through all gains (Liu et al., 2017).

    The penalty is a step of its own after each of Adam's, ``penalty`` times the learning rate
    towards zero: in Adam's gradient it would be divided by itself. Adam moves a gain by at most
    about one learning rate, so ``penalty`` must be well below 1.
    """

    penalty: float = Field(0.1, gt=0)

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model after a training of ``task.settings`` with the penalty.

        Raises
        ------
        ParameterError
            if the groups that have a batch norm cannot lose so many parameters.
        """
        data, model = task.required_data(), pruned(model, Kept())
        trainer = Trainer(
            model,
            clip_value=task.settings.clip_value,
            after_step=_shrinkage(model, self.penalty),
        )
        trainer.run(data.examples, train=data.train, settings=task.settings, seed=task.seed)
        return cut(model, by_ratio(network_of(model), gains(model), task.ratio))
