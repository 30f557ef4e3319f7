"""What a network costs on the device, by name (no TensorFlow)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from qbee.export import strips
from qbee.export.delivery import ExportSettings
from qbee.export.tflite import Exported
from qbee.quantize.fixed_net import FixedNet
from qbee.quantize.graph import INPUT, Node
from qbee.quantize.scheme import Scheme
from qbee.registry import Registry
from qbee.search import energy, instructions
from qbee.search.exporting import Exporter
from qbee.search.score import ForgivingFactor

# Bits of the input layer itself, which comes on top of the feature map quantized from it.
INPUT_LAYER_BITS = 8

# Elements or bits by slot: "input", and "<layer>.kernel", "<layer>.bias", "<layer>.map".
Slots = Mapping[str, int]
# Bits may be fractions where several weights share a scale.
Bits = Mapping[str, float]


def slots(scheme: Scheme) -> dict[str, int]:
    """Bits of every slot of a scheme."""
    found: dict[str, int] = {INPUT: scheme.input_bits}
    for name, bits in scheme.layers.items():
        if bits.kernel is not None and bits.bias is not None:
            found |= {f"{name}.kernel": bits.kernel, f"{name}.bias": bits.bias}
        found[f"{name}.map"] = bits.map
    return found


def scheme_of(slots: Mapping[str, int]) -> Scheme:
    """Scheme of the bits of its slots."""
    layers: dict[str, dict[str, int]] = {}
    for slot, bits in slots.items():
        if slot != INPUT:
            layer, _, role = slot.rpartition(".")
            layers.setdefault(layer, {})[role] = bits
    return Scheme.model_validate({"layers": layers, "input_bits": slots[INPUT]})


def reference_slots(elements: Slots, factor: ForgivingFactor) -> dict[str, int]:
    """Bits of every slot of the forgiving factor's reference."""
    widths = {"kernel": factor.reference_kernel_bits, "bias": factor.reference_bias_bits}
    return {
        slot: widths.get(slot.rpartition(".")[2], factor.reference_map_bits) for slot in elements
    }


def total_bits(elements: Slots, bits: Bits) -> int:
    """Bits of all parameters and feature maps, summed over the network (S3-5).

    Batch norm (folded), ReLU, pooling and flattening count nothing. The input counts twice: as
    a layer with 8 bits and as the map that is quantized from it.

    Parameters
    ----------
    elements, bits : mapping of slot to number of elements and to bits; equal keys
    """
    quantized = sum(count * bits[slot] for slot, count in elements.items())
    return round(quantized) + INPUT_LAYER_BITS * elements[INPUT]


def _node_elements(node: Node, kernel, bias) -> Iterator[tuple[str, int]]:
    if node.is_weighted:
        yield from ((f"{node.name}.kernel", kernel.size), (f"{node.name}.bias", bias.size))
    if node.has_own_map:
        yield f"{node.name}.map", math.prod(node.shape)


def elements(net) -> dict[str, int]:
    """Elements of every slot of a folded network."""
    found = {INPUT: math.prod(net.input_shape)}
    for node in net.nodes:
        found |= _node_elements(node, net.kernels.get(node.name), net.biases.get(node.name))
    return found


def integer_elements(net: FixedNet) -> dict[str, int]:
    """Elements of every slot of an integer network: those of the folded one."""
    found = {INPUT: math.prod(net.input_shape)}
    for item in net.nodes:
        weights = item.weights
        kernel, bias = (weights.kernel, weights.bias) if weights else (None, None)
        found |= _node_elements(item.node, kernel, bias)
    return found


@dataclass(frozen=True)
class Priced:
    """A network whose costs are wanted.

    Attributes
    ----------
    laid_out : FixedNet
        the same function, as the file computes it: perhaps in strips
    """

    net: FixedNet
    scheme: Scheme
    laid_out: FixedNet
    exported: Exported


_COSTS: Registry[Callable[[Priced], float]] = Registry("cost")
register, names, get = _COSTS.register, _COSTS.names, _COSTS.get


@register("bits")
def _bits(priced: Priced) -> float:
    """All parameters and feature maps, as the thesis counts them."""
    return total_bits(integer_elements(priced.net), slots(priced.scheme))


@register("tflite_bytes")
def _tflite_bytes(priced: Priced) -> float:
    """Length of the file."""
    return len(priced.exported.content)


@register("arena_bytes")
def _arena_bytes(priced: Priced) -> float:
    """Predicted arena of TFLite Micro on a 64-bit machine."""
    return priced.exported.arena.total_bytes


@register("macs")
def _macs(priced: Priced) -> float:
    """Multiply-accumulates of all kernels, those that strips repeat included."""
    return strips.macs(priced.laid_out)


@register("energy_uj")
def _energy_uj(priced: Priced) -> float:
    """Energy of these multiply-accumulates (``energy.total_uj``)."""
    return energy.total_uj(priced.laid_out)


def _instructions(device: instructions.Device) -> Callable[[Priced], float]:
    def count(priced: Priced) -> float:
        return instructions.estimate(priced.exported.model, device)

    return count


for _device in instructions.DEVICES:
    register(f"instructions_{_device.name}")(_instructions(_device))


@dataclass(frozen=True)
class CostModel:
    """What the costs of a search depend on, beside the network; built once for all trials.

    Attributes
    ----------
    wanted : names of costs, in the order in which they are given
    metadata : what the detector's file holds beside the network; its length is a part of
        ``tflite_bytes``, as far as ``settings`` want it

    Raises
    ------
    ParameterError
        if a name is unknown.
    """

    wanted: tuple[str, ...]
    settings: ExportSettings = ExportSettings()
    metadata: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        for name in self.wanted:
            get(name)

    @cached_property
    def _exporter(self) -> Exporter:
        return Exporter(self.settings, dict(self.metadata))

    def costs(self, net: FixedNet, scheme: Scheme) -> dict[str, float]:
        """The wanted costs of an integer network.

        Parameters
        ----------
        scheme : Scheme
            of the network; its biases' widths are counted in ``bits`` only, as the integers of a
            network do not show them

        Raises
        ------
        ExportError
            naming a layer that the target cannot run.
        """
        laid_out, exported = self._exporter.export(net)
        priced = Priced(net, scheme, laid_out, exported)
        return {name: float(get(name)(priced)) for name in self.wanted}
