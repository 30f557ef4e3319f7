from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from field_toys import FRONT_END, part_of, recording

from qbee.detect import activity, events
from qbee.detect.activity import Hour
from qbee.detect.events import EventRule, Listened
from qbee.detect.recordings import Placed

RULE = EventRule(threshold=0.5, keep_threshold=0.5)
HOP_S, WINDOW_S = FRONT_END.window_hop_s, FRONT_END.window_s


def heard(start, hours, buzz_at_s=(), location="here"):
    """A recording of whole windows with an event of one window at each of some seconds."""
    duration_s = 3600 * hours
    count = int((duration_s - WINDOW_S) / HOP_S) + 1
    margins = np.full(count, -5.0)
    for at_s in buzz_at_s:
        margins[round(at_s / HOP_S)] = 5
    placed = Placed(recording(start=start, duration_s=duration_s, location=location), None, 0)
    return Listened(placed, part_of(placed, margins))


def counted(*listened):
    found = [e for one in listened for e in events.find([one], FRONT_END, RULE)]
    return activity.by_hour(listened, found, FRONT_END)


def test_listening_and_events_fall_into_their_hours():
    hours = counted(heard(datetime(2024, 5, 1, 22, 30), 2, [60, 1795, 1803]))
    assert [(h.date.day, h.hour) for h in hours] == [(1, 22), (1, 23), (2, 0)]
    assert [round(e.listened_s) for e in hours.values()] == [1800, 3600, 1800]
    assert [e.events for e in hours.values()] == [2, 1, 0]
    rates = [e.events_per_hour for e in hours.values()]
    assert rates == pytest.approx([4, 1, 0], rel=1e-3)


def test_an_event_over_the_hour_counts_once_and_its_seconds_in_both():
    start = datetime(2024, 5, 1, 22, 59, 59, 500000)
    hours = counted(heard(start, 0.1, [0.0]))
    assert [e.events for e in hours.values()] == [1, 0]
    assert [e.buzz_s for e in hours.values()] == pytest.approx([0.5, WINDOW_S - 0.5])


def test_all_that_was_listened_to_is_in_some_hour():
    one = heard(datetime(2024, 5, 1, 0, 17, 3, 250000), 7.3)
    total = sum(effort.listened_s for effort in counted(one).values())
    assert total == pytest.approx((len(one.part.margins) - 1) * HOP_S + WINDOW_S)


def test_an_hour_that_comes_twice_is_listened_to_twice():
    zone = ZoneInfo("Europe/Ljubljana")
    start = datetime(2023, 10, 28, 23, 0, tzinfo=UTC).astimezone(zone)
    hours = counted(heard(start, 4))
    assert {h.hour: round(e.listened_s / 3600) for h, e in hours.items()} == {1: 1, 2: 2, 3: 1}


def test_recordings_without_a_time_do_not_count():
    assert counted(heard(None, 1, [60])) == {}


def test_days_are_the_sum_of_their_hours_by_location():
    hours = counted(
        heard(datetime(2024, 5, 1, 23), 2, [60]), heard(datetime(2024, 5, 1, 1), 1, [60], "there")
    )
    days = activity.by_day(hours)
    assert {k: v.events for k, v in days.items()} == {
        ("here", date(2024, 5, 1)): 1,
        ("here", date(2024, 5, 2)): 0,
        ("there", date(2024, 5, 1)): 1,
    }
    assert activity.rows(days)[0][:2] == ("here", "2024-05-01")
    assert activity.rows({Hour("x", date(2024, 5, 1), 3): activity.Effort()}) == [
        ("x", "2024-05-01", 3, 0.0, 0, 0.0, "")
    ]
