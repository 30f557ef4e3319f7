"""What a scheme is worth: a metric and a size made one number (no TensorFlow)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from qbee.errors import ParameterError
from qbee.records import Record


class ForgivingFactor(Record):
    """Parameters of AutoQKeras' forgiving factor; defaults are the thesis' (S3-5).

    ``delta_p`` and ``delta_n`` are the percents of the metric that a ``rate``-fold smaller or
    larger model is worth; ``stress`` scales the reference. The reference has
    ``reference_kernel_bits`` and ``reference_map_bits`` everywhere and 31-bit biases; with 8
    for both, plain int8.
    """

    kind: Literal["forgiving_factor"] = "forgiving_factor"
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

    def of(self, metric: float, costs: Mapping[str, float], *, reference_bits: int) -> float:
        """Score of a trial from its costs, among them ``bits``."""
        trial_bits = round(costs["bits"])
        return self.score(metric, trial_bits=trial_bits, reference_bits=reference_bits)


class Bomp(Record):
    """BOMP-NAS' scalarisation (S1-5, eq. 1): both terms are near 1 for a model as good as wanted.

    ``metric / reference_metric + reference_size / log10(bits of the file)``; the defaults are
    those of its CIFAR-10 searches.
    """

    kind: Literal["bomp"] = "bomp"
    reference_metric: float = Field(0.8, gt=0)
    reference_size: float = Field(8.0, gt=0)

    def score(self, metric: float, *, size_bits: float) -> float:
        """Score of a model whose file has so many bits.

        Raises
        ------
        ParameterError
            if the file has one bit or less.
        """
        if size_bits <= 1:
            raise ParameterError(f"size_bits={size_bits} must be above 1")
        return metric / self.reference_metric + self.reference_size / math.log10(size_bits)

    def of(self, metric: float, costs: Mapping[str, float], *, reference_bits: int) -> float:
        """Score of a trial from its costs, among them ``tflite_bytes``."""
        return self.score(metric, size_bits=8 * costs["tflite_bytes"])
