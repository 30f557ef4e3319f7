"""Labelled soundscapes of nest boxes, composed from nothing."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import soxr

from qbee.audio import dataset
from qbee.audio.dataset import COLUMNS, FILE_RATE_HZ, at_peak, check_sizes, write_table, write_wav
from qbee.audio.layers import Event, Layer, label_rows, layer_of, visits
from qbee.audio.places import LOCATIONS, Location, bed, through_microphone, treble
from qbee.audio.sources import DECOYS, RATE_HZ, buzz, samples

# With these SNRs BeeNet1 reaches an F1 of 0.84 at a new location, band means only 0.57
# (benchmarks/embedded_data.py).
BUZZ_SNR_DB = (-5.0, 20.0)
DECOY_SNR_DB = (-5.0, 15.0)
FIRST_DAY = datetime(2023, 4, 3)


def decoy_events(location: Location, n_samples: int, *, rng: np.random.Generator) -> list[Event]:
    """Sounds that are not bees, anywhere in a recording: (first sample, sound, SNR in dB)."""
    events = []
    for name, per_minute in location.decoys.items():
        for _ in range(rng.poisson(per_minute * n_samples / RATE_HZ / 60)):
            sound = DECOYS[name](rng.uniform(2, 14), rng=rng)[:n_samples]
            start = int(rng.integers(0, n_samples - len(sound) + 1))
            events.append((start, through_microphone(sound, location), rng.uniform(*DECOY_SNR_DB)))
    return events


def buzz_snr_db(rng: np.random.Generator) -> float:
    """Draw the SNR of a visit: mostly clear, sometimes hardly audible."""
    lowest, highest = BUZZ_SNR_DB
    return lowest + (highest - lowest) * rng.beta(3.5, 1.5)


def scene(
    location: Location, duration_s: float, *, rng: np.random.Generator
) -> tuple[np.ndarray, Layer]:
    """One recording at ``FILE_RATE_HZ`` and the layer of its bees at ``RATE_HZ``."""

    def bee(length_s: float) -> np.ndarray:
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
        if the folder has a ``labels.csv`` or cannot be written to, or a number is out of range.
    """
    check_sizes(seed, duration_s, recordings_per_location=recordings_per_location)
    folder, rows = dataset.new_folder(folder), []
    for place, location in enumerate(LOCATIONS):
        for index in range(recordings_per_location):
            rng = np.random.default_rng([seed, place, index])
            y, bees = scene(location, duration_s, rng=rng)
            name = f"{location.name}_{index + 1:02d}.wav"
            write_wav(folder / name, y)
            at = FIRST_DAY + timedelta(days=3 * index + place, minutes=int(rng.integers(480, 1080)))
            for row in label_rows(bees, rate_hz=RATE_HZ):
                rows.append((name, *row, location.name, at.isoformat()))
    return write_table(folder / dataset.TABLE, COLUMNS, rows)
