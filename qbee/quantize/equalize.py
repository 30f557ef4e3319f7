"""Rescaling of depthwise filters so that one threshold serves them all (FAT, section 3.3)."""

from __future__ import annotations

import numpy as np

from qbee.keras import tf
from qbee.quantize import ops
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import Node

# Channels of a ReLU6 whose output comes this close to 6 stay as they are.
LOCKED_ABOVE = 5.9
CEILING = 6.0
# Of channels times positive factors, these make their results times the same factors.
_HANDING_ON = ("mean", "max_pool", "average_pool", "reshape")


def _hands_on(node: Node, channels: int) -> bool:
    """Whether channels stay apart, and their factors too (flattened, the last axis holds both)."""
    is_known = node.op in _HANDING_ON and node.activation in ("linear", "relu")
    return is_known and node.shape[-1] % channels == 0


def _pairs(net: FoldedNet) -> list[tuple[Node, Node]]:
    """Depthwise nodes and the convolution or dense layer that alone reads them.

    Pools, means and flattening may come between.
    """
    readers: dict[str, list[Node]] = {}
    for node in net.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found = []
    for node in net.nodes:
        following = readers.get(node.name, [])
        while len(following) == 1 and _hands_on(following[0], node.shape[-1]):
            following = readers.get(following[0].name, [])
        if node.op == "depthwise" and len(following) == 1 and following[0].op in ("conv", "dense"):
            found.append((node, following[0]))
    return found


def _channel_peaks(net: FoldedNet, inputs: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Highest output [channels] of some nodes over all inputs."""
    peaks: dict[str, np.ndarray] = {}

    def keep(name, y):
        if name in names:
            highest = y.numpy().max(tuple(range(y.shape.rank - 1)))
            peaks[name] = np.maximum(peaks.get(name, highest), highest)
        return y

    for start in range(0, len(inputs), 32):
        ops.run(net, tf.constant(inputs[start : start + 32]), on_map=keep)
    return peaks


def filter_factors(kernel: np.ndarray, peaks: np.ndarray | None) -> np.ndarray:
    """Factors [channels] by which depthwise filters are scaled (FAT, eq. 26-27 and steps 1-6).

    Parameters
    ----------
    kernel : np.ndarray [shape=(h, w, channels, 1)]
    peaks : np.ndarray [shape=(channels,)] or None
        highest outputs after a ReLU6; None where nothing limits the output.

    Returns
    -------
    np.ndarray [shape=(channels,)], > 0; 1 for locked and for all-zero filters
    """
    sizes = np.abs(kernel).max((0, 1, 3)).astype(np.float64)
    is_used = sizes > 0
    locked = is_used & (peaks > LOCKED_ABOVE) if peaks is not None else np.zeros_like(is_used)
    if not is_used.any():
        return np.ones_like(sizes)
    # Without a locked filter any control value would do; the largest keeps the step.
    control = sizes[locked].mean() if locked.any() else sizes.max()
    factors = np.where(is_used & ~locked, control / np.where(is_used, sizes, 1), 1.0)
    if peaks is None:
        return factors
    room = np.where(peaks > 0, CEILING / np.where(peaks > 0, peaks, 1), np.inf)
    return np.where(locked, 1.0, np.minimum(factors, room))


def _divided(kernel: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Kernel [..., in, out] of a reader; of flattened maps it has the channels many times."""
    return kernel / np.tile(factors, kernel.shape[-2] // len(factors))[:, None]


def rescale_depthwise(net: FoldedNet, inputs: np.ndarray) -> FoldedNet:
    """The same function with depthwise filters of like size.

    Filters of every depthwise layer that one convolution or dense layer reads alone (or through
    pools, a mean or flattening) are scaled, and that layer's kernel is divided by the same
    factors. Through a ReLU6 the function stays the same only while outputs stay below 6 on data
    like ``inputs``. Maps change and must be calibrated anew.

    Parameters
    ----------
    inputs : np.ndarray [shape=(n, *input_shape)]
        calibration inputs, without labels.
    """
    pairs = _pairs(net)
    kernels, biases = dict(net.kernels), dict(net.biases)
    limited = [first.name for first, _ in pairs if first.activation == "relu6"]
    peaks = _channel_peaks(net, inputs, limited) if limited else {}
    for first, second in pairs:
        factors = filter_factors(kernels[first.name], peaks.get(first.name))
        scaled = kernels[first.name] * factors.reshape(1, 1, -1, 1)
        kernels[first.name] = scaled.astype(np.float32)
        biases[first.name] = (biases[first.name] * factors).astype(np.float32)
        divided = _divided(kernels[second.name], factors)
        kernels[second.name] = divided.astype(np.float32)
    return net.with_weights(kernels, biases)
