"""Windows that hear a buzz, merged into events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from qbee.detect.parts import Part
from qbee.detect.recordings import Placed
from qbee.records import FrontEnd, Record
from qbee.train import metrics


class EventRule(Record):
    """What an event is: hysteresis, gaps that are bridged, and the shortest that counts.

    An event is a row of windows that all reach ``keep_threshold``, one of them ``threshold``.
    Events less than ``max_gap_s`` apart are one; those shorter than ``min_event_s``, from the
    beginning of the first window to the end of the last, are none.
    """

    threshold: float = Field(ge=0, le=1)
    keep_threshold: float = Field(ge=0, le=1)
    min_event_s: float = Field(0.0, ge=0)
    max_gap_s: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.keep_threshold > self.threshold:
            raise ValueError(
                f"keep_threshold={self.keep_threshold:g} must not be above "
                f"threshold={self.threshold:g}"
            )
        return self


@dataclass(frozen=True)
class Listened:
    """A recording and its windows."""

    placed: Placed
    part: Part

    def starts_s(self, front_end: FrontEnd) -> np.ndarray:
        """Starts of the windows, seconds from the beginning of the file, float64."""
        return self.part.first_s + np.arange(len(self.part.margins)) * front_end.window_hop_s


@dataclass(frozen=True)
class Span:
    """A stretch of one recording."""

    listened: Listened
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Event:
    """A buzz, in one recording or in several that continue each other.

    ``peak`` is the window of the highest probability.
    """

    spans: tuple[Span, ...]
    peak: Span
    peak_probability: float
    mean_probability: float
    windows: int
    duration_s: float

    @property
    def location(self) -> str:
        """Where it was heard."""
        return self.spans[0].listened.placed.recording.location


def chains(listened: Sequence[Listened]) -> list[list[Listened]]:
    """Recordings in order, those together that are one sound."""
    found: list[list[Listened]] = []
    for one in listened:
        last = found[-1][-1] if found else None
        # What is damaged, or was not heard, is a hole; the next recording begins anew.
        is_next = last is not None and last.placed.recording.uri == one.placed.before
        if last is not None and is_next and not last.part.is_damaged:
            found[-1].append(one)
        else:
            found.append([one])
    return found


@dataclass(frozen=True, eq=False)
class _Row:
    """Windows of a chain, one array an attribute."""

    owner: np.ndarray
    start_s: np.ndarray
    at_s: np.ndarray
    probability: np.ndarray


def _row(chain: Sequence[Listened], front_end: FrontEnd) -> _Row:
    starts = [one.starts_s(front_end) for one in chain]
    lengths = [one.placed.recording.duration_s or 0.0 for one in chain]
    begins = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    return _Row(
        owner=np.repeat(np.arange(len(chain)), [len(part) for part in starts]),
        start_s=np.concatenate(starts),
        at_s=np.concatenate([part + begin for part, begin in zip(starts, begins, strict=True)]),
        probability=metrics.sigmoid(np.concatenate([one.part.margins for one in chain])),
    )


def find(chain: Sequence[Listened], front_end: FrontEnd, rule: EventRule) -> list[Event]:
    """Events of recordings that are one sound, in order of time."""
    row = _row(chain, front_end)
    runs = [
        run
        for run in _runs(row, front_end, rule)
        if row.probability[run[0] : run[1] + 1].max() >= rule.threshold
    ]
    merged: list[tuple[int, int]] = []
    for first, last in runs:
        is_near = merged and _gap_s(row, merged[-1][1], first, front_end) < rule.max_gap_s
        merged[-1:] = [(merged[-1][0], last)] if is_near else [*merged[-1:], (first, last)]
    events = [_event(chain, row, first, last, front_end) for first, last in merged]
    return [event for event in events if event.duration_s >= rule.min_event_s]


def _gap_s(row: _Row, last: int, first: int, front_end: FrontEnd) -> float:
    return float(row.at_s[first] - row.at_s[last] - front_end.window_s)


def _runs(row: _Row, front_end: FrontEnd, rule: EventRule) -> list[tuple[int, int]]:
    """First and last window of each row of windows that reach the lower threshold."""
    kept = np.flatnonzero(row.probability >= rule.keep_threshold)
    if not len(kept):
        return []
    # A window whose neighbour is missing at a cut touches the next one.
    apart_s = max(front_end.window_s, front_end.window_hop_s) + 1e-6
    breaks = (np.diff(kept) > 1) | (np.diff(row.at_s[kept]) > apart_s)
    firsts = kept[np.concatenate([[True], breaks])]
    lasts = kept[np.concatenate([breaks, [True]])]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def _event(
    chain: Sequence[Listened], row: _Row, first: int, last: int, front_end: FrontEnd
) -> Event:
    inside = row.probability[first : last + 1]
    peak = first + int(np.argmax(inside))
    owners = row.owner[first : last + 1]
    spans = []
    for owner in np.unique(owners):
        starts = row.start_s[first : last + 1][owners == owner]
        spans.append(Span(chain[owner], float(starts[0]), float(starts[-1]) + front_end.window_s))
    start_s = float(row.start_s[peak])
    return Event(
        spans=tuple(spans),
        peak=Span(chain[row.owner[peak]], start_s, start_s + front_end.window_s),
        peak_probability=float(row.probability[peak]),
        mean_probability=float(inside.mean()),
        windows=last - first + 1,
        duration_s=float(row.at_s[last] - row.at_s[first]) + front_end.window_s,
    )
