"""MobileNetV2 with one input channel (Sandler et al., 2018): 2 225 858 trainable parameters."""

from __future__ import annotations

from qbee.keras import keras
from qbee.models.blocks import normalised, scaled
from qbee.models.registry import register

# Expansion, output channels, repetitions and first stride of each stage (their table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST, DROPOUT = 32, 1280, 0.2


def _convolution(x, filters: int, size: int, name: str, *, strides: int = 1, activation="relu6"):
    layer = keras.layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)
    return normalised(x, layer, activation)


def _bottleneck(x, expansion: int, filters: int, strides: int, name: str):
    channels = x.shape[-1]
    y = x if expansion == 1 else _convolution(x, expansion * channels, 1, f"{name}_expand")
    layer = keras.layers.DepthwiseConv2D(
        3, strides, padding="same", use_bias=False, name=f"{name}_dw"
    )
    y = normalised(y, layer, "relu6")
    y = _convolution(y, filters, 1, f"{name}_project", activation="linear")
    is_residual = strides == 1 and channels == filters
    return keras.layers.Add(name=f"{name}_add")([x, y]) if is_residual else y


@register("mobilenet_v2")
def mobilenet_v2(*, n_mels: int, n_frames: int, width: int):
    """Inverted residuals, without the channels of a colour image."""
    inputs = keras.Input((n_mels, n_frames, 1), name="mel")
    x = _convolution(inputs, scaled(STEM, width), 3, "stem", strides=2)
    for stage, (expansion, filters, count, first) in enumerate(STAGES, start=1):
        for number in range(count):
            strides = first if number == 0 else 1
            x = _bottleneck(
                x, expansion, scaled(filters, width), strides, f"block{stage}_{number + 1}"
            )
    x = _convolution(x, scaled(LAST, width), 1, "last")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dropout(DROPOUT, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name="mobilenet_v2")
