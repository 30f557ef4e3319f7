"""Segments become windows, and windows become mel images."""

import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qbee.audio import mel
from qbee.data import folds, labels, windows
from qbee.errors import AudioError, DataError, LabelError, ParameterError
from qbee.records import FrontEnd, Segment, Window

REPOSITORY = Path(__file__).resolve().parents[1]
FRONT_END = FrontEnd()
RATE_HZ = 4000


@pytest.fixture
def record(tmp_path):
    """Write noise of the given length and return its path."""

    def record_noise(name, duration_s, seed=0):
        path = tmp_path / name
        noise = np.random.default_rng(seed).normal(0, 0.1, round(duration_s * RATE_HZ))
        soundfile.write(path, noise, RATE_HZ, subtype="PCM_16")
        return path

    return record_noise


@pytest.fixture
def other(record):
    """Four seconds of each class, so that the test's own windows may be of one class."""
    path = record("other.wav", 8)
    return [segment(path, 0, 4, "buzz", row=91), segment(path, 4, 8, "no_buzz", row=92)]


def segment(path, start_s, end_s, label, row=2):
    """Segment of a table that need not exist."""
    return Segment(path, start_s, end_s, label, "meadow", None, Path("labels.csv"), row)


def starts(table, path):
    """Start times of the windows of one recording."""
    return [window.start_s for window in table.windows if window.path == path]


def test_windows_follow_each_other_by_a_hop_as_long_as_they_lie_inside(record, other):
    path = record("a.wav", 20)
    table = windows.from_segments([segment(path, 1, 9.9, "buzz"), *other], FRONT_END)
    assert starts(table, path) == [1, 3, 5]
    assert table.windows[0] == Window(path, 1.0, True, "meadow")
    assert (table.uncertain, table.too_short, table.skipped) == (0, 0, ())


@pytest.mark.parametrize(("end_s", "count"), [(4.0, 1), (3.99, 1), (3.98, 0), (5.99, 2)])
def test_a_window_may_stick_out_of_its_segment_by_half_a_frame(record, other, end_s, count):
    path = record("a.wav", 20)
    table = windows.from_segments([segment(path, 0, end_s, "no_buzz"), *other], FRONT_END)
    assert len(starts(table, path)) == count
    assert table.too_short == (count == 0)


def test_start_times_are_rounded_to_frames(record, other):
    path = record("a.wav", 20)
    table = windows.from_segments([segment(path, 1.02, 6, "buzz"), *other], FRONT_END)
    assert starts(table, path) == [33 * 125 / 4000]


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"), [(9, 11, 8), (0.5, 1, 0), (19.5, 20, 16)]
)
def test_a_short_buzz_is_centred_in_a_window_inside_the_recording(
    record, other, start_s, end_s, expected
):
    path = record("a.wav", 20)
    table = windows.from_segments([segment(path, start_s, end_s, "buzz"), *other], FRONT_END)
    assert starts(table, path) == [expected]


@pytest.mark.parametrize("label", ["no_buzz", "uncertain"])
def test_a_short_segment_without_buzz_is_counted_and_left_out(record, other, label):
    path = record("a.wav", 20)
    table = windows.from_segments([segment(path, 9, 11, label), *other], FRONT_END)
    assert (starts(table, path), table.too_short, table.uncertain) == ([], 1, 0)


def test_uncertain_windows_are_counted_and_left_out(record, other):
    path = record("a.wav", 20)
    table = windows.from_segments([segment(path, 0, 8, "uncertain"), *other], FRONT_END)
    assert (starts(table, path), table.too_short, table.uncertain) == ([], 0, 3)


def test_a_window_asked_for_twice_appears_once(record, other):
    path = record("a.wav", 20)
    rows = [segment(path, 0, 8, "buzz"), segment(path, 2, 6, "buzz", row=3)]
    assert starts(windows.from_segments([*rows, *other], FRONT_END), path) == [0, 2, 4]


def test_a_window_with_two_labels_is_an_error_that_names_both_rows(record, other):
    path = record("a.wav", 20)
    rows = [segment(path, 0, 8, "buzz"), segment(path, 2, 6, "no_buzz", row=3)]
    message = r"row 3: the window at 2.0 s of .*a.wav is no_buzz here and buzz in labels.csv: row 2"
    with pytest.raises(LabelError, match=message):
        windows.from_segments([*rows, *other], FRONT_END)


