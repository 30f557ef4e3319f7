"""The integer specification of inference (numpy only): what the device computes, bit by bit.

A *code* is the true integer of a value: ``value = code * step``. Everything that claims to be the
quantized network (Keras in inference mode, the .tflite on TFLite Micro) is tested against this
module and ``fixed_net``. Rounding is TFLite Micro's, for power-of-two and for free multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qbee.errors import ParameterError
from qbee.quantize.graph import NO_PADDING, Op, Padding

Arithmetic = Literal["int32", "int64", "int64_split"]

INT16 = (-32768, 32767)
# 16-bit kernels are W = 256 * hi + lo with hi and lo in int8, so the top 255 codes are not used.
MAX_KERNEL_16 = 127 * 256


def max_kernel_code(bits: int) -> int:
    """Largest absolute code of a symmetric ``bits``-bit kernel."""
    return MAX_KERNEL_16 if bits == 16 else 2 ** (bits - 1) - 1


@dataclass(frozen=True)
class MapType:
    """Number format of a feature map: static, per tensor; ``value = code * step``.

    Attributes
    ----------
    bits : int in [2, 16]
    lowest : int
        lowest code: 0 after a ReLU (all codes 0..2^bits-1 are used), ``-2**(bits-1)`` if signed,
        anything between if affine. Codes above 2^15-1 do not exist, as the device has int16.
    step : float
        a float32 number; the device's tables hold no other.
    """

    bits: int
    lowest: int
    step: float

    def __post_init__(self):
        if not 2 <= self.bits <= 16:
            raise ParameterError(f"bits={self.bits} must be in [2, 16]")
        if not -(2 ** (self.bits - 1)) <= self.lowest <= 0:
            raise ParameterError(f"lowest={self.lowest} must be in [-2^(bits-1), 0]")
        if self.bits > 8 and self.lowest not in (0, -(2 ** (self.bits - 1))):
            raise ParameterError(f"lowest={self.lowest}: a map of {self.bits} bits is not affine")
        if not 0 < self.step < np.inf or float(np.float32(self.step)) != self.step:
            raise ParameterError(f"step={self.step} must be a positive float32 number")

    @classmethod
    def of(cls, bits: int, *, is_signed: bool, exponent: int) -> MapType:
        """Signed or unsigned map with step ``2**exponent``."""
        return cls(bits, -(2 ** (bits - 1)) if is_signed else 0, 2.0**exponent)

    @property
    def codes(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return self.lowest, min(self.lowest + 2**self.bits, 2**15) - 1

    @property
    def is_signed(self) -> bool:
        """Whether there are negative codes."""
        return self.lowest < 0

    @property
    def is_wide(self) -> bool:
        """Whether the device needs int16 for it."""
        return self.bits > 8

    @property
    def zero_point(self) -> int:
        """Zero point of its tensor on the device.

        In int8 the highest code lies at 127, so that saturation is the upper limit of the map.
        """
        return 0 if self.is_wide else 127 - self.codes[1]


# The device's logistic function gives 256ths.
SIGMOID_MAP = MapType(8, 0, 2.0**-8)


def arithmetic_of(source: MapType, kernel_bits: int, target: MapType) -> Arithmetic:
    """Accumulation and rounding of a weighted layer on the device.

    int32: 8-bit containers, double rounding. int64: any wide map or kernel, one rounding half
    up. int64_split: wide kernel on a wide map, two convolutions whose rounded results are added.
    """
    if kernel_bits > 8 and source.is_wide:
        return "int64_split"
    return "int64" if kernel_bits > 8 or source.is_wide or target.is_wide else "int32"


def quantize(x: np.ndarray, number: MapType) -> np.ndarray:
    """Codes of real values, half up, saturating, int64 [same shape].

    Raises
    ------
    ParameterError
        if a value is not finite.
    """
    if not np.all(np.isfinite(x)):
        raise ParameterError("x must be finite")
    scaled = np.floor(np.asarray(x, np.float64) / number.step + 0.5)
    return np.clip(scaled, *number.codes).astype(np.int64)


def dequantize(codes: np.ndarray, number: MapType) -> np.ndarray:
    """Real values of codes, float32 [same shape]."""
    return np.asarray(codes, np.float32) * np.float32(number.step)


def quantized_multiplier(real: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """TFLite's ``QuantizeMultiplier``: ``real`` as ``mantissa * 2**(shift - 31)``.

    Parameters
    ----------
    real : float or np.ndarray, >= 0

    Returns
    -------
    mantissa, shift : np.ndarray, int64; multipliers below 2^-32 become 0
    """
    fraction, exponent = np.frexp(np.asarray(real, np.float64))
    mantissa = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    shift = exponent.astype(np.int64)
    is_one = mantissa == 2**31
    mantissa, shift = np.where(is_one, 2**30, mantissa), shift + is_one
    is_gone = shift < -31
    return np.where(is_gone, 0, mantissa), np.where(is_gone, 0, shift)


def divide_by_power_of_two(x: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """``x / 2**shift`` rounded half away from zero (gemmlowp RoundingDivideByPOT)."""
    mask = (np.int64(1) << shift) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> shift) + ((x & mask) > threshold)


def scaled_int32(
    codes: np.ndarray, mantissa: np.ndarray | int, shift: np.ndarray | int
) -> np.ndarray:
    """TFLite's ``MultiplyByQuantizedMultiplier`` of int32 codes.

    A doubling high multiply that rounds half up, then a shift that rounds half away from zero.
    """
    shift = np.asarray(shift, np.int64)
    product = (np.asarray(codes, np.int64) << np.maximum(shift, 0)) * mantissa
    return divide_by_power_of_two((product + 2**30) >> 31, np.maximum(-shift, 0))


def requantize_int32(accumulator: np.ndarray, multipliers: np.ndarray | float) -> np.ndarray:
    """TFLite Micro's rescaling of int32 accumulators by real multipliers, before saturation."""
    return scaled_int32(accumulator, *quantized_multiplier(multipliers))


