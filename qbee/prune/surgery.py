"""Smaller models: the same layers with fewer channels."""

from __future__ import annotations

from itertools import groupby

from qbee.keras import keras
from qbee.prune.kept import Kept
from qbee.prune.network import Network, network_of

# Setting of a layer that says how many channels it makes.
_WIDTHS: dict[type, str] = {keras.layers.Conv2D: "filters", keras.layers.Dense: "units"}


def _narrowed(layer, network: Network, counts: dict[str, int]):
    """A new layer like another, with the channels that its group has left."""
    config = layer.get_config()
    group = network.targets[layer.name].group
    if type(layer) in _WIDTHS and group in counts:
        config[_WIDTHS[type(layer)]] = counts[group]
    return type(layer).from_config(config)


def rebuilt(model, kept: Kept):
    """The smaller model with new, untrained weights; its layers have the same names.

    Parameters
    ----------
    model : keras.Model
        the unpruned one, whose weights do not matter: ``models.registry.build(name, ...)``

    Raises
    ------
    ParameterError
        if the model has other groups or fewer channels, or naming a layer that is not known.
    """
    network = network_of(model)
    network.check(kept)
    return _rebuilt(model, network, kept)


def _rebuilt(model, network: Network, kept: Kept):
    return keras.models.clone_model(
        model, clone_function=lambda layer: _narrowed(layer, network, kept.counts)
    )


def pruned(model, kept: Kept):
    """The smaller model with the weights of the kept channels; ``model`` stays as it is.

    It computes what ``model`` computes when the other channels are zero wherever they are read.

    Raises
    ------
    ParameterError
        if the model has other groups or fewer channels, or naming a layer that is not known.
    """
    network = network_of(model)
    network.check(kept)
    smaller = _rebuilt(model, network, kept)
    for name, weights in groupby(network.weights, key=lambda weight: weight.layer):
        values = model.get_layer(name).get_weights()
        smaller.get_layer(name).set_weights(
            [weight.cut(values[weight.index], kept.channels) for weight in weights]
        )
    return smaller
