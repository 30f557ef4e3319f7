"""Mixtures: the same seed gives the same bytes, SNRs are what they say, clips of any form do."""

import csv
import itertools

import numpy as np
import pytest
import soundfile

from qbee.audio import mixing
from qbee.audio.dataset import COLUMNS
from qbee.errors import AudioError, ParameterError

RATE_HZ = 16000


@pytest.fixture
def tones(tmp_path):
    """A buzz of 200 Hz that is as loud everywhere, and a background of 1000 Hz."""
    write_tone(tmp_path / "buzz" / "bee.wav", f_hz=200.0, duration_s=20.0)
    write_tone(tmp_path / "back" / "meadow" / "a.wav", f_hz=1000.0, duration_s=60.0)
    return tmp_path


def write_tone(path, *, f_hz, duration_s, rate_hz=RATE_HZ, channels=1, **form):
    path.parent.mkdir(parents=True, exist_ok=True)
    y = 0.3 * np.sin(2 * np.pi * f_hz * np.arange(round(duration_s * rate_hz)) / rate_hz)
    soundfile.write(path, np.tile(y[:, None], channels), rate_hz, **form)


def read_rows(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mixed(folder, **settings):
    table = mixing.mix(folder / "buzz", folder / "back", folder / "out", **settings)
    return table, read_rows(table)


def test_stated_snr_is_measured_back(tones):
    table, rows = mixed(tones, seed=3, recordings=4, duration_s=40.0)
    for name, group in itertools.groupby(rows, key=lambda row: row["file"]):
        y, _ = soundfile.read(table.parent / name)
        stated = {float(row["snr_db"]) for row in group if row["snr_db"]}
        assert len(stated) == 1
        # Tones of 200 and 1000 Hz are orthogonal over 50 ms, so bins separate them exactly;
        # 0.5 dB allows for the buzz's faded edges, which count as active down to -12 dB.
        power = np.abs(np.fft.rfft(y.reshape(-1, 800))) ** 2
        measured_db = 10 * np.log10(power[:, 10].max() / np.median(power[:, 50]))
        assert measured_db == pytest.approx(stated.pop(), abs=0.5)


def test_mix_names_the_sub_folder_or_the_file_as_location(tones):
    write_tone(tones / "back" / "hill.wav", f_hz=900.0, duration_s=10.0)
    _, rows = mixed(tones, seed=1, recordings=2, duration_s=30.0)
    assert {row["location"] for row in rows} == {"meadow", "hill"}
    assert tuple(rows[0]) == (*COLUMNS, "snr_db")


def test_mix_has_its_defaults_and_stays_in_the_range_of_snrs(tones):
    table, rows = mixed(tones, seed=1)
    assert len({row["file"] for row in rows}) == 10
    assert soundfile.info(table.parent / "mix_001.wav").duration == 60.0
    stated = {float(row["snr_db"]) for row in rows if row["label"] == "buzz"}
    assert len(stated) > 5
    assert all(-5.0 <= snr <= 20.0 for snr in stated)
    assert all(row["snr_db"] == "" for row in rows if row["label"] == "no_buzz")


def test_mix_repeats_itself_for_a_seed(tones):
    mixed(tones, seed=5, recordings=2, duration_s=20.0)
    first = contents(tones / "out")
    (tones / "out" / "labels.csv").unlink()
    mixed(tones, seed=5, recordings=2, duration_s=20.0)
    assert contents(tones / "out") == first


def test_mix_takes_short_stereo_clips_of_any_rate(tmp_path):
    write_tone(tmp_path / "buzz" / "b.flac", f_hz=180, duration_s=0.3, rate_hz=44100, channels=2)
    write_tone(tmp_path / "back" / "w.ogg", f_hz=700, duration_s=3.1, rate_hz=22050, channels=2)
    table, rows = mixed(tmp_path, seed=2, recordings=2, duration_s=20.0)
    assert soundfile.info(table.parent / "mix_002.wav").duration == 20.0
    assert "buzz" in {row["label"] for row in rows}


def test_a_loop_is_smooth_at_its_joints():
    y = np.sin(2 * np.pi * 200 * np.arange(16000) / RATE_HZ)
    longer = mixing.looped(y, 100000)
    assert len(longer) == 100000
    assert np.max(np.abs(np.diff(longer))) < 2 * np.max(np.abs(np.diff(y)))
    np.testing.assert_array_equal(mixing.looped(y, 5000), y[:5000])
    assert len(mixing.looped(y[:1], 10)) == 10


def test_a_random_part_is_a_stretch_of_the_file(tmp_path):
    y = np.random.default_rng(0).uniform(-0.5, 0.5, 40 * RATE_HZ)
    soundfile.write(tmp_path / "long.wav", y, RATE_HZ, subtype="DOUBLE")
    for seed in range(5):
        part = mixing.random_part(tmp_path / "long.wav", 8000, rng=np.random.default_rng(seed))
        first = np.argmin(np.abs(y - part[0]))
        np.testing.assert_allclose(part, y[first : first + 8000], atol=1e-7)


@pytest.mark.parametrize("empty", ["buzz", "back"])
def test_an_empty_folder_is_named(tones, empty):
    for path in (tones / empty).rglob("*.wav"):
        path.unlink()
    with pytest.raises(ParameterError, match=str(tones / empty)):
        mixed(tones, seed=1)


def test_a_label_table_is_not_overwritten(tones):
    (tones / "out").mkdir()
    (tones / "out" / "labels.csv").write_text("my work")
    with pytest.raises(ParameterError, match=r"out/labels\.csv: exists and is not overwritten"):
        mixed(tones, seed=1)
    assert contents(tones / "out") == {"labels.csv": b"my work"}


def test_an_unreadable_clip_is_named(tones):
    (tones / "buzz" / "bee.wav").write_bytes(b"not a sound")
    with pytest.raises(AudioError, match=r"bee\.wav"):
        mixed(tones, seed=1)


def test_a_silent_clip_is_named(tones):
    soundfile.write(tones / "buzz" / "bee.wav", np.zeros(RATE_HZ), RATE_HZ)
    with pytest.raises(AudioError, match=r"bee\.wav: silent"):
        mixed(tones, seed=1)


def test_an_impossible_range_of_snrs_is_refused(tones):
    with pytest.raises(ParameterError, match=r"snr_db=\(5, -5\)"):
        mixed(tones, seed=1, snr_db=(5, -5))
