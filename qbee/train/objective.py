"""What a training step goes down: the seam where labels, teachers or both come in."""

from __future__ import annotations

from typing import Any, Protocol

from qbee.keras import tf


class Objective(Protocol):
    """A loss of a batch.

    ``variables`` are trained beside the model's, saved in checkpoints, and belong to no model.
    """

    @property
    def variables(self) -> list[Any]:
        """Variables of its own."""

    def loss(self, model, inputs, labels, class_weights) -> Any:
        """Loss, a scalar, of ``model`` in training mode.

        Parameters
        ----------
        inputs : tensor [shape=(n, n_mels, n_frames, 1)]
        labels : int32 tensor [shape=(n,)]
        class_weights : tensor [shape=(2,)]
        """


def weighted_cross_entropy(labels, logits, class_weights):
    """Mean over the batch of the cross-entropy times the weight of its class."""
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.reduce_mean(loss * tf.gather(class_weights, labels))


class CrossEntropy:
    """The labels alone."""

    @property
    def variables(self) -> list[Any]:
        """None."""
        return []

    def loss(self, model, inputs, labels, class_weights):
        """Mean weighted cross-entropy."""
        return weighted_cross_entropy(labels, model(inputs, training=True), class_weights)
