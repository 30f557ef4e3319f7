"""A float Keras model as a graph of nodes with batch norm folded in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras, tf
from qbee.quantize.graph import (
    INPUT,
    NO_PADDING,
    Activation,
    Node,
    Op,
    Padding,
    same_padding,
    window_outputs,
)

Head = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class FoldedNet:
    """A float network: nodes in an order that can be run, kernels (Keras layout) and biases.

    ``head`` is what the model applied to the output of the last node, if anything.
    """

    name: str
    input_shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    kernels: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]
    head: Head | None = None

    @property
    def weighted(self) -> list[str]:
        """Names of the nodes that have kernel and bias, in order."""
        return [node.name for node in self.nodes if node.is_weighted]

    @property
    def maps(self) -> list[str]:
        """Names of the nodes whose feature map has a number format of its own, in order."""
        return [node.name for node in self.nodes if node.has_own_map]

    def node(self, name: str) -> Node:
        """Node of this name."""
        return next(node for node in self.nodes if node.name == name)

    def map_of(self, name: str) -> str | None:
        """Node, or "input", whose number format a result has; None for a sigmoid's own."""
        while name != INPUT and not self.node(name).has_own_map:
            node = self.node(name)
            if node.op == "sigmoid":
                return None
            name = node.inputs[0]
        return name

    def with_weights(
        self, kernels: dict[str, np.ndarray], biases: dict[str, np.ndarray]
    ) -> FoldedNet:
        """The same network with other kernels and biases."""
        return replace(self, kernels=kernels, biases=biases)


@dataclass
class _Value:
    """What a Keras tensor is in the new graph: a node's result, perhaps zero-padded."""

    name: str
    shape: tuple[int, ...]
    padding: Padding = NO_PADDING
    head: Head | None = None


@dataclass
class _Folder:
    """The graph as far as it is built."""

    nodes: dict[str, Node] = field(default_factory=dict)
    kernels: dict[str, np.ndarray] = field(default_factory=dict)
    biases: dict[str, np.ndarray] = field(default_factory=dict)
    # Nodes whose result more than one layer reads: they may not be extended.
    shared: set[str] = field(default_factory=set)
    # Names of layers, which nodes that stand for no layer must not have.
    taken: frozenset[str] = frozenset()

    def append(self, node: Node) -> _Value:
        self.nodes[node.name] = node
        return _Value(node.name, node.shape)

    def extend(self, name: str, **changes: Any) -> _Value:
        """Change a node whose result nothing else reads."""
        self.nodes[name] = replace(self.nodes[name], **changes)
        return _Value(name, self.nodes[name].shape)

    def free_name(self, wanted: str) -> str:
        """``wanted``, or something like it if a layer or node is called that."""
        while wanted in self.taken or wanted in self.nodes:
            wanted += "_"
        return wanted

    def open_node(self, value: _Value) -> Node | None:
        """The node behind a value if it may still be extended."""
        return None if value.name in self.shared else self.nodes.get(value.name)


def _refusal(layer, why: str) -> ParameterError:
    return ParameterError(f"layer {layer.name!r} ({type(layer).__name__}) {why}")


def _same_or_valid(layer, size, window, strides) -> Padding:
    return same_padding(size, window, strides) if layer.padding == "same" else NO_PADDING


def _joined_padding(layer, source: _Value, window, strides) -> Padding:
    """Padding of a convolution: its own, or that of a ZeroPadding2D before it."""
    if source.padding == NO_PADDING:
        return _same_or_valid(layer, source.shape, window, strides)
    if layer.padding != "valid":
        raise _refusal(layer, "must have padding='valid' after a ZeroPadding2D")
    return source.padding


