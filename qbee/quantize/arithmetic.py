"""What a quantized layer computes, from tensors: floating point in training, integers after it.

The same code serves layers of one width and layers whose widths are variables (``live``): number
formats and bit limits may be numbers or tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from qbee.keras import tf
from qbee.quantize import exact, fixed_net, ops
from qbee.quantize.fixed_net import SPLIT_FRACTION_BITS
from qbee.quantize.fixed_point import INT16
from qbee.quantize.graph import CHANNEL_AXIS, Node
from qbee.quantize.live import LiveMap
from qbee.quantize.quantizers import power_of_two

# TFLite Micro replaces multipliers below 2^-32 by 0.
LARGEST_SHIFT = 31
# Integers below this are exact in float32, and so are their halves.
EXACT_FLOAT32 = 2.0**23


def fake_quantized(y, step, limits, *, is_signed: bool, up=0.0, down=0.0):
    """Nearest value on the grid, saturating; the gradient ignores the rounding only.

    Halves are rounded away from zero after ``up`` or ``down`` codes were added to the magnitude
    of a positive or negative value.
    """
    low, high = (tf.cast(limit * step, tf.float32) for limit in limits)
    lowest, highest = (tf.cast(limit, tf.float32) for limit in limits)
    inverse, step = tf.cast(1 / step, tf.float32), tf.cast(step, tf.float32)

    @tf.custom_gradient
    def rounded(y):
        scaled = y * inverse
        codes = tf.floor(scaled + (0.5 + up))
        if is_signed:
            codes = tf.where(scaled < 0, -tf.floor((0.5 + down) - scaled), codes)
        codes = tf.clip_by_value(codes, lowest, highest)

        def gradient(upstream):
            return tf.where(tf.logical_and(y >= low, y <= high), upstream, 0.0)

        return codes * step, gradient

    return rounded(y)


class OpArithmetic:
    """A node without weights, its activation, its max-pool and its quantized output.

    Parameters
    ----------
    sources, target : MapType or LiveMap
        number formats of inputs and output
    """

    def __init__(self, node: Node, sources: tuple[Any, ...], target: Any):
        self.node, self.sources, self.target = node, sources, target
        self.is_signed = target.is_signed and node.activation == "linear"

    @property
    def limits(self):
        """Lowest and highest code of the output."""
        if isinstance(self.target, LiveMap):
            return self.target.limits(self.node.activation)
        return fixed_net.limits(self.node.activation, self.target)

    @property
    def is_integer(self) -> bool:
        """Whether it computes; reordering and maxima keep every value on its grid."""
        return self.node.op in exact.UNWEIGHTED

    def trained(self, *inputs):
        """Output in training: floating point, rounded to the grid."""
        y = ops.UNWEIGHTED[self.node.op](self.node, *inputs)
        if not self.is_integer:
            return y
        y = fake_quantized(y, self.target.step, self.limits, is_signed=self.is_signed)
        return ops.pooled(y, self.node.pool)

    def inferred(self, *inputs):
        """Output at inference; inputs must lie on the grids of ``sources``."""
        if not self.is_integer:
            return ops.UNWEIGHTED[self.node.op](self.node, *inputs)
        codes = [exact.codes_of(x, s) for x, s in zip(inputs, self.sources, strict=True)]
        found = exact.UNWEIGHTED[self.node.op](self.node, self.sources, self.target, *codes)
        lowest, highest = (tf.cast(limit, tf.int64) for limit in self.limits)
        values = exact.values_of(tf.clip_by_value(found, lowest, highest), self.target)
        return ops.pooled(values, self.node.pool)


class WeightedArithmetic(OpArithmetic):
    """Convolution, depthwise convolution or dense layer with activation and max-pool.

    The max-pool comes before bias, activation and rounding, which is exact because all three are
    monotone, and four times cheaper.

    Parameters
    ----------
    kernel_quantizer, bias_quantizer
        as ``quantized_kernel`` and ``quantized_bias``
    arithmetic : Arithmetic, or Choice among ``ARITHMETICS``
        which of the device's ways computes this layer
    is_shift : bool
        all steps are powers of two, so that rescaling is a shift
    """

    ARITHMETICS = ("int32", "int64", "int64_split")

    def __init__(
        self,
        node: Node,
        sources: tuple[Any, ...],
        target: Any,
        *,
        kernel_quantizer: Any,
        bias_quantizer: Any,
        arithmetic: Any,
        is_shift: bool,
    ):
        super().__init__(node, sources, target)
        self.kernel_quantizer, self.bias_quantizer = kernel_quantizer, bias_quantizer
        self.arithmetic, self.is_shift = arithmetic, is_shift

    @property
    def source(self):
        """Number format of the input."""
        return self.sources[0]

    def _of_arithmetic(self, int32, others):
        """One of two values, by whether the accumulators are int32."""
        if isinstance(self.arithmetic, str):
            return int32 if self.arithmetic == "int32" else others
        return tf.where(self.arithmetic.index == 0, int32, others)

    def by_channel(self, values, rank: int):
        """Values [out] in the rank of the kernel."""
        axis = CHANNEL_AXIS[self.node.op]
        return tf.reshape(values, [-1 if i == axis else 1 for i in range(rank)])

    def _lowest_steps(self, kernel, bias):
        """Finest kernel steps whose bias codes and multipliers the device can hold.

        They matter to channels whose kernel is tiny beside their bias (a batch norm that has
        all but switched the channel off).
        """
        limit = self._of_arithmetic(2.0**30, 2.0**46)
        target, source = (tf.cast(m.step, tf.float32) for m in (self.target, self.source))
        finest = target * 2.0**-LARGEST_SHIFT
        needed = tf.maximum(tf.abs(bias) / limit, finest) / source
        log2 = tf.math.log(tf.maximum(needed, 2.0**-120)) / tf.math.log(2.0)
        return self.by_channel(power_of_two(tf.math.ceil(log2)), len(kernel.shape))

    def quantized(self, kernel, bias):
        """Quantized kernel, the steps [out] of its codes, and quantized bias."""
        lowest = self._lowest_steps(kernel, bias)
        quantized, steps = self.kernel_quantizer.with_steps(kernel, lowest)
        steps = tf.broadcast_to(tf.reshape(steps, [-1]), bias.shape)
        return quantized, steps, self.bias_quantizer.on_grid(bias, self._grid(steps))

    def _grid(self, steps):
        """Steps [out], float64, of the accumulators."""
        return tf.cast(steps, tf.float64) * tf.cast(self.source.step, tf.float64)

    def _multipliers(self, steps):
        return self._grid(steps) / tf.cast(self.target.step, tf.float64)

    def integers(self, kernel, bias):
        """Kernel codes (float32), their steps [out], and accumulator codes of the bias (int64)."""
        _, steps, _ = self.quantized(kernel, bias)
        by_channel = self.by_channel(steps, len(kernel.shape))
        codes = self.kernel_quantizer.codes(kernel, by_channel)
        return codes, steps, tf.cast(self.bias_quantizer.codes(bias, self._grid(steps)), tf.int64)

    def inferred(self, inputs, kernel, bias):
        """Output at inference; inputs must lie on the grid of ``source``."""
        kernel, steps, bias = self.integers(kernel, bias)
        multipliers, codes = self._multipliers(steps), exact.float_codes_of(inputs, self.source)
        return self._by_arithmetic(
            "int64_split",
            lambda: self._split(codes, kernel, bias, multipliers),
            lambda: self._rescaled(codes, kernel, bias, multipliers),
        )

    def _by_arithmetic(self, way: str, compute: Callable, otherwise: Callable):
        """Result of one of two functions, by whether a way is taken."""
        if isinstance(self.arithmetic, str):
            return compute() if self.arithmetic == way else otherwise()
        return tf.cond(self.arithmetic.index == self.ARITHMETICS.index(way), compute, otherwise)

    def _saturated(self, codes):
        lowest, highest = (tf.cast(limit, codes.dtype) for limit in self.limits)
        return exact.values_of(tf.clip_by_value(codes, lowest, highest), self.target)

    def _rescaled(self, codes, kernel, bias, multipliers):
        """One convolution whose sums are rescaled; in float32 if it holds all of them exactly."""
        others = [i for i in range(len(kernel.shape)) if i != CHANNEL_AXIS[self.node.op]]
        lowest, highest = (tf.cast(code, tf.float32) for code in self.source.codes)
        sums = tf.reduce_sum(tf.abs(kernel), others) * tf.maximum(-lowest, highest)
        return tf.cond(
            tf.reduce_max(sums + tf.cast(tf.abs(bias), tf.float32)) < EXACT_FLOAT32,
            lambda: self._rescaled_in(tf.float32, codes, kernel, bias, multipliers),
            lambda: self._rescaled_in(tf.float64, codes, kernel, bias, multipliers),
        )

    def _rescaled_in(self, dtype, codes, kernel, bias, multipliers):
        found = ops.products(self.node, tf.cast(codes, dtype), tf.cast(kernel, dtype))
        total = ops.pooled(found, self.node.pool) + tf.cast(bias, dtype)
        if self.is_shift:
            multipliers = tf.cast(multipliers, dtype)
        else:
            total = tf.cast(total, tf.int64)
        int32, others = self._requantizers()
        return self._by_arithmetic(
            "int32",
            lambda: self._saturated(int32(total, multipliers)),
            lambda: self._saturated(others(total, multipliers)),
        )

    def _requantizers(self) -> tuple[Callable, Callable]:
        """Functions of accumulators and multipliers, for int32 and for other arithmetic."""
        if self.is_shift:
            return partial(exact.shifted_int32, is_signed=self.is_signed), exact.shifted_int64
        return exact.requantize_int32, exact.requantize_int64

    def trained(self, inputs, kernel, bias):
        """Rounded as on the device, but for ties: float32 sums do not lie exactly on a grid."""
        kernel, steps, bias = self.quantized(kernel, bias)
        y = ops.pooled(ops.products(self.node, inputs, kernel), self.node.pool) + bias
        multipliers = tf.cast(self._multipliers(steps), tf.float32)
        # Half of an accumulator code keeps sums that ought to be ties on their side, which is up.
        up = tf.where(multipliers <= 0.5, 0.5 * multipliers, 0.0)
        # Before it shifts by two bits or more, the device adds one to positive accumulators.
        up_int32 = tf.where(multipliers <= 0.25, 3 * up, up)
        down_int32 = tf.where(multipliers < 0.5, up, -up)
        return fake_quantized(
            y,
            self.target.step,
            self.limits,
            is_signed=self.is_signed,
            up=self._of_arithmetic(up_int32, up),
            down=self._of_arithmetic(down_int32, -up),
        )

    def _split(self, codes, kernel, bias, multipliers):
        """Twin of ``fixed_net._split``; only the finished sum may be pooled."""
        finer = tf.constant(2.0**SPLIT_FRACTION_BITS, tf.float64)
        finer = tf.where(self.target.is_wide, tf.ones_like(finer), finer)
        source, kernel = tf.cast(codes, tf.float64), tf.cast(kernel, tf.float64)
        hi = tf.floor((kernel + 128) / 256)
        high = tf.bitwise.right_shift(bias + 128, tf.constant(8, tf.int64))
        parts = []
        for part, factor, offset in (
            (hi, 256.0, high),
            (kernel - 256 * hi, 1.0, bias - 256 * high),
        ):
            total = tf.cast(ops.products(self.node, source, part), tf.int64) + offset
            found = exact.requantize_int64(total, multipliers * factor * finer)
            parts.append(tf.clip_by_value(found, *INT16))
        lowest = INT16[0] if self.node.activation == "linear" else 0
        total = tf.clip_by_value(parts[0] + parts[1], lowest, INT16[1])
        pooled = ops.pooled(tf.cast(total, tf.float32), self.node.pool)
        return self._saturated(exact.requantize_int32(tf.cast(pooled, tf.int64), 1 / finer))
