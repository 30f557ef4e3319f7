"""Labelled soundscapes of nest boxes: composed from nothing, or mixed from real clips."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scipy.fft import irfft, next_fast_len, rfft

from qbee.audio import load
from qbee.audio.sources import (
    DECOYS,
    LOCATIONS,
    RATE_HZ,
    bed,
    buzz,
    samples,
    through_microphone,
    treble,
)
from qbee.errors import AudioError, ParameterError
from qbee.files import make_folder, replacing, write_text
from qbee.records import FrontEnd

FILE_RATE_HZ = 16000
BAND_HZ = (FrontEnd().fmin_hz, FrontEnd().fmax_hz)
WINDOW_S, HOP_S = FrontEnd().window_s, FrontEnd().window_hop_s
COLUMNS = ("file", "start_s", "end_s", "label", "location", "recorded_at")
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")
# A buzz must be heard this long in a window of class buzz ...
AUDIBLE_S = 1.0
# ... and is heard where it is at most this far below its loudest 5 %.
AUDIBLE_DB = 12.0
# One visit of a bee in so many seconds gives one buzz window to three others.
SECONDS_PER_VISIT = 32.0
# With these SNRs BeeNet1 and BeeNet3 reach an F1 near 0.9 and a mean spectrum below 0.7.
BUZZ_SNR_DB = (-5.0, 20.0)
DECOY_SNR_DB = (-5.0, 15.0)
FIRST_DAY = datetime(2023, 4, 3)


def in_band(y, *, rate_hz):
    """``y`` with everything outside 50-1450 Hz removed."""
    n_fft = next_fast_len(len(y), real=True)
    f = np.fft.rfftfreq(n_fft, 1 / rate_hz)
    inside = (f >= BAND_HZ[0]) & (f <= BAND_HZ[1])
    return irfft(rfft(y, n_fft) * inside, n_fft)[: len(y)]


def audible(banded, *, rate_hz):
    """Tell which samples of a band-limited sound are near its loudest 5 %."""
    block = samples(0.05, rate_hz=rate_hz)
    padded = np.pad(banded, (0, -len(banded) % block))
    power = np.mean(padded.reshape(-1, block) ** 2, axis=1)
    loud = (power > 0) & (power >= np.quantile(power, 0.95) * 10 ** (-AUDIBLE_DB / 10))
    return np.repeat(loud, block)[: len(banded)]


@dataclass(frozen=True)
class Layer:
    """Events of one class along a recording; booleans tell where one is present and audible."""

    y: np.ndarray
    present: np.ndarray
    heard: np.ndarray


def layer_of(events, background, *, rate_hz):
    """Add up sounds at stated SNRs.

    The SNR is the power of a sound over that of the background, both within 50-1450 Hz and over
    the time in which the sound is audible.

    Parameters
    ----------
    events : iterable of (first sample, np.ndarray [shape=(n,)], SNR in dB)
    background : np.ndarray [shape=(n_samples,)]
    """
    quiet = in_band(background, rate_hz=rate_hz)
    y = np.zeros(len(background))
    present, heard = np.zeros((2, len(background)), dtype=bool)
    for start, sound, snr_db in events:
        here = slice(start, start + len(sound))
        banded = in_band(sound, rate_hz=rate_hz)
        on = audible(banded, rate_hz=rate_hz)
        if not on.any():
            continue
        ratio = np.mean(quiet[here][on] ** 2) / np.mean(banded[on] ** 2)
        y[here] += sound * np.sqrt(ratio * 10 ** (snr_db / 10))
        present[here] = True
        heard[here] |= on
    return Layer(y, present, heard)


def label_rows(layer, *, rate_hz):
    """Segments (start in s, end in s, label) of consecutive equal windows of the 4 s / 2 s grid."""
    window, hop = samples(WINDOW_S, rate_hz=rate_hz), samples(HOP_S, rate_hz=rate_hz)
    labels = []
    for start in range(0, len(layer.y) - window + 1, hop):
        here = slice(start, start + window)
        if np.count_nonzero(layer.heard[here]) >= AUDIBLE_S * rate_hz:
            labels.append("buzz")
        else:
            labels.append("uncertain" if layer.present[here].any() else "no_buzz")
    rows, first = [], 0
    for label, group in groupby(labels):
        last = first + len(list(group)) - 1
        rows.append((first * HOP_S, last * HOP_S + WINDOW_S, label))
        first = last + 1
    return rows


def decoy_events(location, n_samples, *, rng):
    """Sounds that are not bees, anywhere in a recording: (first sample, sound, SNR in dB)."""
    events = []
    for name, per_minute in location.decoys.items():
        for _ in range(rng.poisson(per_minute * n_samples / RATE_HZ / 60)):
            sound = DECOYS[name](rng.uniform(2, 14), rng=rng)[:n_samples]
            start = rng.integers(0, n_samples - len(sound) + 1)
            events.append((start, through_microphone(sound, location), rng.uniform(*DECOY_SNR_DB)))
    return events


def visits(n_samples, make_sound, *, rate_hz, rng):
    """One sound at a random place in each stretch of about ``SECONDS_PER_VISIT``."""
    count = max(1, round(n_samples / rate_hz / SECONDS_PER_VISIT))
    stretch = n_samples // count
    longest_s = min(12.0, 0.4 * stretch / rate_hz)
    for index in range(count):
        sound = make_sound(rng.uniform(min(1.5, longest_s), longest_s))[:stretch]
        yield index * stretch + rng.integers(0, stretch - len(sound) + 1), sound


def buzz_snr_db(rng):
    """Draw the SNR of a visit: mostly clear, sometimes hardly audible."""
    lowest, highest = BUZZ_SNR_DB
    return lowest + (highest - lowest) * rng.beta(3.5, 1.5)


def scene(location, duration_s, *, rng):
    """One recording at ``FILE_RATE_HZ`` and the layer of its bees at ``RATE_HZ``."""

    def bee(length_s):
        return through_microphone(buzz(length_s, rng=rng), location)

    n = samples(duration_s)
    background = bed(location, n, rng=rng)
    background += layer_of(decoy_events(location, n, rng=rng), background, rate_hz=RATE_HZ).y
    flights = visits(n, bee, rate_hz=RATE_HZ, rng=rng)
    events = [(start, sound, buzz_snr_db(rng)) for start, sound in flights]
    bees = layer_of(events, background, rate_hz=RATE_HZ)
    low = soxr.resample(background + bees.y, RATE_HZ, FILE_RATE_HZ)
    y = low + treble(len(low), background.std(), rate_hz=FILE_RATE_HZ, rng=rng)
    return at_peak(y, location.peak_dbfs + rng.uniform(-12, 12)), bees


def soundscapes(
    folder: Path, *, seed: int, recordings_per_location: int = 8, duration_s: float = 180.0
) -> Path:
    """Write made-up nest-box recordings of three locations and their ``labels.csv``.

    The same arguments give the same bytes. A window (4 s, every 2 s) is ``buzz`` if a bee is
    audible in it for at least 1 s, ``no_buzz`` if there is none, else ``uncertain``; a segment
    spans consecutive windows of one label.

    Raises
    ------
    ParameterError
        if the folder cannot be written to, or a number is out of range.
    """
    check_sizes(seed, duration_s, recordings_per_location=recordings_per_location)
    folder, rows = make_folder(folder), []
    for place, location in enumerate(LOCATIONS):
        for index in range(recordings_per_location):
            rng = np.random.default_rng([seed, place, index])
            y, bees = scene(location, duration_s, rng=rng)
            name = f"{location.name}_{index + 1:02d}.wav"
            write_wav(folder / name, y)
            at = FIRST_DAY + timedelta(days=3 * index + place, minutes=int(rng.integers(480, 1080)))
            for row in label_rows(bees, rate_hz=RATE_HZ):
                rows.append((name, *row, location.name, at.isoformat()))
    return write_table(folder / "labels.csv", COLUMNS, rows)


def mix(
    buzz_folder: Path,
    background_folder: Path,
    out_folder: Path,
    *,
    seed: int,
    snr_db: tuple[float, float] = (-5.0, 20.0),
    duration_s: float = 60.0,
    recordings: int = 10,
) -> Path:
    """Write real buzzes mixed into real backgrounds, and their ``labels.csv``.

    Each recording has one background and one SNR, drawn from the range ``snr_db``; the table
    has it in the column ``snr_db`` of the segments with a buzz. Labels are those of
    `soundscapes`; the time of recording stays empty. The location is the background's
    sub-folder, or its file stem. Long files give random parts, short ones are looped.

    Raises
    ------
    ParameterError
        if a folder has no sound files or cannot be written to, or a number is out of range.
    AudioError
        if a clip cannot be read or is silent within 50-1450 Hz; names the file.
    """
    check_sizes(seed, duration_s, recordings=recordings)
    if not -np.inf < snr_db[0] <= snr_db[1] < np.inf:
        raise ParameterError(f"snr_db={snr_db!r} must be (lowest, highest)")
    buzzes, backgrounds = sound_files(buzz_folder), sound_files(background_folder)
    folder, rows = make_folder(out_folder), []
    order = np.random.default_rng(seed).permutation(len(backgrounds))
    for index in range(recordings):
        rng = np.random.default_rng([seed, index])
        path = backgrounds[order[index % len(order)]]
        snr = rng.uniform(*snr_db)
        y, bees = mixture(buzzes, path, snr, duration_s, rng=rng)
        name = f"mix_{index + 1:03d}.wav"
        write_wav(folder / name, y)
        nested = path.parent != Path(background_folder)
        location = path.relative_to(background_folder).parts[0] if nested else path.stem
        for row in label_rows(bees, rate_hz=FILE_RATE_HZ):
            rows.append((name, *row, location, "", "" if row[2] == "no_buzz" else f"{snr:.2f}"))
    return write_table(folder / "labels.csv", (*COLUMNS, "snr_db"), rows)


def mixture(buzzes, background_path, snr_db, duration_s, *, rng):
    """One recording and the layer of its bees, both at ``FILE_RATE_HZ``."""

    def bee(length_s):
        path = buzzes[rng.integers(len(buzzes))]
        sound = random_part(path, samples(length_s, rate_hz=FILE_RATE_HZ), rng=rng)
        edge = np.sin(np.linspace(0, np.pi / 2, len(sound) // 20 + 1)) ** 2
        sound = looped(sound, max(len(sound), samples(1.5 * AUDIBLE_S, rate_hz=FILE_RATE_HZ)))
        sound[: len(edge)] *= edge
        sound[-len(edge) :] *= edge[::-1]
        return sound

    n = samples(duration_s, rate_hz=FILE_RATE_HZ)
    background = looped(random_part(background_path, n, rng=rng), n)
    flights = visits(n, bee, rate_hz=FILE_RATE_HZ, rng=rng)
    events = [(start, sound, snr_db) for start, sound in flights]
    bees = layer_of(events, background, rate_hz=FILE_RATE_HZ)
    return at_peak(background + bees.y, rng.uniform(-20, -1)), bees


def sound_files(folder):
    """Sorted paths of the sound files in a folder and its sub-folders."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ParameterError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) in this folder")
    return paths


