"""Buzzes per hour and per day, and for how long was listened: without it a count says nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby

from qbee.detect import clock
from qbee.detect.events import Event, Listened
from qbee.records import FrontEnd

HOURS = "location", "date", "hour", "listened_s", "events", "buzz_s", "events_per_hour"
DAYS = "location", "date", "listened_s", "events", "buzz_s", "events_per_hour"
HOUR = timedelta(hours=1)


@dataclass
class Effort:
    """What was heard in an hour or on a day of a location's clock."""

    listened_s: float = 0.0
    events: int = 0
    buzz_s: float = 0.0

    @property
    def events_per_hour(self) -> float | None:
        """Events in an hour of listening; None if nothing was listened to."""
        return self.events / (self.listened_s / 3600) if self.listened_s else None

    def add(self, other: Effort) -> None:
        """Count the other one too."""
        self.listened_s += other.listened_s
        self.events += other.events
        self.buzz_s += other.buzz_s


@dataclass(frozen=True, order=True)
class Hour:
    """An hour of a location's clock; it comes twice when clocks are put back."""

    location: str
    date: date
    hour: int


def by_hour(
    listened: Iterable[Listened], events: Iterable[Event], front_end: FrontEnd
) -> dict[Hour, Effort]:
    """Effort and events of every hour that was listened in, in order.

    Recordings without a start time do not count; an event counts where it begins, and its
    seconds where they are.
    """
    found: defaultdict[Hour, Effort] = defaultdict(Effort)
    for one in listened:
        starts_s = one.starts_s(front_end)
        if len(starts_s):
            end_s = float(starts_s[-1]) + front_end.window_s
            for hour, seconds in _hours(one, float(starts_s[0]), end_s):
                found[hour].listened_s += seconds
    for event in events:
        for index, span in enumerate(event.spans):
            for number, (hour, seconds) in enumerate(
                _hours(span.listened, span.start_s, span.end_s)
            ):
                found[hour].buzz_s += seconds
                found[hour].events += index == number == 0
    return dict(sorted(found.items()))


def _hours(one: Listened, start_s: float, end_s: float) -> Iterable[tuple[Hour, float]]:
    """Hours of the clock that a stretch of a recording lies in, and its seconds in each."""
    recording = one.placed.recording
    if recording.start is None:
        return
    now, end = (clock.after(recording.start, seconds) for seconds in (start_s, end_s))
    while (left := clock.between(now, end)) > 0:
        to_next = HOUR.total_seconds() - (now.minute * 60 + now.second + now.microsecond / 1e6)
        seconds = min(left, to_next)
        yield Hour(recording.location, now.date(), now.hour), seconds
        now = clock.after(now, seconds)


def by_day(hours: dict[Hour, Effort]) -> dict[tuple[str, date], Effort]:
    """The same by location and day."""
    found = {}
    for key, group in groupby(hours.items(), key=lambda item: (item[0].location, item[0].date)):
        found[key] = Effort()
        for _, effort in group:
            found[key].add(effort)
    return found


def rows(table: dict) -> Sequence[tuple]:
    """Rows of the table of hours or of days."""
    return [(*_key(key), *_cells(effort)) for key, effort in table.items()]


def _key(key: Hour | tuple[str, date]) -> tuple:
    if isinstance(key, Hour):
        return key.location, key.date.isoformat(), key.hour
    return key[0], key[1].isoformat()


def _cells(effort: Effort) -> tuple:
    rate = effort.events_per_hour
    listened_s, buzz_s = round(effort.listened_s, 3), round(effort.buzz_s, 3)
    return listened_s, effort.events, buzz_s, "" if rate is None else round(rate, 4)
