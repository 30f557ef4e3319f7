"""The integer specification of inference (numpy only): what the device computes, bit by bit.

A *code* is the true integer of a value: ``value = code * 2**exponent``. Everything that claims to
be the quantized network (Keras in inference mode, the .tflite on TFLite Micro) is tested against
this module. Rounding is TFLite Micro's for power-of-two multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qbee.errors import ParameterError

Kind = Literal["conv", "depthwise", "dense"]
Arithmetic = Literal["int32", "int64", "int64_split"]

INT16 = (-32768, 32767)
# 16-bit kernels are W = 256 * hi + lo with hi and lo in int8, so the top 255 codes are not used.
MAX_KERNEL_16 = 127 * 256
# Extra fraction bits of the two partial sums of a split layer whose output is narrow.
SPLIT_FRACTION_BITS = 6


def max_kernel_code(bits: int) -> int:
    """Largest absolute code of a symmetric ``bits``-bit kernel."""
    return MAX_KERNEL_16 if bits == 16 else 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class MapType:
    """Number format of a feature map: static, per tensor, power-of-two step ``2**exponent``.

    Unsigned maps (after ReLU) use all codes 0..2^bits-1; unsigned 16-bit maps live in int16
    and have 15 bits.
    """

    bits: int
    is_signed: bool
    exponent: int

    @property
    def codes(self) -> tuple[int, int]:
        """Lowest and highest code."""
        if self.is_signed:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, min(2**self.bits, 2**15) - 1


@dataclass(frozen=True)
class FixedLayer:
    """One weighted layer with its max-pool and ReLU, in integers.

    Attributes
    ----------
    kernel : np.ndarray, int64
        codes; [h, w, in, out] for conv, [h, w, channels, 1] for depthwise, [in, out] for dense
    kernel_exponents : np.ndarray [shape=(out,)]
    bias : np.ndarray [shape=(out,)], int64
        codes of step ``2**(source.exponent + kernel_exponents)``
    pool : int
        size and stride of the max-pool that follows; 1 is none
    """

    name: str
    kind: Kind
    kernel: np.ndarray
    kernel_bits: int
    kernel_exponents: np.ndarray
    bias: np.ndarray
    source: MapType
    target: MapType
    has_relu: bool
    stride: int
    pool: int

    @property
    def shifts(self) -> np.ndarray:
        """Right shifts [out] from accumulator codes to output codes."""
        return self.target.exponent - self.source.exponent - self.kernel_exponents

    @property
    def arithmetic(self) -> Arithmetic:
        """Which of the device's three ways computes this layer (see ``arithmetic_of``)."""
        return arithmetic_of(self.source.bits, self.kernel_bits, self.target.bits)


@dataclass(frozen=True)
class FixedNet:
    """A chain of integer layers; ``input_shape`` is (height, width, channels)."""

    name: str
    input_shape: tuple[int, int, int]
    layers: tuple[FixedLayer, ...]

    @property
    def input_map(self) -> MapType:
        """Number format of the input."""
        return self.layers[0].source

    @property
    def output_map(self) -> MapType:
        """Number format of the output."""
        return self.layers[-1].target


def arithmetic_of(source_bits: int, kernel_bits: int, target_bits: int) -> Arithmetic:
    """Accumulation and rounding of a layer on the device.

    int32: 8-bit containers, double rounding. int64: any 16-bit map or kernel, one rounding half
    up. int64_split: 16-bit kernel on a 16-bit map, two convolutions whose rounded results are
    added.
    """
    if kernel_bits == 16 and source_bits == 16:
        return "int64_split"
    return "int64" if 16 in (source_bits, kernel_bits, target_bits) else "int32"


def quantize(x: np.ndarray, number: MapType) -> np.ndarray:
    """Codes of real values, half up, saturating, int64 [same shape].

    Raises
    ------
    ParameterError
        if a value is not finite.
    """
    if not np.all(np.isfinite(x)):
        raise ParameterError("x must be finite")
    scaled = np.floor(np.asarray(x, np.float64) * 2.0**-number.exponent + 0.5)
    return np.clip(scaled, *number.codes).astype(np.int64)


def dequantize(codes: np.ndarray, number: MapType) -> np.ndarray:
    """Real values of codes, float32 [same shape]; exact, as codes have at most 16 bits."""
    return (np.asarray(codes, np.float64) * 2.0**number.exponent).astype(np.float32)


def _shift_half_away(x: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """``x / 2**shift`` rounded half away from zero (gemmlowp RoundingDivideByPOT)."""
    mask = (np.int64(1) << shift) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> shift) + ((x & mask) > threshold)


def requantize_int32(accumulator: np.ndarray, shifts: np.ndarray | int) -> np.ndarray:
    """TFLite Micro's rescaling of int32 accumulators by 2^-shift, before saturation.

    The multiplier 2^-k is 0.5 in Q31 times 2^(1-k): a doubling high multiply that rounds half
    up, then a shift that rounds half away from zero. k <= 0 shifts left.
    """
    accumulator, k = np.asarray(accumulator, np.int64), np.asarray(shifts, np.int64)
    halved = (accumulator + 1) >> 1
    right = _shift_half_away(halved, np.maximum(k - 1, 0))
    return np.where(k <= 0, accumulator << np.maximum(-k, 0), right)