def test_a_segment_beyond_its_recording_is_an_error(record, other):
    path = record("a.wav", 20)
    message = r"labels.csv: row 2: the segment ends at 20.5 s, but .*a.wav lasts 20.000 s"
    with pytest.raises(LabelError, match=message):
        windows.from_segments([segment(path, 10, 20.5, "buzz"), *other], FRONT_END)


@pytest.mark.parametrize("label", ["buzz", "no_buzz"])
@pytest.mark.parametrize("end_s", [1e9, 1e300])
def test_a_segment_far_beyond_its_recording_is_an_error_at_once(record, label, end_s):
    path = record("a.wav", 20)
    tracemalloc.start()
    with pytest.raises(LabelError, match="row 2: the segment ends at 1.* lasts 20.000 s"):
        windows.from_segments([segment(path, 0, end_s, label)], FRONT_END)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20


def test_a_segment_may_end_a_rounding_after_its_recording(record, other):
    path = record("a.wav", 9.96)
    table = windows.from_segments([segment(path, 6, 10, "no_buzz"), *other], FRONT_END)
    (start_s,) = starts(table, path)
    assert start_s == pytest.approx(5.96, abs=0.02)
    assert windows.images(table.windows, FRONT_END).images.shape == (3, 128, 128)


@pytest.mark.parametrize("label", ["buzz", "no_buzz"])
def test_a_recording_shorter_than_a_window_is_counted_as_too_short(record, other, label):
    path = record("a.wav", 3.7)
    table = windows.from_segments([segment(path, 0, 4, label), *other], FRONT_END)
    assert starts(table, path) == []
    assert table.too_short == 1


def test_a_missing_recording_stops_or_is_skipped_once(tmp_path, other):
    path = tmp_path / "gone.wav"
    rows = [segment(path, 0, 4, "buzz"), segment(path, 4, 8, "buzz", row=3), *other]
    with pytest.raises(AudioError, match="labels.csv: row 2: .*gone.wav"):
        windows.from_segments(rows, FRONT_END)
    table = windows.from_segments(rows, FRONT_END, on_error="skip")
    assert len(table.windows) == 2
    (message,) = table.skipped
    assert message.startswith("labels.csv: row 2: ")


def test_uncertain_windows_alone_are_an_error_with_counts(record):
    with pytest.raises(DataError, match="no window .*: 3 uncertain windows"):
        windows.from_segments([segment(record("a.wav", 20), 0, 8, "uncertain")], FRONT_END)


def test_no_segments_are_an_error():
    with pytest.raises(DataError, match="no window has a certain label"):
        windows.from_segments([], FRONT_END)


def test_an_unknown_choice_on_error_is_an_error(other):
    with pytest.raises(ParameterError, match="on_error='ignore' must be one of stop, skip"):
        windows.from_segments(other, FRONT_END, on_error="ignore")
    with pytest.raises(ParameterError, match="on_error='ignore'"):
        windows.images([], FRONT_END, on_error="ignore")


@pytest.fixture
def mixed(record):
    """Windows of two recordings, neither grouped nor in order of time."""
    first, second = record("a.wav", 12, seed=1), record("b.wav", 9, seed=2)
    times = [(second, 5), (first, 6), (second, 0), (first, 0), (first, 8)]
    return [Window(path, float(start_s), True, "meadow") for path, start_s in times]


def test_images_keep_the_order_of_the_windows(mixed):
    made = windows.images(mixed, FRONT_END)
    assert (made.images.dtype, made.images.shape) == (np.float32, (5, 128, 128))
    assert (made.kept, made.skipped) == ((0, 1, 2, 3, 4), ())
    for image, window in zip(made.images, mixed, strict=True):
        (expected,) = mel.images(window.path, FRONT_END, [window.start_s])
        np.testing.assert_array_equal(image, expected)


def test_each_recording_is_decoded_once(mixed, monkeypatch):
    decoded = []
    images = mel.images
    monkeypatch.setattr(
        mel, "images", lambda path, *rest, **to: decoded.append(path) or images(path, *rest, **to)
    )
    windows.images(mixed, FRONT_END)
    assert len(decoded) == 2


