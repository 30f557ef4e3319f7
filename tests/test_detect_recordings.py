import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from field_toys import FRONT_END, RATE, name_of, recording, sound, write

from qbee.detect import recordings
from qbee.detect.recordings import Dating, FieldRecording, RecordingTable, find, in_order, inspect
from qbee.errors import LabelError, ParameterError
from qbee.records import FrontEnd

START = datetime(2024, 5, 1, 22)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_files_and_patterns_are_found_each_file_once(tmp_path):
    touch(tmp_path, "a/x.wav", "a/deep/y.FLAC", "a/notes.txt", "a/._x.wav", "a/.trash/z.wav")
    touch(tmp_path, "b/ž 1.wav", "b/other.dat")
    found = find(
        [tmp_path / "a", tmp_path / "a/x.wav", f"{tmp_path}/b/*.wav", f"{tmp_path}/**/y.*"]
    )
    names = [str(path.relative_to(tmp_path.resolve())) for path in found]
    assert names == ["a/deep/y.FLAC", "a/x.wav", "b/ž 1.wav"]
    assert find([tmp_path / "b/other.dat"]) == [(tmp_path / "b/other.dat").resolve()]


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    touch(tmp_path, "a[1].wav", "a1.wav")
    assert [path.name for path in find([tmp_path / "a[1].wav"])] == ["a[1].wav"]


@pytest.mark.parametrize("name", ["none.wav", "none/*.wav", "empty"])
def test_what_is_not_there_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParameterError, match=name.replace("*", r"\*")):
        find([tmp_path / name])


def test_a_name_that_is_not_utf8_has_a_place_in_tables(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xf6e.wav"))
    write(path, sound(1, []), format="WAV")
    found = inspect(find([tmp_path])[0], Dating())
    assert found.path == path
    assert found.name.endswith("b\\xf6e.wav")
    assert FieldRecording.model_validate_json(found.model_dump_json()) == found
    assert found.duration_s == 1.0


def test_a_recording_that_cannot_be_read_has_no_duration(tmp_path):
    touch(tmp_path, "20240501_220000.wav")
    found = inspect(tmp_path / "20240501_220000.wav", Dating())
    assert (found.duration_s, found.sample_rate_hz) == (None, None)
    assert found.start == START


def test_a_table_gives_time_and_location_by_path_or_name(tmp_path):
    path = write(tmp_path / "site" / "a.wav", sound(1, []))
    other = write(tmp_path / "site" / "20240501_220000.wav", sound(1, []))
    table = tmp_path / "t.csv"
    table.write_text("file,recorded_at,location\nsite/a.wav,2024-05-01T23:00:00+02:00,box 7\n")
    dating = Dating(RecordingTable.read(table), recorder_zone=UTC)
    found = inspect(path.resolve(), dating)
    assert (found.location, found.started_at) == ("box 7", "2024-05-01T23:00:00+02:00")
    found = inspect(other.resolve(), dating)
    assert (found.location, found.started_at) == ("site", "2024-05-01T22:00:00+00:00")
    table.write_text("file,location\na.wav,box 8\n")
    assert inspect(path.resolve(), Dating(RecordingTable.read(table))).location == "box 8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,recorded_at\na.wav,noon\n", "row 2: recorded_at='noon'"),
        ("file,recorded_at\na.wav,\na.wav,\n", "row 3: file='a.wav' is in the table twice"),
        ("file,x\na.wav,\n", "missing column recorded_at or location"),
    ],
)
def test_a_wrong_table_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(LabelError, match=message):
        RecordingTable.read(tmp_path / "t.csv")


def placed(*made):
    return [(one.recording.name.split("/")[-1], one.continues, one.skip_samples)
            for one in in_order(made, FRONT_END)]  # fmt: skip


def test_recordings_are_in_order_of_time_and_those_that_touch_continue():
    first = recording("b.wav", start=START)
    second = recording("a.wav", start=START + timedelta(seconds=60.4))
    apart = recording("c.wav", start=START + timedelta(seconds=125))
    undated = recording("0.wav")
    assert placed(apart, undated, second, first) == [
        ("b.wav", False, 0), ("a.wav", True, 0), ("c.wav", False, 0), ("0.wav", False, 0)
    ]  # fmt: skip


def test_other_places_rates_and_unreadable_files_do_not_continue():
    later = START + timedelta(seconds=60)
    for other in (
        recording("b.wav", start=later, location="there"),
        recording("b.wav", start=later, rate=2 * RATE),
        recording("b.wav", start=later.replace(tzinfo=UTC)),
    ):
        assert all(
            not one.continues for one in in_order([recording(start=START), other], FRONT_END)
        )
    broken = recording(start=START, duration_s=None, rate=None)
    after = recording("b.wav", start=START)
    assert all(not one.continues for one in in_order([broken, after], FRONT_END))


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_windows_of_continuing_recordings_lie_on_one_grid(rate):
    front_end = FrontEnd()
    duration_s = round(100.7 * rate) / rate
    made = [
        recording(
            f"{i}.wav", start=START + timedelta(seconds=i * duration_s), duration_s=duration_s,
            rate=rate,
        )
        for i in range(5)
    ]  # fmt: skip
    for number, one in enumerate(in_order(made, front_end)):
        at = number * round(duration_s * rate) + one.skip_samples
        assert at % (front_end.window_hop_s * rate) == 0
        assert 0 <= one.skip_samples < front_end.window_hop_s * rate


def test_names_of_one_second_resolution_still_continue():
    duration_s = 59.7
    starts = [START + timedelta(seconds=i * duration_s) for i in range(20)]
    made = [
        recording(name_of(s), start=s.replace(microsecond=0), duration_s=duration_s) for s in starts
    ]
    assert [one.continues for one in in_order(made, FRONT_END)] == [False] + [True] * 19


def test_inspect_all_reports_every_file(tmp_path):
    paths = [write(tmp_path / f"{i}.wav", sound(1, [])) for i in range(3)]
    heard = []
    found = recordings.inspect_all(paths, Dating(), on_progress=lambda *news: heard.append(news))
    assert [one.path for one in found] == paths
    assert heard == [(1, 3), (2, 3), (3, 3)]
