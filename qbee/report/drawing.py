"""Colours, style and helpers of the plots, drawn without pyplot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from qbee.files import replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
PURPLE, YELLOW, GREY, INK = "#CC79A7", "#F0E442", "#7a7a7a", "#222222"
STYLE: dict[Any, Any] = {
    "savefig.dpi": 110,
    "font.size": 10.5,
    "text.color": INK,
    # Names of files and places may hold dollar signs.
    "text.parse_math": False,
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.labelspacing": 0.7,
}


@contextmanager
def drawing(path: Path, width_in: float, height_in: float) -> Iterator[Figure]:
    """Figure that is saved as ``path`` when the block ends without an error."""
    with matplotlib.rc_context(STYLE), replacing(path) as partial:
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(partial, format="png")


def values_of(records: Sequence[dict], key: str) -> np.ndarray:
    """Values of one key as floats; None becomes NaN."""
    return np.array([np.nan if r[key] is None else r[key] for r in records], float)


def write_note(ax: Axes, text: str) -> None:
    """Write why a plot is empty into its middle."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=GREY)


def mark_choice(ax: Axes, x: ArrayLike, y: ArrayLike, label: str) -> None:
    """Draw a star: the trial or the operating point that was chosen."""
    ax.plot(x, y, "*", ms=18, color=YELLOW, mec=INK, mew=1.1, label=label, zorder=6)
