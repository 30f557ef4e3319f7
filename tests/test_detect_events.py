from datetime import datetime, timedelta

import numpy as np
import pytest
from field_toys import FRONT_END, part_of, recording
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qbee.detect import events
from qbee.detect.events import EventRule, Listened
from qbee.detect.parts import Problem
from qbee.detect.recordings import Placed

START = datetime(2024, 5, 1, 22)
HOP_S, WINDOW_S = FRONT_END.window_hop_s, FRONT_END.window_s
RULE = EventRule(threshold=0.5, keep_threshold=0.5)


def listened(margins, *, number=0, continues=False, problems=(), first_s=0.0):
    """A recording with these windows, as long as they are."""
    duration_s = (len(margins) - 1) * HOP_S + WINDOW_S
    start = START + timedelta(seconds=number * duration_s)
    before = recording(f"{number - 1}.wav").uri if continues else None
    placed = Placed(recording(f"{number}.wav", start=start, duration_s=duration_s), before, 0)
    return Listened(placed, part_of(placed, margins, problems=problems, first_s=first_s))


def found(margins, rule=RULE):
    return events.find([listened(margins)], FRONT_END, rule)


def bounds(event):
    return [(round(s.start_s / HOP_S, 6), round(s.end_s / HOP_S, 6)) for s in event.spans]


def test_windows_side_by_side_are_one_event():
    (event,) = found([-1, 2, 3, 1, -1, -1])
    assert bounds(event) == [(1, 5)]
    assert event.windows == 3
    assert event.duration_s == 2 * HOP_S + WINDOW_S
    assert event.peak.start_s == 2 * HOP_S
    assert event.peak_probability == pytest.approx(1 / (1 + np.exp(-3)))
    assert event.location == "here"


def test_one_quiet_window_parts_two_events_unless_gaps_are_bridged():
    margins = [2, -1, 2]
    assert [bounds(e) for e in found(margins)] == [[(0, 2)], [(2, 4)]]
    bridged = RULE.model_copy(update={"max_gap_s": 0.01})
    assert [bounds(e) for e in found(margins, bridged)] == [[(0, 4)]]


def test_hysteresis_keeps_what_lies_beside_a_peak_and_drops_what_has_none():
    rule = EventRule(threshold=0.9, keep_threshold=0.3)
    assert [bounds(e) for e in found([0, 3, 0, -9, 0, 0, -9], rule)] == [[(0, 4)]]


def test_short_events_do_not_count():
    rule = RULE.model_copy(update={"min_event_s": WINDOW_S + HOP_S})
    assert [bounds(e) for e in found([2, -1, -1, 2, 2, -1], rule)] == [[(3, 6)]]


def test_an_event_goes_on_in_the_recording_that_continues():
    chain = [listened([-1, -1, 2]), listened([2, 2, -1], number=1, continues=True)]
    assert [len(part) for part in events.chains(chain)] == [2]
    (event,) = events.find(chain, FRONT_END, RULE)
    assert bounds(event) == [(2, 4), (0, 3)]
    assert event.duration_s == 3 * WINDOW_S - HOP_S


def test_a_recording_that_does_not_continue_begins_anew():
    apart = [listened([2]), listened([2], number=1)]
    assert [len(part) for part in events.chains(apart)] == [1, 1]


def test_a_recording_that_was_not_heard_is_a_hole():
    chain = [listened([2]), listened([2], number=2, continues=True)]
    assert [len(part) for part in events.chains(chain)] == [1, 1]


def test_a_hole_ends_an_event():
    cut = Problem(kind="cut_short", effect="used_partly", at_s=1.0, text="x")
    chain = [listened([2], problems=[cut]), listened([2], number=1, continues=True)]
    assert [len(part) for part in events.chains(chain)] == [1, 1]


@given(
    margins=st.lists(st.floats(-3, 3), max_size=40),
    high=st.sampled_from([0.3, 0.5, 0.8]),
    share=st.sampled_from([0.2, 0.6, 1.0]),
)
def test_events_are_the_windows_that_a_slow_definition_gives(margins, high, share):
    rule = EventRule(threshold=high, keep_threshold=share * high)
    # As they are kept: float32.
    probability = 0.5 * (1 + np.tanh(np.float32(margins).astype(float) / 2))
    expected, run = [], []
    for i in range(len(margins) + 1):
        if i < len(margins) and probability[i] >= rule.keep_threshold:
            run.append(i)
        elif run:
            if probability[run].max() >= rule.threshold:
                expected.append((run[0], run[-1]))
            run = []
    events_ = events.find([listened(margins)], FRONT_END, rule) if margins else []
    got = [
        (round(e.spans[0].start_s / HOP_S), round(e.spans[-1].end_s / HOP_S) - 2) for e in events_
    ]
    assert got == expected


@given(margins=st.lists(st.floats(-3, 3), min_size=2, max_size=40))
def test_a_lower_threshold_never_hears_less(margins):
    def heard(threshold):
        rule = EventRule(threshold=threshold, keep_threshold=threshold)
        return sum(event.windows for event in found(margins, rule))

    assert heard(0.3) >= heard(0.5) >= heard(0.7)


def test_the_lower_threshold_must_not_be_the_higher_one():
    with pytest.raises(ValidationError, match="keep_threshold=0.6"):
        EventRule(threshold=0.5, keep_threshold=0.6)
