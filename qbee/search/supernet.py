"""One quantized network for all schemes of a search: widths are variables, weights are shared.

A trial chooses widths, restores the weights of the one float training and runs functions that
are compiled once, instead of building and tracing a model of its own. What it computes is what
``quantize.convert.quantized_model`` computes with the same scheme and weights.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from qbee.errors import ParameterError
from qbee.keras import tf
from qbee.quantize import exact
from qbee.quantize.arithmetic import OpArithmetic, WeightedArithmetic
from qbee.quantize.calibrate import MENU, Maps
from qbee.quantize.convert import formats_of
from qbee.quantize.fixed_net import FixedNet, FixedNode, FixedWeights
from qbee.quantize.fixed_point import SIGMOID_MAP, MapType, arithmetic_of
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT, Node
from qbee.quantize.layers import kernel_quantizer
from qbee.quantize.live import Choice, LiveBias, LiveDenseKernel, LiveKernel, LiveMap
from qbee.quantize.power_of_two import is_power_of_two
from qbee.quantize.scheme import LayerBits, Scheme
from qbee.quantize.sharing import OneStep, has_one_step

KERNEL_MENU, BIAS_MENU = (4, 8, 16), (16, 31)


def _live_kernel(choice: Choice, node: Node, *, is_single: bool) -> LiveKernel:
    """Quantizer of all widths, of which each is as ``kernel_quantizer`` has it."""
    axes = [
        kernel_quantizer(node.op, bits, is_per_tensor=is_single).scale_axis for bits in choice.menu
    ]
    if len(set(axes)) == 1:
        return LiveKernel(choice, scale_axis=axes[0])
    axis = next(axis for axis in axes if axis is not None)
    return LiveDenseKernel(choice, scale_axis=axis, has_one_step=[a is None for a in axes])


class _Weights:
    """Kernel and bias of a layer, their choices of widths, and what the layer computes."""

    def __init__(self, net: FoldedNet, node: Node, one_step: OneStep):
        self.node = node
        self.float = (tf.constant(net.kernels[node.name]), tf.constant(net.biases[node.name]))
        self.kernel, self.bias = (tf.Variable(value, dtype=tf.float32) for value in self.float)
        self.bits, self.bias_bits = Choice(KERNEL_MENU), Choice(BIAS_MENU)
        self.way = Choice(WeightedArithmetic.ARITHMETICS)
        self.kernel_quantizer = _live_kernel(
            self.bits, node, is_single=has_one_step(one_step, node.name)
        )
        self.bias_quantizer = LiveBias(self.bias_bits)

    def restore(self) -> None:
        """Take the float network's weights again."""
        self.kernel.assign(self.float[0])
        self.bias.assign(self.float[1])


