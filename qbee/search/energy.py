"""Energy of the multiply-accumulates of an integer network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from qbee.export import strips
from qbee.quantize.fixed_net import FixedNet

# Horowitz, "Computing's energy problem", ISSCC 2014: integers in 45 nm at 0.9 V, pJ. He prints
# 0.2 for a product of 8 bits, of which the interpolation makes 0.194.
ADD_8_PJ, ADD_32_PJ, MULTIPLY_32_PJ = 0.03, 0.1, 3.1
_PJ_PER_UJ = 1e6


def add_pj(bits: int) -> float:
    """Energy of an addition: on the line through the figures of 8 and 32 bits."""
    return ADD_8_PJ + (bits - 8) * (ADD_32_PJ - ADD_8_PJ) / 24


def multiply_pj(a_bits: int, b_bits: int) -> float:
    """Energy of a multiplication: as the product of the widths."""
    return MULTIPLY_32_PJ * a_bits * b_bits / 32**2


def macs_by_widths(net: FixedNet) -> dict[tuple[int, int], int]:
    """Multiply-accumulates by (bits of the kernel, bits of the map it reads)."""
    found: Counter[tuple[int, int]] = Counter()
    for item in net.nodes:
        if item.weights is not None:
            macs = strips.macs(replace(net, nodes=(item,)))
            found[item.weights.bits, item.sources[0].bits] += macs
    return dict(found)


def total_uj(net: FixedNet) -> float:
    """Energy of all multiply-accumulates, in uJ.

    The products are as wide as kernel and map, the sums have 32 bits, or 64 where one of the
    maps or the kernel is wide. Only this arithmetic is counted: neither instructions nor reads
    and writes of memory, which depend on the processor and its kernels and may need more. It
    ranks schemes for hardware that is as wide as they are; no Cortex-M has products of 4 bits.
    """
    total = 0.0
    for item in net.nodes:
        if item.weights is not None:
            sum_bits = 32 if item.arithmetic == "int32" else 64
            each = multiply_pj(item.weights.bits, item.sources[0].bits) + add_pj(sum_bits)
            total += each * strips.macs(replace(net, nodes=(item,)))
    return total / _PJ_PER_UJ
