"""ResNet-9 with one input channel (bee paper, table 1): 6 585 474 trainable parameters."""

from __future__ import annotations

from qbee.keras import keras
from qbee.models.blocks import normalised, scaled
from qbee.models.registry import register

# Of conv1 to conv4.
FILTERS = (64, 128, 256, 512)


def _convolution(x, filters: int, name: str, *, pool: int = 1):
    layer = keras.layers.Conv2D(filters, 3, padding="same", name=name)
    x = normalised(x, layer)
    return keras.layers.MaxPooling2D(pool, name=f"{name}_pool")(x) if pool > 1 else x


def _residual(x, filters: int, name: str):
    y = _convolution(_convolution(x, filters, f"{name}_1"), filters, f"{name}_2")
    return keras.layers.Add(name=f"{name}_add")([x, y])


@register("resnet9")
def resnet9(*, n_mels: int, n_frames: int, width: int):
    """Four convolutions with biases, and residual pairs after the second and the fourth."""
    x = inputs = keras.Input((n_mels, n_frames, 1), name="mel")
    first, second, third, fourth = (scaled(filters, width) for filters in FILTERS)
    x = _convolution(_convolution(x, first, "conv1"), second, "conv2", pool=2)
    x = _residual(x, second, "res1")
    x = _convolution(_convolution(x, third, "conv3", pool=2), fourth, "conv4", pool=2)
    x = keras.layers.MaxPooling2D(4, name="last_pool")(_residual(x, fourth, "res2"))
    logits = keras.layers.Dense(2, name="head")(keras.layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, logits, name="resnet9")
