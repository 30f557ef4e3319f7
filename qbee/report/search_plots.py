"""Plots of a search and its winner as PNG files; whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from qbee.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    drawing,
    mark_choice,
    values_of,
    write_note,
)
from qbee.search import pareto as fronts

ORIGIN_STYLES = tuple(zip((BLUE, ORANGE, GREEN, PURPLE, SKY, GREY), "osD^vP", strict=True))


def trial_scores(trials: list[dict], path: Path, winner: int) -> None:
    """Score (higher is better) of each trial, the best so far, and the winner.

    Parameters
    ----------
    trials : entries with number, score, f1, tflite_bytes and origin
    winner : number of the trial that was chosen
    """
    trials = sorted(trials, key=lambda trial: trial["number"])
    number, score = values_of(trials, "number"), values_of(trials, "score")
    with drawing(path, 8, 4.6) as figure:
        ax = figure.subplots()
        ax.set(xlabel="trial number", ylabel="score (higher is better)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not np.isfinite(score).any():
            return write_note(ax, "no trial has a score")
        best = np.nanargmax(score)
        title = f"best score {score[best]:.3f} in trial {number[best]:.0f} of {len(trials)}"
        ax.set_title(title)
        so_far = np.fmax.accumulate(score)
        ax.step(number, so_far, where="post", color=INK, lw=1.2, label="best so far")
        _draw_origins(ax, trials, number, score)
        chosen = number == winner
        mark_choice(ax, number[chosen], score[chosen], f"winner: trial {winner}")
        figure.legend(loc="outside lower center", ncols=4)
    return None


def pareto(
    trials: list[dict], path: Path, winner: int, references: Mapping[str, tuple[float | None, int]]
) -> None:
    """Validation F1 and file length of all trials, their Pareto front, the winner, references.

    Parameters
    ----------
    trials, winner : as in `trial_scores`
    references : F1 on the validation windows and bytes of models to compare with, by name
    """
    trials = [trial for trial in trials if trial["f1"] is not None]
    f1, size_kb = values_of(trials, "f1"), values_of(trials, "tflite_bytes") / 1000
    sizes_bytes = [trial["tflite_bytes"] for trial in trials]
    front = np.array(fronts.front(f1.tolist(), sizes_bytes), np.intp)
    with drawing(path, 8, 5.4) as figure:
        ax = figure.subplots()
        ax.set_title(f"{len(front)} of {len(trials)} trials on the Pareto front")
        ax.set(xlabel="model file in kB (1000 bytes)", ylabel="F1, validation windows")
        ax.step(
            size_kb[front], f1[front], "--", where="post", color=INK, lw=1.2, label="Pareto front"
        )
        _draw_origins(ax, trials, size_kb, f1)
        _draw_references(ax, references)
        for i in np.flatnonzero(values_of(trials, "number") == winner):
            label = f"winner, trial {winner}: F1 {f1[i]:.3f}, {size_kb[i]:.1f} kB"
            mark_choice(ax, size_kb[i], f1[i], label)
        _scale_sizes(ax)
        figure.legend(loc="outside lower center", ncols=2)


def _draw_origins(ax: Axes, trials: list[dict], x: np.ndarray, y: np.ndarray) -> None:
    """Points of the trials; colour and marker tell where a trial came from."""
    origins = list(dict.fromkeys(trial["origin"] for trial in trials))
    for i, origin in enumerate(origins):
        of_origin = np.array([trial["origin"] == origin for trial in trials])
        color, marker = ORIGIN_STYLES[i % len(ORIGIN_STYLES)]
        style = {"ms": 6, "mec": "white", "mew": 0.5, "color": color, "label": origin}
        ax.plot(x[of_origin], y[of_origin], marker, **style)


def _draw_references(ax: Axes, references: Mapping[str, tuple[float | None, int]]) -> None:
    style: dict[str, Any] = {"ms": 11, "mfc": "none", "mec": RED, "mew": 1.8, "ls": "none"}
    for i, (name, (f1, size_bytes)) in enumerate(references.items()):
        if f1 is not None:
            label = f"{name}: F1 {f1:.3f}, {size_bytes / 1000:.1f} kB"
            ax.plot(size_bytes / 1000, f1, "DsP^v"[i % 5], label=label, **style)


def _scale_sizes(ax: Axes) -> None:
    """Logarithmic axis if the sizes differ much; its labels are plain numbers."""
    sizes = [x for line in ax.lines for x in np.atleast_1d(line.get_xdata()) if x > 0]
    if sizes and max(sizes) > 3 * min(sizes):
        ax.set_xscale("log", subs=[])
        ticks = np.outer(10.0 ** np.arange(-3, 6), [1, 1.5, 2, 3, 4, 6, 8]).ravel()
        low, high = min(sizes) / 1.15, max(sizes) * 1.15
        ax.set_xticks(ticks[(ticks >= low) & (ticks <= high)])
        ax.set_xlim(low, high)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def bits_per_layer(layers: dict[str, dict[str, int]], path: Path) -> None:
    """Table of kernel and map bits per layer, shaded by width, with bias bits as text.

    Parameters
    ----------
    layers : widths under kernel, bias and map, by layer in the order of the network
    """
    bits = np.array([[b["kernel"], b["map"], b["bias"]] for b in layers.values()], float)
    with drawing(path, 6, 0.36 * len(layers) + 1.3) as figure:
        ax = figure.subplots()
        shade = (np.log2(bits) - 1) / 4
        shade[:, 2] = 0
        ax.imshow(shade, cmap="Blues", vmin=0, vmax=1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(bits):
            color = "white" if shade[row, column] > 0.7 else INK
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
        ax.set_xticks(range(3), ["kernel", "map", "bias"])
        ax.set_yticks(range(len(layers)), list(layers))
        ax.hlines(np.arange(len(layers) + 1) - 0.5, -0.5, 2.5, color="white", lw=2)
        ax.vlines([0.5, 1.5], -0.5, len(layers) - 0.5, color="white", lw=2)
        ax.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        ax.spines[:].set_visible(False)
        ax.grid(False)
        ax.set_title("bits per layer, in the order of the network", pad=10)
