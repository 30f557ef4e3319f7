"""QKeras quantizers of kernels and biases; their numpy twins are in ``fixed_point``."""

from __future__ import annotations

from typing import Literal

from qbee.errors import ParameterError
from qbee.keras import known_to_qkeras, qkeras, tf
from qbee.quantize.fixed_point import max_kernel_code
from qbee.quantize.power_of_two import CANDIDATES

Alpha = Literal["auto", "auto_po2"]
ALPHAS = ("auto", "auto_po2")
# Steps below 2^-126 are no normal float32; some candidates lie a little below this.
LOWEST_EXPONENT = -120.0


def straight_through(x, quantized):
    """``quantized`` exactly, with the gradient of ``x``.

    QKeras' ``x + stop_gradient(quantized - x)`` is off the grid by a rounding error; here
    ``x - stop_gradient(x)`` is exactly 0.
    """
    return tf.stop_gradient(quantized) + (x - tf.stop_gradient(x))


def power_of_two(exponents):
    """Exact ``2**exponents`` of integer tensors, float32 (``tf.pow`` may be off by an ulp)."""
    return tf.bitcast((tf.cast(exponents, tf.int32) + 127) * 2**23, tf.float32)


def covering_exponent(peak, max_code: int):
    """Exponents, int32, of the finest power-of-two grids up to ``max_code`` that cover ``peak``.

    0 where the peak is 0.
    """
    max_code = tf.cast(max_code, tf.float32)
    safe = tf.where(peak > 0, peak, max_code)
    log2 = tf.math.log(safe / max_code) / tf.math.log(2.0)
    return tf.cast(tf.maximum(tf.math.ceil(log2), LOWEST_EXPONENT), tf.int32)


@known_to_qkeras
class quantized_kernel(qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """Symmetric kernel quantizer with one step per channel.

    Parameters
    ----------
    bits : int in [2, 16]
    alpha : 'auto_po2' or 'auto'
        power-of-two step of least squared error, or the free step that reaches the peak.
    scale_axis : int or None
        axis of the channels (2 for depthwise kernels); None is one step for the whole kernel.

    Raises
    ------
    ParameterError
        if an argument is out of range.

    Notes
    -----
    No epsilon is added anywhere and an all-zero channel has step 1: the additive epsilon of
    QKeras' ``auto_po2`` makes 16-bit kernels lose 70 dB and 31-bit biases vanish.
    """

    def __init__(self, bits: int, alpha: Alpha = "auto_po2", scale_axis: int | None = None):
        super().__init__()
        if not 2 <= bits <= 16:
            raise ParameterError(f"bits={bits} must be in [2, 16]")
        if alpha not in ALPHAS:
            raise ParameterError(f"alpha={alpha!r} must be one of {', '.join(ALPHAS)}")
        self.bits, self.alpha, self.scale_axis = bits, alpha, scale_axis

    @property
    def max_code(self):
        """Largest absolute code."""
        return max_kernel_code(self.bits)

    def _shared_axes(self, x) -> list[int]:
        axis = None if self.scale_axis is None else self.scale_axis % len(x.shape)
        return [i for i in range(len(x.shape)) if i != axis]

    def steps(self, x):
        """Steps, float32, shaped like ``x`` with length 1 on the axes that share one."""
        axes = self._shared_axes(x)
        peak = tf.reduce_max(tf.abs(x), axes, keepdims=True)
        if self.alpha == "auto_po2":
            return power_of_two(self._best_exponents(x, peak, axes))
        # In float32 the compiled division by a constant is off by an ulp.
        steps = tf.cast(tf.cast(peak, tf.float64) / self.max_code, tf.float32)
        return tf.where(peak > 0, steps, 1.0)

    def _best_exponents(self, x, peak, axes):
        """Exponents of least squared error; 0 where the peak is 0."""
        covering = covering_exponent(peak, self.max_code)
        # In units of the covering step, as squares of tiny kernels' errors would underflow.
        scaled = x / power_of_two(covering)
        errors = []
        for candidate in CANDIDATES:
            step = 2.0**candidate
            errors.append(
                tf.reduce_mean((self.codes(scaled, step) * step - scaled) ** 2, axes, keepdims=True)
            )
        best = tf.argmin(tf.stack(errors), output_type=tf.int32)
        return tf.where(peak > 0, covering + tf.gather(tf.constant(CANDIDATES), best), 0)

    def codes(self, x, steps):
        """Codes, float32, of ``x`` on grids of these steps."""
        return tf.clip_by_value(tf.floor(x / steps + 0.5), -self.max_code, self.max_code)

    def bounded_steps(self, x, lowest):
        """``steps`` of at least ``lowest``; of those that share one, the highest bounds it."""
        lowest = tf.reduce_max(lowest, self._shared_axes(x), keepdims=True)
        return tf.maximum(self.steps(x), lowest)

    def with_steps(self, x, lowest=None):
        """Quantized ``x`` with a straight-through gradient, and its steps.

        ``lowest`` limits the steps from below, as of ``bounded_steps``.
        """
        fixed = tf.stop_gradient(x)
        steps = self.steps(fixed) if lowest is None else self.bounded_steps(fixed, lowest)
        return straight_through(x, self.codes(fixed, steps) * steps), steps

    def __call__(self, x):
        """Quantized ``x``, same shape."""
        return self.with_steps(x)[0]

    def max(self) -> float:
        """No bound: QKeras' layers clip kernels to this."""
        return tf.float32.max

    def __str__(self) -> str:
        # QKeras reads strings back with a parser that does not know None.
        axis = "" if self.scale_axis is None else f",scale_axis={self.scale_axis}"
        return f"quantized_kernel({self.bits},alpha='{self.alpha}'{axis})"

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"bits": self.bits, "alpha": self.alpha, "scale_axis": self.scale_axis}

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)


