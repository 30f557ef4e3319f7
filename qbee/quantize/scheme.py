"""Bit widths of a network: which kernel, bias and feature map has how many bits."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import model_validator

from qbee.errors import ParameterError
from qbee.records import Record

KernelBits = Literal[4, 8, 16]
MapBits = Literal[4, 8, 16]
BiasBits = Literal[16, 31]


class Layers(Protocol):
    """A network, as far as its widths are concerned (``FoldedNet`` is one)."""

    @property
    def maps(self) -> list[str]:
        """Layers that write a feature map with a number format of its own."""

    @property
    def weighted(self) -> list[str]:
        """Layers that have a kernel and a bias."""


class LayerBits(Record):
    """Widths of one layer: its kernel and bias, if it has them, and the feature map it writes."""

    kernel: KernelBits | None = None
    bias: BiasBits | None = None
    map: MapBits

    @model_validator(mode="after")
    def _kernel_and_bias_go_together(self):
        if (self.kernel is None) != (self.bias is None):
            raise ValueError("kernel and bias must both be given or both be left out")
        return self


class Scheme(Record):
    """Widths of all layers in the order of the network; input and output have 8 or 16 bits."""

    layers: dict[str, LayerBits]
    input_bits: Literal[8, 16] = 8

    @model_validator(mode="after")
    def _output_has_8_or_16_bits(self):
        if not self.layers:
            raise ValueError("layers must name at least one layer")
        name, last = list(self.layers.items())[-1]
        if last.map == 4:
            raise ValueError(f"layers.{name}.map=4 must be 8 or 16: it is the output")
        return self

    def check(self, net: Layers) -> Scheme:
        """The scheme itself, if it names exactly the layers of this network, in its order.

        Raises
        ------
        ParameterError
            naming what differs.
        """
        if list(self.layers) != net.maps:
            raise ParameterError(
                f"scheme names the layers {list(self.layers)}, the network has {net.maps}"
            )
        for name, bits in self.layers.items():
            if (bits.kernel is not None) != (name in net.weighted):
                has = "no kernel" if bits.kernel is not None else "a kernel"
                raise ParameterError(f"layers.{name}.kernel={bits.kernel}: the layer has {has}")
        return self


def uniform(net: Layers, *, bits: KernelBits, map_bits: MapBits | None = None) -> Scheme:
    """Scheme with one width for all kernels and one for all maps.

    Biases have 31 bits, input and output at least 8. ``map_bits`` None is the kernels' width.
    """
    layers, inner = {}, map_bits or bits
    ends: Literal[8, 16] = 16 if inner == 16 else 8
    for name in net.maps:
        width = ends if name == net.maps[-1] else inner
        weights = {"kernel": bits, "bias": 31} if name in net.weighted else {}
        layers[name] = LayerBits.model_validate({**weights, "map": width})
    return Scheme(layers=layers, input_bits=ends)
