"""Bit widths of a network: which kernel, bias and feature map has how many bits."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from qbee.errors import ParameterError
from qbee.records import Record

KernelBits = Literal[4, 8, 16]
MapBits = Literal[4, 8, 16]
BiasBits = Literal[16, 31]


class LayerBits(Record):
    """Widths of one layer: its kernel, its bias and the feature map it writes."""

    kernel: KernelBits
    bias: BiasBits
    map: MapBits


class Scheme(Record):
    """Widths of all layers in the order of the network; input and output maps have 8 bits."""

    layers: dict[str, LayerBits]
    input_bits: Literal[8] = 8

    @model_validator(mode="after")
    def _output_has_8_bits(self):
        if not self.layers:
            raise ValueError("layers must name at least one layer")
        name, last = list(self.layers.items())[-1]
        if last.map != 8:
            raise ValueError(f"layers.{name}.map={last.map} must be 8: it is the output")
        return self

    def check(self, layer_names: list[str]) -> Scheme:
        """The scheme itself, if it names exactly these layers in this order.

        Raises
        ------
        ParameterError
            naming what differs.
        """
        if list(self.layers) != layer_names:
            raise ParameterError(
                f"scheme names the layers {list(self.layers)}, the network has {layer_names}"
            )
        return self


def uniform(layer_names: list[str], *, bits: Literal[4, 8, 16]) -> Scheme:
    """Scheme with one width for all kernels and maps and 31-bit biases; the output has 8 bits."""
    layers = {name: LayerBits(kernel=bits, bias=31, map=bits) for name in layer_names}
    last = layer_names[-1]
    layers[last] = LayerBits(kernel=bits, bias=31, map=8)
    return Scheme(layers=layers)
