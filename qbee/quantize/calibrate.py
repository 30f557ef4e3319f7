"""Static exponents of feature maps from the float network's activations."""

from __future__ import annotations

import numpy as np

from qbee.keras import tf
from qbee.quantize.fixed_point import MapType
from qbee.quantize.fold import FoldedLayer, FoldedNet
from qbee.quantize.power_of_two import best_exponent

INPUT = "input"
MENU = (4, 8, 16)
# Values kept per batch and map: enough for a mean squared error, small enough for any network.
SAMPLES_PER_BATCH = 50_000

# Exponent by name of the layer that writes the map (or "input") and by bits.
Exponents = dict[str, dict[int, int]]


def run_layer(layer: FoldedLayer, x):
    """Float output of one folded layer for a batch, as in inference."""
    strides = [1, layer.stride, layer.stride, 1]
    if layer.kind == "dense":
        y = tf.matmul(tf.reshape(x, [len(x), -1]), layer.kernel) + layer.bias
    elif layer.kind == "conv":
        y = tf.nn.conv2d(x, layer.kernel, strides, "SAME") + layer.bias
    else:
        y = tf.nn.depthwise_conv2d(x, layer.kernel, strides, "SAME") + layer.bias
    y = tf.nn.relu(y) if layer.has_relu else y
    return y if layer.pool == 1 else tf.nn.max_pool2d(y, layer.pool, layer.pool, "VALID")


def _sample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most ``SAMPLES_PER_BATCH`` of the values, always with the largest."""
    flat = values.ravel()
    if flat.size <= SAMPLES_PER_BATCH:
        return flat
    chosen = rng.choice(flat, SAMPLES_PER_BATCH - 1)
    return np.append(chosen, flat[np.argmax(np.abs(flat))])


def observe(net: FoldedNet, images: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """Sampled float values of the input and of every map, by name.

    Parameters
    ----------
    images : np.ndarray [shape=(n, height, width, channels)]
        standardised inputs of training windows.
    """
    rng = np.random.default_rng(seed)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in (INPUT, *net.layer_names)}
    for start in range(0, len(images), 32):
        x = tf.constant(images[start : start + 32])
        kept[INPUT].append(_sample(x.numpy(), rng))
        for layer in net.layers:
            x = run_layer(layer, x)
            kept[layer.name].append(_sample(x.numpy(), rng))
    return {name: np.concatenate(values) for name, values in kept.items()}


def exponents(net: FoldedNet, images: np.ndarray, *, seed: int) -> Exponents:
    """Exponents of least squared error for every map at every width of the menu."""
    seen = observe(net, images, seed=seed)
    signed = {INPUT: True} | {layer.name: not layer.has_relu for layer in net.layers}
    found: Exponents = {}
    for name, values in seen.items():
        found[name] = {}
        for bits in MENU:
            lowest, highest = MapType(bits, signed[name], 0).codes
            found[name][bits] = best_exponent(values, lowest=lowest, highest=highest)
    return found
