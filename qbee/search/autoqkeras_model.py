"""A network as stock AutoQKeras takes it, and its hyperparameters as a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT, NO_PADDING, Node, same_padding
from qbee.quantize.scheme import LayerBits, Scheme
from qbee.search.autoqkeras_menus import Menu, StockSettings, map_menus, weight_menu

# QKeras replaces it. AutoQKeras counts it with REFERENCE_BITS, unlike linear and sigmoid.
PLACEHOLDER = "tanh"


class StockModel(keras.Model):
    """A functional model that can become a QKeras model by way of JSON.

    QKeras 0.9.0 prefixes a Q to the names of classes in the JSON. In the present form of JSON,
    the module and the shapes of weights beside the name would contradict the new one.
    """

    use_legacy_config = True


@dataclass(frozen=True)
class StockNet:
    """The float model, and the menus of its layers.

    Layers have numbers for names: AutoQKeras takes names for patterns and for kinds of weights.

    Attributes
    ----------
    kernels, biases : menus by name of the weighted node
    maps : menus by name of the node, or "input"
    """

    net: FoldedNet
    model: StockModel
    kernels: dict[str, Menu]
    biases: dict[str, Menu]
    maps: dict[str, Menu]

    @property
    def limit(self) -> dict[str, list[list[str]]]:
        """AutoQKeras' menus: quantizer strings of every layer."""
        weights = {
            _layer_name(self.net, name): [list(menu), list(self.biases[name])]
            for name, menu in self.kernels.items()
        }
        return weights | {_map_name(self.net, name): [list(m)] for name, m in self.maps.items()}

    @property
    def quantization_config(self) -> dict[str, Menu]:
        """Bits of every quantizer string, by what it quantizes."""
        groups = {"kernel": self.kernels, "bias": self.biases, "activation": self.maps}
        return {kind: _united(menus) for kind, menus in groups.items()}

    @property
    def output_layer(self) -> str:
        """Name of the last layer with weights."""
        return _layer_name(self.net, self.net.weighted[-1])

    def scheme(self, values: Mapping[str, str]) -> Scheme:
        """Scheme of a trial's hyperparameters."""
        layers = {}
        for name in self.net.maps:
            layer = _layer_name(self.net, name)
            widths = {"map": self._map_bits(name, values)}
            if name in self.kernels:
                widths["kernel"] = self.kernels[name][values[f"{layer}_kernel_quantizer"]]
                widths["bias"] = self.biases[name][values[f"{layer}_bias_quantizer"]]
            layers[name] = LayerBits.model_validate(widths)
        input_bits = self._map_bits(INPUT, values)
        return Scheme.model_validate({"layers": layers, "input_bits": input_bits})

    def _map_bits(self, name: str, values: Mapping[str, str]) -> int:
        return self.maps[name][values[f"{_map_name(self.net, name)}_activation_quantizer"]]

    def filters(self, values: Mapping[str, float]) -> dict[str, float]:
        """Factors of the numbers of filters by layer, where they are searched."""
        shared = values.get("network_filters")
        found = {}
        for node in self.net.nodes:
            own = f"network_filters_{_layer_name(self.net, node.name)}"
            factor = values.get(own, shared)
            is_searched = node.op in ("conv", "dense") and node.name != self.net.weighted[-1]
            if factor is not None and is_searched:
                found[node.name] = float(factor)
        return found


def _united(menus: Mapping[str, Menu]) -> Menu:
    return {text: bits for menu in menus.values() for text, bits in menu.items()}


def _number(net: FoldedNet, name: str) -> str:
    # Of one length, as AutoQKeras takes a name for the pattern of all that begin with it.
    return f"{[INPUT, *(node.name for node in net.nodes)].index(name):04d}"


def _layer_name(net: FoldedNet, name: str) -> str:
    return f"layer{_number(net, name)}"


def _map_name(net: FoldedNet, name: str) -> str:
    return f"map{_number(net, name)}"


