"""Pareto front of detectors: higher F1 is better, fewer bytes are better."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qbee.errors import ParameterError


def front(f1: Sequence[float], size_bytes: Sequence[int]) -> list[int]:
    """Indices of the points that no other point dominates, by growing size.

    A point dominates another if it is at least as good in both and better in one; of equal
    points the first is kept.

    Raises
    ------
    ParameterError
        if the lengths differ or an F1 is not finite.
    """
    if len(f1) != len(size_bytes):
        raise ParameterError(f"len(f1)={len(f1)} must be len(size_bytes)={len(size_bytes)}")
    if not all(math.isfinite(value) for value in f1):
        raise ParameterError(f"f1={list(f1)!r} must be finite")
    kept: list[int] = []
    for i in sorted(range(len(f1)), key=lambda i: (size_bytes[i], -f1[i], i)):
        if not kept or f1[i] > f1[kept[-1]]:
            kept.append(i)
    return kept