def test_images_on_disk_are_those_in_memory_and_read_only(mixed, tmp_path):
    path = tmp_path / "new folder" / "mel.npy"
    made = windows.images(mixed, FRONT_END, path=path)
    assert isinstance(made.images, np.memmap)
    np.testing.assert_array_equal(made.images, windows.images(mixed, FRONT_END).images)
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), made.images)
    with pytest.raises(ValueError, match="read-only"):
        made.images[0] = 0
    assert [file.name for file in path.parent.iterdir()] == ["mel.npy"]


def test_images_on_disk_are_not_kept_in_memory(record, tmp_path):
    path = record("long.wav", 300)
    wanted = [Window(path, start_s, True, "x") for start_s in np.arange(0.0, 296.0, 0.5)]
    windows.images(wanted[:2], FRONT_END, path=tmp_path / "mel.npy")
    tracemalloc.start()
    made = windows.images(wanted, FRONT_END, path=tmp_path / "mel.npy")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the images have 39 MB, the blocks of sound and of the STFT a few
    assert peak_bytes < made.images.nbytes / 4


def test_progress_counts_windows_up_to_all(mixed):
    calls = []
    windows.images(mixed, FRONT_END, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 5), (5, 5)]


@pytest.fixture
def truncated(mixed, tmp_path):
    """One of the two recordings is a FLAC that breaks off."""
    path = tmp_path / "cut.flac"
    samples, rate_hz = soundfile.read(mixed[1].path)
    soundfile.write(path, samples, rate_hz)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return [
        Window(path if window.path == mixed[1].path else window.path, window.start_s, True, "x")
        for window in mixed
    ]


def test_a_truncated_recording_stops_and_leaves_no_file(truncated, tmp_path):
    before = set(tmp_path.iterdir())
    with pytest.raises(AudioError, match="cut.flac"):
        windows.images(truncated, FRONT_END, path=tmp_path / "mel.npy")
    assert set(tmp_path.iterdir()) == before


def test_a_truncated_recording_is_skipped_in_memory_and_on_disk(truncated, mixed, tmp_path):
    path = tmp_path / "mel.npy"
    in_memory = windows.images(truncated, FRONT_END, on_error="skip")
    on_disk = windows.images(truncated, FRONT_END, on_error="skip", path=path)
    expected = windows.images([mixed[0], mixed[2]], FRONT_END).images
    for made in (in_memory, on_disk):
        assert made.kept == (0, 2)
        assert "cut.flac" in made.skipped[0]
        np.testing.assert_array_equal(made.images, expected)
    assert np.load(path, allow_pickle=False).shape == (2, 128, 128)
    assert not list(tmp_path.glob(".*"))


def test_nothing_that_can_be_decoded_is_an_error(tmp_path):
    gone = [Window(tmp_path / "gone.wav", 0.0, True, "x")]
    with pytest.raises(DataError, match="no recording of 1 can be decoded, as .*gone.wav"):
        windows.images(gone, FRONT_END, on_error="skip")
    with pytest.raises(DataError, match="there are no windows"):
        windows.images([], FRONT_END)


def test_a_file_that_cannot_be_written_is_an_error(mixed, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match="cannot write"):
        windows.images(mixed, FRONT_END, path=tmp_path / "file" / "mel.npy")


def test_a_disk_that_is_too_full_is_an_error(mixed, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(windows.shutil, "disk_usage", lambda path: full)
    needed = 5 * math.prod((128, 128)) * 4
    with pytest.raises(ParameterError, match=f"{needed} bytes needed, 1000 free"):
        windows.images(mixed, FRONT_END, path=tmp_path / "mel.npy")


def test_the_shared_table_gives_windows_and_five_folds():
    shared = Path(os.environ.get("QBEE_SHARED", REPOSITORY.parent / "shared"))
    table = shared / "data/bee_audio/windows.csv"
    if not table.exists():
        pytest.skip(f"{table} is missing; set QBEE_SHARED to the folder that holds data/bee_audio")
    made = windows.from_segments(labels.read(table), FRONT_END)
    assert (len(made.windows), made.uncertain, made.too_short) == (695, 50, 1)
    assert len(folds.cross_validation(made.windows, FRONT_END, seed=1)) == 5
    assert len(folds.by_location(made.windows, FRONT_END, seed=1)) == 11
