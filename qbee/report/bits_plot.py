"""Plot of the bit widths of every layer in the models of a Pareto front, as BOMP-NAS' figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from qbee.report.drawing import INK, drawing, write_note
from qbee.report.trial_rows import front_of, name_of, trial_rows, unit_of
from qbee.search.trial import Trial

MAX_POINTS = 16
ROLES = {"kernel": "kernels", "map": "feature maps"}
LABEL_PT = 8


def bits_per_point(
    trials: Sequence[Trial], path: Path, *, metric: str, cost: str = "tflite_bytes"
) -> None:
    """Kernel and map bits per layer of each point on the Pareto front, by growing cost.

    Of a front of more than 16 points, so many are drawn, evenly chosen. The front is that of the
    candidates (`trial_rows`).
    """
    rows = trial_rows(trials)
    front = front_of(rows, (metric, cost)) if rows else np.array([], np.intp)
    at = np.unique(np.linspace(0, len(front) - 1, min(MAX_POINTS, len(front))).round().astype(int))
    shown = [rows[i] for i in front[at]]
    schemes = {trial.number: trial.scheme for trial in trials}
    layers = list(dict.fromkeys(n for row in shown for n in schemes[row["number"]].layers))
    with drawing(path, *_size_in(len(shown), layers)) as figure:
        if not shown:
            figure.subplots().set_axis_off()
            return write_note(figure.axes[0], "no trial was measured")
        chosen = f"{len(shown)} of {len(front)}" if len(shown) < len(front) else f"{len(front)}"
        figure.suptitle(f"bits of {chosen} points of the Pareto front")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, role in zip(axes, ROLES, strict=True):
            found = [
                [_bits(schemes[row["number"]], name, role) for row in shown] for name in layers
            ]
            _draw_matrix(ax, np.array(found, float))
            ax.set_xticks(range(len(shown)), [_heading(row, metric, cost) for row in shown])
            ax.set_title(ROLES[role], loc="center")
        _label_rows(axes[0], layers, f"trial\n{unit_of(cost).symbol or cost}\n{name_of(metric)}")
    return None


def _size_in(points: int, layers: list[str]) -> tuple[float, float]:
    """Width and height that give each number its place, in inches."""
    names = 0.07 * max((len(name) for name in layers), default=0)
    return max(4.5, 0.9 * points + names + 0.8), max(2.0, _row_in(layers) * len(layers) + 1.5)


def _row_in(layers: list[str]) -> float:
    return min(0.24, 15.5 / max(1, len(layers)))


def _bits(scheme, layer: str, role: str) -> int | None:
    return getattr(scheme.layers[layer], role) if layer in scheme.layers else None


def _heading(row: dict, metric: str, cost: str) -> str:
    """Number, cost and metric of a point, in three short lines."""
    return f"{row['number']}\n{row[cost] / unit_of(cost).one:.3g}\n{row[metric]:.3f}"


def _draw_matrix(ax: Axes, bits: np.ndarray) -> None:
    """Numbers on cells that are darker the wider they are; empty where a layer has none."""
    shade = np.clip((np.log2(bits) - 1) / 4, 0.06, 1)
    ax.imshow(np.ma.masked_invalid(shade), cmap="Blues", vmin=0, vmax=1.0, aspect="auto")
    row_pt = 72 * _row_in([""] * len(bits))
    style: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": min(LABEL_PT, 0.75 * row_pt),
    }
    for (row, column), value in np.ndenumerate(bits):
        if np.isfinite(value):
            color = "white" if shade[row, column] > 0.7 else INK
            ax.text(column, row, f"{value:.0f}", color=color, **style)
    count, width = bits.shape
    ax.hlines(np.arange(count + 1) - 0.5, -0.5, width - 0.5, color="white", lw=1.2)
    ax.vlines(np.arange(width + 1) - 0.5, -0.5, count - 0.5, color="white", lw=1.2)
    ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    ax.tick_params(axis="x", labelsize=LABEL_PT)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _label_rows(ax: Axes, layers: list[str], heading: str) -> None:
    size = min(LABEL_PT, 0.75 * 72 * _row_in(layers))
    ax.set_yticks(range(len(layers)), layers, fontsize=size)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": LABEL_PT}
    ax.annotate(heading, (0, 1), xytext=(-3.5, 3.5), **place, **style)
