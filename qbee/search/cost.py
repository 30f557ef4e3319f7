"""Bits of a scheme as the thesis counts them (no TensorFlow)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qbee.quantize.scheme import Scheme
from qbee.search.score import ForgivingFactor

# Bits of the input layer itself, which comes on top of the feature map quantized from it.
INPUT_LAYER_BITS = 8
INPUT = "input"

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


def reference_slots(elements: Slots, factor: ForgivingFactor) -> dict[str, int]:
    """Bits of every slot of the forgiving factor's reference."""
    widths = {"kernel": factor.reference_kernel_bits, "bias": factor.reference_bias_bits}
    return {
        slot: widths.get(slot.rpartition(".")[2], factor.reference_map_bits) for slot in elements
    }


def with_kernels(bits: Bits, per_weight: Mapping[str, float]) -> dict[str, float]:
    """Bits of every slot, with other bits per weight for the kernels of some layers.

    Parameters
    ----------
    per_weight : by layer, as ``quantize.granularity.effective_bits`` counts them: with the shares
        of scales, exponents and codebooks.
    """
    return {**bits, **{f"{name}.kernel": width for name, width in per_weight.items()}}


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


def elements(net) -> dict[str, int]:
    """Elements of every slot of a folded network."""
    found = {INPUT: math.prod(net.input_shape)}
    for node in net.nodes:
        if node.is_weighted:
            found[f"{node.name}.kernel"] = net.kernels[node.name].size
            found[f"{node.name}.bias"] = net.biases[node.name].size
        if node.has_own_map:
            found[f"{node.name}.map"] = math.prod(node.shape)
    return found
