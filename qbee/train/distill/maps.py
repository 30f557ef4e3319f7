"""Feature maps inside Keras models: which are compared, and how they become comparable."""

from __future__ import annotations

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import keras, tf

Pairs = tuple[tuple[str, str], ...]
# They pass on or combine the values of a map that was found before them.
PASSING = (
    keras.layers.InputLayer,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
)
# Their input is what a neuron responds with before its activation.
ACTIVATIONS = (keras.layers.ReLU, keras.layers.Activation)


def _shape(layer) -> tuple[int, ...]:
    """Shape of the output without batch; () if the layer has several, or other than numbers."""
    if len(layer.inbound_nodes) != 1 or not isinstance(layer.output_shape, tuple):
        return ()
    return layer.output_shape[1:]


def stages(model) -> dict[str, tuple[int, int]]:
    """Last layer of each spatial size, with its (height, width), from the largest to the smallest.

    Layers before the first that has weights are the input's, and pools are no maps of their own;
    a quantized layer with a pool in it gives its map after the pool. Maps smaller than a later
    one, as in gates, do not count.
    """
    weighted = next((i for i, layer in enumerate(model.layers) if layer.weights), 0)
    found: list[tuple[str, tuple[int, int]]] = []
    for layer in reversed(model.layers[weighted:]):
        shape = _shape(layer)
        if len(shape) != 3 or None in shape or isinstance(layer, PASSING):
            continue
        if not found or shape[0] * shape[1] > np.prod(found[-1][1]):
            found.append((layer.name, (shape[0], shape[1])))
    return dict(reversed(found))


def pairs(student, teacher) -> Pairs:
    """Stages of a student with the teacher's of the nearest size, as (student, teacher) layers.

    A teacher's stage that is nearest to several goes to the one of the most similar size, and
    among equals to the smaller.

    Raises
    ------
    ParameterError
        if one of them has no maps of two dimensions.
    """
    wanted = stages(teacher)
    best: dict[str, tuple[float, str]] = {}
    for name, size in reversed(stages(student).items()):
        away = {t: abs(np.log(np.prod(size) / np.prod(other))) for t, other in wanted.items()}
        if not away:
            break
        nearest = min(reversed(away), key=lambda t: away[t])
        if nearest not in best or away[nearest] < best[nearest][0]:
            best[nearest] = (away[nearest], name)
    if not best:
        raise ParameterError("layers=None: student and teacher must have maps, or layers be named")
    return tuple((best[name][1], name) for name in wanted if name in best)


def before_activation(model, name: str) -> str:
    """Layer whose output this activation layer takes; ``name`` itself if it is none."""
    layer = model.get_layer(name)
    return layer.inbound_nodes[0].inbound_layers.name if isinstance(layer, ACTIVATIONS) else name


def channels(model, name: str) -> int:
    """Number of channels, or of features, of a layer's output.

    Raises
    ------
    ParameterError
        if the model has no such layer, or its output is neither a map nor features.
    """
    known = {layer.name: layer for layer in model.layers}
    shape = _shape(known[name]) if name in known else ()
    if len(shape) not in (1, 3) or None in shape:
        raise ParameterError(f"layers: {name!r} must be a layer of {model.name!r} that has a map")
    return shape[-1]


def tapped(model, names: list[str]):
    """Model whose outputs are the logits and those of some layers; layers are shared."""
    if not names:
        return model
    return keras.Model(model.inputs, [model.output, *(model.get_layer(n).output for n in names)])


def as_map(x):
    """Features [n, f] as a map [n, 1, 1, f]; maps as they are."""
    return x[:, None, None, :] if len(x.shape) == 2 else x


def _resized(x, size: tuple[int, int]):
    """Map of this height and width: averages where it is a multiple of them, else bilinear."""
    height, width = x.shape[1:3]
    if (height, width) == size:
        return x
    if height % size[0] == 0 and width % size[1] == 0:
        window = (height // size[0], width // size[1])
        return tf.nn.avg_pool2d(x, window, window, "VALID")
    return tf.image.resize(x, size, antialias=True)


def alike(one, other):
    """Two maps, each in the smaller of their heights and widths."""
    size = min(one.shape[1], other.shape[1]), min(one.shape[2], other.shape[2])
    return _resized(one, size), _resized(other, size)
