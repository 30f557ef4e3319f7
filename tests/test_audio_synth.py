"""Soundscapes: the same seed gives the same bytes, labels are what they say."""

import csv
import itertools
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from qbee.audio import synth
from qbee.audio.dataset import COLUMNS
from qbee.audio.layers import Layer
from qbee.audio.sources import samples
from qbee.errors import ParameterError

RATE_HZ = 16000


@pytest.fixture(scope="module")
def scene_table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soundscapes")
    return synth.soundscapes(folder, seed=7, recordings_per_location=1, duration_s=60.0)


def read_rows(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def window_starts(row):
    """Starts as a reader places them: at the segment's start and every 2 s inside it."""
    return np.arange(float(row["start_s"]), float(row["end_s"]) - 4 + 1e-6, 2.0)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_seed_gives_the_same_bytes(scene_table, tmp_path):
    synth.soundscapes(tmp_path, seed=7, recordings_per_location=1, duration_s=60.0)
    assert contents(tmp_path) == contents(scene_table.parent)


def test_another_seed_gives_other_recordings(scene_table, tmp_path):
    synth.soundscapes(tmp_path, seed=8, recordings_per_location=1, duration_s=60.0)
    ours, theirs = contents(tmp_path), contents(scene_table.parent)
    assert set(ours) == set(theirs)
    assert all(ours[name] != theirs[name] for name in ours)


def test_default_sizes_are_three_locations_of_eight_times_three_minutes(monkeypatch, tmp_path):
    asked = []

    def silent_scene(location, duration_s, *, rng):
        asked.append((location.name, duration_s))
        nothing = np.zeros(samples(8.0), dtype=bool)
        return np.zeros(RATE_HZ), Layer(nothing * 0.0, nothing, nothing)

    monkeypatch.setattr(synth, "scene", silent_scene)
    synth.soundscapes(tmp_path, seed=1)
    assert len(asked) == 24
    assert {duration_s for _, duration_s in asked} == {180.0}
    assert len({name for name, _ in asked}) == 3


def test_recordings_are_16_khz_mono_16_bit_and_never_clip(scene_table):
    levels = []
    for name in {row["file"] for row in read_rows(scene_table)}:
        path = scene_table.parent / name
        about = soundfile.info(path)
        assert (about.samplerate, about.channels, about.subtype) == (RATE_HZ, 1, "PCM_16")
        assert about.duration == 60.0
        levels.append(np.max(np.abs(soundfile.read(path, dtype="int16")[0].astype(int))))
    assert len(set(levels)) == 3
    assert max(levels) < 32767


def test_labels_are_the_three_allowed_and_times_differ(scene_table):
    rows = read_rows(scene_table)
    assert {row["label"] for row in rows} <= {"buzz", "no_buzz", "uncertain"}
    assert tuple(rows[0]) == COLUMNS
    assert len({row["recorded_at"] for row in rows}) == len({row["file"] for row in rows})


def test_segments_give_back_the_grid_of_windows(scene_table):
    for _, rows in itertools.groupby(read_rows(scene_table), key=lambda row: row["file"]):
        starts = np.concatenate([window_starts(row) for row in rows])
        np.testing.assert_array_equal(starts, np.arange(0.0, 57.0, 2.0))


def test_there_are_about_three_windows_without_a_buzz_to_one_with(tmp_path):
    table = synth.soundscapes(tmp_path, seed=1, recordings_per_location=2, duration_s=90.0)
    count = {"buzz": 0, "no_buzz": 0, "uncertain": 0}
    for row in read_rows(table):
        count[row["label"]] += len(window_starts(row))
    assert 2.0 <= count["no_buzz"] / count["buzz"] <= 4.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recordings_per_location": 0}, "recordings_per_location=0"),
        ({"recordings_per_location": 1.5}, r"recordings_per_location=1\.5"),
        ({"duration_s": 3.0}, r"duration_s=3\.0"),
        ({"duration_s": float("nan")}, "duration_s=nan"),
    ],
)
def test_soundscapes_of_impossible_sizes_are_refused(tmp_path, settings, message):
    with pytest.raises(ParameterError, match=message):
        synth.soundscapes(tmp_path, seed=1, **settings)


def test_a_label_table_is_not_overwritten(tmp_path):
    (tmp_path / "labels.csv").write_text("my work")
    with pytest.raises(ParameterError, match=r"labels\.csv: exists and is not overwritten"):
        synth.soundscapes(tmp_path, seed=1)
    assert contents(tmp_path) == {"labels.csv": b"my work"}


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="seed=-1"):
        synth.soundscapes(tmp_path, seed=-1)


def test_synth_does_not_import_tensorflow():
    code = "import sys, qbee.audio.synth; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
