"""Folded float network + scheme + calibrated maps -> quantized Keras model -> integers."""

from __future__ import annotations

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras, qkeras
from qbee.quantize.calibrate import Maps, formats
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import MapType, sum_shift
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT, Node
from qbee.quantize.layers import QuantizedLayer, QuantizedOp
from qbee.quantize.quantizers import Alpha
from qbee.quantize.scheme import LayerBits, Scheme
from qbee.quantize.sharing import OneStep, has_one_step


def _layer(
    net: FoldedNet,
    node: Node,
    bits: LayerBits | None,
    found: dict[str, MapType],
    alpha: Alpha,
    is_per_tensor: OneStep,
) -> QuantizedOp:
    sources = [found[name] for name in node.inputs]
    common = {"node": node, "sources": sources, "target": found[node.name], "name": node.name}
    if not node.is_weighted:
        return QuantizedOp(**common)
    assert bits is not None
    return QuantizedLayer(
        **common,
        kernel_shape=net.kernels[node.name].shape,
        kernel_bits=bits.kernel,
        bias_bits=bits.bias,
        alpha=alpha,
        is_per_tensor=has_one_step(is_per_tensor, node.name),
    )


def _check_sigmoids(net: FoldedNet, found: dict[str, MapType]) -> None:
    for node in net.nodes:
        if node.op == "sigmoid" and found[node.inputs[0]].is_wide:
            raise ParameterError(
                f"layer {node.inputs[0]!r} must have a map of at most 8 bits: "
                f"the sigmoid {node.name!r} reads it"
            )


def _check_sums(net: FoldedNet, found: dict[str, MapType]) -> None:
    """TFLite Micro ends the program at a sum whose step is too fine for its inputs."""
    for node in net.nodes:
        sources, target = tuple(found[name] for name in node.inputs), found[node.name]
        finest = 2 * max(m.step for m in sources) / 2 ** sum_shift(sources, target)
        if node.op == "add" and target.step <= finest:
            raise ParameterError(
                f"layer {node.name!r} must have a map of fewer bits, or its inputs more: "
                f"step={target.step} must be above {finest}"
            )


def formats_of(net: FoldedNet, scheme: Scheme, maps: Maps) -> dict[str, MapType]:
    """Number format of the input and of every node under a scheme.

    Raises
    ------
    ParameterError
        if the scheme names other layers than the network has, or the device cannot run it.
    """
    scheme.check(net)
    widths = {INPUT: scheme.input_bits} | {n: b.map for n, b in scheme.layers.items()}
    found = formats(net, maps, widths)
    _check_sigmoids(net, found)
    _check_sums(net, found)
    return found


def quantized_model(
    net: FoldedNet,
    scheme: Scheme,
    maps: Maps,
    *,
    alpha: Alpha = "auto_po2",
    is_per_tensor: OneStep = False,
):
    """Trainable quantized Keras model with the weights of ``net``.

    Outputs are those of the float model: a softmax or sigmoid at its end follows, in floating
    point, the logits on the grid of the output map. Up to there, the model in inference mode
    computes what ``fixed_net.forward`` and the exported .tflite compute.

    Parameters
    ----------
    alpha : 'auto_po2' or 'auto'
        power-of-two or free kernel steps
    is_per_tensor : bool or collection of str
        one step for each kernel instead of one for each of its channels (FAT: scalar mode), in all
        layers or in those named.

    Raises
    ------
    ParameterError
        if the scheme names other layers than the network has, or the device cannot run it.
    """
    found = formats_of(net, scheme, maps)
    inputs = keras.Input(net.input_shape, name="mel")
    # As a string, because Keras can neither clone nor load a QActivation with an object.
    quantizer = str(quantized_bits_featuremap.of(found[INPUT]))
    values = {INPUT: qkeras.QActivation(quantizer, name=INPUT)(inputs)}
    for node in net.nodes:
        layer = _layer(net, node, scheme.layers.get(node.name), found, alpha, is_per_tensor)
        x = [values[name] for name in node.inputs]
        values[node.name] = layer(x if len(x) > 1 else x[0])
        if node.is_weighted:
            layer.set_weights([net.kernels[node.name], net.biases[node.name]])
    output = values[net.nodes[-1].name]
    if net.head is not None:
        output = keras.layers.Activation(net.head, name=net.head)(output)
    return keras.Model(inputs, output, name=net.name)


def logits_model(model):
    """The part of a quantized model up to its logits: without softmax or sigmoid at the end."""
    last = [layer for layer in model.layers if isinstance(layer, QuantizedOp)][-1]
    return model if model.layers[-1] is last else keras.Model(model.input, last.output)


def _fixed_node(layer: QuantizedOp) -> FixedNode:
    if not isinstance(layer, QuantizedLayer):
        return FixedNode(layer.node, layer.sources, layer.target)
    codes, steps, bias = (value.numpy() for value in layer.integers())
    weights = FixedWeights(codes.astype(np.int64), layer.kernel_quantizer.bits, steps, bias)
    return FixedNode(layer.node, layer.sources, layer.target, weights)


def to_fixed_point(model) -> FixedNet:
    """Integers of a quantized Keras model: the record that is verified and exported."""
    layers = [layer for layer in model.layers if isinstance(layer, QuantizedOp)]
    number = model.get_layer(INPUT).quantizer.number
    shape = tuple(model.input_shape[1:])
    return FixedNet(model.name, shape, number, tuple(_fixed_node(layer) for layer in layers))
