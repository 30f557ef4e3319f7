"""Mel images: the streaming STFT against the plain per-window definition."""

import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbee.audio import load, mel
from qbee.errors import AudioError, ParameterError
from qbee.records import FrontEnd

FRONT_END = FrontEnd()
# Frames t with t * 125 >= 256 and t * 125 + 256 <= 128 * 125 see only their own window.
INNER = slice(3, 126)
# The stream's FFT is float32, librosa's float64: rounding at 1e-8 of a frame's loudest bin
# is 1e-3 dB for bins 80 dB below it, and few bins of the noise here fade by even 40 dB.
TOLERANCE_DB = 1e-3


def noise(seconds, rate, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "noise.wav"
    soundfile.write(path, noise(20, 16000), 16000)
    return path


def samples_of(path, front_end=FRONT_END):
    return np.concatenate(list(load.stream(path, sample_rate_hz=front_end.sample_rate_hz)))


def all_frames(path, front_end=FRONT_END):
    return np.concatenate(list(mel.stream(path, front_end)), axis=1)


def test_a_window_cut_from_the_stream_equals_the_per_window_image_away_from_its_edges(recording):
    signal = samples_of(recording)
    starts_s = [0.0, 2.0, 7.5, 16.0]
    cut = mel.images(recording, FRONT_END, starts_s)
    for start_s, window in zip(starts_s, cut, strict=True):
        first = round(start_s * 4000)
        alone = mel.image(signal[first : first + 16000], FRONT_END)
        np.testing.assert_allclose(window[:, INNER], alone[:, INNER], rtol=0, atol=TOLERANCE_DB)


def test_the_stream_equals_librosas_melspectrogram_of_the_whole_recording(recording):
    power = librosa.feature.melspectrogram(
        y=samples_of(recording),
        sr=4000,
        n_fft=512,
        hop_length=125,
        n_mels=128,
        fmin=50,
        fmax=1450,
        pad_mode="constant",
    )
    expected = librosa.power_to_db(power, top_db=None)
    np.testing.assert_allclose(all_frames(recording), expected, rtol=0, atol=TOLERANCE_DB)


@pytest.mark.parametrize(
    ("n_fft", "hop_samples"), [(512, 125), (512, 512), (500, 125), (513, 100), (256, 400)]
)
@pytest.mark.parametrize("length", [10, 125, 4001, 40000])
def test_the_stream_has_the_frames_of_librosas_stft(tmp_path, n_fft, hop_samples, length):
    front_end = FrontEnd(n_fft=n_fft, hop_samples=hop_samples, n_mels=20)
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(length / 4000, 4000), 4000, subtype="FLOAT")
    signal = np.pad(samples_of(path), n_fft // 2)
    spectrum = librosa.stft(signal, n_fft=n_fft, hop_length=hop_samples, center=False)
    power = mel.filterbank(front_end) @ np.abs(spectrum) ** 2
    expected = 10 * np.log10(np.maximum(power, 1e-10))
    np.testing.assert_allclose(all_frames(path, front_end), expected, rtol=0, atol=TOLERANCE_DB)


@pytest.mark.parametrize("rate", [44100, 48000, 16000, 8000, 4000])
def test_any_rate_gives_one_frame_per_hop_and_one_more(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(5, rate), rate)
    frames = all_frames(path)
    assert frames.shape == (128, 1 + 20000 // 125)
    assert frames.dtype == np.float32


def test_a_tone_is_loudest_in_the_band_at_its_pitch(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 250 * np.arange(64000) / 16000), 16000)
    loudest = mel.images(path, FRONT_END, [0.0])[0, :, INNER].argmax(axis=0)
    centres_hz = librosa.mel_frequencies(n_mels=130, fmin=50, fmax=1450)[1:-1]
    # A band is 10 Hz wide here.
    assert np.all(np.abs(centres_hz[loudest] - 250) < 10)


def test_bands_within_80_db_of_a_loud_tone_equal_the_per_window_image(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.9 * np.sin(2 * np.pi * 250.3 * np.arange(64000) / 16000), 16000)
    cut = mel.images(path, FRONT_END, [0.0])[0, :, INNER]
    alone = mel.image(samples_of(path), FRONT_END)[:, INNER]
    # Below that the float32 rounding of the tone itself is heard, see TOLERANCE_DB.
    near = alone > alone.max(axis=0) - 80
    np.testing.assert_allclose(cut[near], alone[near], rtol=0, atol=TOLERANCE_DB)
    np.testing.assert_allclose(cut, alone, rtol=0, atol=1)


def test_silence_lies_at_the_power_floor(tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(64000), 16000)
    front_end = FrontEnd(power_floor=1e-8)
    # float32 has 7 digits: 80 dB to within 1e-5.
    np.testing.assert_allclose(mel.images(path, front_end, [0.0]), -80, atol=1e-5)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(starts_s=st.lists(st.floats(0, 16), max_size=8))
def test_windows_in_any_order_are_slices_of_the_stream(recording, starts_s):
    frames = all_frames(recording)
    cut = mel.images(recording, FRONT_END, starts_s)
    assert cut.shape == (len(starts_s), 128, 128)
    for start_s, window in zip(starts_s, cut, strict=True):
        first = int(np.rint(start_s * 32))
        np.testing.assert_array_equal(window, frames[:, first : first + 128])


@pytest.mark.parametrize("seconds", [4, 20])
@pytest.mark.parametrize("rate", [44100, 16000, 4000])
def test_the_last_whole_window_can_be_cut(tmp_path, seconds, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(seconds, rate), rate)
    assert np.isfinite(mel.images(path, FRONT_END, [seconds - 4])).all()


def test_a_window_beyond_the_end_is_refused_with_path_start_and_duration(recording):
    message = r"noise\.wav: window of 4 s at second 16\.5 .* recording of 20\.000 s"
    with pytest.raises(AudioError, match=message):
        mel.images(recording, FRONT_END, [0.0, 16.5])
    with pytest.raises(AudioError, match="at second 1e"):
        mel.images(recording, FRONT_END, [1e9])


@pytest.mark.parametrize("start_s", [-0.1, np.nan, np.inf])
def test_a_start_that_cannot_be_is_refused(recording, start_s):
    with pytest.raises(ParameterError, match=f"starts_s={start_s}"):
        mel.images(recording, FRONT_END, [0.0, start_s])


def test_damage_after_the_last_window_is_still_reported(tmp_path):
    samples = noise(10, 16000)
    samples[-1] = np.nan
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        mel.images(path, FRONT_END, [0.0])


def test_a_missing_recording_is_named(tmp_path):
    with pytest.raises(AudioError, match=r"none\.wav: No such file"):
        mel.images(tmp_path / "none.wav", FRONT_END, [0.0])


def test_the_filterbank_is_librosas_and_cannot_be_written_to():
    expected = librosa.filters.mel(sr=4000, n_fft=512, n_mels=128, fmin=50, fmax=1450)
    bank = mel.filterbank(FRONT_END)
    np.testing.assert_array_equal(bank, expected)
    assert bank.dtype == np.float32
    assert mel.filterbank(FrontEnd()) is bank
    with pytest.raises(ValueError, match="read-only"):
        bank[0, 0] = 1


@pytest.mark.filterwarnings("error")
def test_an_empty_mel_band_is_refused_naming_n_fft(recording):
    front_end = FrontEnd(n_fft=128)
    with pytest.raises(ParameterError, match="n_fft=128 is too short for n_mels=128"):
        mel.filterbank(front_end)
    with pytest.raises(ParameterError, match="n_fft=128"):
        mel.stream(recording, front_end)


def test_an_image_needs_the_samples_of_one_finite_window():
    with pytest.raises(ParameterError, match=r"samples\.shape=\(100,\)"):
        mel.image(np.zeros(100), FRONT_END)
    with pytest.raises(ParameterError, match="finite"):
        mel.image(np.full(16000, np.nan), FRONT_END)


def test_an_image_has_the_shape_and_type_of_a_window():
    window = mel.image(noise(4, 4000), FRONT_END)
    assert window.shape == (128, 128)
    assert window.dtype == np.float32


def db_images(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(-60, 10, (count, 128, 128)).astype(np.float32)


def test_a_window_standardized_by_itself_has_mean_0_and_deviation_1():
    standard = mel.standardize(db_images(), FRONT_END)
    assert standard.dtype == np.float32
    # Means of float32 around -60 dB, over 10 dB.
    np.testing.assert_allclose(standard.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=(1, 2)), 1, atol=1e-5)


def test_a_window_is_standardized_by_exactly_numpys_mean_and_deviation():
    # Views as `windows` cuts them, and an image of a size that is no power of two.
    frames = np.random.default_rng(1).normal(-60, 10, (90, 300)).astype(np.float32)
    window = frames[:, 50:161]
    expected = window - np.float32(window.mean(dtype=np.float64))
    expected /= np.float32(window.std(dtype=np.float64))
    front_end = FrontEnd(n_mels=90, n_frames=111)
    np.testing.assert_array_equal(mel.standardize(window, front_end), expected)


def test_standardizing_a_window_ignores_the_level_of_its_recorder():
    images = db_images()
    # Adding 12 dB rounds at 1e-5 dB.
    np.testing.assert_allclose(
        mel.standardize(images + 12, FRONT_END), mel.standardize(images, FRONT_END), atol=1e-5
    )


def test_standardizing_a_standardized_window_changes_nothing():
    once = mel.standardize(db_images(), FRONT_END)
    np.testing.assert_allclose(mel.standardize(once, FRONT_END), once, atol=1e-5)


def test_a_silent_window_is_not_blown_up():
    silent = np.full((1, 128, 128), -100, np.float32)
    assert not mel.standardize(silent, FRONT_END).any()
    silent[0, 0, 0] += 1e-4
    # 1e-4 dB over the least divisor, 0.1 dB.
    assert np.abs(mel.standardize(silent, FRONT_END)).max() < 2e-3


def test_a_fold_is_standardized_by_its_mean_and_deviation():
    front_end = FrontEnd(standardize="fold", mean_db=-60, std_db=8)
    images = db_images()
    np.testing.assert_array_equal(mel.standardize(images, front_end), (images + 60) / 8)


def test_a_fold_without_its_mean_is_refused():
    with pytest.raises(ParameterError, match="mean_db=None"):
        mel.standardize(db_images(), FrontEnd(standardize="fold"))


def test_images_of_another_front_end_are_refused():
    with pytest.raises(ParameterError, match=r"images\.shape=\(3, 64, 128\)"):
        mel.standardize(np.zeros((3, 64, 128)), FRONT_END)


def test_one_image_and_a_mapped_file_are_standardized_like_a_stack(tmp_path):
    images = db_images()
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = mel.standardize(images, FRONT_END)
    np.testing.assert_array_equal(mel.standardize(mapped, FRONT_END), expected)
    np.testing.assert_array_equal(mel.standardize(images[1], FRONT_END), expected[1])


def test_windows_written_into_rows_of_an_array_are_those_returned(recording):
    starts_s = [8.0, 0.0, 3.3, 8.0]
    out = np.full((6, 128, 128), np.nan, np.float32)
    assert mel.images(recording, FRONT_END, starts_s, out=out, rows=[5, 0, 2, 1]) is out
    np.testing.assert_array_equal(out[[5, 0, 2, 1]], mel.images(recording, FRONT_END, starts_s))
    assert np.isnan(out[[3, 4]]).all()
    mel.images(recording, FRONT_END, starts_s, out=out)
    np.testing.assert_array_equal(out[:4], mel.images(recording, FRONT_END, starts_s))


@pytest.mark.parametrize(
    ("out", "rows", "message"),
    [
        (np.empty((2, 64, 128), np.float32), [0, 1], r"out=float32 \(2, 64, 128\) must be"),
        (np.empty((2, 128, 128)), [0, 1], "out=float64"),
        (np.empty((2, 128, 128), np.float32), [0], "rows must be 2.* got 1"),
        (np.empty((2, 128, 128), np.float32), [0, 2], "from 0 to 1"),
        (np.empty((1, 128, 128), np.float32), None, "from 0 to 0"),
    ],
)
def test_an_array_or_rows_that_do_not_fit_are_refused(recording, out, rows, message):
    with pytest.raises(ParameterError, match=message):
        mel.images(recording, FRONT_END, [0.0, 1.0], out=out, rows=rows)


def peak_bytes(run):
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_recording(tmp_path, recording):
    minute = noise(60, 16000)
    for name, minutes in [("short", 5), ("long", 30)]:
        soundfile.write(tmp_path / f"{name}.wav", np.tile(minute, minutes), 16000)

    def peak(name):
        return peak_bytes(lambda: mel.images(tmp_path / f"{name}.wav", FRONT_END, [0.0, 200.0]))

    peak("short")
    # 5 %: Python's own objects (caches, iterators) come and go.
    assert peak("long") < 1.05 * peak("short")


def test_standardizing_a_mapped_file_keeps_only_the_result_in_memory(tmp_path):
    np.save(tmp_path / "images.npy", db_images(64))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    # The result is 4 MB; a few windows of 64 kB (and their float64 sums) come on top.
    assert peak_bytes(lambda: mel.standardize(mapped, FRONT_END)) < 1.2 * mapped.nbytes


@pytest.mark.parametrize("hop", [16, 64, 128, 200])
@pytest.mark.parametrize("seconds", [3.9, 4.0, 40.7])
def test_windows_of_a_recording_equal_those_cut_out_of_it(tmp_path, hop, seconds):
    front_end = FrontEnd(window_hop_frames=hop)
    rate = 8000
    samples = 0.1 * np.random.default_rng(3).standard_normal(int(seconds * rate))
    soundfile.write(tmp_path / "a.wav", samples, rate, "FLOAT")
    found = [*mel.windows(tmp_path / "a.wav", front_end)]
    empty = np.empty((0, front_end.n_mels, front_end.n_frames), np.float32)
    found = np.concatenate([empty, *found])
    frames = 1 + int(seconds * front_end.sample_rate_hz) // front_end.hop_samples
    assert len(found) == max(0, 1 + (frames - front_end.n_frames) // hop)
    starts_s = np.arange(len(found)) * front_end.window_hop_s
    expected = mel.images(tmp_path / "a.wav", front_end, starts_s)
    np.testing.assert_array_equal(found, expected)