def _convolution(folder: _Folder, layer, source: _Value) -> _Value:
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    if tuple(layer.dilation_rate) != (1, 1):
        raise _refusal(layer, f"must have no dilation, has {tuple(layer.dilation_rate)}")
    if is_depthwise and layer.depth_multiplier != 1:
        raise _refusal(layer, "must have depth_multiplier=1")
    if not is_depthwise and layer.groups != 1:
        raise _refusal(layer, "must have groups=1")
    window, strides = tuple(layer.kernel_size), tuple(layer.strides)
    padding = _joined_padding(layer, source, window, strides)
    size = window_outputs(source.shape, window, strides, padding)
    op: Op = "depthwise" if is_depthwise else "conv"
    return _weighted(folder, layer, op, source, size, window, strides, padding)


def _dense(folder: _Folder, layer, source: _Value) -> _Value:
    if len(source.shape) != 1:
        raise _refusal(layer, "must follow a Flatten layer")
    return _weighted(folder, layer, "dense", source, (), (1, 1), (1, 1), NO_PADDING)


def _weighted(folder, layer, op: Op, source, size, window, strides, padding) -> _Value:
    kernel, *rest = layer.get_weights()
    channels = kernel.shape[2] if op == "depthwise" else kernel.shape[-1]
    folder.kernels[layer.name] = kernel
    folder.biases[layer.name] = rest[0] if rest else np.zeros(channels, np.float32)
    shape = (*size, channels)
    value = folder.append(Node(layer.name, op, (source.name,), shape, window, strides, padding))
    return _activated(folder, layer, value, layer.activation)


def _batch_norm(folder: _Folder, layer, source: _Value) -> _Value:
    """FAT, eq. 10-11: gain and offset go into the kernel and bias before, or into a 1x1 kernel."""
    if list(layer.axis) != [len(source.shape)]:
        raise _refusal(layer, f"must have axis=-1, has {list(layer.axis)}")
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    gain = gamma / np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    offset = beta - layer.moving_mean.numpy() * gain
    node = folder.open_node(source)
    if node is None or not node.is_weighted or node.activation != "linear" or node.pool > 1:
        return _affine(folder, layer, source, gain, offset)
    shape = (-1, 1) if node.op == "depthwise" else (-1,)
    kernel = folder.kernels[node.name] * gain.reshape(shape)
    bias = folder.biases[node.name] * gain + offset
    folder.kernels[node.name] = kernel.astype(np.float32)
    folder.biases[node.name] = bias.astype(np.float32)
    return source


def _affine(folder: _Folder, layer, source: _Value, gain, offset) -> _Value:
    """A batch norm that follows no open convolution, as a 1x1 depthwise convolution."""
    if len(source.shape) != 3:
        raise _refusal(layer, "must follow a convolution or dense layer directly")
    folder.kernels[layer.name] = gain.reshape(1, 1, -1, 1).astype(np.float32)
    folder.biases[layer.name] = np.broadcast_to(offset, gain.shape).astype(np.float32)
    return folder.append(Node(layer.name, "depthwise", (source.name,), source.shape))


def _apply(folder: _Folder, name: str, source: _Value, activation: Activation) -> _Value:
    node = folder.open_node(source)
    if node is not None and node.has_own_map and node.activation == "linear":
        return folder.extend(node.name, activation=activation)
    return folder.append(Node(name, "rescale", (source.name,), source.shape, activation=activation))


def _relu(folder: _Folder, layer, source: _Value) -> _Value:
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        raise _refusal(layer, "must be a plain ReLU or ReLU6")
    kind: Activation = "relu" if layer.max_value is None else "relu6"
    return _apply(folder, layer.name, source, kind)


# Keras takes the word 'relu6' to mean TensorFlow's function.
_CLIPPED: dict[Any, Activation] = {
    keras.activations.relu: "relu",
    tf.nn.relu: "relu",
    tf.nn.relu6: "relu6",
}


def _activated(folder: _Folder, layer, source: _Value, activation) -> _Value:
    """A layer's own activation, which may be the network's head."""
    if activation is keras.activations.linear:
        return source
    if activation is keras.activations.softmax:
        return replace(source, head="softmax")
    name = layer.name
    if name in folder.nodes:
        name = folder.free_name(f"{name}_activation")
    if activation in _CLIPPED:
        return _apply(folder, name, source, _CLIPPED[activation])
    if activation is keras.activations.sigmoid:
        return folder.append(Node(name, "sigmoid", (source.name,), source.shape))
    known = "linear, relu, relu6, sigmoid, softmax"
    name = getattr(activation, "__name__", str(activation))
    raise _refusal(layer, f"has activation={name!r}; known: {known}")


