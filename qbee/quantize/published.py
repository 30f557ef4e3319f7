"""What the published quantizers compute (numpy): the reference that people compare with.

``quantized_bits`` is that of QKeras 0.9.0, ``featuremap`` the ``quantized_bits_featuremap`` of
the thesis (LucaUrbinati44/qkeras-mod), which has alpha='auto' only. They are kept as published,
defects included. All arithmetic is float32, in the originals' order, so that the results are the
originals' to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from qbee.errors import ParameterError

EPSILON = np.float32(1e-7)
NUDGE = np.float32(0.00001526)
REFITS = 5


@dataclass(frozen=True)
class Published:
    """Result of a published quantizer; all arrays are float32 and broadcast with ``values``.

    Attributes
    ----------
    values : np.ndarray
        what the quantizer returns: ``step * (codes - zero_point)`` up to a rounding error, mixed
        with ``x`` if ``qnoise_factor`` is below 1.
    codes, step, zero_point : np.ndarray
    """

    values: np.ndarray
    codes: np.ndarray
    step: np.ndarray
    zero_point: np.ndarray


def _shared_axes(rank: int, scale_axis: int | None) -> tuple[int, ...]:
    """Axes that share a step: all but ``scale_axis`` (default the last); a vector has one step."""
    kept = rank - 1 if scale_axis is None else scale_axis
    return tuple(axis for axis in range(rank) if axis != kept) if rank > 1 else (0,)


def _mixed(x: np.ndarray, quantized: np.ndarray, qnoise_factor: float, use_ste: bool) -> np.ndarray:
    """Mean of ``x`` and ``quantized``, in the order of operations of the two gradient modes."""
    q = np.float32(qnoise_factor)
    if use_ste:
        return x + q * (quantized - x)
    return np.float32(1 - qnoise_factor) * x + q * quantized


def _nearest_power_of_two(step: np.ndarray) -> np.ndarray:
    """The originals' rounding of exponents; ``EPSILON`` keeps them above -23."""
    exponent = np.rint(np.log(step + EPSILON) / np.float32(np.log(2)))
    return np.exp2(exponent).astype(np.float32)


def _symmetric_codes(x: np.ndarray, step: np.ndarray, highest: int) -> np.ndarray:
    """Codes rounded half away from zero and clipped; 0 / 0 counts as clipped."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        code = np.floor(np.abs(x) / step + np.float32(0.5))
        return np.sign(x) * np.where(code < highest, code, np.float32(highest))


def _refitted(x: np.ndarray, step: np.ndarray, axes: tuple[int, ...], highest: int):
    """Codes and power-of-two steps after five least-squares fits of the step to the codes.

    The codes are those of the last step but one. A vector gets a step for each element.
    """
    step = _nearest_power_of_two(step)
    for _ in range(REFITS):
        codes = _symmetric_codes(x, step, highest)
        products, squares = x * codes, codes * codes
        if x.ndim > 1:
            products, squares = (np.mean(p, axes, keepdims=True) for p in (products, squares))
        step = _nearest_power_of_two(products / (squares + EPSILON))
    return codes, step


def _automatic(x: np.ndarray, bits: int, scale: np.float32, alpha: str, scale_axis: int | None):
    """Codes and steps of alpha 'auto' and 'auto_po2', on ``x / scale``."""
    x, highest = x / scale, 2 ** (bits - 1) - 1
    axes = _shared_axes(x.ndim, scale_axis)
    step = np.max(np.abs(x), axes, keepdims=True) * np.float32(2) / np.float32(2 * highest)
    if alpha == "auto_po2":
        return _refitted(x, step, axes, highest)
    return _symmetric_codes(x, step, highest), step


def _given(x: np.ndarray, unit: np.float32, scale: np.float32, lowest: float, factor: np.float32):
    """Codes, steps and values of a given ``factor``; the sign if there is no bit beside it."""
    if unit == 1:
        codes = np.where(x < 0, np.float32(-1), np.float32(1))
        return codes, np.asarray(factor), factor * codes
    codes = np.clip(np.rint(x * unit / scale), lowest, unit - 1)
    return codes, np.asarray(factor * (scale / unit)), factor * (scale * codes / unit)


def quantized_bits(
    x: np.ndarray,
    *,
    bits: int = 8,
    integer: int = 0,
    symmetric: int = 0,
    keep_negative: bool = True,
    alpha: Literal["auto", "auto_po2"] | float | None = None,
    scale_axis: int | None = None,
    qnoise_factor: float = 1.0,
    use_ste: bool = True,
) -> Published:
    """``qkeras.quantized_bits`` of ``x`` [any shape]; arguments and defaults are QKeras'.

    Raises
    ------
    ParameterError
        if alpha is a string QKeras does not know.
    """
    x = np.asarray(x, np.float32)
    unit, scale = np.float32(2.0 ** (bits - bool(keep_negative))), np.float32(2.0**integer)
    if isinstance(alpha, str):
        if alpha not in ("auto", "auto_po2"):
            raise ParameterError(f"alpha={alpha!r} must be 'auto', 'auto_po2', a number or None")
        codes, step = _automatic(x, bits, scale, alpha, scale_axis)
        quantized = (step * unit) * (scale * codes / unit)
        x, step = scale * (x / scale), step * scale
    else:
        factor = np.float32(1 if alpha is None else alpha)
        lowest = float(symmetric - unit) if keep_negative else 0.0
        codes, step, quantized = _given(x, unit, scale, lowest, factor)
    return Published(
        _mixed(x, quantized, qnoise_factor, use_ste), codes, step, np.zeros(1, np.float32)
    )


def _half_away(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.floor(np.abs(x) + np.float32(0.5))


def _quotient(x: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """``x / divisor``, 0 where the divisor is 0."""
    return np.divide(x, divisor, out=np.zeros(x.shape, np.float32), where=divisor != 0)


def featuremap(
    x: np.ndarray, *, bits: int = 8, scale_axis: int | None = None, qnoise_factor: float = 1.0
) -> Published:
    """The thesis' ``quantized_bits_featuremap(alpha='auto')`` of ``x`` [any shape].

    The step comes from the largest magnitude but the zero point from minimum and maximum, both
    from each call's data: one for every index of ``scale_axis`` (0: sample; None: last axis).
    """
    x = np.asarray(x, np.float32)
    x = np.where(np.abs(x) < EPSILON, np.float32(0), x)
    axes = _shared_axes(x.ndim, scale_axis)
    highest = np.float32(2 ** (bits - 1) - 1)
    low, high = np.min(x, axes, keepdims=True), np.max(x, axes, keepdims=True)
    step = np.maximum(high, -low) / highest
    zero_point = _half_away(_quotient(high * -highest - low * highest, high - low))
    codes = _half_away(_quotient(x, np.broadcast_to(step, x.shape)) + zero_point - NUDGE)
    codes = np.clip(codes, -highest, highest)
    quantized = step * (codes - zero_point)
    return Published(_mixed(x, quantized, qnoise_factor, True), codes, step, zero_point)
