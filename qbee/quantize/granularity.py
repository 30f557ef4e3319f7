"""Kernel quantizers with finer scales than one per channel, and the bits each format takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch

from qbee.errors import ParameterError
from qbee.keras import known_to_qkeras, qkeras, tf
from qbee.quantize.codebook import FREE_SCALE_BITS, quantized_codebook
from qbee.quantize.quantizers import power_of_two, quantized_kernel, straight_through

# Storage of the power-of-two step of a channel or block.
EXPONENT_BITS = 8
# Rouhani et al. 2023: mantissa bits without the sign, by nominal bits per weight.
MANTISSA_BITS = {4: 2, 6: 4, 9: 7}
MX_BLOCK, MX_PAIR = 16, 2
# Steps 2^-7 finer (MX9 with its micro-exponent) are still normal float32 numbers.
LOWEST_SHARED_EXPONENT = -119
# Coarse scales below this would make products with small codes denormal.
LOWEST_COARSE_SCALE = 2.0**-120


def channel_axis(shape: Sequence[int], scale_axis: int) -> int:
    """Non-negative axis of the output channels.

    Raises
    ------
    ParameterError
        if ``shape`` has no such axis.
    """
    if not -len(shape) <= scale_axis < len(shape):
        raise ParameterError(f"scale_axis={scale_axis} must be an axis of the shape {tuple(shape)}")
    return scale_axis % len(shape)


def exponent_of(x):
    """``floor(log2(abs(x)))`` of float32 ``x``, int32, exact; -127 for 0 and denormal numbers."""
    return tf.bitwise.right_shift(tf.bitcast(tf.abs(x), tf.int32), 23) - 127


class BlockQuantizer(qkeras.quantizers.BaseQuantizer):
    """Base of kernel quantizers that share scales in blocks along the reduction.

    The reduction of a channel is all weights that one output sums over, input channels fastest:
    [kh, kw, in] of a convolution. A block thus runs along the input channels and goes on with
    the next tap only where they end; the last block of a channel is padded with zeros.
    Subclasses say how ``[channels, blocks, block_size]`` is quantized.
    """

    block_size: int

    def __init__(self, bits: int, scale_axis: int):
        super().__init__()
        self.bits, self.scale_axis = bits, scale_axis
        # QKeras rescales and clips the initial kernel unless alpha is a string.
        self.alpha = "auto"

    def max(self) -> float:
        """No limit: QKeras would clip kernels to [-1, 1] at every training step."""
        return tf.float32.max

    def _quantized(self, blocks):
        raise NotImplementedError

    def __call__(self, x):
        """Quantized float32 ``x``, same shape, with a straight-through gradient."""
        x = tf.convert_to_tensor(x)
        axis = channel_axis(x.shape, self.scale_axis)
        order = [axis, *(i for i in range(x.shape.rank) if i != axis)]
        moved = tf.transpose(x, order)
        rows = tf.reshape(tf.stop_gradient(moved), [x.shape[axis], -1])
        weights = rows.shape[1]
        padded = tf.pad(rows, [[0, 0], [0, -weights % self.block_size]])
        blocks = tf.reshape(padded, [x.shape[axis], -1, self.block_size])
        rows = tf.reshape(self._quantized(blocks), padded.shape)[:, :weights]
        back = sorted(range(x.shape.rank), key=order.__getitem__)
        return straight_through(x, tf.transpose(tf.reshape(rows, moved.shape), back))

    def __str__(self) -> str:
        arguments = ",".join(f"{name}={value}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)


@known_to_qkeras
class quantized_vectors(BlockQuantizer):  # noqa: N801 - QKeras' naming
    """VS-Quant: an integer scale per short vector times a coarse scale per output channel.

    No .tflite can hold this form: TFLite Micro has one scale per channel and none per vector.
    Export must refuse it or store the values as int8 or int16; it serves to compare accuracy
    per bit.

    Parameters
    ----------
    bits : int in [2, 8]
        of a weight, with its sign.
    vector_size : int >= 1
        weights that share an integer scale.
    scale_bits : int in [2, 8]
        of the unsigned integer scales, 1 to ``2**scale_bits - 1``.
    scale_axis : int
        axis of the output channels: 2 for depthwise kernels.

    Raises
    ------
    ParameterError
        if an argument is out of range.

    Notes
    -----
    ``w = code * scale[vector] * coarse[channel]`` (Dai et al. 2021, arXiv:2102.04503). The
    coarse scale lets the channel's peak have the largest code and scale, as in the paper; the
    other vectors take the integer scale of least squared error. The coarse scale is rounded to
    bfloat16, so that all values are exact in float32 and rounding twice changes nothing.
    """

    def __init__(self, bits: int, vector_size: int = 16, scale_bits: int = 4, scale_axis: int = -1):
        super().__init__(bits, scale_axis)
        for name, value in (("bits", bits), ("scale_bits", scale_bits)):
            if not 2 <= value <= 8:
                raise ParameterError(f"{name}={value} must be in [2, 8]")
        if vector_size < 1:
            raise ParameterError(f"vector_size={vector_size} must be at least 1")
        self.vector_size = self.block_size = vector_size
        self.scale_bits = scale_bits
        self.max_code = 2.0 ** (bits - 1) - 1
        self.max_scale = 2.0**scale_bits - 1

    def _codes(self, units, scales):
        return tf.clip_by_value(tf.round(units / scales), -self.max_code, self.max_code)

    def _best_scales(self, units):
        """Integer scale [channels, vectors, 1] of least squared error, float32."""

        def better(best, scale):
            errors = (self._codes(units, scale) * scale - units) ** 2
            error = tf.reduce_sum(errors, -1, keepdims=True)
            is_better = error < best[0]
            return tf.where(is_better, error, best[0]), tf.where(is_better, scale, best[1])

        worst = tf.fill([*units.shape[:-1], 1], float("inf"))
        candidates = tf.range(1.0, self.max_scale + 1)
        return tf.foldl(better, candidates, (worst, tf.ones_like(worst)))[1]

    def _quantized(self, blocks):
        peaks = tf.reduce_max(tf.abs(blocks), -1, keepdims=True)
        peak = tf.reduce_max(peaks, 1, keepdims=True)
        coarse = tf.maximum(peak * (1 / (self.max_code * self.max_scale)), LOWEST_COARSE_SCALE)
        coarse = tf.cast(tf.cast(coarse, tf.bfloat16), tf.float32)
        units = blocks / coarse
        # A smaller scale would clip the peak, and quantizing twice would find another coarse scale.
        scales = tf.where(peaks == peak, self.max_scale, self._best_scales(units))
        return self._codes(units, scales) * scales * coarse

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        names = ("bits", "vector_size", "scale_bits", "scale_axis")
        return {name: getattr(self, name) for name in names}


@known_to_qkeras
class quantized_micro_exponents(BlockQuantizer):  # noqa: N801 - QKeras' naming
    """Shared micro-exponents: MX4, MX6 and MX9 of the block data representations (BDR).

    No .tflite can hold this form: TFLite Micro has one scale per channel and none per block.
    Export must refuse it or store the values as int8 or int16; it serves to compare accuracy
    per bit.

    Parameters
    ----------
    bits : 4, 6 or 9
        nominal bits per weight, all shared exponents included.
    scale_axis : int
        axis of the output channels: 2 for depthwise kernels.

    Raises
    ------
    ParameterError
        if there is no such format.

    Notes
    -----
    16 weights share the 8-bit exponent E of their peak. Two share a 1-bit micro-exponent: it
    halves their step if both lie below ``2**E``. Each weight has a sign and 2, 4 or 7 mantissa
    bits without a hidden one, so its step is ``2**(E - micro - mantissa_bits + 1)``; mantissas
    are rounded half to even and saturate (Rouhani et al. 2023, arXiv:2302.08007).
    """

    block_size = MX_BLOCK

    def __init__(self, bits: int, scale_axis: int = -1):
        super().__init__(bits, scale_axis)
        if bits not in MANTISSA_BITS:
            raise ParameterError(f"bits={bits} must be 4, 6 or 9")
        self.mantissa_bits = MANTISSA_BITS[bits]

    def _quantized(self, blocks):
        pairs = tf.reshape(blocks, [*blocks.shape[:2], MX_BLOCK // MX_PAIR, MX_PAIR])
        own = tf.reduce_max(exponent_of(pairs), -1, keepdims=True)
        shared = tf.maximum(tf.reduce_max(own, -2, keepdims=True), LOWEST_SHARED_EXPONENT)
        micro = tf.minimum(shared - own, 1)
        step = power_of_two(shared - micro - self.mantissa_bits + 1)
        limit = 2.0**self.mantissa_bits - 1
        return tf.clip_by_value(tf.round(pairs / step), -limit, limit) * step

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"bits": self.bits, "scale_axis": self.scale_axis}


def _reduction(shape: Sequence[int], scale_axis: int | None) -> int:
    """Weights that share a scale: of one channel, or of the whole kernel for None."""
    channels = 1 if scale_axis is None else shape[channel_axis(shape, scale_axis)]
    return math.prod(shape) // channels


@singledispatch
def effective_bits(quantizer, shape: Sequence[int]) -> float:
    """Stored bits per weight of a kernel, with its scales, exponents or codebook.

    A step that is a power of two counts 8 bits (the shared exponent of MX), a free scale or a
    centroid the 32 bits of the float that holds it. Padding counts nothing, but the last,
    shorter vector or block of a channel has a scale like any other.

    Parameters
    ----------
    quantizer : quantized_kernel, quantized_vectors, quantized_micro_exponents, quantized_codebook
    shape : of the kernel

    Raises
    ------
    ParameterError
        if ``quantizer`` is none of these.
    """
    raise ParameterError(
        f"quantizer={quantizer} must be a quantized_kernel, quantized_vectors, "
        "quantized_micro_exponents or quantized_codebook"
    )


@effective_bits.register
def _(quantizer: quantized_kernel, shape: Sequence[int]) -> float:
    scale_bits = EXPONENT_BITS if quantizer.alpha == "auto_po2" else FREE_SCALE_BITS
    return quantizer.bits + scale_bits / _reduction(shape, quantizer.scale_axis)


@effective_bits.register
def _(quantizer: quantized_vectors, shape: Sequence[int]) -> float:
    weights = _reduction(shape, quantizer.scale_axis)
    scales = math.ceil(weights / quantizer.vector_size) * quantizer.scale_bits
    return quantizer.bits + (scales + FREE_SCALE_BITS) / weights


@effective_bits.register
def _(quantizer: quantized_micro_exponents, shape: Sequence[int]) -> float:
    weights = _reduction(shape, quantizer.scale_axis)
    shared = EXPONENT_BITS * math.ceil(weights / MX_BLOCK) + math.ceil(weights / MX_PAIR)
    return quantizer.mantissa_bits + 1 + shared / weights


@effective_bits.register
def _(quantizer: quantized_codebook, shape: Sequence[int]) -> float:
    return quantizer.bits + 2**quantizer.bits * FREE_SCALE_BITS / math.prod(shape)
