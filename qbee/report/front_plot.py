"""Plot of what a search found: metric against size, as figure 2 of BOMP-NAS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qbee.report.drawing import GREY, INK, RED, drawing, mark_choice, write_note
from qbee.report.scales import fit, spread
from qbee.report.trial_rows import (
    UNITS,
    WIDE_LOSSES,
    column,
    front_of,
    is_better_high,
    label_of,
    name_of,
    trial_rows,
    unit_of,
    without_collapsed,
)
from qbee.search.trial import Trial

# Metric and cost of a model, the cost as in ``Measured.costs``.
Placed = tuple[float, float]
# Names of the metric and the cost.
Names = tuple[str, str]
TIMES = {"number": "trial number", "spent_cpu_seconds": "CPU time spent in s"}
GRID = 80
# Light yellow is hard to see on white.
TIME_COLORS: Colormap = ListedColormap(colormaps["viridis"](np.linspace(0, 0.93, 256)))


@dataclass(frozen=True)
class Beside:
    """What is drawn beside the trials.

    Attributes
    ----------
    references : models that were not searched, such as uniform ones, by name
    float_model : the network before it is quantized
    tuned : models that were finally trained, by the number of their trial
    score : score of a metric and a cost; lines of equal score are drawn
    """

    references: Mapping[str, Placed] = field(default_factory=dict)
    float_model: Placed | None = None
    tuned: Mapping[int, Placed] = field(default_factory=dict)
    score: Callable[[float, float], float] | None = None

    @property
    def placed(self) -> list[Placed]:
        """All models."""
        known = [] if self.float_model is None else [self.float_model]
        return [*self.references.values(), *self.tuned.values(), *known]


def accuracy_vs_size(
    trials: Sequence[Trial],
    path: Path,
    *,
    metric: str,
    cost: str = "tflite_bytes",
    winner: int | None = None,
    beside: Beside | None = None,
    scored_on: str = "validation windows",
    time: Literal["number", "spent_cpu_seconds"] = "number",
) -> None:
    """Metric and cost of every trial, earlier ones darker, with the Pareto front.

    The front is that of the candidates (`trial_rows`). Collapsed trials that lie outside the
    range of the others are drawn at its edge.

    Parameters
    ----------
    cost : name of the cost of the horizontal axis, such as "bits" or "arena_bytes"
    winner : number of the trial that was chosen
    scored_on : windows that the metric is of
    """
    beside = Beside() if beside is None else beside
    rows = trial_rows(trials)
    x, y = column(rows, cost) / unit_of(cost).one, column(rows, metric)
    front = front_of(rows, (metric, cost)) if rows else np.array([], np.intp)
    with drawing(path, 9, 6.4) as figure:
        ax = figure.subplots()
        failed = sum(row["state"] == "failed" for row in rows)
        title = f"{len(front)} of {len(rows)} trials on the Pareto front"
        ax.set_title(f"{title}; {failed} failed" if failed else title)
        ax.set(xlabel=_cost_label(cost), ylabel=f"{label_of(metric)}, {scored_on}")
        if not np.isfinite(x * y).any():
            return write_note(ax, "no trial was measured")
        _frame(
            ax,
            np.where(np.isfinite(y), x, np.nan),
            without_collapsed(rows, y),
            beside,
            (metric, cost),
        )
        ax.step(x[front], y[front], "--", where="post", color=INK, lw=1.2, label="Pareto front")
        _draw_trials(figure, ax, rows, (x, np.clip(y, *ax.get_ylim())), time)
        _draw_models(ax, rows, (x, y), beside, (metric, cost))
        _mark_winner(ax, rows, winner, (metric, cost))
        if beside.score is not None:
            _draw_equal_scores(ax, beside.score, unit_of(cost).one)
        figure.legend(loc="outside lower center", ncols=2)
    return None


def _cost_label(cost: str) -> str:
    if cost not in UNITS:
        return cost
    quantity, symbol, one = UNITS[cost]
    thousand = {"kB": " (1000 bytes)", "kbit": " (1000 bits)"}.get(symbol, "")
    return f"{quantity} in {symbol}{thousand}" if one != 1e6 else f"million {quantity}"


def _text(name: str, placed: Placed, metric: str, cost: str) -> str:
    """Entry of the legend: "uniform 8: F1 0.912, 23.4 kB"."""
    unit = unit_of(cost)
    size = f"{placed[1] / unit.one:.4g} {unit.symbol}".rstrip()
    return f"{name}: {name_of(metric)} {placed[0]:.3f}, {size}"


def _draw_trials(figure: Figure, ax: Axes, rows: list[dict], at, time: str) -> None:
    """Blobs of the trials: small if they trained fewer steps, hollow if they collapsed."""
    when, collapsed, whole = (column(rows, name) for name in (time, "is_collapsed", "is_whole"))
    norm = Normalize(when.min(), max(when.max(), when.min() + 1))
    kinds = {
        "trial": (whole == 1) & (collapsed == 0),
        "trial of fewer training steps": (whole == 0) & (collapsed == 0),
        "collapsed to one class": collapsed == 1,
    }
    for name, chosen in kinds.items():
        colors = TIME_COLORS(norm(when[chosen]))
        look: dict[str, Any] = {"s": 14, "alpha": 0.75} if "fewer" in name else {"s": 52}
        face = {"facecolors": "none", "edgecolors": colors, "linewidths": 1.3}
        filled = {"facecolors": colors, "edgecolors": "white", "linewidths": 0.5}
        look |= face if "collapsed" in name else filled
        if chosen.any():
            place = at[0][chosen], at[1][chosen]
            ax.scatter(*place, zorder=3, label=name, clip_on=False, **look)
    bar = figure.colorbar(ScalarMappable(norm, TIME_COLORS), ax=ax, pad=0.02, aspect=35)
    bar.set_label(TIMES[time])
    bar.locator = MaxNLocator(6, integer=True)
    bar.update_ticks()


def _draw_models(ax: Axes, rows: list[dict], at, beside: Beside, names: Names) -> None:
    """References as open shapes, finally trained models red and joined to their candidates."""
    one = unit_of(names[1]).one
    open_style: dict[str, Any] = {"mfc": "none", "mec": INK, "ls": "none", "ms": 9, "zorder": 4}
    for i, (name, placed) in enumerate(beside.references.items()):
        marker = "DsP^vph<>"[i % 9]
        ax.plot(placed[1] / one, placed[0], marker, label=_text(name, placed, *names), **open_style)
    if beside.float_model is not None:
        label = _text("float", beside.float_model, *names)
        ax.axhline(beside.float_model[0], color=GREY, ls="-.", lw=1, zorder=1)
        style = open_style | {"mec": GREY, "mew": 2}
        ax.plot(beside.float_model[1] / one, beside.float_model[0], "X", label=label, **style)
    places = {row["number"]: place for row, *place in zip(rows, *at, strict=True)}
    label = "finally trained, joined to its candidate"
    for number, (metric, cost) in beside.tuned.items():
        x, y = places.get(number, (np.nan, np.nan))
        line: dict[str, Any] = {"color": RED, "lw": 1.3, "zorder": 5, "label": label}
        ax.plot([x, cost / one], [y, metric], "o-", ms=6.5, markevery=[1], mec="white", **line)
        label = "_"


def _mark_winner(ax: Axes, rows: list[dict], winner: int | None, names: Names) -> None:
    for row in rows:
        if row["number"] == winner and row["score"] is not None:
            placed = row[names[0]], row[names[1]]
            label = _text(f"winner, trial {winner}", placed, *names)
            mark_choice(ax, placed[1] / unit_of(names[1]).one, placed[0], label)


def _frame(ax: Axes, x: np.ndarray, y: np.ndarray, beside: Beside, names: Names) -> None:
    """Limits around all points; sizes and losses are logarithmic if they differ much."""
    one = unit_of(names[1]).one
    fit(ax, "x", np.append(x, [cost / one for _, cost in beside.placed]), ratio=3)
    ratio = math.inf if is_better_high(names[0]) else WIDE_LOSSES
    fit(ax, "y", np.append(y, [metric for metric, _ in beside.placed]), ratio=ratio)


def _draw_equal_scores(ax: Axes, score: Callable[[float, float], float], one: float) -> None:
    """Three to five dotted lines of equal score, each with its value."""
    low, high = ax.get_xlim()
    # A size of nothing may have no score.
    x = spread(max(low, high / GRID**2), high, GRID, is_log=ax.get_xscale() == "log")
    y = spread(*ax.get_ylim(), GRID, is_log=ax.get_yscale() == "log")
    z = np.array([[score(metric, cost * one) for cost in x] for metric in y], float)
    if not np.isfinite(z).all() or np.ptp(z) < 1e-9:
        return
    lines = ax.contour(
        x, y, z, levels=_levels(z), colors=GREY, linewidths=1, linestyles=":", zorder=2
    )
    lines.clabel(fontsize=8.5, fmt="{:g}".format)
    ax.plot([], [], ":", color=GREY, lw=1, label="equal score")


def _levels(z: np.ndarray) -> np.ndarray:
    """Round values inside the range of ``z``: at least three, unless that takes many digits."""
    for n in range(4, 10):
        levels = np.array(MaxNLocator(n).tick_values(z.min(), z.max()))
        levels = levels[(levels > z.min()) & (levels < z.max())]
        if len(levels) >= 3:
            break
    return levels[:5]