def _activation(folder: _Folder, layer, source: _Value) -> _Value:
    return _activated(folder, layer, source, layer.activation)


def _softmax(folder: _Folder, layer, source: _Value) -> _Value:
    if layer.axis not in (-1, len(source.shape)):
        raise _refusal(layer, f"must have axis=-1, has {layer.axis}")
    return replace(source, head="softmax")


def _max_pool(folder: _Folder, layer, source: _Value) -> _Value:
    window, strides = tuple(layer.pool_size), tuple(layer.strides)
    padding = _same_or_valid(layer, source.shape, window, strides)
    size = window_outputs(source.shape, window, strides, padding)
    shape = (*size, source.shape[-1])
    node = folder.open_node(source)
    is_square = len({*window, *strides}) == 1 and layer.padding == "valid"
    if is_square and node is not None and node.has_own_map and node.pool == 1:
        return folder.extend(node.name, pool=window[0], shape=shape)
    return folder.append(
        Node(layer.name, "max_pool", (source.name,), shape, window, strides, padding)
    )


def _average_pool(folder: _Folder, layer, source: _Value) -> _Value:
    window, strides = tuple(layer.pool_size), tuple(layer.strides)
    padding = _same_or_valid(layer, source.shape, window, strides)
    size = window_outputs(source.shape, window, strides, padding)
    shape = (*size, source.shape[-1])
    if window == source.shape[:2] and size == (1, 1):
        return folder.append(Node(layer.name, "mean", (source.name,), shape))
    return folder.append(
        Node(layer.name, "average_pool", (source.name,), shape, window, strides, padding)
    )


def _global_average(folder: _Folder, layer, source: _Value) -> _Value:
    channels = source.shape[-1]
    shape = (1, 1, channels) if layer.keepdims else (channels,)
    return folder.append(Node(layer.name, "mean", (source.name,), shape))


def _reshape(folder: _Folder, layer, source: _Value) -> _Value:
    return _reshaped(folder, layer.name, source, tuple(layer.output_shape[1:]))


def _reshaped(folder: _Folder, name: str, source: _Value, shape: tuple[int, ...]) -> _Value:
    node = folder.open_node(source)
    if shape == source.shape:
        return source
    if node is not None and node.op == "mean":
        return folder.extend(node.name, shape=shape)
    return folder.append(Node(name, "reshape", (source.name,), shape))


def _zero_padding(folder: _Folder, layer, source: _Value) -> _Value:
    if source.padding != NO_PADDING:
        raise _refusal(layer, "must not follow another ZeroPadding2D")
    rows, columns = (tuple(pair) for pair in layer.padding)
    return replace(source, padding=(rows, columns))


def _nothing(folder: _Folder, layer, source: _Value) -> _Value:
    """Layers that do nothing at inference."""
    return source


def _in_rank(folder: _Folder, layer, source: _Value, rank: int) -> _Value:
    missing = rank - len(source.shape)
    name = folder.free_name(f"{layer.name}_reshape")
    return _reshaped(folder, name, source, (1,) * missing + source.shape) if missing else source


def _merged(op: Op):
    """Handler of Add or Multiply of two or more maps, which Keras brings to one rank."""

    def handler(folder: _Folder, layer, *sources: _Value) -> _Value:
        rank = max(len(source.shape) for source in sources)
        value, *others = (_in_rank(folder, layer, source, rank) for source in sources)
        for number, other in enumerate(others, start=1):
            is_last = number == len(others)
            name = layer.name if is_last else folder.free_name(f"{layer.name}_{number}")
            shape = tuple(int(n) for n in np.broadcast_shapes(value.shape, other.shape))
            value = folder.append(Node(name, op, (value.name, other.name), shape))
        return value

    return handler


