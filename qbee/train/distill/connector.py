"""1x1 convolution from the student's channels to the teacher's, which no model keeps."""

from __future__ import annotations

from typing import Any

import numpy as np

from qbee.keras import tf


class Connector:
    """A trained 1x1 convolution with bias (FitNets' regressor).

    Parameters
    ----------
    channels, wanted : int
        of its input and output.
    """

    def __init__(self, channels: int, wanted: int, *, rng: np.random.Generator):
        kernel = rng.normal(0, channels**-0.5, (1, 1, channels, wanted))
        self.kernel = tf.Variable(kernel.astype(np.float32))
        self.bias = tf.Variable(np.zeros(wanted, np.float32))

    @property
    def variables(self) -> list[Any]:
        """Kernel and bias."""
        return [self.kernel, self.bias]

    def __call__(self, x):
        """Map [n, height, width, wanted]."""
        return tf.nn.conv2d(x, self.kernel, 1, "VALID") + self.bias


class NoConnector:
    """Passes maps on that have the wanted channels already."""

    @property
    def variables(self) -> list[Any]:
        """None."""
        return []

    def __call__(self, x):
        """The map itself."""
        return x
