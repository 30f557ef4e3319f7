"""Cyclical pruning: masked weights may come back in the next cycle."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from qbee.errors import ParameterError
from qbee.keras import tf
from qbee.prune.kept import Kept
from qbee.prune.magnitude import l1_scores
from qbee.prune.method import Data, Pruned, Task, cut, register
from qbee.prune.network import Network, network_of
from qbee.prune.selection import by_ratio
from qbee.prune.surgery import pruned
from qbee.records import Record
from qbee.train.fit import Trainer


class _Masks:
    """Ones and zeros on the kernels that read channels: what is masked contributes nothing."""

    def __init__(self, model, network: Network):
        self.network = network
        consumers = {name for group in network.channels for name in network.consumers(group)}
        self.weights = [w for w in network.weights if w.layer in consumers and w.index == 0]
        self.kernels = [model.get_layer(w.layer).weights[0] for w in self.weights]
        self.masks = [tf.Variable(tf.ones_like(kernel)) for kernel in self.kernels]

    def set(self, kept: Kept) -> None:
        """Mask all channels but some."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            source = self.network.sources[weight.layer]
            is_kept = np.zeros(source.channels * source.repeats, np.float32)
            is_kept[source.positions(kept.channels[source.group])] = 1
            axis = next(i for i, found in weight.axes.items() if found == source)
            shape = [-1 if i == axis else 1 for i in range(len(weight.shape))]
            mask.assign(np.broadcast_to(is_kept.reshape(shape), weight.shape))

    def apply(self) -> None:
        """Set the masked weights to zero."""
        for kernel, mask in zip(self.kernels, self.masks, strict=True):
            kernel.assign(kernel * mask)


@register("cyclical")
class Cyclical(Record):
    """Magnitude pruning in cycles (Srinivas et al., 2022, on channels).

    A cycle is a training of ``task.settings``. The pruning ratio rises in it from nothing to the
    whole, fast at first (the cubic schedule of Zhu and Gupta, 2017), and falls back to nothing
    with the next cycle: kernels of masked channels are zero, and grow again if that helps. In the
    last epoch of each cycle, the ratio is the whole one. What the last one masks is cut.
    """

    cycles: int = Field(3, ge=1)

    def prune(self, model, task: Task) -> Pruned:
        """Smaller model that was trained with its final masks for an epoch.

        Raises
        ------
        ParameterError
            if ``task.settings`` have one epoch, in which nothing could come back.
        """
        if task.settings.epochs < 2:
            raise ParameterError("epochs=1 must be at least 2 for a cycle of pruning")
        data, model = task.required_data(), pruned(model, Kept())
        masks, kept = _Masks(model, network_of(model)), Kept()
        clip_value = task.settings.clip_value
        trainer = Trainer(model, clip_value=clip_value, after_step=lambda rate: masks.apply())
        for cycle in range(self.cycles):
            kept = _cycle(trainer, masks, data, task, seed=task.seed + cycle)
        return cut(model, kept)


def _ratios(whole: float, epochs: int) -> list[float]:
    """Pruning ratio of each epoch of a cycle, from 0 to the whole."""
    return [whole * (1 - (1 - number / (epochs - 1)) ** 3) for number in range(epochs)]


def _cycle(trainer: Trainer, masks: _Masks, data: Data, task: Task, *, seed: int) -> Kept:
    """Train one cycle; the channels that are not masked at its end."""
    trainer.restart()
    train, kept = np.asarray(data.train, int), Kept()
    for number, ratio in enumerate(_ratios(task.ratio, task.settings.epochs)):
        # Masked slices of readers are zero: to score them would keep what is masked masked.
        scores = l1_scores(trainer.model, with_readers=False)
        kept = by_ratio(masks.network, scores, ratio)
        masks.set(kept)
        masks.apply()
        trainer.epoch(data.examples, train, task.settings, number, seed)
    return kept
