import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from qbee.audio import faults, flac_header, load
from qbee.audio.faults import FaultMeter
from qbee.errors import AudioError

RATE = 8000


def noise(seconds, *, seed=0, level=0.05):
    return level * np.random.default_rng(seed).standard_normal(int(seconds * RATE))


def measured(samples, *, block=3000):
    meter = FaultMeter(RATE)
    samples = np.asarray(samples, np.float32)
    samples = samples[:, None] if samples.ndim == 1 else samples
    for start in range(0, len(samples), block):
        meter.add(samples[start : start + block])
    return {fault.kind: fault for fault in meter.found()}


def test_good_sound_has_no_fault():
    assert measured(noise(10)) == {}


def test_nothing_has_no_fault():
    assert FaultMeter(RATE).found() == []


@given(
    begin=st.integers(0, 5 * RATE - 1),
    length=st.integers(1, 2 * RATE),
    block=st.integers(500, 20000),
)
def test_a_run_of_zeros_is_found_if_and_only_if_it_is_long_enough(begin, length, block):
    samples = noise(5)
    samples[begin : begin + length] = 0
    length = min(length, len(samples) - begin)
    found = measured(samples, block=block)
    assert ("dropout" in found) == (length >= faults.DROPOUT_S * RATE)
    if found:
        assert found["dropout"].at_s == begin / RATE
        assert f"{length / RATE:.3f} s in all" in found["dropout"].text


def test_zeros_in_one_channel_only_are_no_dropout():
    samples = np.stack([noise(2), np.zeros(2 * RATE)], axis=1)
    assert measured(samples) == {}


def test_silence_is_one_fault_and_no_dropout():
    assert list(measured(np.zeros(RATE))) == ["silence"]


def test_silence_with_an_offset_is_both():
    assert list(measured(np.full(RATE, 0.25))) == ["silence", "dc_offset"]


def test_clipping_is_told_from_a_single_loud_sample():
    samples = noise(4)
    samples[100] = 1.0
    assert measured(samples) == {}
    assert "clipping" in measured(np.clip(20 * samples, -1, 1))


def test_a_mean_far_from_zero_is_an_offset():
    assert "3.0 % of full scale" in measured(noise(4) + 0.03)["dc_offset"].text