def stock_net(
    net: FoldedNet, images: np.ndarray, *, settings: StockSettings, seed: int
) -> StockNet:
    """A network as AutoQKeras takes it.

    Parameters
    ----------
    images : np.ndarray [shape=(n, *input_shape)]
        training inputs, for the ranges of maps
    """
    return StockNet(
        net,
        _float_model(net, settings),
        {n: weight_menu(w, settings.kernel_bits, settings) for n, w in net.kernels.items()},
        {n: weight_menu(w, settings.bias_bits, settings) for n, w in net.biases.items()},
        map_menus(net, images, settings=settings, seed=seed),
    )


def _float_model(net: FoldedNet, settings: StockSettings) -> StockModel:
    """The network with a placeholder wherever a map is quantized."""
    inputs = keras.Input(net.input_shape, name="mel")
    values = {INPUT: _marked(net, INPUT, inputs)}
    shapes = {INPUT: net.input_shape} | {node.name: node.shape for node in net.nodes}
    for node in net.nodes:
        source = [values[name] for name in node.inputs]
        y = _computed(net, node, source, shapes[node.inputs[0]])
        values[node.name] = _finished(net, node, y, settings)
    model = StockModel(inputs, values[net.nodes[-1].name], name=net.name)
    for name in net.weighted:
        model.get_layer(_layer_name(net, name)).set_weights([net.kernels[name], net.biases[name]])
    return model


def _finished(net: FoldedNet, node: Node, y, settings: StockSettings):
    """Activation, placeholder and pool of a node."""
    # QKeras' quantizer of a map after a ReLU is the ReLU too.
    is_joined = node.activation == "relu" and settings.quantizers == "qkeras"
    if node.activation != "linear" and not (is_joined and node.has_own_map):
        y = keras.layers.ReLU(6.0 if node.activation == "relu6" else None)(y)
    if node.has_own_map and settings.maps_after == "activation":
        y = _marked(net, node.name, y)
    if node.pool > 1:
        y = keras.layers.MaxPooling2D(node.pool)(y)
    is_marked_here = node.has_own_map and settings.maps_after == "pool"
    return _marked(net, node.name, y) if is_marked_here else y


def _marked(net: FoldedNet, name: str, x):
    return keras.layers.Activation(PLACEHOLDER, name=_map_name(net, name))(x)


def _computed(net: FoldedNet, node: Node, source: list, size: tuple[int, ...]):
    """Result of a node before its activation and pool."""
    x, name = source[0], _layer_name(net, node.name)
    padding = "valid" if node.padding == NO_PADDING else "same"
    match node.op:
        case "conv" | "depthwise":
            if padding == "same" and node.padding != same_padding(size, node.window, node.strides):
                x, padding = keras.layers.ZeroPadding2D(node.padding)(x), "valid"
            if node.op == "depthwise":
                layer = keras.layers.DepthwiseConv2D(node.window, node.strides, padding, name=name)
            else:
                layer = keras.layers.Conv2D(
                    node.shape[-1], node.window, node.strides, padding, name=name
                )
            return layer(x)
        case "dense":
            return keras.layers.Dense(node.shape[-1], name=name)(x)
        case "add":
            return keras.layers.Add(name=name)(source)
        case "mean":
            return _reshaped(node, keras.layers.GlobalAveragePooling2D(keepdims=True)(x))
        case "max_pool":
            return keras.layers.MaxPooling2D(node.window, node.strides, padding)(x)
        case "average_pool":
            return keras.layers.AveragePooling2D(node.window, node.strides, padding)(x)
        case "reshape":
            return _reshaped(node, x)
        case "rescale":
            return x
    raise ParameterError(f"layer {node.name!r} ({node.op}) must not be searched with AutoQKeras")


def _reshaped(node: Node, x):
    # AutoQKeras cannot search numbers of filters where there is a Reshape layer.
    if len(node.shape) == 1:
        return keras.layers.Flatten()(x)
    return x if x.shape[1:] == node.shape else keras.layers.Reshape(node.shape)(x)
