"""Plots of a search and its winner as PNG files; whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

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
    write_note,
)
from qbee.report.scales import fit
from qbee.report.trial_rows import (
    UNITS,
    WIDE_LOSSES,
    column,
    hypervolume_curve,
    is_better_high,
    label_of,
    name_of,
    trial_rows,
    without_collapsed,
)
from qbee.search.trial import Trial

# Their numbers have no common divisor, so that many origins look different.
COLORS, MARKERS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY, INK), "osD^vP"
SHORT, COLLAPSED, FAILED = "fewer training steps", "collapsed to one class", "failed"


def trial_scores(
    trials: Sequence[Trial], path: Path, *, metric: str, winner: int | None = None
) -> None:
    """Score and metric of each trial over its number, with the best so far and the winner.

    Only candidates (`trial_rows`) count for the best. Collapsed trials that lie outside the range
    of the others are drawn at its edge.

    Parameters
    ----------
    winner : number of the trial that was chosen; None marks the one of the highest score
    """
    rows = trial_rows(trials)
    scores = np.where(_flags(rows, "is_candidate"), column(rows, "score"), np.nan)
    has_best = bool(np.isfinite(scores).any())
    best = int(np.nanargmax(scores)) if has_best else 0
    with drawing(path, 8.5, 6.8) as figure:
        axes = figure.subplots(2, 1, sharex=True)
        axes[0].set_title(_scores_title(rows, best if has_best else None))
        axes[0].set_ylabel("score (higher is better)")
        better = "higher" if is_better_high(metric) else "lower"
        axes[1].set(xlabel="trial number", ylabel=f"{label_of(metric)} ({better} is better)")
        axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
        _draw_trials(axes[0], rows, column(rows, "score"), is_high=True)
        _draw_trials(axes[1], rows, column(rows, metric), is_high=is_better_high(metric))
        label = "best score" if winner is None else f"winner: trial {winner}"
        chosen = best if winner is None and has_best else _index(rows, winner)
        for ax, name in zip(axes, ("score", metric), strict=True):
            if chosen is not None:
                mark_choice(ax, rows[chosen]["number"], rows[chosen][name], label)
        if rows:
            figure.legend(handles=_legend(rows, axes[0]), loc="outside lower center", ncols=3)


def _scores_title(rows: list[dict], best: int | None) -> str:
    title = f"{len(rows)} trials"
    if best is not None:
        row = rows[best]
        title = f"best score {row['score']:.3f} in trial {row['number']} of {title}"
    failed = sum(row["state"] == "failed" for row in rows)
    return f"{title}; {failed} failed" if failed else title


def _flags(rows: Iterable[dict], name: str) -> np.ndarray:
    return np.array([bool(row[name]) for row in rows], bool)


def _style(row: dict, origins: list[str]) -> dict[str, Any]:
    """Look of a trial: colour and marker tell its origin, size its fidelity, hollow a collapse."""
    i = origins.index(row["origin"])
    color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
    look: dict[str, Any] = {"color": color, "marker": marker, "ls": "none", "mec": "white"}
    look |= {"ms": 6.5, "mew": 0.5} if row["is_whole"] else {"ms": 4, "mew": 0.3, "alpha": 0.5}
    hollow = {"mfc": "none", "mec": color, "mew": 1.2 if row["is_whole"] else 0.7}
    return look | hollow if row["is_collapsed"] else look


def _index(rows: list[dict], number: int | None) -> int | None:
    """Where the measured trial of this number is, if there is one."""
    found = (i for i, row in enumerate(rows) if row["number"] == number)
    return next((i for i in found if rows[i]["score"] is not None), None)


def _draw_trials(ax: Axes, rows: list[dict], values: np.ndarray, *, is_high: bool) -> None:
    """Points of the trials, their best so far, and crosses where trials failed."""
    if not np.isfinite(values).any():
        return write_note(ax, "no trial was measured")
    number = column(rows, "number")
    usable = np.where(_flags(rows, "is_candidate"), values, np.nan)
    so_far = (np.fmax if is_high else np.fmin).accumulate(usable)
    ax.step(number, so_far, where="post", color=INK, lw=1.2, label="best so far")
    ratio = math.inf if is_high else WIDE_LOSSES
    origins, ends = _origins(rows), fit(ax, "y", without_collapsed(rows, values), ratio=ratio)
    for row, x, y in zip(rows, number, np.clip(values, *ends), strict=True):
        ax.plot(x, y, clip_on=False, **_style(row, origins))
    failed = np.array([row["state"] == "failed" for row in rows])
    at = ax.get_xaxis_transform()
    ax.plot(number[failed], np.full(failed.sum(), 0.04), "x", color=RED, ms=6, transform=at)
    return None


def _origins(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["origin"] for row in rows))


def _legend(rows: list[dict], ax: Axes) -> list[Line2D]:
    """An entry for each look that occurs."""
    found = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
    origins, plain = _origins(rows), {"is_whole": True, "is_collapsed": False}
    for origin in origins:
        look = _style({"origin": origin, **plain}, origins)
        found.append(Line2D([], [], label=origin, **look))
    grey: dict[str, Any] = {"ls": "none", "marker": "o", "color": GREY}
    if not _flags(rows, "is_whole").all():
        found.append(Line2D([], [], ms=4, alpha=0.5, label=SHORT, **grey))
    if _flags(rows, "is_collapsed").any():
        found.append(Line2D([], [], ms=6.5, mfc="none", label=COLLAPSED, **grey))
    if any(row["state"] == "failed" for row in rows):
        found.append(Line2D([], [], marker="x", ls="none", color=RED, label=FAILED))
    return found


def hypervolume(
    searches: Mapping[str, Sequence[Trial]],
    path: Path,
    *,
    objectives: Sequence[str],
    reference: Sequence[float],
) -> None:
    """Share of the volume that the trials so far dominate, over the CPU time of each search.

    Parameters
    ----------
    searches : trials by the name of their search
    objectives, reference : as in `trial_rows.hypervolume_curve`
    """
    with drawing(path, 8.5, 5) as figure:
        ax = figure.subplots()
        ax.set(xlabel="CPU time in s", ylabel="hypervolume, share of the possible")
        corner = zip(objectives, reference, strict=True)
        ax.set_title("reference: " + ", ".join(_objective_text(*each) for each in corner))
        if not any(searches.values()):
            return write_note(ax, "no trials")
        for i, (name, trials) in enumerate(searches.items()):
            curve = hypervolume_curve(trials, objectives=objectives, reference=reference)
            _draw_curve(ax, i, name, *curve)
        # The first trials are far below what is to be compared.
        curves = [np.asarray(line.get_ydata(), float) for line in ax.lines]
        lowest = min(np.min(shares[shares > 0], initial=shares[-1]) for shares in curves)
        ax.set(xlim=(0, None), ylim=(0.9 * lowest, None))
        figure.legend(loc="outside lower center", ncols=1 if len(searches) < 4 else 2)
    return None


def _draw_curve(ax: Axes, i: int, name: str, seconds: np.ndarray, shares: np.ndarray) -> None:
    """Steps that end in a dot."""
    label = f"{name}: {shares[-1]:.4f} after {seconds[-1]:.0f} s, {len(shares) - 1} trials"
    style: dict[str, Any] = {"marker": "o", "ms": 5, "markevery": [len(shares) - 1], "lw": 1.8}
    style |= {"color": COLORS[i % len(COLORS)], "ls": ("-", "--", "-.")[i // len(COLORS) % 3]}
    ax.step(seconds, shares, where="post", label=label, **style)


def _objective_text(objective: str, value: float) -> str:
    """Name and value with its unit: "model file 61.2 kB", "F1 0.5"."""
    if objective in UNITS:
        quantity, symbol, one = UNITS[objective]
        return f"{quantity} {value / one:.4g} {symbol}"
    return f"{name_of(objective)} {value:.4g}"


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