def requantize_int64(accumulator: np.ndarray, multipliers: np.ndarray | float) -> np.ndarray:
    """TFLite Micro's rescaling of int64 accumulators: 15-bit mantissas, rounding half up."""
    mantissa, shift = quantized_multiplier(multipliers)
    reduced = np.minimum((mantissa + 2**15) >> 16, 0x7FFF)
    total = 15 - shift
    return (np.asarray(accumulator, np.int64) * reduced + (np.int64(1) << (total - 1))) >> total


def split(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts (hi, lo) of codes, lo in int8: ``codes == 256 * hi + lo``; int8 both for kernels."""
    codes = np.asarray(codes, np.int64)
    hi = (codes + 128) >> 8
    return hi, codes - 256 * hi


def _windows(
    codes: np.ndarray,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding,
    filler: int = 0,
) -> np.ndarray:
    """Sliding windows [n, h, w, c, rows, columns] of [n, h, w, c]."""
    padded = np.pad(codes, ((0, 0), *padding, (0, 0)), constant_values=filler)
    view = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(1, 2))
    return view[:, :: strides[0], :: strides[1]]


def accumulate(
    codes: np.ndarray,
    kernel: np.ndarray,
    op: Op,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = NO_PADDING,
) -> np.ndarray:
    """Exact accumulators, without bias, of one weighted layer.

    Parameters
    ----------
    codes : np.ndarray [shape=(n, h, w, c) or (n, features)], integer
    kernel : np.ndarray, integer
        [h, w, in, out] for conv, [h, w, channels, 1] for depthwise, [in, out] for dense
    op : 'conv', 'depthwise' or 'dense'

    Returns
    -------
    np.ndarray [shape=(n, h', w', out) or (n, out)], int64

    Notes
    -----
    The sums run in float64, which is exact below 2^53; 16-bit codes and kernels with up to 2^21
    terms stay below that.
    """
    codes, kernel = np.asarray(codes, np.float64), np.asarray(kernel, np.float64)
    if op == "dense":
        return (codes @ kernel).astype(np.int64)
    if op == "conv" and kernel.shape[:2] == (1, 1) and strides == (1, 1) and not np.any(padding):
        return (codes @ kernel[0, 0]).astype(np.int64)
    rows, columns = kernel.shape[:2]
    view = _windows(codes, (rows, columns), strides, padding)
    if op == "conv":
        return np.tensordot(view, kernel, axes=([4, 5, 3], [0, 1, 2])).astype(np.int64)
    total = np.zeros(view.shape[:4])
    for i, j in np.ndindex(rows, columns):
        total += view[..., i, j] * kernel[i, j, :, 0]
    return total.astype(np.int64)


def max_pool(
    codes: np.ndarray,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding = NO_PADDING,
) -> np.ndarray:
    """Maximum over sliding windows of [n, h, w, c]."""
    if window == (1, 1) == strides:
        return codes
    return _windows(codes, window, strides, padding, filler=INT16[0] - 1).max((4, 5))


def average_pool(
    codes: np.ndarray,
    number: MapType,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Padding = NO_PADDING,
) -> np.ndarray:
    """Average over sliding windows of [n, h, w, c], the padding left out.

    The device rounds the stored integers, zero point included, half away from zero.
    """
    zero = number.zero_point
    total = _windows(codes + zero, window, strides, padding).sum((4, 5))
    ones = np.ones((1, *codes.shape[1:3], 1), np.int64)
    count = _windows(ones, window, strides, padding).sum((4, 5))
    return np.sign(total) * ((np.abs(total) + count // 2) // count) - zero


def mean(codes: np.ndarray, source: MapType, target: MapType) -> np.ndarray:
    """Mean over height and width of [n, h, w, c] on the target's step, before saturation [n, c]."""
    count = codes.shape[1] * codes.shape[2]
    mantissa, shift = (int(v) for v in quantized_multiplier(source.step / target.step))
    # As in TFLite: the division by the count goes into the mantissa, with what precision is left.
    extra = min(count.bit_length() - 1, 32, 31 + shift)
    return scaled_int32(codes.sum((1, 2)), (mantissa << extra) // count, shift - extra)


# Bits by which the device shifts the codes of two maps before it adds them: all in int8, or not.
SUM_SHIFTS = (20, 15)


def sum_shift(sources: tuple[MapType, ...], target: MapType) -> int:
    """Bits by which the device shifts the codes of these two maps before it adds them."""
    return SUM_SHIFTS[any(number.is_wide for number in (*sources, target))]


def add(
    a: np.ndarray, b: np.ndarray, sources: tuple[MapType, MapType], target: MapType
) -> np.ndarray:
    """Sum of two maps on the target's step, before saturation.

    All three live in int16 if one of them needs it.
    """
    bits = sum_shift(sources, target)
    twice = 2 * max(m.step for m in sources)
    first, second = (
        requantize_int32(x << bits, m.step / twice) for x, m in zip((a, b), sources, strict=True)
    )
    total = first + second
    return requantize_int32(total, twice / (2**bits * target.step))


def multiply(
    a: np.ndarray, b: np.ndarray, sources: tuple[MapType, MapType], target: MapType
) -> np.ndarray:
    """Product of two maps (they broadcast) on the target's step, before saturation."""
    return requantize_int32(a * b, sources[0].step * sources[1].step / target.step)
