"""Axes that fit their values: limits, linear or logarithmic, with plain numbers."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter


def fit(
    ax: Axes, which: Literal["x", "y"], values: np.ndarray, *, ratio: float = math.inf
) -> tuple[float, float]:
    """Limits that are set around the finite values, of which there must be one.

    Parameters
    ----------
    ratio : of the highest to the lowest value, above which the axis is logarithmic
    """
    known = values[np.isfinite(values)]
    is_log = bool(known.min() > 0 and known.max() > ratio * known.min())
    ends = _limits(known, is_log=is_log)
    axis = ax.xaxis if which == "x" else ax.yaxis
    if is_log:
        ax.set(**{f"{which}scale": "log"})
        axis.set_ticks(_plain_ticks(*ends))
        axis.set_ticks([], minor=True)
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.set(**{f"{which}lim": ends})
    return ends


def _limits(known: np.ndarray, *, is_log: bool) -> tuple[float, float]:
    scaled = np.log10(known) if is_log else known
    margin = 0.06 * (np.ptp(scaled) or max(abs(scaled[0]), 0.01))
    low, high = float(scaled.min() - margin), float(scaled.max() + margin)
    return (10.0**low, 10.0**high) if is_log else (low, high)


def _plain_ticks(low: float, high: float) -> np.ndarray:
    """Round numbers of a logarithmic axis; fewer in a decade if it spans many."""
    steps = [1, 1.5, 2, 3, 4, 6, 8] if high < 30 * low else [1, 2, 5]
    ticks = np.outer(10.0 ** np.arange(-12, 16), steps if high < 3000 * low else [1]).ravel()
    return ticks[(ticks >= low) & (ticks <= high)]


def spread(low: float, high: float, n: int, *, is_log: bool) -> np.ndarray:
    """Evenly spaced values of an axis."""
    return np.geomspace(low, high, n) if is_log else np.linspace(low, high, n)
