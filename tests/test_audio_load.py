"""Reading sound files: the same samples whatever the format, and honest errors."""

import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qbee.audio import load
from qbee.errors import AudioError, ParameterError

FORMATS = [("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]


def noise(seconds, rate, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal((round(seconds * rate), channels))).astype(np.float32)


def write(path, samples, rate, subtype=None):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def read(path, rate, **settings):
    return np.concatenate(list(load.stream(path, sample_rate_hz=rate, **settings)))


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_info_gives_rate_channels_and_duration(tmp_path, suffix, subtype, channels):
    path = write(tmp_path / f"a.{suffix}", noise(2.5, 16000, channels), 16000, subtype)
    recording = load.info(path)
    assert recording.path == path
    assert (recording.sample_rate_hz, recording.channels) == (16000, channels)
    assert recording.duration_s == 2.5


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_stream_equals_the_file_read_at_once(tmp_path, suffix, subtype, channels):
    path = write(tmp_path / f"a.{suffix}", noise(3, 16000, channels), 16000, subtype)
    at_once = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    # One rounding of float32 more or less when two channels are averaged.
    np.testing.assert_allclose(read(path, 16000, block_s=0.37), at_once, rtol=0, atol=1e-7)


@pytest.mark.parametrize("rate", [44100, 48000, 16000, 8000])
def test_a_resampled_stream_equals_resampling_at_once(tmp_path, rate):
    samples = noise(3.3, rate)[:-7]
    path = write(tmp_path / "a.wav", samples, rate, "FLOAT")
    streamed = read(path, 4000, block_s=0.5)
    assert abs(len(streamed) - len(samples) * 4000 / rate) <= 1
    # Both are soxr HQ; a block border may change the order of float32 sums.
    np.testing.assert_allclose(
        streamed, soxr.resample(samples[:, 0], rate, 4000), rtol=0, atol=1e-6
    )


def test_an_equal_rate_passes_the_samples_through_unchanged(tmp_path):
    samples = noise(1, 4000)
    path = write(tmp_path / "a.wav", samples, 4000, "FLOAT")
    np.testing.assert_array_equal(read(path, 4000), samples[:, 0])


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(block_s=st.floats(0.01, 5), rate=st.sampled_from([8000, 22050, 44100]))
def test_the_block_size_does_not_change_the_samples(tmp_path_factory, block_s, rate):
    path = write(tmp_path_factory.mktemp("sound") / "a.wav", noise(2, rate, 2), rate, "PCM_16")
    # A matrix product may sum two channels in another order at the end of a block.
    np.testing.assert_allclose(
        read(path, 4000, block_s=block_s), read(path, 4000), rtol=0, atol=1e-7
    )


def test_a_stream_of_mp3_has_no_gap_between_its_blocks(tmp_path):
    path = write(tmp_path / "a.mp3", noise(3, 16000), 16000)
    np.testing.assert_array_equal(read(path, 16000, block_s=0.1), read(path, 16000))


def test_opposite_channels_cancel(tmp_path):
    mono = noise(1, 8000)
    path = write(tmp_path / "a.wav", np.hstack([mono, -mono]), 8000, "FLOAT")
    assert not read(path, 8000).any()


def test_a_missing_file_is_called_missing(tmp_path):
    with pytest.raises(AudioError, match=r"none\.wav: No such file"):
        load.info(tmp_path / "none.wav")


def test_a_folder_is_called_a_folder(tmp_path):
    with pytest.raises(AudioError, match="is a folder"):
        load.info(tmp_path)


def test_a_file_of_zero_bytes_is_called_empty(tmp_path):
    (tmp_path / "a.wav").touch()
    with pytest.raises(AudioError, match=r"a\.wav: is empty \(0 bytes\)"):
        load.info(tmp_path / "a.wav")


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "txt"])
def test_a_text_file_is_called_not_a_sound_file(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_text("start,end,label\n" * 100)
    with pytest.raises(AudioError, match=rf"a\.{suffix}: not a sound file") as caught:
        load.info(path)
    assert "\n" not in str(caught.value)
    assert "exist" not in str(caught.value)


def test_samples_without_a_header_are_not_supported(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(1000))
    with pytest.raises(AudioError, match="without a header are not supported"):
        load.info(tmp_path / "a.raw")


def test_a_file_without_samples_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", noise(0, 8000), 8000)
    with pytest.raises(AudioError, match="contains no samples"):
        load.info(path)
    with pytest.raises(AudioError, match="contains no samples"):
        read(path, 8000)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_sample_that_is_not_finite_is_named_by_its_second(tmp_path, bad, channels):
    samples = noise(4, 8000, channels)
    samples[20000, -1] = bad
    path = write(tmp_path / "a.wav", samples, 8000, "FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav: sample at second 2\.500 is .*not finite"):
        read(path, 4000, block_s=1)


@pytest.mark.parametrize("block_s", [0.5, 30.0])
def test_a_truncated_flac_is_named_with_both_lengths(tmp_path, block_s):
    path = write(tmp_path / "a.flac", noise(10, 16000), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = r"ends at second [45]\.\d+, length by its header: 10\.000 s \(flac"
    with pytest.raises(AudioError, match=message):
        read(path, 16000, block_s=block_s)


def test_a_truncated_mp3_is_named_with_both_lengths(tmp_path):
    path = write(tmp_path / "a.mp3", noise(10, 16000), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"second [45]\.\d+, .* 10\.000 s \(truncated\)"):
        read(path, 16000)


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_a_truncated_file_of_plain_samples_is_refused_at_once(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", noise(10, 16000), 16000, "PCM_16")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"second (4\.999|5\.000), .*10\.\d+ s \(truncated\)"):
        load.info(path)


def test_a_wav_written_to_a_pipe_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.wav", noise(2, 16000), 16000, "PCM_16")
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert load.info(path).duration_s == 2
    assert len(read(path, 16000)) == 32000


def test_a_flac_written_to_a_pipe_is_counted_by_decoding(tmp_path):
    path = write(tmp_path / "a.flac", noise(2, 16000), 16000)
    content = bytearray(path.read_bytes())
    # The lower 36 bits of bytes 21 to 25 are STREAMINFO's number of samples; 0 is unknown.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert load.info(path).duration_s == 2
    assert len(read(path, 16000, block_s=0.3)) == 32000


def test_a_rate_or_block_that_is_not_positive_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="sample_rate_hz=0"):
        load.stream(tmp_path / "a.wav", sample_rate_hz=0)
    with pytest.raises(ParameterError, match="block_s=-1"):
        load.stream(tmp_path / "a.wav", sample_rate_hz=4000, block_s=-1)


def peak_bytes(path):
    tracemalloc.start()
    for _ in load.stream(path, sample_rate_hz=4000, block_s=5):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_recording(tmp_path):
    minute = noise(60, 16000)
    short, long = tmp_path / "short.wav", tmp_path / "long.wav"
    write(short, np.tile(minute, (5, 1)), 16000, "PCM_16")
    write(long, np.tile(minute, (30, 1)), 16000, "PCM_16")
    # 5 %: Python's own objects (caches, iterators) come and go.
    assert peak_bytes(long) < 1.05 * peak_bytes(short)


@pytest.mark.parametrize("module", ["qbee.audio.load", "qbee.audio.mel"])
def test_reading_sound_does_not_import_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_an_excerpt_is_that_part_of_the_whole(tmp_path, suffix):
    rate = 16000
    samples = 0.1 * np.random.default_rng(0).standard_normal(70 * rate)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, samples, rate)
    whole = np.concatenate([*load.stream(path, sample_rate_hz=rate)])
    for start_s, end_s in ((0, 4), (31.25, 33.5), (68.0, 99.0), (80.0, 90.0), (-1.0, 2.0)):
        found, found_rate = load.excerpt(path, start_s=start_s, end_s=end_s)
        assert found_rate == rate
        expected = whole[max(0, round(start_s * rate)) : round(end_s * rate)]
        np.testing.assert_array_equal(found, expected)
