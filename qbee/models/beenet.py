"""BeeNet1, BeeNet2 and BeeNet3 (bee paper, table 2) from one table of rows."""

from __future__ import annotations

from collections.abc import Callable

from qbee.keras import keras
from qbee.models.blocks import normalised, scaled
from qbee.models.registry import register

# (filters of the pointwise convolution, max-pool after it) per block; the stem is always
# a 3x3 convolution with 32 filters and a 2x2 max-pool.
STEM = (32, 2)
ROWS: dict[str, tuple[tuple[int, int], ...]] = {
    "beenet1": ((32, 2), (64, 2), (128, 2), (256, 4)),
    "beenet2": ((32, 2), (64, 2), (128, 4)),
    "beenet3": ((32, 2), (64, 8)),
}


def _convolution(x, filters: int, kernel: int, name: str):
    layer = keras.layers.Conv2D(filters, kernel, padding="same", use_bias=False, name=name)
    return normalised(x, layer)


def _depthwise(x, name: str):
    layer = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=name)
    return normalised(x, layer)


def _pooled(x, pool: int, name: str):
    return keras.layers.MaxPooling2D(pool, name=name)(x)


def _build(name: str, *, n_mels: int, n_frames: int, width: int):
    x = inputs = keras.Input((n_mels, n_frames, 1), name="mel")
    filters, pool = STEM
    x = _pooled(_convolution(x, scaled(filters, width), 3, "stem"), pool, "stem_pool")
    for number, (filters, pool) in enumerate(ROWS[name], start=1):
        block = f"block{number}"
        x = _convolution(_depthwise(x, f"{block}_dw"), scaled(filters, width), 1, f"{block}_pw")
        x = _pooled(x, pool, f"{block}_pool")
    logits = keras.layers.Dense(2, name="head")(keras.layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, logits, name=name)


def _builder(name: str) -> Callable:
    def builder(*, n_mels: int, n_frames: int, width: int):
        return _build(name, n_mels=n_mels, n_frames=n_frames, width=width)

    return builder


for _name in ROWS:
    register(_name)(_builder(_name))
