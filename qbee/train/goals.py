"""What a decision threshold is chosen for, and false alarms per hour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from qbee.errors import DataError, ParameterError
from qbee.records import FrontEnd, Record, Window
from qbee.train import metrics

_TEXT = re.compile(r"(precision)\s*>=\s*([\d.]+)\s*(%?)|(false_alarms)\s*<=\s*([\d.]+)\s*(?:/h)?")
FORMS = "f1, precision>=0.9 or false_alarms<=2 (an hour)"


class Goal(Record):
    """The highest F1, or the most buzzes at a lowest precision or at most so many false alarms."""

    kind: Literal["f1", "precision", "false_alarms"] = "f1"
    bound: float | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if (self.kind == "f1") != (self.bound is None):
            raise ValueError("precision and false_alarms need a bound, f1 has none")
        if self.bound is not None and not 0 <= self.bound <= (
            1 if self.kind == "precision" else 1e9
        ):
            raise ValueError(f"bound={self.bound:g} cannot be reached")
        return self

    def __str__(self) -> str:
        if self.kind == "f1":
            return "f1"
        return f"{self.kind}{'>=' if self.kind == 'precision' else '<='}{self.bound:g}"


def parse(text: str) -> Goal:
    """Goal of a text such as f1, precision>=0.9 or false_alarms<=2.

    Raises
    ------
    ParameterError
        saying what forms there are.
    """
    if text.strip() == "f1":
        return Goal()
    found = _TEXT.fullmatch(text.strip())
    try:
        if found is None:
            raise ValueError(text)
        precision, bound, percent, alarms, rate = found.groups()
        if alarms:
            return Goal(kind="false_alarms", bound=float(rate))
        return Goal(kind=precision, bound=float(bound) / (100 if percent else 1))
    except ValueError as error:
        raise ParameterError(f"goal={text!r} must be {FORMS}") from error


class FalseAlarms(Record):
    """False alarms of a detector: rows of windows without buzz that it calls buzz.

    A row counts once for every window's length that it lasts, or calling everything buzz would be
    a single alarm. ``of_quiet_recordings`` says that they were counted in recordings without any
    buzz, else in the stretches without buzz of all recordings, which may hold the edges of buzzes.
    """

    alarms: int
    hours: float
    recordings: int
    of_quiet_recordings: bool

    @property
    def per_hour(self) -> float | None:
        """Alarms in an hour of listening; None if there was nothing to listen to."""
        return self.alarms / self.hours if self.hours else None


class Quiet:
    """Windows without buzz, in rows as they follow each other.

    Parameters
    ----------
    windows : of any recordings, each with its label
    """

    def __init__(self, windows: Sequence[Window], front_end: FrontEnd):
        self.hop_s, self.window_s = front_end.window_hop_s, front_end.window_s
        with_buzz = {window.path for window in windows if window.is_buzz}
        quiet = [i for i, w in enumerate(windows) if w.path not in with_buzz]
        self.of_quiet_recordings = bool(quiet)
        chosen = quiet or [i for i, window in enumerate(windows) if not window.is_buzz]
        self.indices = np.array(
            sorted(chosen, key=lambda i: (str(windows[i].path), windows[i].start_s)), int
        )
        self.recordings = len({windows[i].path for i in chosen})
        rows = self._rows(windows, front_end)
        self.is_first = np.array([i == 0 for row in rows for i in range(len(row))], bool)
        self.hours = sum(row[-1] - row[0] + front_end.window_s for row in rows) / 3600

    def _rows(self, windows: Sequence[Window], front_end: FrontEnd) -> list[list[float]]:
        """Starts of windows that follow each other at most one hop apart."""
        rows: list[list[float]] = []
        for _, group in groupby(self.indices.tolist(), key=lambda i: windows[i].path):
            last = -np.inf
            for index in group:
                start_s = windows[index].start_s
                if start_s - last > 1.01 * front_end.window_hop_s:
                    rows.append([])
                rows[-1].append(start_s)
                last = start_s
        return rows

    def alarms(self, probability: np.ndarray, threshold: float) -> FalseAlarms:
        """False alarms of ``probability >= threshold``; probabilities are of all windows."""
        found = np.asarray(probability)[self.indices] >= threshold
        before = np.concatenate([[False], found[:-1]]) & ~self.is_first
        starts = np.flatnonzero(found & ~before)
        lengths = np.add.reduceat(found.astype(int), starts) if len(starts) else starts
        # reduceat sums up to the next row's start; what lies between is not found.
        rows_s = (lengths - 1) * self.hop_s + self.window_s
        return FalseAlarms(
            alarms=int(np.ceil(rows_s / self.window_s - 1e-9).sum()),
            hours=self.hours,
            recordings=self.recordings,
            of_quiet_recordings=self.of_quiet_recordings,
        )


def threshold(
    goal: Goal, windows: Sequence[Window], probability: np.ndarray, front_end: FrontEnd
) -> float:
    """Threshold that reaches a goal on these (validation) windows.

    For F1 by `metrics.best_threshold`; otherwise the lowest threshold, which finds the most
    buzzes, from which on no higher one misses the bound (for false alarms) or that keeps it (for
    precision, which need not rise with the threshold).

    Raises
    ------
    DataError
        if no threshold reaches the goal; the message says how near one comes.
    """
    labels = np.array([window.is_buzz for window in windows], bool)
    if goal.kind == "f1" or goal.bound is None:
        return metrics.best_threshold(labels, probability)
    if goal.kind == "precision":
        return _for_precision(goal.bound, labels, probability)
    return _for_alarms(goal.bound, Quiet(windows, front_end), probability)


def _for_precision(bound: float, labels: np.ndarray, probability: np.ndarray) -> float:
    cuts, found, hits = metrics.detections(labels, probability)
    precision = hits / found
    good = np.flatnonzero((precision >= bound) & (hits > 0))
    if not len(good):
        raise DataError(
            f"goal=precision>={bound:g}: on {len(labels)} validation windows, {labels.sum()} with "
            f"buzz, the highest precision of any threshold is {precision.max():.3f}"
        )
    return float(cuts[max(good, key=lambda i: (hits[i], precision[i]))])


def _for_alarms(bound: float, quiet: Quiet, probability: np.ndarray) -> float:
    if not quiet.hours:
        raise DataError("goal=false_alarms needs validation windows without buzz, there are none")
    best: float | None = None
    for cut in metrics.cuts(probability):
        if (quiet.alarms(probability, cut).per_hour or 0.0) > bound:
            break
        best = cut
    if best is None:
        raise DataError(
            f"goal=false_alarms<={bound:g}: even the surest of {quiet.hours:.2f} hours of "
            f"validation windows without buzz is an alarm, {1 / quiet.hours:.2f} an hour"
        )
    return best
