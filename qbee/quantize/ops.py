"""Floating-point operations of a graph's nodes in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qbee.keras import tf
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT, NO_PADDING, Node, same_padding


def _padding(x, node: Node) -> tuple[Any, str]:
    """The input, padded if TensorFlow has no word for it, and TensorFlow's word."""
    if node.padding == NO_PADDING:
        return x, "VALID"
    if node.padding == same_padding(tuple(x.shape[1:3]), node.window, node.strides):
        return x, "SAME"
    return tf.pad(x, [(0, 0), *node.padding, (0, 0)]), "VALID"


def products(node: Node, x, kernel):
    """Sums of products of inputs and kernel of a weighted node."""
    if node.op == "dense":
        return tf.matmul(x, kernel)
    x, padding = _padding(x, node)
    strides = [1, *node.strides, 1]
    if node.op == "conv":
        return tf.nn.conv2d(x, kernel, strides, padding)
    if node.strides[0] == node.strides[1]:
        return tf.nn.depthwise_conv2d(x, kernel, strides, padding)
    # TensorFlow's depthwise convolution takes equal strides only.
    finest = [1, 1, 1, 1]
    if padding == "SAME":
        x = tf.pad(x, [(0, 0), *node.padding, (0, 0)])
    rows, columns = node.strides
    return tf.nn.depthwise_conv2d(x, kernel, finest, "VALID")[:, ::rows, ::columns]


def pooled(x, size: int):
    """Max-pool over square tiles."""
    return x if size == 1 else tf.nn.max_pool2d(x, size, size, "VALID")


def _pool(function: Callable) -> Callable:
    def run(node: Node, x):
        padding = "VALID" if node.padding == NO_PADDING else "SAME"
        return function(x, node.window, node.strides, padding)

    return run


def _mean(node: Node, x):
    return tf.reshape(tf.reduce_mean(x, [1, 2]), [-1, *node.shape])


# What a node without weights computes before its activation.
UNWEIGHTED: dict[str, Callable[..., Any]] = {
    "add": lambda node, a, b: a + b,
    "multiply": lambda node, a, b: a * b,
    "rescale": lambda node, x: x,
    "mean": _mean,
    "max_pool": _pool(tf.nn.max_pool2d),
    "average_pool": _pool(tf.nn.avg_pool2d),
    "sigmoid": lambda node, x: tf.sigmoid(x),
    "reshape": lambda node, x: tf.reshape(x, [-1, *node.shape]),
}
_ACTIVATIONS: dict[str, Callable] = {
    "linear": lambda x: x,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
}


def activated(node: Node, y):
    """Activation and max-pool of a node."""
    return pooled(_ACTIVATIONS[node.activation](y), node.pool)


def run(
    net: FoldedNet,
    x,
    *,
    on_map: Callable[[str, Any], Any] = lambda name, y: y,
    kernels: dict | None = None,
    biases: dict | None = None,
) -> dict[str, Any]:
    """Float results of all nodes of a folded network for a batch, by name.

    Parameters
    ----------
    on_map : callable (name, map) -> map
        what happens to the input and to each map that has a number format of its own.
    kernels, biases : dict of tensors, optional
        instead of the network's own.
    """
    kernels = net.kernels if kernels is None else kernels
    biases = net.biases if biases is None else biases
    found = {INPUT: on_map(INPUT, x)}
    for node in net.nodes:
        inputs = [found[name] for name in node.inputs]
        if node.is_weighted:
            y = products(node, inputs[0], kernels[node.name]) + biases[node.name]
        else:
            y = UNWEIGHTED[node.op](node, *inputs)
        y = activated(node, y)
        found[node.name] = on_map(node.name, y) if node.has_own_map else y
    return found


def output(net: FoldedNet, x):
    """Float output [n, *shape] of a folded network, before its softmax or sigmoid if any."""
    return run(net, x)[net.nodes[-1].name]