@known_to_qkeras
class quantized_bias(qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """Bias quantizer: ``bits`` (16 or 31) significant bits on the accumulator's grid.

    The device adds biases as accumulator codes, so the finest step a bias can have is input
    step times kernel step. Where the peak of all biases does not fit ``bits`` bits of a channel's
    grid, that channel gets the finest step, a power of two coarser, that covers it; it never
    clips.
    """

    def __init__(self, bits: int):
        super().__init__()
        if bits not in (16, 31):
            raise ParameterError(f"bits={bits} must be 16 or 31")
        self.bits = bits

    @property
    def max_code(self) -> int:
        """Largest absolute code."""
        return 2 ** (self.bits - 1) - 1

    def codes(self, x, grid):
        """Accumulator codes [out], float64 (exact integers), of biases on grids [out] float64."""
        wide = tf.cast(x, tf.float64)
        peak = tf.reduce_max(tf.abs(wide))
        needed = tf.math.log(tf.maximum(peak / (grid * self.max_code), 1.0)) / tf.math.log(
            tf.constant(2.0, tf.float64)
        )
        # A peak that fits up to the error of the logarithm shall not lose a bit.
        coarser = tf.cast(power_of_two(tf.math.ceil(needed - 1e-12)), tf.float64)
        return tf.floor(wide / (grid * coarser) + 0.5) * coarser

    def on_grid(self, x, grid):
        """Quantized ``x`` [out] with a straight-through gradient."""
        quantized = self.codes(tf.stop_gradient(x), grid) * grid
        return straight_through(x, tf.cast(quantized, x.dtype))

    def __call__(self, x):
        """Quantized ``x`` on the finest power-of-two grid that covers it, same shape."""
        exponent = covering_exponent(tf.reduce_max(tf.abs(x)), self.max_code)
        return self.on_grid(x, tf.cast(power_of_two(exponent), tf.float64))

    def __str__(self) -> str:
        return f"quantized_bias({self.bits})"

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"bits": self.bits}

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)
