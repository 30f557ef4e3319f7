"""Copies of quantized models with other quantizers and the same weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from qbee.doctor.grids import is_quantizer
from qbee.doctor.layers import weights_of
from qbee.doctor.records import Kind
from qbee.keras import keras, qkeras, tf
from qbee.quantize.calibrate import calibrate
from qbee.quantize.convert import quantized_model
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.fixed_point import MapType
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT
from qbee.quantize.layers import QuantizedLayer, QuantizedOp, kernel_quantizer
from qbee.quantize.scheme import LayerBits, Scheme
from qbee.quantize.stored import without_hints

WIDER = {4: 8, 8: 16}
Key = tuple[str, Kind]


def weight_keys(layer, kind: Kind) -> tuple[str, str]:
    """Names of a QKeras layer's arguments for the quantizer and the constraint of a weight."""
    weight: str = kind
    if kind == "kernel" and isinstance(layer, qkeras.QDepthwiseConv2D):
        weight = "depthwise"
    return f"{weight}_quantizer", f"{weight}_constraint"


def no_constraint():
    """Constraint that changes nothing; without any, QKeras would make one that clips."""
    return qkeras.qlayers.Clip(-tf.float32.max, tf.float32.max)


def _own(quantizer):
    """Quantizer for a copy; layers have weights of their own and must not be shared."""
    is_layer = isinstance(quantizer, keras.layers.Layer)
    return type(quantizer).from_config(quantizer.get_config()) if is_layer else copy.copy(quantizer)


def _arguments(layer) -> dict[str, Any]:
    """Arguments of a layer; quantizers as objects, whose configurations may be incomplete."""
    config = layer.get_config()
    weights = weights_of(layer)
    for kind, _, quantizer, _ in [] if weights is None else weights.parts:
        config[weight_keys(layer, kind)[0]] = _own(quantizer)
    if is_quantizer(getattr(layer, "activation", None)):
        config["activation"] = _own(layer.activation)
    return config


def copied(model, changes: Mapping[str, dict[str, Any]]):
    """Copy of a model with other arguments of some layers, by name, and the same weights."""

    def clone(layer):
        return type(layer).from_config(_arguments(layer) | changes.get(layer.name, {}))

    with without_hints():
        fresh = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        target = fresh.get_layer(layer.name)
        values, own = layer.get_weights(), target.get_weights()
        # The range of a moving quantizer comes last; a copy may have lost or got one.
        target.set_weights([*values[: len(own)], *own[len(values) :]])
    return fresh


def _net(model) -> FoldedNet:
    """The float network inside a model of ours."""
    layers = [layer for layer in model.layers if isinstance(layer, QuantizedOp)]
    weighted = [layer for layer in layers if isinstance(layer, QuantizedLayer)]
    head = None if isinstance(model.layers[-1], QuantizedOp) else model.layers[-1].name
    return FoldedNet(
        model.name,
        tuple(model.input_shape[1:]),
        tuple(layer.node for layer in layers),
        {layer.name: layer.kernel.numpy() for layer in weighted},
        {layer.name: layer.bias.numpy() for layer in weighted},
        head,
    )


def _widths(layer: QuantizedOp, is_wider: bool) -> LayerBits:
    if not isinstance(layer, QuantizedLayer):
        return LayerBits.model_validate({"map": layer.target.bits})
    bits = layer.kernel_quantizer.bits
    kernel = WIDER[bits] if is_wider else bits
    widths = {"kernel": kernel, "bias": layer.bias_quantizer.bits, "map": layer.target.bits}
    return LayerBits.model_validate(widths)


def _has_one_step_needlessly(layer: QuantizedLayer) -> bool:
    quantizer = layer.kernel_quantizer
    default = kernel_quantizer(layer.node.op, quantizer.bits)
    return quantizer.scale_axis is None and default.scale_axis is not None


def _formats(model, net: FoldedNet, x: np.ndarray, wanted: Collection[str]):
    """Number formats of a model of ours, new ones for the maps that are wanted."""
    numbers: dict[str, MapType] = {INPUT: model.get_layer(INPUT).quantizer.number}
    numbers |= {name: model.get_layer(name).target for name in net.maps}
    found = {name: {number.bits: number} for name, number in numbers.items()}
    if not wanted:
        return found
    is_po2 = all(np.frexp(number.step)[0] == 0.5 for number in numbers.values())
    fresh = calibrate(net, x, seed=0, alpha="auto_po2" if is_po2 else "auto")
    return found | {name: fresh[name] for name in wanted}


def device_copy(model, x: np.ndarray, wanted: Collection[Key]) -> tuple[Any, dict[Key, str]]:
    """Copy of a model of ours with better formats for some tensors, and what these are.

    Kernels that have one step though the device could have one per channel get those, in all
    layers; others get the next width. Maps get the range of the float network for ``x``.
    """
    if not wanted:
        return copied(model, {}), {}
    net = _net(model)
    layers = {name: model.get_layer(name) for name in net.maps}
    weighted = [layer for layer in layers.values() if isinstance(layer, QuantizedLayer)]
    kernels = {name for name, kind in wanted if kind == "kernel"}
    narrow = {name for name in kernels if not _has_one_step_needlessly(layers[name])}
    is_per_tensor = kernels <= narrow and any(_has_one_step_needlessly(la) for la in weighted)
    scheme = Scheme(
        layers={name: _widths(layer, name in narrow) for name, layer in layers.items()},
        input_bits=model.get_layer(INPUT).quantizer.number.bits,
    )
    maps = _formats(model, net, x, {name for name, kind in wanted if kind == "map"})
    alpha = weighted[0].kernel_quantizer.alpha if weighted else "auto_po2"
    fresh = quantized_model(net, scheme, maps, alpha=alpha, is_per_tensor=is_per_tensor)
    return fresh, {key: _text(fresh.get_layer(key[0]), key[1]) for key in wanted}


def _text(layer, kind: Kind) -> str:
    if kind == "kernel":
        return str(layer.kernel_quantizer)
    number = layer.quantizer.number if layer.name == INPUT else layer.target
    return str(quantized_bits_featuremap.of(number))
