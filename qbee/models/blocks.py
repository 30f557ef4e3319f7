"""Layers that several networks are made of."""

from __future__ import annotations

from qbee.keras import keras


def normalised(x, layer, activation: str = "relu"):
    """A layer, batch norm as in PyTorch (momentum .1, eps 1e-5), and an activation.

    Parameters
    ----------
    activation : 'relu', 'relu6' or 'linear'
    """
    x = layer(x)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{layer.name}_bn")(x)
    if activation == "linear":
        return x
    limit = 6.0 if activation == "relu6" else None
    return keras.layers.ReLU(limit, name=f"{layer.name}_{activation}")(x)


def scaled(filters: int, width: int) -> int:
    """``width`` percent of a layer's filters; at least one."""
    return max(round(filters * width / 100), 1)
