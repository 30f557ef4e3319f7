from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbee.detect import clock
from qbee.errors import ParameterError

LJUBLJANA = ZoneInfo("Europe/Ljubljana")
COMMENT = "Recorded at 19:30:00 06/05/2023 ({}) by AudioMoth 24F319055FDF2BC3 at medium gain"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20230506_193000.WAV", datetime(2023, 5, 6, 19, 30)),
        ("site 7 20230506_193000 č.wav", datetime(2023, 5, 6, 19, 30)),
        ("99999999_999999_20230506_193000.wav", datetime(2023, 5, 6, 19, 30)),
        ("20231306_193000.WAV", None),
        ("hive.wav", None),
    ],
)
def test_names_of_audiomoth_are_read(name, expected):
    assert clock.of_name(name) == expected


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)))
def test_a_name_written_with_a_pattern_is_read_with_it(moment):
    pattern = "box_%Y-%m-%d at %H.%M.%S,%f"
    assert clock.of_name(f"a {moment.strftime(pattern)} b.wav", pattern) == moment


def test_a_pattern_with_an_offset_gives_a_time_with_a_zone():
    found = clock.of_name("20230506T193000+0200.wav", "%Y%m%dT%H%M%S%z")
    assert found == datetime(2023, 5, 6, 17, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone", "hours"),
    [("UTC", 0), ("UTC+2", 2), ("UTC-3", -3), ("UTC+5:30", 5.5), ("UTC-3:30", -3.5)],
)
def test_comments_of_audiomoth_are_read_with_their_zone(zone, hours):
    offset = timezone(timedelta(hours=hours))
    found = clock.of_comment(COMMENT.format(zone))
    assert found == datetime(2023, 5, 6, 19, 30, tzinfo=offset)
    assert found.utcoffset() == timedelta(hours=hours)


def test_another_comment_says_nothing():
    assert clock.of_comment("made by sox") is None
    assert clock.of_comment(COMMENT.format("UTC").replace("06/05", "31/02")) is None
    assert clock.of_comment(COMMENT.format("UTC+99")) is None


def test_the_comment_goes_before_the_name_and_the_users_pattern_before_both():
    path = Path("20230101_000000 2024-02-03 04.wav")
    comment = COMMENT.format("UTC")
    assert clock.start_of(path, "") == datetime(2023, 1, 1)
    assert clock.start_of(path, comment) == datetime(2023, 5, 6, 19, 30, tzinfo=UTC)
    assert clock.start_of(path, comment, pattern="%Y-%m-%d %H") == datetime(2024, 2, 3, 4)


def test_a_pattern_that_does_not_fit_leaves_it_to_the_comment_and_the_name():
    path = Path("20230506_193000.WAV")
    assert clock.start_of(path, "", pattern="box_%Y-%m-%d_%H") == datetime(2023, 5, 6, 19, 30)


def test_a_moment_is_shown_in_the_zone_that_was_asked_for():
    moment = datetime(2023, 5, 6, 19, 30, tzinfo=UTC)
    assert clock.in_zone(moment, LJUBLJANA).isoformat() == "2023-05-06T21:30:00+02:00"
    assert clock.in_zone(moment.replace(tzinfo=None), LJUBLJANA).tzinfo is None
    # Before the first year there is.
    assert clock.in_zone(datetime(1, 1, 1, tzinfo=UTC), clock.zone("-05:00")).year == 1


def test_seconds_that_pass_count_the_hour_that_comes_twice():
    zone = LJUBLJANA
    start, end = (
        datetime(2023, 10, 29, 2, tzinfo=zone),
        datetime(2023, 10, 29, 2, tzinfo=zone, fold=1),
    )
    assert clock.between(start, end) == 3600


def test_an_hour_is_an_hour_also_when_clocks_are_put_back():
    start = datetime(2023, 10, 29, 2, 30, tzinfo=LJUBLJANA)
    assert clock.after(start, 3600).isoformat() == "2023-10-29T02:30:00+01:00"


@pytest.mark.parametrize("name", ["UTC", "Europe/Ljubljana", "+02:00", "UTC-3", "+0530"])
def test_zones_have_many_names(name):
    assert clock.zone(name) is not None


@pytest.mark.parametrize("name", ["Mars/Base", "", "/etc/passwd", "+25", "../UTC"])
def test_what_is_no_zone_is_named(name):
    with pytest.raises(ParameterError, match="zone|offset"):
        clock.zone(name)


@pytest.mark.parametrize("pattern", ["%Y%m%d", "%H%M%S", "%Q", "%", "name", "%Y%m%d_%H_%Y"])
def test_a_pattern_that_gives_no_time_is_refused(pattern):
    with pytest.raises(ParameterError, match="pattern="):
        clock.check_pattern(pattern)


def test_usual_patterns_pass():
    for pattern in (clock.AUDIOMOTH_NAME, "%Y-%j %H", "%y%m%d%H%M"):
        assert clock.check_pattern(pattern) == pattern


def test_a_time_of_a_table_that_is_none_is_named():
    for text in ("yesterday", "2024-05-01"):
        with pytest.raises(ParameterError, match=f"recorded_at='{text}'"):
            clock.of_table(text)
