"""Folded float network + scheme + calibrated exponents -> quantized Keras model -> integers."""

from __future__ import annotations

import numpy as np

from qbee.keras import keras, qkeras
from qbee.quantize.calibrate import INPUT, Exponents
from qbee.quantize.fixed_point import FixedLayer, FixedNet, MapType
from qbee.quantize.fold import FoldedLayer, FoldedNet
from qbee.quantize.layers import QuantizedLayer
from qbee.quantize.quantizers import quantized_bits_featuremap
from qbee.quantize.scheme import LayerBits, Scheme


def _layer(
    folded: FoldedLayer, bits: LayerBits, source: MapType, exponents: Exponents
) -> QuantizedLayer:
    exponent = exponents[folded.name][bits.map]
    target = MapType(bits=bits.map, is_signed=not folded.has_relu, exponent=exponent)
    return QuantizedLayer(
        kind=folded.kind,
        kernel_shape=folded.kernel.shape,
        kernel_bits=bits.kernel,
        bias_bits=bits.bias,
        source=source,
        target=target,
        has_relu=folded.has_relu,
        stride=folded.stride,
        pool=folded.pool,
        name=folded.name,
    )


def quantized_model(net: FoldedNet, scheme: Scheme, exponents: Exponents):
    """Trainable quantized Keras model with the weights of ``net``.

    Inputs are standardised mel images [n, height, width, channels]; outputs are logits on the
    grid of the output map. In inference mode it computes what ``fixed_point.forward`` and the
    exported .tflite compute.

    Raises
    ------
    ParameterError
        if the scheme names other layers than the network has.
    """
    scheme.check(net.layer_names)
    source = MapType(scheme.input_bits, True, exponents[INPUT][scheme.input_bits])
    quantizer = quantized_bits_featuremap(source.bits, True, source.exponent)
    x = inputs = keras.Input(net.input_shape, name="mel")
    x = qkeras.QActivation(quantizer, name=INPUT)(x)
    layers = []
    for folded in net.layers:
        layer = _layer(folded, scheme.layers[folded.name], source, exponents)
        x, source = layer(x), layer.target
        layers.append(layer)
    model = keras.Model(inputs, x, name=net.name)
    for folded, layer in zip(net.layers, layers, strict=True):
        layer.set_weights([folded.kernel, folded.bias])
    return model


def _fixed_layer(layer: QuantizedLayer) -> FixedLayer:
    kernel, exponents, _ = layer.quantized()
    bias = layer.bias_quantizer.codes(layer.bias, exponents + layer.source.exponent)
    steps = 2.0 ** exponents.numpy().astype(np.float64)
    shape = (-1, 1) if layer.kind == "depthwise" else (-1,)
    codes = np.rint(kernel.numpy().astype(np.float64) / steps.reshape(shape))
    return FixedLayer(
        name=layer.name,
        kind=layer.kind,
        kernel=codes.astype(np.int64),
        kernel_bits=layer.kernel_quantizer.bits,
        kernel_exponents=exponents.numpy().astype(np.int64),
        bias=bias.numpy().astype(np.int64),
        source=layer.source,
        target=layer.target,
        has_relu=layer.has_relu,
        stride=layer.stride,
        pool=layer.pool,
    )


def to_fixed_point(model) -> FixedNet:
    """Integers of a quantized Keras model: the record that is verified and exported."""
    layers = [layer for layer in model.layers if isinstance(layer, QuantizedLayer)]
    shape = tuple(model.input_shape[1:])
    return FixedNet(model.name, shape, tuple(_fixed_layer(layer) for layer in layers))
