"""A float Keras model as a chain of weighted layers with batch norm folded in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras
from qbee.quantize.fixed_point import Kind


@dataclass(frozen=True)
class FoldedLayer:
    """One weighted layer in float: kernel (Keras layout), bias [out], then ReLU and max-pool."""

    name: str
    kind: Kind
    kernel: np.ndarray
    bias: np.ndarray
    has_relu: bool = False
    stride: int = 1
    pool: int = 1


@dataclass(frozen=True)
class FoldedNet:
    """Chain of folded layers; ``shapes`` are (height, width, channels) or (out,) of their maps."""

    name: str
    input_shape: tuple[int, int, int]
    layers: tuple[FoldedLayer, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def layer_names(self) -> list[str]:
        """Names of the weighted layers in order."""
        return [layer.name for layer in self.layers]


def _refusal(layer, why: str) -> ParameterError:
    return ParameterError(f"layer {layer.name!r} ({type(layer).__name__}) {why}")


def _one_stride(layer) -> int:
    if layer.padding != "same" or tuple(layer.dilation_rate) != (1, 1):
        raise _refusal(layer, "must have padding='same' and no dilation")
    if layer.strides[0] != layer.strides[1]:
        raise _refusal(layer, f"must have equal strides, has {layer.strides}")
    return layer.strides[0]


def _weighted(layer, kind: Kind, stride: int) -> FoldedLayer:
    if layer.activation is not keras.activations.linear:
        raise _refusal(layer, "must have no activation of its own: use a ReLU layer")
    kernel, *rest = layer.get_weights()
    channels = kernel.shape[2] if kind == "depthwise" else kernel.shape[-1]
    bias = rest[0] if rest else np.zeros(channels, np.float32)
    return FoldedLayer(layer.name, kind, kernel, bias, stride=stride)


def _convolution(done: list[FoldedLayer], layer) -> None:
    if layer.groups != 1:
        raise _refusal(layer, "must have groups=1")
    done.append(_weighted(layer, "conv", _one_stride(layer)))


def _depthwise(done: list[FoldedLayer], layer) -> None:
    if layer.depth_multiplier != 1:
        raise _refusal(layer, "must have depth_multiplier=1")
    done.append(_weighted(layer, "depthwise", _one_stride(layer)))


def _dense(done: list[FoldedLayer], layer) -> None:
    if len(layer.input_shape) != 2:
        raise _refusal(layer, "must follow a Flatten layer")
    done.append(_weighted(layer, "dense", 1))


def _batch_norm(done: list[FoldedLayer], layer) -> None:
    """FAT, eq. 10-11: gain and offset of the batch norm go into kernel and bias."""
    if not done or done[-1].has_relu or done[-1].pool > 1:
        raise _refusal(layer, "must follow a convolution or dense layer directly")
    last = done[-1]
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    gain = gamma / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    shape = (-1, 1) if last.kind == "depthwise" else (-1,)
    bias = (last.bias - layer.moving_mean.numpy()) * gain + beta
    kernel = last.kernel * gain.reshape(shape)
    done[-1] = replace(last, kernel=kernel.astype("f4"), bias=bias.astype("f4"))


def _relu(done: list[FoldedLayer], layer) -> None:
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        raise _refusal(layer, "must be a plain ReLU")
    if not done or done[-1].has_relu:
        raise _refusal(layer, "must follow a weighted layer")
    done[-1] = replace(done[-1], has_relu=True)


def _max_pool(done: list[FoldedLayer], layer) -> None:
    size = layer.pool_size[0]
    if set(layer.pool_size) | set(layer.strides) != {size} or layer.padding != "valid":
        raise _refusal(layer, "must have a square pool equal to its stride and padding='valid'")
    if not done or done[-1].pool > 1:
        raise _refusal(layer, "must follow a weighted layer or its ReLU, and only once")
    done[-1] = replace(done[-1], pool=size)


def _nothing(done: list[FoldedLayer], layer) -> None:
    """Layers that do nothing at inference, or only reorder nothing."""


_HANDLERS: dict[type, Callable[[list[FoldedLayer], object], None]] = {
    keras.layers.InputLayer: _nothing,
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.Dense: _dense,
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.ReLU: _relu,
    keras.layers.MaxPooling2D: _max_pool,
    keras.layers.Flatten: _nothing,
    keras.layers.Dropout: _nothing,
}


def _check_chain(model) -> None:
    """Every layer must read the output of the one before it."""
    for previous, layer in zip(model.layers, model.layers[1:], strict=False):
        if layer.input is not previous.output:
            raise _refusal(layer, f"must read the output of {previous.name!r} only: not a chain")


def fold(model) -> FoldedNet:
    """Chain of folded float layers with the same inference as ``model``.

    Parameters
    ----------
    model : keras.Model
        a chain of Conv2D, DepthwiseConv2D, Dense, BatchNormalization, ReLU, MaxPooling2D,
        Flatten and Dropout layers.

    Raises
    ------
    ParameterError
        naming the first layer that cannot be converted.
    """
    _check_chain(model)
    done: list[FoldedLayer] = []
    shapes: list[tuple[int, ...]] = []
    for layer in model.layers:
        handler = _HANDLERS.get(type(layer))
        if handler is None:
            known = ", ".join(sorted(t.__name__ for t in _HANDLERS))
            raise _refusal(layer, f"cannot be quantized; known layers: {known}")
        handler(done, layer)
        if not isinstance(layer, keras.layers.Flatten):
            shapes[len(done) - 1 :] = [tuple(layer.output_shape[1:])] if done else []
    if not done or done[-1].has_relu:
        raise ParameterError(f"model {model.name!r} must end in a weighted layer (logits)")
    return FoldedNet(model.name, tuple(model.input_shape[1:]), tuple(done), tuple(shapes))
