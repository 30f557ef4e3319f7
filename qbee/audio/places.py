"""Where the nest boxes stand: microphones, weather and what flies and drives by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import firwin2, oaconvolve

from qbee.audio.sources import RATE_HZ, chirps, hum, noise, rain, wind

RESPONSE_HZ = (0, 60, 200, 500, 900, 1500, 2000)


@dataclass(frozen=True)
class Location:
    """A nest box: its microphone, its weather and the decoys around it.

    ``response_db`` is the microphone's gain at ``RESPONSE_HZ``; levels are in dB relative to
    the wind; ``decoys`` maps names in ``DECOYS`` to events per minute.
    """

    name: str
    response_db: tuple[float, ...]
    floor_db: float
    hum_db: float
    rain_db: float
    peak_dbfs: float
    decoys: dict[str, float]


LOCATIONS = (
    Location(
        name="meadow",
        response_db=(-25, -6, 0, 0, 2, 4, 4),
        floor_db=-18,
        hum_db=-40,
        rain_db=-20,
        peak_dbfs=-13,
        decoys={"fly": 0.8, "croaks": 0.8, "motor": 0.6, "voice": 0.3, "engine": 0.2, "dove": 0.15},
    ),
    Location(
        name="orchard",
        response_db=(-15, 0, 3, 0, -4, -8, -10),
        floor_db=-10,
        hum_db=-6,
        rain_db=-30,
        peak_dbfs=-16,
        decoys={"fly": 0.45, "croaks": 0.5, "motor": 0.9, "voice": 0.7, "engine": 0.4, "dove": 0.2},
    ),
    Location(
        name="forest",
        response_db=(-30, -12, -3, 3, 0, -3, -6),
        floor_db=-14,
        hum_db=-20,
        rain_db=-12,
        peak_dbfs=-20,
        decoys={"fly": 0.6, "croaks": 1, "motor": 0.6, "voice": 0.45, "engine": 0.15, "dove": 0.45},
    ),
)


def bed(location: Location, n_samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """Wind, rain and hum through the microphone, and the microphone's own noise."""
    y = wind(n_samples, rng=rng)
    reference = y.std()
    for sound, level_db in (
        (rain(n_samples, rng=rng), location.rain_db + rng.normal(0, 4)),
        (hum(n_samples, rng=rng), location.hum_db + rng.normal(0, 4)),
    ):
        y = y + sound * (reference / max(sound.std(), 1e-9)) * 10 ** (level_db / 20)
    y = through_microphone(y, location)
    own = noise(n_samples, np.ones_like, rng=rng)
    return y + own * (reference / own.std()) * 10 ** (location.floor_db / 20)


def through_microphone(y: np.ndarray, location: Location) -> np.ndarray:
    """``y`` at ``RATE_HZ`` filtered by the location's frequency response."""
    gains = 10 ** (np.array(location.response_db) / 20)
    return oaconvolve(y, firwin2(257, RESPONSE_HZ, gains, fs=RATE_HZ), mode="same")


def treble(n_samples: int, level: float, *, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Make what lies above 2 kHz, where the detectors do not look: hiss and song birds."""
    hiss = noise(n_samples, lambda f: f > RATE_HZ / 2, rng=rng, rate_hz=rate_hz)
    birds = chirps(n_samples, rate_hz=rate_hz, rng=rng)
    return level * (0.05 * hiss / hiss.std() + rng.uniform(0.1, 1.0) * birds)
