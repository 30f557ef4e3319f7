"""Heat map of buzzes: date against hour of the day, a panel for every location."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator

from qbee.detect.activity import Effort, Hour
from qbee.report.drawing import GREY, drawing, write_note

HOURS = 24
# More days than this are one cell each all the same, but only some are named.
MOST_TICKS = 14
INCHES_A_DAY, LEAST_IN, MOST_IN = 0.17, 1.6, 40.0


def heat_map(hours: Mapping[Hour, Effort], path: Path, *, zone: str) -> None:
    """Draw events per hour of listening; hours without any recording stay blank.

    Parameters
    ----------
    zone : in words, of which clock the hours are
    """
    places = sorted({hour.location for hour in hours})
    tables = [_table(hours, place) for place in places]
    heights = [max(LEAST_IN, INCHES_A_DAY * len(days)) for days, _ in tables] or [LEAST_IN]
    scale = min(1.0, MOST_IN / sum(heights))
    with drawing(path, 8.5, scale * sum(heights) + 0.9 * len(heights) + 0.8) as figure:
        figure.suptitle("Events per hour of listening")
        axes = figure.subplots(max(1, len(places)), 1, squeeze=False, height_ratios=heights)[:, 0]
        if not places:
            write_note(axes[0], "no recording has a start time")
            return
        highest = max(float(np.nanmax(rates)) for _, rates in tables) or 1.0
        for ax, place, (days, rates) in zip(axes, places, tables, strict=True):
            image = _draw(ax, days, rates, highest)
            ax.set_title(place)
        axes[-1].set_xlabel(f"hour of the day, {zone}")
        figure.colorbar(image, ax=axes, label="events per hour", aspect=30, pad=0.02)


def _table(hours: Mapping[Hour, Effort], place: str) -> tuple[list[date], np.ndarray]:
    """All days from the first to the last, and events per hour [days, 24], nan if not heard."""
    dates = [hour.date for hour in hours if hour.location == place]
    first = min(dates)
    days = [first + timedelta(days=i) for i in range((max(dates) - first).days + 1)]
    rates = np.full((len(days), HOURS), np.nan)
    for hour, effort in hours.items():
        rate = effort.events_per_hour
        if hour.location == place and rate is not None:
            rates[(hour.date - first).days, hour.hour] = rate
    return days, rates


def _draw(ax: Axes, days: list[date], rates: np.ndarray, highest: float):
    ax.set_facecolor("#f1f1f1")
    edges = np.arange(HOURS + 1), np.arange(len(days) + 1)
    image = ax.pcolormesh(*edges, rates, cmap="viridis", vmin=0, vmax=highest)
    ax.grid(False)
    ax.invert_yaxis()
    ax.set_xticks(range(0, HOURS + 1, 3))
    shown = MaxNLocator(MOST_TICKS, integer=True, min_n_ticks=1).tick_values(0, len(days) - 1)
    ticks = [int(tick) for tick in shown if 0 <= tick < len(days) and tick == int(tick)]
    ax.yaxis.set_major_locator(FixedLocator([tick + 0.5 for tick in ticks]))
    ax.set_yticklabels([days[tick].isoformat() for tick in ticks])
    ax.tick_params(colors=GREY, labelcolor="black")
    return image
