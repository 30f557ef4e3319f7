"""The quantizers of QKeras' layers, what they round, and what the layers read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from qbee.doctor.grids import is_quantizer
from qbee.doctor.records import Kind
from qbee.errors import ParameterError
from qbee.keras import keras, qkeras, tf
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.graph import Op
from qbee.quantize.layers import QuantizedOp


@dataclass(frozen=True, eq=False)
class Weights:
    """Kernel and bias of a QKeras layer, with their quantizers and constraints."""

    op: Op
    kernel: Any
    kernel_quantizer: Any
    bias: Any
    bias_quantizer: Any
    kernel_constraint: Any = None
    bias_constraint: Any = None

    @property
    def parts(self) -> list[tuple[Kind, Any, Any, Any]]:
        """Kind, weight, quantizer and constraint of those that are quantized."""
        kernel = ("kernel", self.kernel, self.kernel_quantizer, self.kernel_constraint)
        bias = ("bias", self.bias, self.bias_quantizer, self.bias_constraint)
        found: list[tuple[Kind, Any, Any, Any]] = [kernel, bias]  # type: ignore[list-item]
        return [part for part in found if part[1] is not None and is_quantizer(part[2])]


def _constraints(layer, kernel: str) -> tuple[Any, Any]:
    return getattr(layer, f"{kernel}_constraint"), layer.bias_constraint if layer.use_bias else None


@singledispatch
def weights_of(layer) -> Weights | None:
    """Kernel and bias of a QKeras layer; None for other layers."""
    return None


@weights_of.register(qkeras.QConv2D)
@weights_of.register(qkeras.QDense)
def _(layer):
    op: Op = "conv" if isinstance(layer, qkeras.QConv2D) else "dense"
    quantizers = layer.kernel_quantizer_internal, layer.bias_quantizer_internal
    bias = layer.bias if layer.use_bias else None
    limits = _constraints(layer, "kernel")
    return Weights(op, layer.kernel, quantizers[0], bias, quantizers[1], *limits)


@weights_of.register(qkeras.QDepthwiseConv2D)
def _(layer):
    quantizers = layer.depthwise_quantizer_internal, layer.bias_quantizer_internal
    bias = layer.bias if layer.use_bias else None
    limits = _constraints(layer, "depthwise")
    return Weights("depthwise", layer.depthwise_kernel, quantizers[0], bias, quantizers[1], *limits)


@weights_of.register(qkeras.QConv2DBatchnorm)
def _(layer):
    quantizers = layer.kernel_quantizer_internal, layer.bias_quantizer_internal
    kernel, bias = layer.get_folded_weights()
    return Weights("conv", kernel, quantizers[0], bias, quantizers[1])


@weights_of.register(qkeras.QDepthwiseConv2DBatchnorm)
def _(layer):
    quantizers = layer.depthwise_quantizer_internal, layer.bias_quantizer_internal
    kernel, bias = layer.get_folded_weights()
    return Weights("depthwise", kernel, quantizers[0], bias, quantizers[1])


def map_quantizer(layer) -> Any:
    """Quantizer of the map a QKeras layer writes, or None."""
    if isinstance(layer, qkeras.QActivation):
        return layer.quantizer if is_quantizer(layer.quantizer) else None
    activation = getattr(layer, "activation", None)
    return activation if is_quantizer(activation) else None


def before_activation(layer, x: np.ndarray) -> np.ndarray:
    """What a QKeras layer with weights hands to its activation for inputs ``x``."""
    weights = weights_of(layer)
    assert weights is not None
    quantized = {kind: quantizer(weight) for kind, weight, quantizer, _ in weights.parts}
    kernel = quantized.get("kernel", weights.kernel)
    bias = quantized.get("bias", weights.bias)
    y = _products(layer, x, kernel)
    return np.asarray(y if bias is None else y + bias)


def _products(layer, x: np.ndarray, kernel):
    """Sums of products of a QKeras layer."""
    if isinstance(layer, qkeras.QDense):
        return keras.backend.dot(tf.constant(x), kernel)
    run = keras.backend.conv2d
    if isinstance(layer, qkeras.QDepthwiseConv2D):
        run = keras.backend.depthwise_conv2d
    arguments = layer.strides, layer.padding, layer.data_format
    return run(tf.constant(x), kernel, *arguments, dilation_rate=layer.dilation_rate)


def unknown(model) -> tuple[str, ...]:
    """Names of QKeras' layers of kinds that are not examined."""
    return tuple(
        layer.name
        for layer in model.layers
        if (hasattr(layer, "get_quantizers") or isinstance(layer, qkeras.QAdaptiveActivation))
        and weights_of(layer) is None
    )


def check(model) -> None:
    """Refuse what cannot be examined.

    Raises
    ------
    ParameterError
        naming the layer.
    """
    if not isinstance(model, keras.Model) or len(model.inputs or ()) != 1:
        raise ParameterError("model must be a Keras model with one input, functional or built")
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            raise ParameterError(f"layer {layer.name!r} is a model: examine it by itself")
        if len(layer.inbound_nodes) > 1 and not isinstance(layer, keras.layers.InputLayer):
            raise ParameterError(f"layer {layer.name!r} is used more than once")
        quantizer = map_quantizer(layer)
        if isinstance(quantizer, quantized_bits_featuremap) and not quantizer.is_dynamic:
            # Calling it would set its range.
            _ = quantizer.number


def readers(model) -> list[str]:
    """Names of the layers whose maps are measured at their input."""
    kinds = (QuantizedOp, qkeras.QActivation)
    return [
        layer.name
        for layer in model.layers
        if isinstance(layer, kinds) or (weights_of(layer) and map_quantizer(layer))
    ]


def layer_inputs(model, x: np.ndarray, names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """What these layers read when the model gets ``x``."""
    if not names:
        return {}
    sources = {name: keras_list(model.get_layer(name).input) for name in names}
    tensors = [tensor for group in sources.values() for tensor in group]
    found = keras_list(keras.Model(model.inputs, tensors)(tf.constant(x), training=False))
    values = iter(found)
    return {name: [np.asarray(next(values)) for _ in group] for name, group in sources.items()}


def keras_list(value) -> list:
    """Tensors that Keras gives as a list, or as one."""
    return list(value) if isinstance(value, list | tuple) else [value]
