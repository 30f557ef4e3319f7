"""QKeras quantizers with power-of-two steps; their numpy twins are in ``fixed_point``."""

from __future__ import annotations

from qbee.errors import ParameterError
from qbee.keras import qkeras, tf
from qbee.quantize.fixed_point import MapType, max_kernel_code
from qbee.quantize.power_of_two import CANDIDATES

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


class quantized_kernel(qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """Symmetric kernel quantizer with one power-of-two step of least squared error per channel.

    Parameters
    ----------
    bits : int in [2, 16]
    scale_axis : int or None
        axis of the channels; None is one step for the whole kernel.

    Raises
    ------
    ParameterError
        if ``bits`` is out of range.

    Notes
    -----
    No epsilon is added anywhere and an all-zero channel has step 1: the additive epsilon of
    QKeras' ``auto_po2`` makes 16-bit kernels lose 70 dB and 31-bit biases vanish.
    """

    def __init__(self, bits: int, scale_axis: int | None = None):
        super().__init__()
        if not 2 <= bits <= 16:
            raise ParameterError(f"bits={bits} must be in [2, 16]")
        self.bits, self.scale_axis = bits, scale_axis
        self.max_code = max_kernel_code(bits)

    def _reduced(self, x) -> list[int]:
        """Axes that share one step."""
        axis = None if self.scale_axis is None else self.scale_axis % len(x.shape)
        return [i for i in range(len(x.shape)) if i != axis]

    def exponents(self, x):
        """Exponents of the steps, int32, shaped like ``x`` with length 1 on the shared axes."""
        axes = self._reduced(x)
        peak = tf.reduce_max(tf.abs(x), axes, keepdims=True)
        safe = tf.where(peak > 0, peak, float(self.max_code))
        log2 = tf.math.log(safe / self.max_code) / tf.math.log(2.0)
        covering = tf.cast(tf.maximum(tf.math.ceil(log2), LOWEST_EXPONENT), tf.int32)
        # In units of the covering step, as squares of tiny kernels' errors would underflow.
        unit = power_of_two(covering)
        errors = [
            tf.reduce_mean(((self._rounded(x, covering + c) - x) / unit) ** 2, axes, keepdims=True)
            for c in CANDIDATES
        ]
        best = tf.argmin(tf.stack(errors), output_type=tf.int32)
        chosen = covering + tf.gather(tf.constant(CANDIDATES), best)
        return tf.where(peak > 0, chosen, 0)

    def _rounded(self, x, exponents):
        step = power_of_two(exponents)
        return tf.clip_by_value(tf.floor(x / step + 0.5), -self.max_code, self.max_code) * step

    def with_exponents(self, x, lowest=None):
        """Quantized ``x`` with a straight-through gradient, and the exponents of its steps.

        ``lowest`` limits the exponents from below; it broadcasts to their shape.
        """
        exponents = self.exponents(tf.stop_gradient(x))
        exponents = exponents if lowest is None else tf.maximum(exponents, lowest)
        return straight_through(x, self._rounded(x, exponents)), exponents

    def __call__(self, x):
        """Quantized ``x``, same shape."""
        return self.with_exponents(x)[0]

    def __str__(self) -> str:
        # QKeras reads strings back with a parser that does not know None.
        axis = "" if self.scale_axis is None else f",scale_axis={self.scale_axis}"
        return f"quantized_kernel({self.bits}{axis})"

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"bits": self.bits, "scale_axis": self.scale_axis}

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)


class quantized_bias(qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """Bias quantizer: ``bits`` (16 or 31) significant bits on the accumulator's grid.

    The device adds biases as accumulator codes, so the finest step a bias can have is input
    step times kernel step. A bias vector whose peak does not fit ``bits`` bits of that grid gets
    the finest coarser power-of-two step that covers it; it never clips.
    """

    def __init__(self, bits: int):
        super().__init__()
        if bits not in (16, 31):
            raise ParameterError(f"bits={bits} must be 16 or 31")
        self.bits = bits

    def codes(self, x, exponents):
        """Accumulator codes [out], float64 (exact), of biases ``x`` on grids ``2**exponents``."""
        coarse = tf.maximum(exponents, covering_exponent(x, 2 ** (self.bits - 1) - 1))
        grid, step = (tf.cast(power_of_two(e), tf.float64) for e in (exponents, coarse))
        return tf.floor(tf.cast(x, tf.float64) / step + 0.5) * (step / grid)

    def on_grid(self, x, exponents):
        """Quantized ``x`` [out] with a straight-through gradient."""
        grid = tf.cast(power_of_two(exponents), tf.float64)
        quantized = self.codes(tf.stop_gradient(x), exponents) * grid
        return straight_through(x, tf.cast(quantized, x.dtype))

    def __call__(self, x):
        """Quantized ``x`` on the finest power-of-two grid that covers it, same shape."""
        return self.on_grid(x, covering_exponent(x, 2 ** (self.bits - 1) - 1))

    def __str__(self) -> str:
        return f"quantized_bias({self.bits})"

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {"bits": self.bits}

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)


def covering_exponent(x, max_code: int):
    """Exponent, int32 scalar, of the finest power-of-two grid that covers all of ``x``."""
    peak = tf.reduce_max(tf.abs(x))
    safe = tf.where(peak > 0, peak, float(max_code))
    log2 = tf.math.log(safe / max_code) / tf.math.log(2.0)
    return tf.cast(tf.maximum(tf.math.ceil(log2), LOWEST_EXPONENT), tf.int32)


class quantized_bits_featuremap(qkeras.quantizers.BaseQuantizer):  # noqa: N801 - QKeras' naming
    """Feature-map quantizer with a static power-of-two step; all codes are used after a ReLU.

    Parameters
    ----------
    bits : int
    keep_negative : bool
        signed if True; otherwise codes start at 0 and the quantizer is a ReLU too.
    exponent : int
        the step is ``2**exponent``; comes from calibration and never changes at inference.
    """

    def __init__(self, bits: int, keep_negative: bool, exponent: int):
        super().__init__()
        self.bits, self.keep_negative, self.exponent = bits, bool(keep_negative), int(exponent)
        self.number = MapType(bits=bits, is_signed=self.keep_negative, exponent=self.exponent)

    def __call__(self, x):
        """Nearest value on the grid, half up, saturating; no gradient outside the range."""
        lowest, highest = (float(c) for c in self.number.codes)
        step = 2.0**self.exponent
        clipped = tf.clip_by_value(x, lowest * step, highest * step)
        # In float32 the largest number below 0.5 plus 0.5 would be 1.
        codes = tf.floor(tf.cast(x, tf.float64) / step + 0.5)
        codes = tf.cast(tf.clip_by_value(codes, lowest, highest), x.dtype)
        return straight_through(clipped, codes * step)

    def __str__(self) -> str:
        return (
            f"quantized_bits_featuremap({self.bits},keep_negative={self.keep_negative},"
            f"exponent={self.exponent})"
        )

    def get_config(self) -> dict:
        """Arguments of the constructor."""
        return {
            "bits": self.bits,
            "keep_negative": self.keep_negative,
            "exponent": self.exponent,
        }

    @classmethod
    def from_config(cls, config: dict):
        """Quantizer with these arguments."""
        return cls(**config)
