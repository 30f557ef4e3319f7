"""Power-of-two steps of minimum mean squared error (numpy)."""

from __future__ import annotations

import math

import numpy as np

# Exponents tried, relative to the smallest one whose grid covers the peak.
CANDIDATES = (-3, -2, -1, 0, 1)


def is_power_of_two(step: float) -> bool:
    """Whether a positive number is 2^k with an integer k."""
    return math.frexp(step)[0] == 0.5


def covering_exponent(peak: np.ndarray, max_code: int) -> np.ndarray:
    """Smallest integer e with ``max_code * 2**e >= peak``; 0 where the peak is 0."""
    peak = np.asarray(peak, np.float64)
    safe = np.where(peak > 0, peak, max_code)
    return np.ceil(np.log2(safe / max_code)).astype(int)


def best_exponent(x: np.ndarray, *, lowest: int, highest: int) -> int:
    """Exponent whose grid ``lowest..highest`` quantizes ``x`` with least squared error.

    An all-zero ``x`` has exponent 0.
    """
    x = np.asarray(x, np.float64)
    peak = np.max(np.abs(x), initial=0.0)
    if peak == 0:
        return 0
    covering = int(covering_exponent(peak, highest))
    exponents = [covering + c for c in CANDIDATES]
    errors = []
    for e in exponents:
        codes = np.clip(np.floor(x * 2.0**-e + 0.5), lowest, highest)
        errors.append(np.mean((codes * 2.0**e - x) ** 2))
    return exponents[int(np.argmin(errors))]