def random_part(path, n_samples, *, rng):
    """``n_samples`` at 16 kHz from anywhere in a file, or all of a shorter one.

    Blocks of digital silence, with which data sets pad clips, are cut out.
    """
    length = samples(load.info(path).duration_s, rate_hz=FILE_RATE_HZ)
    start = rng.integers(0, max(1, length - n_samples + 1))
    blocks, position = [], 0
    for block in load.stream(path, sample_rate_hz=FILE_RATE_HZ):
        position += len(block)
        if position > start:
            blocks.append(block[max(0, start - position + len(block)) :])
        if position >= start + n_samples:
            break
    y = np.concatenate(blocks)[:n_samples].astype(float)
    pieces = np.array_split(y, max(1, len(y) // 160))
    y = np.concatenate([piece for piece in pieces if piece.any()] or [np.zeros(1)])
    if np.mean(in_band(y, rate_hz=FILE_RATE_HZ) ** 2) <= 1e-6 * np.mean(y**2):
        raise AudioError(f"{path}: silent within {BAND_HZ[0]:g}-{BAND_HZ[1]:g} Hz")
    return y


def looped(y, n_samples):
    """Cut ``n_samples`` from ``y`` repeated with crossfades of equal power of 0.1 s."""
    if len(y) >= n_samples:
        return y[:n_samples]
    fade = max(1, min(samples(0.1, rate_hz=FILE_RATE_HZ), len(y) // 2))
    ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / fade)
    joint = y[-fade:] * ramp[::-1] + y[:fade] * ramp
    period = np.concatenate([joint, y[fade:-fade]])
    return np.concatenate([y[:-fade], np.resize(period, n_samples)])[:n_samples]


def at_peak(y, peak_dbfs):
    """``y`` scaled so that its largest sample is ``peak_dbfs`` (below 0 dB)."""
    return y * (10 ** (peak_dbfs / 20) / np.max(np.abs(y)))


def write_wav(path, y):
    """Write samples within ±1 as a 16 kHz 16-bit mono file, whole or not at all."""
    with replacing(path) as partial:
        soundfile.write(partial, np.round(y * 32767).astype(np.int16), FILE_RATE_HZ)


def write_table(path, columns, rows):
    """Write a label table as CSV; return its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return path


def check_sizes(seed, duration_s, **counts):
    """Raise ParameterError unless one window fits and the integers are in their ranges."""
    for name, value, least in (("seed", seed, 0), *((*item, 1) for item in counts.items())):
        if not isinstance(value, int | np.integer) or value < least:
            raise ParameterError(f"{name}={value!r} must be a whole number, at least {least}")
    if not WINDOW_S <= duration_s < np.inf:
        raise ParameterError(f"duration_s={duration_s!r} must be at least {WINDOW_S} s")
