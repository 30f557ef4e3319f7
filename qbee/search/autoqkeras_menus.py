"""What AutoQKeras chooses from: its settings, and quantizer strings for a network's tensors."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from qbee.quantize.calibrate import calibrate
from qbee.quantize.featuremap import quantized_bits_featuremap
from qbee.quantize.fixed_point import MapType
from qbee.quantize.fold import FoldedNet
from qbee.quantize.graph import INPUT
from qbee.quantize.scheme import BiasBits, KernelBits, MapBits
from qbee.records import Record
from qbee.search.cost import INPUT_LAYER_BITS
from qbee.search.score import ForgivingFactor

# Bits of all parameters and maps of the reference, also of biases: AutoQKeras knows one width.
REFERENCE_BITS = 16
# Training inputs that the ranges of QKeras' static quantizers are taken from.
CALIBRATION_IMAGES = 64
# Bits by quantizer string.
Menu = dict[str, int]


class StockSettings(Record):
    """What AutoQKeras searches, and how.

    Attributes
    ----------
    quantizers : 'qkeras' or 'featuremap'
        qkeras: QKeras' own, with power-of-two steps; those of maps are calibrated and static.
        featuremap: the thesis' (S3-1), with free steps; those of maps come from each sample.
    maps_after : 'activation' or 'pool'
        where maps are quantized and counted, if a max-pool follows the activation. Pool: as
        ``cost.total_bits`` counts; the same numbers with 'qkeras' and faster, but 'featuremap'
        distorts maps whose smallest value is far from zero.
    delta_p, delta_n, rate, stress
        of the forgiving factor, whose reference has 16 bits everywhere, also for biases
    tune_filters : 'none', 'layer' or 'block'
        layer, block: the numbers of filters are searched too, separately or with one factor.
        AutoQKeras then trains from scratch, as it cannot transfer weights of another shape.
    """

    kernel_bits: tuple[KernelBits, ...] = Field((4, 8, 16), min_length=1)
    map_bits: tuple[MapBits, ...] = Field((4, 8, 16), min_length=1)
    bias_bits: tuple[BiasBits, ...] = Field((16, 31), min_length=1)
    quantizers: Literal["qkeras", "featuremap"] = "qkeras"
    maps_after: Literal["activation", "pool"] = "activation"
    mode: Literal["bayesian", "random"] = "bayesian"
    delta_p: float = 5.0
    delta_n: float = 5.0
    rate: float = Field(2.0, gt=1)
    stress: float = Field(1.0, gt=0)
    tune_filters: Literal["none", "layer", "block"] = "none"

    @property
    def forgiving_factor(self) -> ForgivingFactor:
        """AutoQKeras' forgiving factor with these settings."""
        return ForgivingFactor(
            delta_p=self.delta_p,
            delta_n=self.delta_n,
            rate=self.rate,
            stress=self.stress,
            reference_kernel_bits=REFERENCE_BITS,
            reference_map_bits=REFERENCE_BITS,
            reference_bias_bits=REFERENCE_BITS,
        )

    @property
    def goal(self) -> dict[str, Any]:
        """The forgiving factor as AutoQKeras takes it."""
        params = {
            "delta_p": self.delta_p,
            "delta_n": self.delta_n,
            "rate": self.rate,
            "stress": self.stress,
            "input_bits": INPUT_LAYER_BITS,
            "output_bits": 8,
            "ref_bits": REFERENCE_BITS,
            "config": {"default": ["parameters", "activations"]},
        }
        return {"type": "bits", "params": params}


def weight_menu(weights: np.ndarray, widths: tuple[int, ...], settings: StockSettings) -> Menu:
    """Quantizer strings of a kernel or bias."""
    # QKeras clips weights at 2^integer after every training step: leave room to grow.
    peak = float(np.abs(weights).max())
    integer = max(math.ceil(math.log2(peak)) + 1, 0) if peak > 0 else 0
    alpha = "auto_po2" if settings.quantizers == "qkeras" else "auto"
    return {f"quantized_bits({b},{integer},1,1,alpha={alpha!r})": b for b in sorted(widths)}


def map_menus(
    net: FoldedNet, images: np.ndarray, *, settings: StockSettings, seed: int
) -> dict[str, Menu]:
    """Quantizer strings of the input and of every map, by name.

    Parameters
    ----------
    images : np.ndarray [shape=(n, *input_shape)]
        training inputs, for the ranges of static quantizers
    """
    names = (INPUT, *net.maps)
    if settings.quantizers == "featuremap":
        return {n: {_published(bits): bits for bits in _widths(net, n, settings)} for n in names}
    found = calibrate(net, images[:CALIBRATION_IMAGES], seed=seed)
    return {n: {_static(found[n][b]): b for b in _widths(net, n, settings)} for n in names}


def _widths(net: FoldedNet, name: str, settings: StockSettings) -> list[int]:
    widths = sorted(settings.map_bits)
    if name not in (INPUT, net.maps[-1]):
        return list(widths)
    # A scheme's input and output have no fewer.
    return [bits for bits in widths if bits >= 8] or [8]


def _published(bits: int) -> str:
    return str(quantized_bits_featuremap(bits, alpha="auto", scale_axis=0, dynamic=True))


def _static(number: MapType) -> str:
    # QKeras cannot compute a power of two with a negative exponent.
    integer = max(round(math.log2((number.codes[1] + 1) * number.step)), 0)
    kind = "quantized_bits" if number.is_signed else "quantized_relu"
    return f"{kind}({number.bits},{integer})"