def requantize_int64(accumulator: np.ndarray, shifts: np.ndarray | int) -> np.ndarray:
    """TFLite Micro's rescaling of int64 accumulators by 2^-shift: floor(x + 1/2)."""
    accumulator, k = np.asarray(accumulator, np.int64), np.asarray(shifts, np.int64)
    half = np.where(k > 0, np.int64(1) << np.maximum(k - 1, 0), 0)
    right = (accumulator + half) >> np.maximum(k, 0)
    return np.where(k < 0, accumulator << np.maximum(-k, 0), right)


def split_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 parts (hi, lo) of 16-bit kernel codes: ``kernel == 256 * hi + lo``."""
    kernel = np.asarray(kernel, np.int64)
    hi = (kernel + 128) >> 8
    return hi, kernel - 256 * hi


def _windows(codes: np.ndarray, size: tuple[int, int], stride: int) -> np.ndarray:
    """Zero-padded ('same') sliding windows [n, h, w, c, kh, kw] of [n, h, w, c]."""
    pads = []
    for length, kernel in zip(codes.shape[1:3], size, strict=True):
        outputs = -(-length // stride)
        total = max((outputs - 1) * stride + kernel - length, 0)
        pads.append((total // 2, total - total // 2))
    padded = np.pad(codes, ((0, 0), pads[0], pads[1], (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))
    return view[:, ::stride, ::stride]


def accumulate(codes: np.ndarray, kernel: np.ndarray, kind: Kind, *, stride: int) -> np.ndarray:
    """Exact accumulators, without bias, of one layer.

    Parameters
    ----------
    codes : np.ndarray [shape=(n, h, w, c) or (n, features)], integer
    kernel : np.ndarray, integer, shaped as in ``FixedLayer``

    Returns
    -------
    np.ndarray [shape=(n, h', w', out) or (n, out)], int64

    Notes
    -----
    The sums run in float64, which is exact below 2^53; 16-bit codes and kernels with up to 2^21
    terms stay below that.
    """
    codes, kernel = np.asarray(codes, np.float64), np.asarray(kernel, np.float64)
    if kind == "dense":
        return (codes.reshape(len(codes), -1) @ kernel).astype(np.int64)
    if kind == "conv" and kernel.shape[:2] == (1, 1) and stride == 1:
        return (codes @ kernel[0, 0]).astype(np.int64)
    view = _windows(codes, kernel.shape[:2], stride)
    if kind == "conv":
        return np.tensordot(view, kernel, axes=([4, 5, 3], [0, 1, 2])).astype(np.int64)
    total = np.zeros(view.shape[:4])
    for i, j in np.ndindex(*kernel.shape[:2]):
        total += view[..., i, j] * kernel[i, j, :, 0]
    return total.astype(np.int64)


def max_pool(codes: np.ndarray, size: int) -> np.ndarray:
    """Maximum over size x size tiles of [n, h, w, c]; incomplete tiles at the end are left out."""
    if size == 1:
        return codes
    n, h, w, c = codes.shape
    tiles = codes[:, : h // size * size, : w // size * size]
    return tiles.reshape(n, h // size, size, w // size, size, c).max((2, 4))


def _split_forward(layer: FixedLayer, codes: np.ndarray) -> np.ndarray:
    """Two convolutions with the kernel's high and low part, rounded, saturated and added."""
    fraction = 0 if layer.target.bits == 16 else SPLIT_FRACTION_BITS
    hi, lo = split_kernel(layer.kernel)
    parts = []
    for kernel, factor, bias in ((hi, 256, 0), (lo, 1, layer.bias)):
        total = accumulate(codes, kernel, layer.kind, stride=layer.stride) * factor + bias
        parts.append(np.clip(requantize_int64(total, layer.shifts - fraction), *INT16))
    # The addition has a fused ReLU; it is exact because all three maps have one step.
    lowest = 0 if layer.has_relu else INT16[0]
    total = np.clip(parts[0] + parts[1], lowest, INT16[1])
    return requantize_int32(total, fraction)


def forward_layer(layer: FixedLayer, codes: np.ndarray) -> np.ndarray:
    """Output codes of one layer, its ReLU and its max-pool."""
    if layer.arithmetic == "int64_split":
        output = _split_forward(layer, codes)
    else:
        total = accumulate(codes, layer.kernel, layer.kind, stride=layer.stride) + layer.bias
        round_ = requantize_int32 if layer.arithmetic == "int32" else requantize_int64
        output = round_(total, layer.shifts)
    return max_pool(np.clip(output, *layer.target.codes), layer.pool)


def forward(net: FixedNet, codes: np.ndarray) -> list[np.ndarray]:
    """Codes after every layer for input codes [n, height, width, channels]; the last is the output.

    Raises
    ------
    ParameterError
        if the input has another shape.
    """
    if codes.shape[1:] != net.input_shape:
        raise ParameterError(f"codes.shape={codes.shape} must be (n, *{net.input_shape})")
    outputs = []
    for layer in net.layers:
        codes = forward_layer(layer, codes)
        outputs.append(codes)
    return outputs
