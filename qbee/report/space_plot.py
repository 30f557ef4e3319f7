"""Plot of a search space for one network: what may be chosen where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from qbee.report.drawing import GREY, INK, drawing, write_note

ROLES = {"kernel": "kernels", "bias": "biases", "map": "feature maps"}
# Hyperparameter of the percentage of all layers' channels.
CHANNELS = "width"
# Sizes below it are written in full.
WRITTEN_OUT = 10**15
# Room for counts, and for headings above few widths.
COUNT_CELLS, HEADING_CELLS = 2.3, 3
FIXED = "#dcdcdc"


class Block(NamedTuple):
    """The columns of one role: where they begin and end, in cells, and the widths that occur."""

    role: str
    start: float
    end: float
    widths: list[int]


def space(
    menus: Mapping[str, Sequence[int]],
    settled: Mapping[str, int],
    elements: Mapping[str, int],
    path: Path,
    *,
    size: int,
    name: str,
) -> None:
    """Menu of every hyperparameter: a row for each group, with its kernels, biases and maps.

    Widths that can be chosen are blue, darker the wider they are; a width without a choice is
    grey. Beside them is the number of weights or map elements that follow.

    Parameters
    ----------
    menus : choices of every hyperparameter ("stem.kernel", "width") that has a choice
    settled : value of every hyperparameter that has none
    elements : weights or map elements by hyperparameter
    size : number of schemes
    name : of the network
    """
    choices = {**{key: (value,) for key, value in settled.items()}, **menus}
    known = [key for key in dict.fromkeys((*elements, *choices)) if key in choices]
    groups = list(dict.fromkeys(group for key in known if (group := key.rpartition(".")[0])))
    blocks = _blocks(choices)
    cells = blocks[-1].end if blocks else 8
    names_in = 0.09 * max(map(len, groups), default=0)
    row_in = min(0.27, 16 / max(1, len(groups)))
    with drawing(path, max(5.5, 0.32 * cells + names_in + 0.4), row_in * len(groups) + 1.5) as fig:
        ax = fig.subplots()
        fig.suptitle(f"{name}: {size_text(size)}")
        fig.supxlabel(_counts(menus, settled), fontsize=9.5)
        _set_up(ax, groups, cells)
        if not blocks:
            return write_note(ax, "no hyperparameter")
        for block in blocks:
            _draw_block(ax, block, groups, choices, elements, min(8.5, 72 * row_in * 0.7))
    return None


def size_text(size: int) -> str:
    """Number of schemes: "1,934,917,632 schemes (1.9e9)", of very many only the latter."""
    digits, _, exponent = f"{Decimal(size):.1e}".partition("e")
    short = f"{digits}e{int(exponent)}"
    if size >= WRITTEN_OUT:
        return f"{short} schemes"
    full = f"{size:,} scheme" + "s" * (size != 1)
    return full if size < 10**6 else f"{full} ({short})"


def _counts(menus: Mapping[str, Sequence[int]], settled: Mapping[str, int]) -> str:
    """Line below the table: how many hyperparameters there are, and the channels."""
    grey = sum(key != CHANNELS for key in settled)
    text = f"{len(menus)} hyperparameters with a choice" + (f", {grey} without (grey)" * bool(grey))
    widths = menus.get(CHANNELS, ())
    return f"{text}; channels: {', '.join(map(str, widths))} %" if widths else text


def _blocks(choices: Mapping[str, Sequence[int]]) -> list[Block]:
    found: list[Block] = []
    start = 0.0
    for role in ROLES:
        ours = [value for key, value in choices.items() if key.rpartition(".")[2] == role]
        widths = sorted({width for menu in ours for width in menu})
        if widths:
            end = start + max(len(widths), HEADING_CELLS) + COUNT_CELLS
            found.append(Block(role, start, end, widths))
            start = end + 0.6
    return found


def _set_up(ax: Axes, groups: list[str], cells: float) -> None:
    ax.set_xlim(-0.2, cells)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.set_xticks([])
    size = min(9.5, 72 * 0.7 * min(0.27, 16 / max(1, len(groups))))
    ax.set_yticks(range(len(groups)), groups, fontsize=size)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def _draw_block(
    ax: Axes,
    block: Block,
    groups: list[str],
    choices: Mapping[str, Sequence[int]],
    elements: Mapping[str, int],
    fontsize: float,
) -> None:
    """Cells of one role, with a heading above and the counts at the right."""
    heading: dict[str, Any] = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
    style: dict[str, Any] = {"va": "bottom", "fontsize": 9.5}
    ax.annotate(ROLES[block.role], (block.start, 1), xytext=(0, 4), **heading, **style)
    ax.annotate(
        "elements", (block.end, 1), xytext=(0, 4), ha="right", color=GREY, **heading, **style
    )
    for row, group in enumerate(groups):
        key = f"{group}.{block.role}"
        for bits in choices.get(key, ()):
            at = block.start + block.widths.index(bits)
            _draw_cell(ax, (at, row), bits, len(choices[key]) > 1, fontsize)
        if key in choices and key in elements:
            count = f"{elements[key]:,}"
            ax.text(block.end, row, count, ha="right", va="center", color=GREY, fontsize=fontsize)


def _draw_cell(
    ax: Axes, at: tuple[float, int], bits: int, is_choice: bool, fontsize: float
) -> None:
    shade = float(np.clip((np.log2(bits) - 1) / 4, 0.06, 1))
    color = colormaps["Blues"](shade) if is_choice else FIXED
    ax.add_patch(Rectangle((at[0] + 0.04, at[1] - 0.44), 0.92, 0.88, color=color, lw=0))
    ink = "white" if is_choice and shade > 0.7 else INK
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": fontsize}
    ax.text(at[0] + 0.5, at[1], str(bits), color=ink, **style)
