"""The Keras layers whose inference is the integer specification, code for code."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from qbee.keras import keras, tf
from qbee.quantize import exact, ops
from qbee.quantize.fixed_net import SPLIT_FRACTION_BITS, limits
from qbee.quantize.fixed_point import INT16, MapType, arithmetic_of, max_kernel_code
from qbee.quantize.graph import CHANNEL_AXIS, Node, Op
from qbee.quantize.quantizers import Alpha, power_of_two, quantized_bias, quantized_kernel

# TFLite Micro replaces multipliers below 2^-32 by 0.
LARGEST_SHIFT = 31


def kernel_quantizer(
    op: Op, bits: int, alpha: Alpha = "auto_po2", *, is_per_tensor: bool = False
) -> quantized_kernel:
    """Quantizer with one step per channel; 4-bit dense kernels have one step in all.

    TFLite Micro has no per-channel int4 FULLY_CONNECTED.
    """
    is_single = is_per_tensor or (op == "dense" and bits <= 4)
    return quantized_kernel(bits, alpha, scale_axis=None if is_single else CHANNEL_AXIS[op])


def fake_quantized(y, step: float, limits: tuple[int, int], up=0.0, down=0.0):
    """Nearest value on the grid, saturating; the gradient ignores the rounding only.

    Halves are rounded away from zero after ``up`` or ``down`` codes were added to the magnitude
    of a positive or negative value.
    """
    lowest, highest = limits

    @tf.custom_gradient
    def rounded(y):
        scaled = y * (1 / step)
        codes = tf.floor(scaled + (0.5 + up))
        if lowest < 0:
            codes = tf.where(scaled < 0, -tf.floor((0.5 + down) - scaled), codes)
        codes = tf.clip_by_value(codes, lowest, highest)

        def gradient(upstream):
            is_inside = tf.logical_and(y >= lowest * step, y <= highest * step)
            return tf.where(is_inside, upstream, 0.0)

        return codes * step, gradient

    return rounded(y)


def _number(value: MapType | dict) -> MapType:
    return value if isinstance(value, MapType) else MapType(**value)


def _node(value: Node | dict) -> Node:
    if isinstance(value, Node):
        return value
    lists = ("inputs", "shape", "window", "strides")
    padding = tuple(tuple(pair) for pair in value["padding"])
    return Node(**{**value, **{k: tuple(value[k]) for k in lists}, "padding": padding})


class QuantizedOp(keras.layers.Layer):
    """A node without weights, its activation, its max-pool and its quantized output.

    In training the operation is floating-point and gradients pass straight through rounding, but
    not through saturation. At inference it is integer arithmetic, so outputs are the device's
    codes times the step.

    Parameters
    ----------
    node : Node or its dict
    sources, target : MapType or its dict
        number formats of inputs and output.
    """

    def __init__(self, *, node, sources, target, **kwargs):
        super().__init__(**kwargs)
        self.node, self.target = _node(node), _number(target)
        self.sources = tuple(_number(source) for source in sources)

    @property
    def limits(self) -> tuple[int, int]:
        """Lowest and highest code of the output."""
        return limits(self.node.activation, self.target)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "node": asdict(self.node),
            "sources": [asdict(source) for source in self.sources],
            "target": asdict(self.target),
        }

    def call(self, inputs, training=None):
        """Quantized output; inputs must lie on the grids of ``sources``."""
        inputs = inputs if isinstance(inputs, list | tuple) else [inputs]
        if self.node.op not in exact.UNWEIGHTED:
            # Reordering and maxima keep every value on its grid.
            return ops.UNWEIGHTED[self.node.op](self.node, *inputs)
        if training:
            y = ops.UNWEIGHTED[self.node.op](self.node, *inputs)
            y = fake_quantized(y, self.target.step, self.limits)
            return ops.pooled(y, self.node.pool)
        codes = [exact.codes_of(x, s) for x, s in zip(inputs, self.sources, strict=True)]
        found = exact.UNWEIGHTED[self.node.op](self.node, self.sources, self.target, *codes)
        values = exact.values_of(tf.clip_by_value(found, *self.limits), self.target)
        return ops.pooled(values, self.node.pool)


class QuantizedLayer(QuantizedOp):
    """Convolution, depthwise convolution or dense layer with activation and max-pool.

    The max-pool comes before bias, activation and rounding, which is exact because all three are
    monotone, and four times cheaper.

    Parameters
    ----------
    kernel_shape : tuple
    kernel_bits, bias_bits : int
    alpha, is_per_tensor
        of the kernel's quantizer.
    """

    def __init__(
        self,
        *,
        kernel_shape,
        kernel_bits,
        bias_bits,
        alpha="auto_po2",
        is_per_tensor=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.kernel_shape, self.is_per_tensor = tuple(kernel_shape), is_per_tensor
        self.kernel_quantizer = kernel_quantizer(
            self.node.op, kernel_bits, alpha, is_per_tensor=is_per_tensor
        )
        self.bias_quantizer = quantized_bias(bias_bits)

    @property
    def source(self) -> MapType:
        """Number format of the input."""
        return self.sources[0]

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels in the kernel."""
        return CHANNEL_AXIS[self.node.op]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.kernel_shape[self.channel_axis]

    @property
    def arithmetic(self) -> str:
        """Which of the device's ways computes this layer."""
        return arithmetic_of(self.source, self.kernel_quantizer.bits, self.target)

    def build(self, input_shape):
        """Create kernel and bias."""
        self.kernel = self.add_weight("kernel", self.kernel_shape)
        self.bias = self.add_weight("bias", (self.channels,), initializer="zeros")
        super().build(input_shape)

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            **super().get_config(),
            "kernel_shape": self.kernel_shape,
            "kernel_bits": self.kernel_quantizer.bits,
            "bias_bits": self.bias_quantizer.bits,
            "alpha": self.kernel_quantizer.alpha,
            "is_per_tensor": self.is_per_tensor,
        }

    def _by_channel(self, values):
        """Values [out] in the rank of the kernel."""
        axis = self.channel_axis
        return tf.reshape(values, [-1 if i == axis else 1 for i in range(len(self.kernel_shape))])

    def _lowest_steps(self):
        """Finest kernel steps whose bias codes and multipliers the device can hold.

        They matter to channels whose kernel is tiny beside their bias (a batch norm that has
        all but switched the channel off).
        """
        limit = 2.0 ** (30 if self.arithmetic == "int32" else 46)
        finest = self.target.step * 2.0**-LARGEST_SHIFT
        needed = tf.maximum(tf.abs(self.bias) / limit, finest) / self.source.step
        log2 = tf.math.log(tf.maximum(needed, 2.0**-120)) / tf.math.log(2.0)
        lowest = power_of_two(tf.math.ceil(log2))
        if self.kernel_quantizer.scale_axis is None:
            return tf.reduce_max(lowest)
        return self._by_channel(lowest)

    def quantized(self):
        """Quantized kernel, the steps [out] of its codes, and quantized bias."""
        kernel, steps = self.kernel_quantizer.with_steps(self.kernel, self._lowest_steps())
        steps = tf.broadcast_to(tf.reshape(steps, [-1]), [self.channels])
        return kernel, steps, self.bias_quantizer.on_grid(self.bias, self._grid(steps))

    def _grid(self, steps):
        """Steps [out], float64, of the accumulators."""
        return tf.cast(steps, tf.float64) * self.source.step

    def integers(self):
        """Kernel codes (float32), their steps [out], and accumulator codes of the bias (int64)."""
        _, steps, _ = self.quantized()
        codes = self.kernel_quantizer.codes(self.kernel, self._by_channel(steps))
        bias = self.bias_quantizer.codes(self.bias, self._grid(steps))
        return codes, steps, tf.cast(bias, tf.int64)

    def call(self, inputs, training=None):
        """Quantized output; inputs must lie on the grid of ``source``."""
        if training:
            return self._trained(inputs)
        kernel, steps, bias = self.integers()
        multipliers = self._grid(steps) / self.target.step
        codes = exact.codes_of(inputs, self.source)
        if self.arithmetic == "int64_split":
            found = self._split(codes, kernel, bias, multipliers)
        else:
            sums = ops.products(self.node, self._wide_enough(codes), self._wide_enough(kernel))
            total = tf.cast(ops.pooled(sums, self.node.pool), tf.int64) + bias
            is_int32 = self.arithmetic == "int32"
            rescale = exact.requantize_int32 if is_int32 else exact.requantize_int64
            found = rescale(total, multipliers)
        return exact.values_of(tf.clip_by_value(found, *self.limits), self.target)

    def _wide_enough(self, codes):
        """Codes in float32 if it can hold every sum of their products, else in float64."""
        terms = np.prod(self.kernel_shape) // self.channels
        largest = max(-self.source.codes[0], self.source.codes[1])
        is_exact = terms * largest * max_kernel_code(self.kernel_quantizer.bits) < 2**24
        return tf.cast(codes, tf.float32 if is_exact else tf.float64)

    def _trained(self, inputs):
        """Rounded as on the device, but for ties: float32 sums do not lie exactly on a grid."""
        kernel, steps, bias = self.quantized()
        y = ops.pooled(ops.products(self.node, inputs, kernel), self.node.pool) + bias
        multipliers = tf.cast(self._grid(steps) / self.target.step, tf.float32)
        # Half of an accumulator code keeps sums that ought to be ties on their side, which is up.
        up = tf.where(multipliers <= 0.5, 0.5 * multipliers, 0.0)
        down = -up
        if self.arithmetic == "int32":
            # Before it shifts by two bits or more, the device adds one to positive accumulators.
            up = tf.where(multipliers <= 0.25, 3 * up, up)
            down = tf.where(multipliers < 0.5, -down, down)
        return fake_quantized(y, self.target.step, self.limits, up, down)

    def _split(self, codes, kernel, bias, multipliers):
        """Twin of ``fixed_net._split``; only the finished sum may be pooled."""
        fraction = 0 if self.target.is_wide else SPLIT_FRACTION_BITS
        kernel = tf.cast(kernel, tf.float64)
        hi = tf.floor((kernel + 128) / 256)
        high = tf.bitwise.right_shift(bias + 128, tf.constant(8, tf.int64))
        source = tf.cast(codes, tf.float64)
        parts = []
        for part, factor, offset in ((hi, 256, high), (kernel - 256 * hi, 1, bias - 256 * high)):
            total = tf.cast(ops.products(self.node, source, part), tf.int64) + offset
            found = exact.requantize_int64(total, multipliers * float(factor * 2**fraction))
            parts.append(tf.clip_by_value(found, *INT16))
        lowest = INT16[0] if self.node.activation == "linear" else 0
        total = tf.clip_by_value(parts[0] + parts[1], lowest, INT16[1])
        pooled = ops.pooled(tf.cast(total, tf.float32), self.node.pool)
        total = tf.cast(pooled, tf.int64)
        return exact.requantize_int32(total, tf.constant(2.0**-fraction, tf.float64))
