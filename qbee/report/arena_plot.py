"""Picture of the arena over time: what lives when, and where; as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

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
    write_note,
)
from qbee.runtime.facts import Inspection, Stretch

COLORS = (BLUE, ORANGE, GREEN, SKY, PURPLE)
# Above this, axes count KiB instead of bytes.
LARGEST_IN_BYTES = 20_000
# More names than this cannot be read beside each other.
MOST_NAMES, MOST_LABELS = 36, 14
WIDTH_IN, HEIGHT_IN = 13.0, 6.2
# A line from the left middle of a label to its tensor.
LEADER = {
    "arrowstyle": "-",
    "color": GREY,
    "lw": 0.7,
    "shrinkA": 2,
    "shrinkB": 0,
    "relpos": (0, 0.5),
}
# Height of a label as a share of the picture's.
LABEL_SHARE = 0.06


def arena(found: Inspection, path: Path) -> None:
    """Every tensor as a rectangle: its bytes over the operators during which it is in use.

    The operator with most bytes in use is marked, and its tensors are named.
    """
    with drawing(path, WIDTH_IN, HEIGHT_IN) as figure:
        figure.suptitle(_title(found))
        ax, labels = figure.subplots(1, 2, width_ratios=[3.4, 1])
        labels.set_axis_off()
        if not found.operators:
            write_note(ax, "no operators")
            return
        unit = 1024 if found.arena.head_bytes > LARGEST_IN_BYTES else 1
        for stretch in found.arena.stretches:
            _draw(ax, stretch, unit)
        _draw_use(ax, found, unit)
        count, top = len(found.operators), max(found.arena.head_bytes / unit, 1) * 1.06
        ax.set(xlim=(-0.6, count - 0.4), ylim=(0, top))
        ax.set_ylabel("place in the head of the arena in " + ("KiB" if unit > 1 else "bytes"))
        _name_operators(ax, found)
        _label_peak(ax, labels, found, unit, top)
        labels.legend(handles=_legend(), loc="lower left", ncols=2)


def _title(found: Inspection) -> str:
    sizes = found.arena
    how = "planned in the file" if sizes.is_planned else "as TFLite Micro plans it"
    return (
        f"{Path(found.source).name}: {sizes.head_bytes:,} (head, {how}) + "
        f"{sizes.tail_bytes:,} (tail) = {sizes.total_bytes:,} bytes"
    )


def _draw(ax: Axes, stretch: Stretch, unit: int) -> None:
    begin, is_scratch = max(stretch.first, 0) - 0.5, stretch.tensor is None
    color = GREY if stretch.tensor is None else COLORS[stretch.tensor % len(COLORS)]
    box = Rectangle(
        (begin, stretch.offset_bytes / unit),
        stretch.last + 0.5 - begin,
        stretch.size_bytes / unit,
        facecolor=color,
        edgecolor="white",
        linewidth=0.6,
        alpha=0.75,
        hatch="///" if is_scratch else None,
    )
    ax.add_patch(box)


def _draw_use(ax: Axes, found: Inspection, unit: int) -> None:
    """Bytes in use during each operator, and the operator with most of them."""
    used = [op.live_bytes / unit for op in found.operators]
    edges = [i - 0.5 for i in range(len(used) + 1)]
    ax.stairs(used, edges, color=INK, lw=1.4)
    ax.axhline(found.arena.head_bytes / unit, color=INK, lw=1, ls="--")
    peak = found.arena.peak_operator
    if peak is not None:
        ax.axvspan(peak - 0.5, peak + 0.5, facecolor="none", edgecolor=RED, lw=2, zorder=5)


def _name_operators(ax: Axes, found: Inspection) -> None:
    ax.grid(visible=False, axis="x")
    ax.set_xlabel("operator, in the order in which they run")
    if len(found.operators) <= MOST_NAMES:
        names = [f"{op.number} {op.op}" for op in found.operators]
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=8)


def _legend() -> list[Artist]:
    return [
        Line2D([], [], color=INK, lw=1.4, label="in use"),
        Line2D([], [], color=INK, lw=1, ls="--", label="head"),
        Patch(facecolor=GREY, edgecolor="white", hatch="///", alpha=0.75, label="scratch"),
        Patch(facecolor="none", edgecolor=RED, lw=2, label="most in use"),
    ]


def _described(found: Inspection, stretch: Stretch) -> str:
    """Who writes a tensor, its shape and its size."""
    size = f"{stretch.size_bytes:,} B"
    if stretch.tensor is None:
        return f"scratch, {size}"
    if stretch.first < 0:
        return f"input {stretch.name}, {size}"
    writer = found.operators[stretch.first]
    shape = "×".join(map(str, writer.output.shape)) if writer.output else ""
    return f"{writer.number} {writer.op}\n{shape}, {size}"


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Rising places, moved apart until the gap between neighbours is large enough."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + gap) if found else place)
    # What was pushed beyond the end goes back.
    for i in reversed(range(len(found))):
        most = 1 - gap * (len(found) - 0.5 - i)
        found[i] = min(found[i], most)
    return found


def _label_peak(ax: Axes, labels: Axes, found: Inspection, unit: int, top: float) -> None:
    """Name the tensors in use during the operator with most bytes, the largest ones only."""
    peak = found.arena.peak_operator
    if peak is None:
        return
    live = [s for s in found.arena.stretches if s.first <= peak <= s.last]
    named = sorted(live, key=lambda s: s.size_bytes, reverse=True)[:MOST_LABELS]
    named.sort(key=lambda s: s.offset_bytes)
    middles = [(s.offset_bytes + s.size_bytes / 2) / unit for s in named]
    # The legend lies below the names.
    places = _spread([max(m / top, 2.5 * LABEL_SHARE) for m in middles], LABEL_SHARE)
    operator = found.operators[peak]
    more = f"\nthe {len(named)} largest of {len(live)} tensors:" if len(live) > len(named) else ""
    title = f"operator {peak}, {operator.op}\nuses most: {operator.live_bytes:,} bytes{more}"
    # Names may be wider than their column, which must not shrink the picture.
    labels.set_title(title, fontsize=9.5, color=RED).set_in_layout(False)
    for stretch, middle, place in zip(named, middles, places, strict=True):
        label = labels.annotate(
            _described(found, stretch),
            xy=(peak + 0.5, middle),
            xycoords=ax.transData,
            xytext=(0.0, place),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops=LEADER,
        )
        label.set_in_layout(False)
