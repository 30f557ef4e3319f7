"""Folds share no sound, hold both classes where they must, and repeat with their seed."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qbee.data import folds
from qbee.errors import DataError, ParameterError
from qbee.records import FrontEnd, Window

FRONT_END = FrontEnd()
GAP_S = FRONT_END.window_s + FRONT_END.window_hop_s


def recording(name, *, location, is_buzz, count, hop_s=2.0):
    """Consecutive windows of one recording and one class."""
    return [Window(Path(name), i * hop_s, is_buzz, location) for i in range(count)]


def many(n_recordings=12, locations=("hive", "meadow"), count=3):
    """Make recordings that take turns in class and location."""
    return [
        window
        for i in range(n_recordings)
        for window in recording(
            f"{i}.wav", location=locations[i // 2 % len(locations)], is_buzz=i % 2 == 0, count=count
        )
    ]


def long_recording(duration_s=3600):
    """One recording whose class changes every 20 s."""
    return [Window(Path("day.wav"), s, s // 20 % 2 == 0, "hive") for s in range(0, duration_s, 2)]


def parts_of(fold):
    """Return the three parts that must not touch."""
    return fold.train, fold.validation, fold.test


def assert_no_leak(fold, windows):
    """No two windows of a recording in different parts are neighbours; none is lost."""
    for one, two in combinations(parts_of(fold), 2):
        for i in one:
            for j in two:
                near = abs(windows[i].start_s - windows[j].start_s) < GAP_S
                assert not (near and windows[i].path == windows[j].path)
    used = [*fold.train, *fold.validation, *fold.test, *fold.dropped]
    assert sorted(used) == list(range(len(windows)))


random_windows = st.lists(
    st.builds(
        Window,
        path=st.sampled_from([Path("a.wav"), Path("b.wav"), Path("c.wav")]),
        start_s=st.integers(0, 4000).map(lambda frame: frame / 32),
        is_buzz=st.booleans(),
        location=st.sampled_from(["hive", "meadow"]),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(windows=random_windows, seed=st.integers(0, 9))
def test_parts_of_any_windows_share_no_neighbours(windows, seed):
    made = []
    for split in (folds.cross_validation, folds.by_location):
        options = {"n_folds": 3} if split is folds.cross_validation else {}
        try:
            made += split(windows, FRONT_END, seed=seed, block_s=20.0, **options)
        except DataError:
            continue
    assume(made)
    for fold in made:
        assert_no_leak(fold, windows)


def test_five_folds_test_every_window_once():
    windows = many(20)
    made = folds.cross_validation(windows, FRONT_END, seed=3)
    assert [fold.name for fold in made] == [f"fold {i}" for i in range(1, 6)]
    assert sorted(i for fold in made for i in fold.test) == list(range(len(windows)))
    for fold, following in zip(made, made[1:] + made[:1], strict=True):
        assert fold.validation == following.test
        assert fold.dropped == ()


def test_a_recording_is_never_divided_if_it_is_short():
    windows = many(20)
    for fold in folds.cross_validation(windows, FRONT_END, seed=3):
        recordings = [{windows[i].path for i in part} for part in parts_of(fold)]
        assert all(one.isdisjoint(two) for one, two in combinations(recordings, 2))


def test_every_part_has_both_classes_of_both_locations():
    windows = many(40)
    for fold in folds.cross_validation(windows, FRONT_END, seed=0):
        for part in parts_of(fold):
            assert len({(windows[i].location, windows[i].is_buzz) for i in part}) == 4


def test_a_long_recording_is_cut_into_blocks_and_loses_its_seams():
    windows = long_recording()
    for fold in folds.cross_validation(windows, FRONT_END, seed=0):
        assert_no_leak(fold, windows)
        assert 0 < len(fold.dropped) < 0.05 * len(windows)
        starts = sorted(windows[i].start_s for i in fold.test)
        assert sum(b - a > 2 for a, b in zip(starts, starts[1:], strict=False)) <= 3


def test_equal_seeds_give_equal_folds_and_others_do_not():
    windows = many(40)
    first, again, other = (
        folds.cross_validation(windows, FRONT_END, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    made = [folds.by_location(windows, FRONT_END, seed=1) for _ in range(2)]
    assert made[0] == made[1]


def test_rare_locations_are_stratified_by_class_alone():
    windows = many(20, locations=[str(i) for i in range(10)], count=2)
    assert len(folds.cross_validation(windows, FRONT_END, seed=0)) == 5


def test_a_class_in_fewer_recordings_than_folds_is_an_error_with_counts():
    windows = many(20) + recording("b.wav", location="hive", is_buzz=True, count=50)
    rare = [w for w in windows if not w.is_buzz or w.path in (Path("0.wav"), Path("b.wav"))]
    with pytest.raises(DataError, match="53 buzz windows in 2 recordings .* too few for n_folds=5"):
        folds.cross_validation(rare, FRONT_END, seed=0)


def test_no_windows_are_an_error():
    with pytest.raises(DataError, match="0 no_buzz windows in 0 recordings"):
        folds.cross_validation([], FRONT_END, seed=0)
    with pytest.raises(DataError, match="0 windows of 0 location"):
        folds.by_location([], FRONT_END, seed=0)


def test_a_part_without_a_class_is_named_with_what_to_do(monkeypatch):
    windows = many(12)
    numbers = [int(window.path.stem) for window in windows]
    # buzz is in the even recordings
    all_buzz_first = np.array([0 if number % 2 == 0 else number % 3 for number in numbers])
    monkeypatch.setattr(folds, "_splits", lambda *_, **__: [all_buzz_first])
    message = (
        "fold 1: the training part has no buzz windows: 6 windows, 0 dropped beside other parts; "
        "label more recordings or ask for fewer than 3 folds"
    )
    with pytest.raises(DataError, match=message):
        folds.cross_validation(windows, FRONT_END, n_folds=3, seed=0)


def test_further_seeds_are_tried_when_the_first_split_lacks_a_class(monkeypatch):
    bad, split, calls = [True], folds._split, []

    def fail_first(strata, blocks, n_parts, state):
        calls.append(state)
        parts = split(strata, blocks, n_parts, state)
        return parts * 0 if bad and bad.pop() else parts

    monkeypatch.setattr(folds, "_split", fail_first)
    assert len(folds.cross_validation(many(20), FRONT_END, seed=0)) == 5
    assert len(calls) == len(set(calls)) == folds.N_TRIES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_folds": 2}, "n_folds=2 must be at least 3"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"block_s": 6.0}, "block_s=6.0 must be longer than a window and a hop, 6.0 s"),
        ({"block_s": float("nan")}, "block_s=nan must be longer"),
    ],
)
def test_an_option_that_cannot_work_is_an_error(options, message):
    with pytest.raises(ParameterError, match=message):
        folds.cross_validation(many(20), FRONT_END, **{"seed": 0, **options})


def test_each_location_is_tested_once_and_never_trained_on_in_its_fold():
    windows = many(30, locations=("hive", "meadow", "wood"))
    made = folds.by_location(windows, FRONT_END, seed=0)
    assert [fold.name for fold in made] == ["hive", "meadow", "wood"]
    for fold in made:
        assert {windows[i].location for i in fold.test} == {fold.name}
        for part in (fold.train, fold.validation):
            assert fold.name not in {windows[i].location for i in part}
            assert {windows[i].is_buzz for i in part} == {True, False}
        assert len(fold.validation) == pytest.approx(len(windows) * 2 / 3 / 5, rel=0.5)


def test_a_location_of_one_class_is_still_a_fold():
    windows = many(20) + recording("q.wav", location="quiet", is_buzz=False, count=4)
    made = {fold.name: fold for fold in folds.by_location(windows, FRONT_END, seed=0)}
    assert made["quiet"].test == (60, 61, 62, 63)


def test_validation_may_lack_the_class_that_one_recording_holds():
    windows = many(20) + recording("q.wav", location="quiet", is_buzz=False, count=4)
    lone = [w for w in windows if not w.is_buzz or w.path == Path("0.wav")]
    lone += recording("z.wav", location="zoo", is_buzz=True, count=4)
    zoo = folds.by_location(lone, FRONT_END, seed=0)[-1]
    assert {lone[i].is_buzz for i in zoo.train} == {True, False}
    assert {lone[i].is_buzz for i in zoo.validation} == {False}


def test_one_location_is_an_error():
    with pytest.raises(DataError, match=r"36 windows of 1 location \(hive\)"):
        folds.by_location(many(locations=("hive",)), FRONT_END, seed=0)


def test_a_class_found_at_one_location_only_is_an_error():
    windows = recording("a.wav", location="hive", is_buzz=True, count=9)
    windows += recording("b.wav", location="wood", is_buzz=False, count=9)
    windows += recording("c.wav", location="wood", is_buzz=False, count=9)
    with pytest.raises(DataError, match="hive: the other locations have 0 buzz and 18 no_buzz"):
        folds.by_location(windows, FRONT_END, seed=0)


def test_training_that_cannot_have_both_classes_is_an_error():
    windows = many(20)
    windows = [
        w for w in windows if w.location == "hive" or w.path in (Path("2.wav"), Path("3.wav"))
    ]
    with pytest.raises(DataError, match="hive: the training part has no .*label more recordings"):
        folds.by_location(windows, FRONT_END, seed=0)