class Supernet:
    """A folded network whose widths can be assigned.

    Called like a Keras model, it gives the output of the last node, before a softmax or sigmoid.

    Parameters
    ----------
    maps : number formats of all maps at all widths, as ``calibrate`` finds them
    one_step : kernels with one step in all, as for ``quantized_model``
    """

    def __init__(self, net: FoldedNet, maps: Maps, *, one_step: OneStep = False):
        self.net, self.maps = net, maps
        self.widths = {name: Choice(MENU) for name in (INPUT, *net.maps)}
        self._formats = self._live_formats()
        self._weights = {n: _Weights(net, net.node(n), one_step) for n in net.weighted}
        self._nodes = {node.name: self._arithmetic(node) for node in net.nodes}
        shape = [None, *net.input_shape]
        self._infer = tf.function(
            lambda x: self._run(x, is_training=False),
            input_signature=[tf.TensorSpec(shape, tf.float32)],
            autograph=False,
        )
        self._integers = tf.function(self._all_integers, autograph=False)
        self.scheme: Scheme | None = None

    def _live_formats(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: LiveMap([self.maps[name][bits] for bits in MENU], choice)
            for name, choice in self.widths.items()
        }
        for node in self.net.nodes:
            if not node.has_own_map:
                source = found[node.inputs[0]]
                found[node.name] = SIGMOID_MAP if node.op == "sigmoid" else source
        return found

    def _arithmetic(self, node: Node) -> OpArithmetic:
        sources, target = tuple(self._formats[n] for n in node.inputs), self._formats[node.name]
        if not node.is_weighted:
            return OpArithmetic(node, sources, target)
        weights = self._weights[node.name]
        return WeightedArithmetic(
            node,
            sources,
            target,
            kernel_quantizer=weights.kernel_quantizer,
            bias_quantizer=weights.bias_quantizer,
            arithmetic=weights.way,
            is_shift=self._has_shifts(node),
        )

    def _has_shifts(self, node: Node) -> bool:
        """Whether all steps around a node are powers of two at all widths."""
        names = {self.net.map_of(name) for name in (*node.inputs, node.name)}
        formats = [number for name in names if name for number in self.maps[name].values()]
        return all(is_power_of_two(number.step) for number in formats)

    @property
    def trainable_variables(self) -> list:
        """Kernels and biases."""
        return [v for w in self._weights.values() for v in (w.kernel, w.bias)]

    def assign(self, scheme: Scheme) -> None:
        """Take the widths of a scheme, and the weights of the float network.

        Raises
        ------
        ParameterError
            as ``quantized_model`` does.
        """
        found = formats_of(self.net, scheme, self.maps)
        self.scheme = scheme
        self.widths[INPUT].assign(scheme.input_bits)
        for name, bits in scheme.layers.items():
            self.widths[name].assign(bits.map)
            if name in self._weights:
                self._assign_weights(self._weights[name], bits, found)

    def _assign_weights(self, weights: _Weights, bits: LayerBits, found: dict[str, MapType]):
        node = weights.node
        weights.bits.assign(bits.kernel)
        weights.bias_bits.assign(bits.bias)
        source, target = found[node.inputs[0]], found[node.name]
        weights.way.assign(arithmetic_of(source, bits.kernel or 0, target))
        weights.restore()

    def __call__(self, x, training=False):
        """Output [n, *shape] of the last node for inputs [n, *input_shape]."""
        if training:
            return self._run(x, is_training=True)
        return self._infer(x)

    @cached_property
    def approximate(self):
        """Compiled function of inputs: the output as in training, at a fraction of the time."""
        return tf.function(lambda x: self._run(x, is_training=True), autograph=False)

    def _run(self, x, *, is_training: bool):
        source = self._formats[INPUT]
        lowest, highest = source.codes
        codes = tf.floor(tf.cast(x, tf.float64) / source.step + 0.5)
        found = {INPUT: exact.values_of(tf.clip_by_value(codes, lowest, highest), source)}
        for name, node in self._nodes.items():
            inputs = [found[source] for source in node.node.inputs]
            if isinstance(node, WeightedArithmetic):
                inputs += [self._weights[name].kernel, self._weights[name].bias]
            found[name] = node.trained(*inputs) if is_training else node.inferred(*inputs)
        return found[self.net.nodes[-1].name]

    def to_fixed_point(self) -> FixedNet:
        """Integers of the present widths and weights: what export writes.

        Raises
        ------
        ParameterError
            if no scheme was assigned.
        """
        if self.scheme is None:
            raise ParameterError("a scheme must be assigned first")
        found = formats_of(self.net, self.scheme, self.maps)
        integers = self._integers()
        nodes = tuple(self._fixed(node, found, integers) for node in self.net.nodes)
        return FixedNet(self.net.name, self.net.input_shape, found[INPUT], nodes)

    def _fixed(self, node: Node, found: dict[str, MapType], integers: dict) -> FixedNode:
        sources, target = tuple(found[name] for name in node.inputs), found[node.name]
        if not node.is_weighted:
            return FixedNode(node, sources, target)
        codes, steps, bias = (value.numpy() for value in integers[node.name])
        bits = self._weights[node.name].bits.entry
        weights = FixedWeights(codes.astype(np.int64), bits, steps, bias)
        return FixedNode(node, sources, target, weights)

    def _all_integers(self):
        return {
            name: node.integers(self._weights[name].kernel, self._weights[name].bias)
            for name, node in self._nodes.items()
            if isinstance(node, WeightedArithmetic)
        }
