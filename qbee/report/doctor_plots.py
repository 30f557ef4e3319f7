"""Picture of what the doctor measured, as a PNG file; whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qbee.doctor.records import Examination, Kind, Measures
from qbee.doctor.rules import DEFECT_DB
from qbee.report.drawing import BLUE, GREEN, GREY, INK, ORANGE, RED, drawing

COLORS: dict[Kind, str] = {"kernel": BLUE, "bias": GREEN, "map": ORANGE}
# Tensors of one layer lie a little above each other.
OFFSETS: dict[Kind, float] = {"kernel": -0.22, "bias": 0.0, "map": 0.22}
ROW_IN, LARGEST_IN = 0.3, 17.0


def examination(found: Examination, path: Path) -> None:
    """SQNR beside the possible one, bits in use beside bits paid for, zeros and clipping.

    One row for each layer, in the order of the network.
    """
    layers = list(dict.fromkeys(t.layer for t in found.tensors))
    row = {layer: number for number, layer in enumerate(layers)}
    height_in = min(ROW_IN * len(layers) + 1.9, LARGEST_IN)
    with drawing(path, 12.5, height_in) as figure:
        figure.suptitle(_title(found))
        axes = figure.subplots(1, 3, sharey=True, width_ratios=[1.4, 1.1, 1])
        for t in found.tensors:
            y = row[t.layer] + OFFSETS[t.tensor]
            _draw_pair(axes[0], t, y, t.sqnr_db, t.reference_db, is_bad=t.missing_db > DEFECT_DB)
            _draw_bits(axes[1], t, y)
            _draw_shares(axes[2], t, y)
        for ax in axes:
            # Bands tell rows apart.
            for number in range(0, len(layers), 2):
                ax.axhspan(number - 0.5, number + 0.5, color="#f3f3f3", lw=0, zorder=0)
            ax.grid(visible=False, axis="y")
            ax.tick_params(axis="y", length=0)
        fontsize = min(9.5, 72 * 0.8 * (height_in - 1.9) / max(len(layers), 1))
        axes[0].set_yticks(range(len(layers)), layers, fontsize=fontsize)
        axes[0].set_ylim(len(layers) - 0.5, -0.5)
        axes[0].set(title="rounding", xlabel="SQNR in dB (more is better)", xlim=(-4, 156))
        axes[1].set(title="codes", xlabel="bits in use", xlim=(-0.8, 32.5))
        axes[2].set(title="lost values", xlabel="share in %", xlim=(-3, 103))
        figure.legend(handles=_legend(), loc="outside lower center", ncols=7)


def _title(found: Examination) -> str:
    many = len(found.findings)
    return f"{found.model}: {many} findings, {found.count('severe')} of them severe"


def _draw_pair(ax: Axes, t: Measures, y: float, actual, possible, *, is_bad: bool) -> None:
    """A dot for what is, a ring for what could be, and the gap between them."""
    color = COLORS[t.tensor]
    if actual is not None and possible is not None:
        gap, width = (RED, 1.6) if is_bad else (GREY, 0.8)
        ax.plot([actual, possible], [y, y], color=gap, lw=width, zorder=2)
    if possible is not None:
        ax.plot(possible, y, "o", ms=6, mfc="white", mec=color, mew=1.2, zorder=3)
    if actual is not None:
        ax.plot(actual, y, "o", ms=4.2, color=color, zorder=4)


def _draw_bits(ax: Axes, t: Measures, y: float) -> None:
    if not t.codes_spanned:
        return
    actual = np.log2(t.codes_spanned)
    possible = None if not t.codes_available else np.log2(t.codes_available + 1)
    is_bad = possible is not None and actual < possible / 2
    _draw_pair(ax, t, y, actual, possible, is_bad=is_bad)


def _draw_shares(ax: Axes, t: Measures, y: float) -> None:
    color = COLORS[t.tensor]
    ax.plot(100 * t.zeroed, y, "o", ms=4.2, color=color, zorder=3)
    if t.clipped is not None:
        ax.plot(100 * t.clipped, y, "^", ms=5.5, mfc="none", mec=color, mew=1.2, zorder=3)


def _legend() -> list[Line2D]:
    def mark(label: str, marker: str, **style) -> Line2D:
        return Line2D([], [], ls="none", marker=marker, label=label, **style)

    tensors = [mark(kind, "s", color=color) for kind, color in COLORS.items()]
    ring = mark("possible with its bits", "o", mfc="white", mec=INK)
    return [
        *tensors,
        mark("as it is, or became 0", "o", color=INK, ms=4.2),
        ring,
        Line2D([], [], color=RED, lw=1.6, label="bits that buy nothing"),
        mark("clipped", "^", mfc="none", mec=INK),
    ]
