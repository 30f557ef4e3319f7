"""What a scheme is worth: a metric times the forgiving factor (no TensorFlow)."""

from __future__ import annotations

import math

from pydantic import Field

from qbee.errors import ParameterError
from qbee.records import Record


class ForgivingFactor(Record):
    """Parameters of AutoQKeras' forgiving factor; defaults are the thesis' (S3-5).

    ``delta_p`` and ``delta_n`` are the percents of the metric that a ``rate``-fold smaller or
    larger model is worth; ``stress`` scales the reference. The reference has
    ``reference_kernel_bits`` and ``reference_map_bits`` everywhere and 31-bit biases.
    """

    delta_p: float = 5.0
    delta_n: float = 5.0
    rate: float = Field(2.0, gt=1)
    stress: float = Field(1.0, gt=0)
    reference_kernel_bits: int = Field(16, ge=1)
    reference_map_bits: int = Field(16, ge=1)
    reference_bias_bits: int = Field(31, ge=1)

    def delta(self, *, trial_bits: int, reference_bits: int) -> float:
        """Bonus (or malus) of a model of ``trial_bits``; 0.05 is five percent of the metric.

        ``delta/100 * log_rate(stress * reference / trial)`` with ``delta_p`` for a model smaller
        than the stressed reference and ``delta_n`` otherwise.

        Raises
        ------
        ParameterError
            if a size is not positive.
        """
        if trial_bits <= 0 or reference_bits <= 0:
            raise ParameterError(
                f"trial_bits={trial_bits}, reference_bits={reference_bits} must be positive"
            )
        wanted = self.stress * reference_bits
        percent = self.delta_p if trial_bits < wanted else self.delta_n
        return percent / 100 * math.log(wanted / trial_bits, self.rate)

    def score(self, metric: float, *, trial_bits: int, reference_bits: int) -> float:
        """``metric * (1 + delta)``."""
        return metric * (1 + self.delta(trial_bits=trial_bits, reference_bits=reference_bits))
