"""Hundreds of damaged files among good ones, and files beyond 4 GiB."""

import csv
import os
import shutil
import struct
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import qbee
from field_toys import FRONT_END, sound, write

from qbee.audio import load
from qbee.detect.listening import listen
from qbee.detect.parts import Parts
from qbee.detect.recordings import Dating, inspect
from qbee.detector import FRONT_END as FRONT_END_FILE
from qbee.detector import MODEL, Card, Detector
from qbee.export.delivery import ExportSettings, deliver
from qbee.models import registry
from qbee.quantize import convert
from qbee.quantize.calibrate import calibrate
from qbee.quantize.fold import fold
from qbee.quantize.scheme import uniform

GOOD, DAMAGED, SEED = 300, 300, 0
HEADER_BYTES = 44
# A WAV of which so little is hidden is taken to end with stray bytes, as some programs write.
STRAY_BYTES = 8
GIB = 1 << 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Result folder of a small network that was not trained."""
    folder = tmp_path_factory.mktemp("model")
    net = fold(registry.build("beenet3", n_mels=FRONT_END.n_mels, n_frames=FRONT_END.n_frames))
    shape = (16, FRONT_END.n_mels, FRONT_END.n_frames, 1)
    x = np.random.default_rng(SEED).normal(size=shape).astype(np.float32)
    quantized = convert.quantized_model(net, uniform(net, bits=8), calibrate(net, x, seed=SEED))
    card = Card(front_end=FRONT_END, threshold=0.5).to_metadata()
    delivery = deliver(convert.to_fixed_point(quantized), ExportSettings(), metadata=card)
    (folder / MODEL).write_bytes(delivery.exported.content)
    FRONT_END.save(folder / FRONT_END_FILE)
    return folder


def good_files(folder):
    rng, paths = np.random.default_rng(SEED), []
    for number in range(GOOD):
        path = folder / f"good{number:03d}.{('wav', 'flac')[number % 2]}"
        begin = rng.uniform(0, 2)
        tones = [(begin, begin + 0.7)]
        paths.append(write(path, sound(rng.uniform(3, 4), tones, seed=number)))
    return paths


def truncated(content, rng):
    return content[: rng.integers(0, len(content))]


def edited(content, rng):
    """Other bytes, side by side or not, at a few places of the header."""
    count = rng.integers(1, 4)
    places = rng.integers(0, HEADER_BYTES, count)
    if rng.uniform() < 0.5:
        places = np.minimum(places[0] + np.arange(count), HEADER_BYTES - 1)
    changed = bytearray(content)
    for place in places:
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


def random_bytes(content, rng):
    return rng.bytes(rng.integers(0, len(content)))


def damaged_files(folder, originals):
    """Damaged copies, by path, and what they are copies of."""
    folder.mkdir()
    rng, found = np.random.default_rng(SEED), {}
    for number, original in enumerate(originals[:DAMAGED]):
        # Edits of headers are of the most kinds.
        damage = (truncated, edited, edited, edited, random_bytes)[rng.integers(0, 5)]
        path = folder / f"{damage.__name__}{number:03d}{original.suffix}"
        path.write_bytes(damage(original.read_bytes(), rng))
        found[path] = original
    return found


def decoded(path):
    """Samples and rate by libsndfile alone; None if it cannot read the file."""
    try:
        return soundfile.read(path, dtype="int16", always_2d=True)
    except soundfile.LibsndfileError:
        return None


def is_as_good(path, original):
    """Whether a file still is exactly the sound that it was made from."""
    found, (samples, rate) = decoded(path), decoded(original)
    return found is not None and found[1] == rate and np.array_equal(found[0], samples)


def is_undetectable(path, original):
    """Whether only stray bytes are missing: they can be the end of a good file as well."""
    found, (samples, rate) = decoded(path), decoded(original)
    if path.suffix != ".wav" or found is None or found[1] != rate:
        return False
    missing = len(samples) - len(found[0])
    return 0 < 2 * missing < STRAY_BYTES and np.array_equal(found[0], samples[:-missing])


def problems(out):
    with (out / "problems.csv").open() as file:
        return list(csv.DictReader(file))


def detected(folder, model, out, *, on_error):
    command = ["detect", folder, "--model", model, "--out", out, "--clips", 0, "--workers", 2]
    return qbee(*command, "--on-error", on_error, check=False)


def margins_alone(path, model):
    heard = listen(
        inspect(path, Dating()),
        skip_samples=0,
        front_end=FRONT_END,
        logits=Detector.load(model, engine="litert", is_probed=True).logits,
        on_progress=lambda seconds: None,
    )
    assert len(heard.margins)
    return heard.margins


@pytest.fixture(scope="module")
def field(tmp_path_factory, model):
    """Good and damaged files, and a detection of all of them."""
    folder = tmp_path_factory.mktemp("damage")
    good = good_files(folder / "field" / "good")
    damaged = damaged_files(folder / "field" / "damaged", good)
    done = detected(folder / "field", model, folder / "out", on_error="skip")
    return folder, good, damaged, done


def test_good_files_among_damaged_ones_are_heard_as_they_are_alone(field, model):
    folder, good, _, _ = field
    parts = Parts(folder / "out" / "work" / "parts")
    for path in good:
        part = parts.load(path.as_uri())
        np.testing.assert_array_equal(part.margins, margins_alone(path, model))
        assert not part.problems, path


def test_every_damaged_file_that_is_another_sound_has_a_reason(field):
    folder, _, damaged, done = field
    assert done.returncode == 1, done.stderr
    reasons = {
        row["file"]: row["reason"] for row in problems(folder / "out") if row["effect"] != "used"
    }
    silent, counts = [], Counter()
    for path, original in damaged.items():
        is_told = bool(reasons.get(str(path)))
        is_harmless = is_as_good(path, original) or is_undetectable(path, original)
        counts[is_told, is_harmless] += 1
        if not is_told and not is_harmless:
            silent.append(path.name)
    assert not silent
    # Most damage does harm, or nothing would be tested here.
    assert counts[True, False] > DAMAGED / 2, counts


def test_only_files_that_are_left_out_have_no_windows(field):
    folder, _, _, _ = field
    with (folder / "out" / "recordings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == GOOD + DAMAGED
    left_out = {row["file"] for row in problems(folder / "out") if row["effect"] == "left_out"}
    assert left_out == {row["file"] for row in rows if row["windows"] == "0"}


def test_the_command_stops_at_damage_if_it_is_asked_to(field, model):
    folder, _, _, _ = field
    done = detected(folder / "field", model, folder / "stopped", on_error="stop")
    assert done.returncode == 2
    assert "--on-error skip" in done.stderr
    assert "Traceback" not in done.stderr


def require_room(folder, bytes_):
    if shutil.disk_usage(folder).free < bytes_:
        pytest.skip(f"needs {bytes_ / GIB:.0f} GiB of disk in {folder}")


def chunk(name, length, content=b""):
    return name + struct.pack("<I", length) + content


# Enough bytes a second for 4 GiB to be no long sound, few enough for blocks of 30 s in memory.
CHANNELS, RATE, SECONDS = 16, 48000, 2850


def form():
    bytes_ = 2 * CHANNELS
    return struct.pack("<HHIIHH", 1, CHANNELS, RATE, RATE * bytes_, bytes_, 16)


def write_sparse(path, head, data_bytes):
    """A file of zeros behind a header, but for noise in its first and its last second."""
    one = RATE * 2 * CHANNELS
    noise = np.random.default_rng(SEED).integers(-999, 999, one // 2, np.int16).tobytes()
    with path.open("wb") as file:
        file.write(head + noise)
        file.seek(data_bytes - 2 * one, os.SEEK_CUR)
        file.write(noise)
    return path


@pytest.fixture
def big_path(tmp_path):
    """A place for a file of more than 4 GiB, which is removed."""
    require_room(tmp_path, 5 * GIB)
    path = tmp_path / "big.wav"
    yield path
    path.unlink(missing_ok=True)


# Whole samples, some seconds beyond what 32 bits can say.
DATA_BYTES = SECONDS * RATE * 2 * CHANNELS


def heard(path):
    return listen(
        inspect(path, Dating()),
        skip_samples=0,
        front_end=FRONT_END,
        logits=lambda images: np.zeros((len(images), 2), np.float32),
        on_progress=lambda seconds: None,
    )


@pytest.mark.slow
def test_an_rf64_file_beyond_4_gib_is_heard_whole(big_path):
    sizes = struct.pack("<QQQI", DATA_BYTES + 72, DATA_BYTES, DATA_BYTES // (2 * CHANNELS), 0)
    head = b"RF64" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + chunk(b"ds64", 28, sizes)
    head += chunk(b"fmt ", 16, form()) + chunk(b"data", 0xFFFFFFFF)
    write_sparse(big_path, head, DATA_BYTES)
    assert big_path.stat().st_size > 4 * GIB
    assert load.info(big_path).duration_s == SECONDS
    part = heard(big_path)
    assert {problem.kind for problem in part.problems} == {"dropout"}
    # All but the first and the last second drop out.
    assert f"{SECONDS - 2}.0" in part.problems[0].text
    frames = 1 + SECONDS * FRONT_END.sample_rate_hz // FRONT_END.hop_samples
    assert len(part.margins) == 1 + (frames - FRONT_END.n_frames) // FRONT_END.window_hop_frames


@pytest.mark.slow
def test_a_wav_whose_length_does_not_fit_32_bits_is_told_to_be_longer(big_path):
    wrapped = DATA_BYTES % (1 << 32)
    head = b"RIFF" + struct.pack("<I", (wrapped + 36) % (1 << 32)) + b"WAVE"
    head += chunk(b"fmt ", 16, form()) + chunk(b"data", wrapped)
    write_sparse(big_path, head, DATA_BYTES)
    part = heard(big_path)
    (found,) = [problem for problem in part.problems if problem.effect != "used"]
    assert (found.kind, found.effect) == ("wrong_length", "used_partly")
    seconds = (1 << 32) / (RATE * 2 * CHANNELS)
    assert f"{seconds:.3f} s of data follow" in found.text
