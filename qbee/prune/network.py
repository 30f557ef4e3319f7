"""Which channels of a Keras model belong together, and which weights each of them has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from qbee.errors import ParameterError
from qbee.keras import keras
from qbee.prune.axes import Axis, Weight
from qbee.prune.kept import Kept


@dataclass(frozen=True)
class Network:
    """Groups of channels that can only be pruned together.

    Channels of maps that are added are one group; batch norm, activation, pooling, flattening and
    depthwise convolutions keep the group of what they read. Channels of the model's inputs and
    outputs are in no group that may be pruned.

    Attributes
    ----------
    channels : number of channels of each group that may be pruned, in the order of the model
    sources, targets : last axis of what a layer reads and gives, by layer
    """

    channels: dict[str, int]
    sources: dict[str, Axis]
    targets: dict[str, Axis]
    weights: tuple[Weight, ...]

    def parameters(self, counts: Mapping[str, int]) -> int:
        """Trainable parameters with ``counts`` channels left in some groups."""
        return sum(weight.size(counts) for weight in self.weights if weight.is_trainable)

    def consumers(self, group: str) -> list[str]:
        """Layers that make other channels of a group's, in the order of the model."""
        return [
            name
            for name, axis in self.sources.items()
            if axis.group == group and self.targets[name].group != group
        ]

    def check(self, kept: Kept) -> None:
        """Compare kept channels with the groups.

        Raises
        ------
        ParameterError
            naming a group that is unknown or has fewer channels.
        """
        for group, channels in kept.channels.items():
            if group not in self.channels:
                known = ", ".join(self.channels)
                raise ParameterError(f"group={group!r} must be one of {known}")
            if channels[-1] >= self.channels[group]:
                raise ParameterError(
                    f"channel {channels[-1]} of group {group!r} must be below "
                    f"{self.channels[group]}"
                )


def _refusal(layer, why: str) -> ParameterError:
    return ParameterError(f"layer {layer.name!r} ({type(layer).__name__}) {why}")


@dataclass
class _Walk:
    """Axes of the tensors as far as the model was walked through."""

    tensors: dict[int, Axis] = field(default_factory=dict)
    # Group of which another one turned out to be a part.
    owners: dict[str, str] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)

    def resolved(self, axis: Axis) -> Axis:
        """The axis under the name that its group has in the end."""
        name = axis.group
        while name in self.owners:
            name = self.owners[name]
        return replace(axis, group=name)

    def join(self, one: Axis, other: Axis) -> None:
        """Make two groups one, under the name of the first."""
        first, second = self.resolved(one).group, self.resolved(other).group
        if first != second:
            self.owners[second] = first


def _produced(walk: _Walk, layer, source: Axis) -> Axis:
    if getattr(layer, "groups", 1) != 1:
        raise _refusal(layer, "must have groups=1")
    return Axis(layer.name, int(layer.output_shape[-1]))


def _same(walk: _Walk, layer, source: Axis) -> Axis:
    return source


def _depthwise(walk: _Walk, layer, source: Axis) -> Axis:
    if layer.depth_multiplier != 1:
        raise _refusal(layer, "must have depth_multiplier=1")
    return source


def _batch_norm(walk: _Walk, layer, source: Axis) -> Axis:
    if list(layer.axis) != [len(layer.input_shape) - 1]:
        raise _refusal(layer, f"must have axis=-1, has {list(layer.axis)}")
    return source


def _flattened(walk: _Walk, layer, source: Axis) -> Axis:
    return replace(source, repeats=source.repeats * math.prod(layer.input_shape[1:-1]))


def _added(walk: _Walk, layer, *sources: Axis) -> Axis:
    first, *others = sources
    for other in others:
        if (other.channels, other.repeats) != (first.channels, first.repeats):
            raise _refusal(layer, "must add maps of equal channels")
        walk.join(first, other)
    return first


_HANDLERS: dict[type, Callable[..., Axis]] = {
    keras.layers.Conv2D: _produced,
    keras.layers.Dense: _produced,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.Flatten: _flattened,
    keras.layers.Add: _added,
    keras.layers.ReLU: _same,
    keras.layers.Activation: _same,
    keras.layers.MaxPooling2D: _same,
    keras.layers.AveragePooling2D: _same,
    keras.layers.GlobalAveragePooling2D: _same,
    keras.layers.ZeroPadding2D: _same,
    keras.layers.Dropout: _same,
}


def _check_layer(layer) -> None:
    if type(layer) not in _HANDLERS:
        known = ", ".join(sorted(kind.__name__ for kind in _HANDLERS))
        raise _refusal(layer, f"cannot be pruned; known layers: {known}")
    if len(layer.inbound_nodes) > 1:
        raise _refusal(layer, "is used more than once")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _refusal(layer, "must have data_format='channels_last'")


def _weights(layer, source: Axis, target: Axis) -> list[Weight]:
    """The arrays of a layer in the order of ``get_weights``."""
    kernels: dict[type, dict[int, Axis]] = {
        keras.layers.DepthwiseConv2D: {2: source},
        keras.layers.Conv2D: {2: source, 3: target},
        keras.layers.Dense: {0: source, 1: target},
    }
    # Biases and all arrays of a batch norm have one axis.
    first = kernels.get(type(layer), {0: target})
    trainable = {id(value) for value in layer.trainable_weights}
    return [
        Weight(
            layer.name, i, tuple(value.shape), {0: target} if i else first, id(value) in trainable
        )
        for i, value in enumerate(layer.weights)
    ]


def _tensors(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _walked(model) -> tuple[_Walk, list[tuple]]:
    """All layers with the axes they read and give."""
    walk, found = _Walk(), []
    for number, tensor in enumerate(model.inputs):
        name = f"input {number}"
        walk.tensors[id(tensor)] = Axis(name, int(tensor.shape[-1]))
        walk.fixed.add(name)
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        _check_layer(layer)
        sources = [walk.tensors[id(tensor)] for tensor in _tensors(layer.input)]
        target = _HANDLERS[type(layer)](walk, layer, *sources)
        if getattr(layer, "activation", None) is keras.activations.softmax:
            # Every channel of it depends on all others.
            walk.fixed.add(target.group)
        walk.tensors[id(layer.output)] = target
        found.append((layer, sources[0], target))
    walk.fixed |= {walk.tensors[id(tensor)].group for tensor in model.outputs}
    return walk, found


def network_of(model) -> Network:
    """Groups of channels of a float Keras model.

    Parameters
    ----------
    model : keras.Model
        functional or sequential, of Conv2D, DepthwiseConv2D, Dense, BatchNormalization, ReLU,
        Activation, Add, Max-, Average- and GlobalAveragePooling2D, Flatten, Dropout and
        ZeroPadding2D layers.

    Raises
    ------
    ParameterError
        naming the first layer whose channels cannot be followed.
    """
    walk, found = _walked(model)
    layers = [(a, walk.resolved(source), walk.resolved(target)) for a, source, target in found]
    fixed = {walk.resolved(Axis(name, 0)).group for name in walk.fixed}
    return Network(
        channels={t.group: t.channels for _, _, t in layers if t.group not in fixed},
        sources={layer.name: source for layer, source, _ in layers},
        targets={layer.name: target for layer, _, target in layers},
        weights=tuple(w for layer, *axes in layers for w in _weights(layer, *axes)),
    )