_HANDLERS: dict[type, Any] = {
    keras.layers.InputLayer: _nothing,
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv2D: _convolution,
    keras.layers.Dense: _dense,
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.ReLU: _relu,
    keras.layers.Activation: _activation,
    keras.layers.Softmax: _softmax,
    keras.layers.MaxPooling2D: _max_pool,
    keras.layers.AveragePooling2D: _average_pool,
    keras.layers.GlobalAveragePooling2D: _global_average,
    keras.layers.Add: _merged("add"),
    keras.layers.Multiply: _merged("multiply"),
    keras.layers.Flatten: _reshape,
    keras.layers.Reshape: _reshape,
    keras.layers.ZeroPadding2D: _zero_padding,
    keras.layers.Dropout: _nothing,
    keras.layers.SpatialDropout2D: _nothing,
}
_TAKES_PADDING = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.ZeroPadding2D)


def _tensors(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _readers(model) -> dict[int, int]:
    """How many layers read each tensor."""
    counts: dict[int, int] = {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.InputLayer):
            for tensor in _tensors(layer.input):
                counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    return counts


def _check_layer(layer, sources: list[_Value]) -> None:
    """What holds for every layer: its name and axes, and no head or padding before it."""
    if layer.name == INPUT:
        raise _refusal(layer, "must have another name, as the network's input has this one")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _refusal(layer, "must have data_format='channels_last'")
    if any(value.head for value in sources):
        raise _refusal(layer, "follows a softmax, which must be the end of the model")
    if any(v.padding != NO_PADDING for v in sources) and not isinstance(layer, _TAKES_PADDING):
        raise _refusal(layer, "follows a ZeroPadding2D, which a convolution must follow")


def _check_model(model) -> None:
    if len(model.inputs or ()) != 1 or len(model.outputs or ()) != 1:
        raise ParameterError(f"model {model.name!r} must have one input and one output")
    for layer in model.layers:
        if type(layer) not in _HANDLERS:
            known = ", ".join(sorted(t.__name__ for t in _HANDLERS))
            raise _refusal(layer, f"cannot be quantized; known layers: {known}")
        if len(layer.inbound_nodes) > 1 and not isinstance(layer, keras.layers.InputLayer):
            raise _refusal(layer, "is used more than once")


def _finish(folder: _Folder, last: _Value, model) -> FoldedNet:
    """The network, whose final sigmoid is its head rather than a node."""
    nodes, head = list(folder.nodes.values()), last.head
    if nodes and nodes[-1].op == "sigmoid" and nodes[-1].name == last.name:
        head = "sigmoid"
        nodes.pop()
    if not any(node.has_own_map for node in nodes) or last.padding != NO_PADDING:
        raise ParameterError(f"model {model.name!r} must end in a layer with weights")
    shape = tuple(model.input_shape[1:])
    return FoldedNet(model.name, shape, tuple(nodes), folder.kernels, folder.biases, head)


def fold(model) -> FoldedNet:
    """Graph of float nodes with the same inference as ``model``.

    Parameters
    ----------
    model : keras.Model
        functional or sequential, with one input and one output, of Conv2D, DepthwiseConv2D,
        Dense, BatchNormalization, ReLU (or 6), Activation, Max-, Average- and
        GlobalAveragePooling2D, Add, Multiply, Flatten, Reshape, Dropout and ZeroPadding2D
        layers; sigmoids inside, a softmax or sigmoid at the end.

    Raises
    ------
    ParameterError
        naming the first layer that cannot be converted.
    """
    _check_model(model)
    folder = _Folder(taken=frozenset(layer.name for layer in model.layers))
    readers = _readers(model)
    values = {id(model.inputs[0]): _Value(INPUT, tuple(model.input_shape[1:]))}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        sources = [values[id(tensor)] for tensor in _tensors(layer.input)]
        _check_layer(layer, sources)
        value = _HANDLERS[type(layer)](folder, layer, *sources)
        values[id(layer.output)] = value
        if readers.get(id(layer.output), 0) > 1:
            folder.shared.add(value.name)
    return _finish(folder, values[id(model.outputs[0])], model)