@pytest.mark.parametrize("subtype", ["ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "G721_32", "GSM610"])
def test_compressed_wav_files_have_no_fault(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", noise(3), RATE, subtype)
    assert faults.of_header(tmp_path / "a.wav") == []


@pytest.mark.parametrize("rate", [8000, 12345, 44100, 250000, 384000])
@pytest.mark.parametrize("samples", [1, 4096, 100001])
@pytest.mark.parametrize(("channels", "subtype"), [(1, "PCM_16"), (2, "PCM_24"), (6, "PCM_S8")])
def test_the_last_frame_of_a_flac_ends_where_its_header_says(
    tmp_path, rate, samples, channels, subtype
):
    path = tmp_path / "a.flac"
    sound = 0.1 * np.random.default_rng(0).standard_normal((samples, channels))
    soundfile.write(path, sound, rate, subtype)
    with path.open("rb") as file:
        header = flac_header.read(file)
    assert header.sample_rate_hz == header.first.rate_hz == rate
    assert header.samples == header.last.begins_at + header.last.samples == samples
    assert faults.of_header(path) == []


def flac(path, at, value):
    soundfile.write(path, noise(20), RATE)
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    return path


def test_a_flac_whose_header_has_another_rate_than_its_sound_is_found(tmp_path):
    (fault,) = faults.of_header(flac(tmp_path / "a.flac", 19, 0x00))
    assert fault.kind == "wrong_header"
    assert "4096 Hz, but its sound has 8000 Hz" in fault.text


def test_sound_behind_the_end_of_a_flac_header_is_found(tmp_path):
    # 160000 samples are 0x27100.
    (fault,) = faults.of_header(flac(tmp_path / "a.flac", 23, 0x01))
    assert (fault.kind, fault.at_s) == ("wrong_length", 0x17100 / RATE)
    assert "8.192 s of data follow the 11.808 s" in fault.text


def test_sound_that_looks_like_a_chunk_is_none_unless_it_ends_within_the_file(tmp_path):
    for length, kinds in ((20, []), (10**6, ["wrong_length"])):
        path = wav(tmp_path / "a.wav")
        with path.open("ab") as file:
            file.write(b"LIST" + struct.pack("<I", length) + bytes(20))
        assert [fault.kind for fault in faults.of_header(path)] == kinds


def test_compressed_sound_of_a_wrong_width_is_found(tmp_path):
    for kind in (6, 7, 0x40):
        path = wav(tmp_path / "a.wav", [(20, "<H", kind)])
        (fault,) = faults.of_header(path)
        assert fault.kind == "wrong_header" and "does not have 16 bits" in fault.text


def wav(path, changes=()):
    soundfile.write(path, noise(20), RATE, "PCM_16")
    content = bytearray(path.read_bytes())
    for position, form, value in changes:
        struct.pack_into(form, content, position, value)
    path.write_bytes(content)
    return path


RATE_AT, CHANNELS_AT, BLOCK_AT, BITS_AT, DATA_AT = 24, 22, 32, 34, 40


@pytest.mark.parametrize(
    ("position", "form", "value", "kind", "text"),
    [
        (DATA_AT, "<I", 0, "unfinished", "never completed"),
        (DATA_AT, "<I", 16000, "wrong_length", "19.000 s of data follow the 1.000 s"),
        (RATE_AT, "<I", 16000, "wrong_header", "32000 bytes a second, not 16000"),
        (CHANNELS_AT, "<H", 7, "wrong_header", "7 channels of 16 bits are 14 bytes"),
        (BLOCK_AT, "<H", 5, "wrong_header", "not 5"),
        (BITS_AT, "<H", 24, "wrong_header", "1 channels of 24 bits are 3 bytes"),
    ],
)
def test_a_header_that_cannot_be_true_is_told(tmp_path, position, form, value, kind, text):
    (fault,) = faults.of_header(wav(tmp_path / "a.wav", [(position, form, value)]))
    assert fault.kind == kind
    assert text in fault.text


@pytest.mark.parametrize("form", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "MS_ADPCM", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2])
def test_headers_that_libsndfile_writes_are_true(tmp_path, form, channels):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([noise(1)] * channels, axis=1), RATE, form)
    assert faults.of_header(path) == []


def test_a_header_of_open_length_a_chunk_behind_and_other_kinds_have_no_fault(tmp_path):
    path = wav(tmp_path / "a.wav", [(DATA_AT, "<I", 0xFFFFFFFF)])
    assert faults.of_header(path) == []
    path = wav(tmp_path / "padded.wav")
    path.write_bytes(path.read_bytes() + bytes(512))
    assert faults.of_header(path) == []
    path = wav(tmp_path / "b.wav")
    path.write_bytes(path.read_bytes() + b"LIST\x04\x00\x00\x00INFO")
    assert faults.of_header(path) == []
    soundfile.write(tmp_path / "a.flac", noise(1), RATE)
    assert faults.of_header(tmp_path / "a.flac") == []


@given(content=st.binary(max_size=200))
def test_no_content_makes_the_header_reader_fail(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "a.wav"
    path.write_bytes(b"RIFF\0\0\0\0WAVEfmt " + content)
    assert isinstance(faults.of_header(path), list)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AudioError, match="none.wav"):
        faults.of_header(tmp_path / "none.wav")


def test_the_sound_before_a_damaged_place_is_streamed(tmp_path):
    samples = noise(10).astype(np.float32)
    whole = tmp_path / "whole.wav"
    soundfile.write(whole, samples, RATE, "FLOAT")
    content = bytearray(whole.read_bytes())
    first = content.index(b"data") + 8
    content[first + 4 * 6 * RATE : first + 4 * 6 * RATE + 4] = struct.pack("<f", np.nan)
    (tmp_path / "nan.wav").write_bytes(content)
    (tmp_path / "cut.wav").write_bytes(content[: first + 4 * 6 * RATE])
    for name, reason in (("nan.wav", "second 6.000 is nan"), ("cut.wav", "ends at second 6.000")):
        heard, blocks = [], []
        with pytest.raises(AudioError, match=reason):
            for block in load.stream(tmp_path / name, sample_rate_hz=RATE, listener=heard.append):
                blocks.append(block)
        np.testing.assert_array_equal(np.concatenate(blocks), samples[: 6 * RATE])
        np.testing.assert_array_equal(np.concatenate(heard)[:, 0], samples[: 6 * RATE])


@pytest.mark.parametrize("skip", [0, 1, 2999, 3000, 3001, 20000, 10 * RATE])
def test_skipped_samples_are_those_at_the_beginning(tmp_path, skip):
    samples = noise(10).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    found = load.stream(
        tmp_path / "a.wav", sample_rate_hz=RATE, block_s=3000 / RATE, skip_samples=skip
    )
    found = np.concatenate([np.empty(0, np.float32), *found])
    np.testing.assert_array_equal(found, samples[skip:])


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    import os

    path = os.fsdecode(os.fsencode(tmp_path) + b"/b\xf6e.wav")
    soundfile.write(os.fsencode(path), noise(1), RATE, format="WAV")
    assert load.info(path).duration_s == 1.0
