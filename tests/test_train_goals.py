from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee.errors import DataError, ParameterError
from qbee.records import FrontEnd, Window
from qbee.train import goals, metrics
from qbee.train.goals import Goal

FRONT_END = FrontEnd()
HOP_S = FRONT_END.window_hop_s


def windows_of(rows):
    """Windows of rows of labels, one recording each."""
    return [
        Window(Path(f"r{number}.wav"), HOP_S * i, bool(label), "here")
        for number, row in enumerate(rows)
        for i, label in enumerate(row)
    ]


@pytest.mark.parametrize(
    ("text", "kind", "bound"),
    [
        ("f1", "f1", None),
        ("precision>=0.9", "precision", 0.9),
        ("precision >= 95 %", "precision", 0.95),
        ("false_alarms<=2", "false_alarms", 2.0),
        ("false_alarms<=0.5/h", "false_alarms", 0.5),
    ],
)
def test_a_goal_is_the_same_after_a_trip_through_text(text, kind, bound):
    goal = goals.parse(text)
    assert (goal.kind, goal.bound) == (kind, bound)
    assert goals.parse(str(goal)) == goal
    assert Goal.model_validate_json(goal.model_dump_json()) == goal


@pytest.mark.parametrize(
    "text", ["", "f2", "precision", "precision<=0.9", "precision>=1.5", "false_alarms<=..", "f1>=1"]
)
def test_what_is_no_goal_is_refused_with_the_forms(text):
    with pytest.raises(ParameterError, match="goal=.*must be f1, precision>=0.9"):
        goals.parse(text)


def test_alarms_are_rows_and_long_ones_count_for_every_window_length():
    windows = windows_of([[0, 0, 0, 0, 0, 0], [0, 0, 0], [0, 1, 0]])
    found = np.array([1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1], float)
    alarms = goals.Quiet(windows, FRONT_END).alarms(found, 0.5)
    # rows [1 1] of one and a half windows, [1], [1] in the first recording, [1] in the second
    assert (alarms.alarms, alarms.recordings, alarms.of_quiet_recordings) == (5, 2, True)
    seconds = 5 * HOP_S + 2 * HOP_S + 2 * FRONT_END.window_s
    assert alarms.hours == pytest.approx(seconds / 3600)
    assert alarms.per_hour == pytest.approx(5 * 3600 / seconds)


def test_calling_everything_buzz_is_an_alarm_all_the_time():
    windows = windows_of([[0] * 1799])
    alarms = goals.Quiet(windows, FRONT_END).alarms(np.ones(1799), 0.5)
    assert alarms.per_hour == pytest.approx(3600 / FRONT_END.window_s)


def test_without_a_quiet_recording_the_quiet_stretches_count():
    windows = windows_of([[0, 0, 1, 0, 0]])
    alarms = goals.Quiet(windows, FRONT_END).alarms(np.ones(5), 0.5)
    assert (alarms.alarms, alarms.of_quiet_recordings) == (4, False)
    assert alarms.hours == pytest.approx(2 * (HOP_S + FRONT_END.window_s) / 3600)


def test_the_order_of_windows_does_not_matter():
    windows = windows_of([[0] * 8, [0] * 8, [1] * 4])
    found = np.random.default_rng(0).random(20)
    order = np.random.default_rng(1).permutation(20)
    shuffled = goals.Quiet([windows[i] for i in order], FRONT_END)
    assert shuffled.alarms(found[order], 0.6) == goals.Quiet(windows, FRONT_END).alarms(found, 0.6)


scored = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=4, max_size=40)


@given(scored=scored, bound=st.sampled_from([0.3, 0.5, 0.8, 0.95, 1.0]))
def test_the_threshold_for_a_precision_keeps_it_and_finds_the_most(scored, bound):
    labels = [label for label, _ in scored]
    probability = np.array([score / 20 for _, score in scored])
    windows = windows_of([[label] for label in labels])
    candidates = [
        metrics.evaluate(labels, probability, threshold=cut) for cut in np.unique(probability)
    ]
    good = [c for c in candidates if c.true_positives and c.precision >= bound]
    goal = Goal(kind="precision", bound=bound)
    if not good:
        with pytest.raises(DataError, match="the highest precision of any threshold"):
            goals.threshold(goal, windows, probability, FRONT_END)
        return
    chosen = goals.threshold(goal, windows, probability, FRONT_END)
    found = metrics.evaluate(labels, probability, threshold=chosen)
    assert found.precision >= bound
    assert found.true_positives == max(c.true_positives for c in good)


@given(
    row=st.lists(st.integers(0, 20), min_size=4, max_size=60),
    bound=st.sampled_from([0.0, 60, 120, 400]),
)
def test_no_threshold_above_the_chosen_one_has_too_many_false_alarms(row, bound):
    probability = np.array([score / 20 for score in row])
    windows = windows_of([[0] * len(row)])
    quiet = goals.Quiet(windows, FRONT_END)
    goal = Goal(kind="false_alarms", bound=bound)
    try:
        chosen = goals.threshold(goal, windows, probability, FRONT_END)
    except DataError:
        assert quiet.alarms(probability, probability.max()).per_hour > bound
        return
    for cut in probability[probability >= chosen]:
        assert quiet.alarms(probability, cut).per_hour <= bound
    lower = probability[probability < chosen]
    if len(lower):
        assert quiet.alarms(probability, lower.max()).per_hour > bound


def test_false_alarms_need_windows_without_buzz():
    with pytest.raises(DataError, match="windows without buzz, there are none"):
        goals.threshold(
            Goal(kind="false_alarms", bound=1), windows_of([[1, 1]]), np.ones(2), FRONT_END
        )


def test_the_goal_f1_is_the_threshold_of_the_highest_f1():
    labels = np.array([0, 0, 1, 1] * 10)
    probability = np.random.default_rng(0).random(40) * 0.5 + 0.4 * labels
    found = goals.threshold(Goal(), windows_of([labels]), probability, FRONT_END)
    assert found == metrics.best_threshold(labels, probability)
