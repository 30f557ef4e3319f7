"""The Keras layer whose inference is the integer specification, code for code."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from qbee.keras import keras, tf
from qbee.quantize.fixed_point import (
    INT16,
    SPLIT_FRACTION_BITS,
    MapType,
    arithmetic_of,
    max_kernel_code,
)
from qbee.quantize.quantizers import power_of_two, quantized_bias, quantized_kernel
from qbee.quantize.quantizers import straight_through as straight

# Axis of the output channels in a Keras kernel of each kind.
CHANNEL_AXIS = {"conv": 3, "depthwise": 2, "dense": 1}
# TFLite Micro replaces multipliers below 2^-32 by 0.
LARGEST_SHIFT = 31


def kernel_quantizer(kind: str, bits: int) -> quantized_kernel:
    """Quantizer with one step per channel; 4-bit dense kernels have one step in all.

    TFLite Micro has no per-channel int4 FULLY_CONNECTED.
    """
    per_tensor = kind == "dense" and bits == 4
    return quantized_kernel(bits, scale_axis=None if per_tensor else CHANNEL_AXIS[kind])


def _round_int32(codes, k):
    """``requantize_int32`` in floating point, of accumulator codes and shifts."""
    halved = tf.floor((codes + 1) / 2) * 2.0 ** (1 - k)
    right = tf.sign(halved) * tf.floor(tf.abs(halved) + 0.5)
    return tf.where(k > 0, right, codes * 2.0**-k)


def _round_int64(codes, k):
    """``requantize_int64`` in floating point, of accumulator codes and shifts."""
    return tf.floor(codes * 2.0**-k + 0.5)


class QuantizedLayer(keras.layers.Layer):
    """Convolution, depthwise convolution or dense layer with max-pool, ReLU and quantized output.

    The max-pool comes before bias, ReLU and rounding, which is exact because all three are
    monotone, and four times cheaper. In training the sums are float32 and gradients pass
    straight through rounding, but not through saturation. At inference every operation is exact
    (float64 where float32 would not be), so outputs are the device's codes times the step.

    Parameters
    ----------
    kind : 'conv', 'depthwise' or 'dense'
    kernel_shape : tuple
    kernel_bits, bias_bits : int
    source, target : MapType or its dict
        number formats of input and output.
    """

    def __init__(
        self,
        *,
        kind,
        kernel_shape,
        kernel_bits,
        bias_bits,
        source,
        target,
        has_relu,
        stride,
        pool,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kind, self.kernel_shape = kind, tuple(kernel_shape)
        self.kernel_quantizer = kernel_quantizer(kind, kernel_bits)
        self.bias_quantizer = quantized_bias(bias_bits)
        self.source = source if isinstance(source, MapType) else MapType(**source)
        self.target = target if isinstance(target, MapType) else MapType(**target)
        self.has_relu, self.stride, self.pool = has_relu, stride, pool

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.kernel_shape[CHANNEL_AXIS[self.kind]]

    @property
    def arithmetic(self) -> str:
        """Which of the device's ways computes this layer."""
        return arithmetic_of(self.source.bits, self.kernel_quantizer.bits, self.target.bits)

    def build(self, input_shape):
        """Create kernel and bias."""
        self.kernel = self.add_weight("kernel", self.kernel_shape)
        self.bias = self.add_weight("bias", (self.channels,), initializer="zeros")
        super().build(input_shape)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "kind": self.kind,
            "kernel_shape": self.kernel_shape,
            "kernel_bits": self.kernel_quantizer.bits,
            "bias_bits": self.bias_quantizer.bits,
            "source": asdict(self.source),
            "target": asdict(self.target),
            "has_relu": self.has_relu,
            "stride": self.stride,
            "pool": self.pool,
        }

    def _lowest_exponents(self):
        """Finest kernel exponents whose bias codes and shifts the device can hold.

        They matter to channels whose kernel is tiny beside their bias (a batch norm that has
        all but switched the channel off).
        """
        limit = 2.0 ** (30 if self.arithmetic == "int32" else 46)
        peak = tf.maximum(tf.abs(self.bias), 2.0**-100)
        of_bias = tf.cast(tf.math.ceil(tf.math.log(peak / limit) / tf.math.log(2.0)), tf.int32)
        lowest = tf.maximum(of_bias, self.target.exponent - LARGEST_SHIFT) - self.source.exponent
        axis = self.kernel_quantizer.scale_axis
        if axis is None:
            return tf.reduce_max(lowest)
        return tf.reshape(lowest, [-1 if i == axis else 1 for i in range(len(self.kernel_shape))])

    def quantized(self):
        """Quantized kernel, its exponents [out], and quantized bias on the accumulator's grid."""
        lowest = self._lowest_exponents()
        kernel, exponents = self.kernel_quantizer.with_exponents(self.kernel, lowest)
        exponents = tf.broadcast_to(tf.reshape(exponents, [-1]), [self.channels])
        bias = self.bias_quantizer.on_grid(self.bias, exponents + self.source.exponent)
        return kernel, exponents, bias

    def call(self, inputs, training=None):
        """Quantized output; inputs must lie on the grid of ``source``."""
        kernel, exponents, bias = self.quantized()
        shifts = self.target.exponent - self.source.exponent - exponents
        if training:
            return self._trained(self._pooled(self._products(inputs, kernel)) + bias, shifts)
        step = tf.cast(power_of_two(exponents), tf.float64)
        bias = self.bias_quantizer.codes(self.bias, exponents + self.source.exponent)
        if self.arithmetic == "int64_split":
            return self._split(inputs, kernel, step, bias, shifts)
        sums = self._products(self._exact(inputs), self._exact(kernel))
        codes = tf.cast(self._pooled(sums), tf.float64) * 2.0**-self.source.exponent / step
        return self._values(self._rounded(codes + bias, shifts))

    def _exact(self, x):
        """``x``, widened if float32 could not hold every sum of products of codes."""
        terms = np.prod(self.kernel_shape) // self.channels
        largest = max(-self.source.codes[0], self.source.codes[1])
        is_exact = terms * largest * max_kernel_code(self.kernel_quantizer.bits) < 2**24
        return x if is_exact else tf.cast(x, tf.float64)

    def _products(self, x, kernel):
        """Sums of products of inputs and kernel."""
        strides = [1, self.stride, self.stride, 1]
        if self.kind == "dense":
            return tf.matmul(tf.reshape(x, [-1, self.kernel_shape[0]]), kernel)
        if self.kind == "conv":
            return tf.nn.conv2d(x, kernel, strides, "SAME")
        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME")

    def _pooled(self, y):
        return y if self.pool == 1 else tf.nn.max_pool2d(y, self.pool, self.pool, "VALID")

    def _rounded(self, codes, shifts):
        """Output codes, before saturation, of accumulator codes."""
        round_ = _round_int32 if self.arithmetic == "int32" else _round_int64
        return round_(codes, tf.cast(shifts, codes.dtype))

    def _values(self, codes):
        """Real values, float32, of output codes after saturation."""
        lowest, highest = (float(c) for c in self.target.codes)
        return tf.cast(tf.clip_by_value(codes, lowest, highest), tf.float32) * (
            2.0**self.target.exponent
        )

    def _trained(self, y, shifts):
        """Rounded and saturated ``y``; the gradient ignores the rounding only."""
        accumulator = tf.round(
            tf.stop_gradient(y) * 2.0**-self.target.exponent * power_of_two(shifts)
        )
        lowest, highest = (c * 2.0**self.target.exponent for c in self.target.codes)
        rounded = self._values(self._rounded(accumulator, shifts))
        return straight(tf.clip_by_value(y, lowest, highest), rounded)

    def _split(self, inputs, kernel, step, bias, shifts):
        """Twin of ``fixed_point._split_forward``; only the finished sum may be pooled."""
        fraction = 0 if self.target.bits == 16 else SPLIT_FRACTION_BITS
        channels = [-1 if i == CHANNEL_AXIS[self.kind] else 1 for i in range(kernel.shape.rank)]
        codes = tf.cast(kernel, tf.float64) / tf.reshape(step, channels)
        hi = tf.floor((codes + 128) / 256)
        source = tf.cast(inputs, tf.float64) * 2.0**-self.source.exponent
        k = tf.cast(shifts - fraction, tf.float64)
        parts = []
        for part, factor, offset in ((hi, 256.0, 0.0), (codes - 256 * hi, 1.0, bias)):
            total = self._products(source, part) * factor + offset
            parts.append(tf.clip_by_value(_round_int64(total, k), *map(float, INT16)))
        lowest = 0.0 if self.has_relu else float(INT16[0])
        total = self._pooled(tf.clip_by_value(parts[0] + parts[1], lowest, float(INT16[1])))
        return self._values(_round_int32(total, tf.constant(float(fraction), tf.float64)))
