"""What a nest box hears: bees, decoys and weather, as mono float arrays at ``RATE_HZ``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.fft import irfft, next_fast_len
from scipy.interpolate import CubicSpline
from scipy.signal import oaconvolve

RATE_HZ = 4000
TWO_PI = 2.0 * np.pi


def samples(duration_s: float, *, rate_hz: float = RATE_HZ) -> int:
    """Count the samples in ``duration_s`` seconds."""
    return round(duration_s * rate_hz)


def wander(n_samples: int, *, knots_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Random track of about unit variance with ``knots_hz`` random knots per second."""
    n_knots = max(4, 2 + round(n_samples * knots_hz / RATE_HZ))
    where = np.linspace(0, n_knots - 1, n_samples)
    return CubicSpline(np.arange(n_knots), rng.standard_normal(n_knots))(where)


def noise(
    n_samples: int,
    gain_at: Callable[[np.ndarray], np.ndarray],
    *,
    rng: np.random.Generator,
    rate_hz: float = RATE_HZ,
) -> np.ndarray:
    """Gaussian noise whose amplitude spectrum follows ``gain_at(frequencies in Hz)``."""
    n_fft = next_fast_len(n_samples, real=True)
    gain = np.asarray(gain_at(np.fft.rfftfreq(n_fft, 1 / rate_hz)), dtype=np.float32)
    pair = rng.standard_normal(2 * len(gain), dtype=np.float32).view(np.complex64)
    return irfft(pair * gain, n_fft)[:n_samples] * np.sqrt(n_fft)


def ramps(n_samples: int, *, attack_s: float, release_s: float) -> np.ndarray:
    """Envelope that rises and falls as half a cosine and is 1 in between."""
    t = np.arange(n_samples) / RATE_HZ
    rise = np.clip(t / attack_s, 0, 1)
    fall = np.clip((t[-1] - t) / release_s, 0, 1)
    return 0.25 * (1 - np.cos(np.pi * rise)) * (1 - np.cos(np.pi * fall))


def harmonics(f0_hz: np.ndarray, gains: Iterable[complex | np.ndarray]) -> np.ndarray:
    """Sum of the harmonics of a gliding tone; those above 0.48 * RATE_HZ are left out.

    Parameters
    ----------
    f0_hz : np.ndarray [shape=(n_samples,)], fundamental in Hz
    gains : sequence of complex amplitudes, or of tracks of them [shape=(n_samples,)]
    """
    turn = np.exp(1j * TWO_PI * np.cumsum(f0_hz) / RATE_HZ).astype(np.complex64)
    carrier, y = turn.copy(), np.zeros(len(turn), dtype=np.float32)
    highest_hz = float(np.max(f0_hz))
    for order, gain in enumerate(gains, start=1):
        if order * highest_hz > 0.48 * RATE_HZ:
            break
        y += (gain * carrier).imag.astype(np.float32)
        carrier *= turn
    return y


def timbre(count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Complex harmonic amplitudes of an insect or an engine: falling, uneven, any phase."""
    fall_db = rng.uniform(2.0, 7.0) * np.arange(count) + rng.normal(0.0, 4.0, count)
    return (10 ** (-fall_db / 20) * np.exp(1j * rng.uniform(0, TWO_PI, count))).astype(np.complex64)


def flight(duration_s: float, f0_hz: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make an insect that comes, hovers and leaves: glides, flutter of pitch and wing beat."""
    n = samples(duration_s)
    glide = rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, n)
    unsteady = rng.uniform(0.05, 0.1) * wander(n, knots_hz=rng.uniform(2, 5), rng=rng)
    y = harmonics(f0_hz * np.exp(glide + unsteady), timbre(12, rng=rng))
    beat_hz, depth = rng.uniform(5, 20), rng.uniform(0.1, 0.5)
    beat = 1 + depth * np.sin(TWO_PI * beat_hz * np.arange(n) / RATE_HZ)
    distance = np.exp(0.25 * wander(n, knots_hz=1.5, rng=rng))
    attack_s, release_s = rng.uniform(0.05, 0.35, 2) * duration_s
    return y * beat * distance * ramps(n, attack_s=attack_s, release_s=release_s)


def bursts(duration_s: float, f0_hz: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make one to four flights of one insect with gaps between them."""
    count = rng.integers(1, 1 + min(4, max(1, int(duration_s // 1.5))))
    shares = rng.dirichlet(np.full(2 * count - 1, 4.0))
    parts = []
    for index, share in enumerate(shares):
        length_s = max(0.1, share * duration_s)
        if index % 2:
            parts.append(np.zeros(samples(min(length_s, 1.0))))
        else:
            parts.append(flight(length_s, f0_hz * np.exp(rng.normal(0, 0.05)), rng=rng))
    return np.concatenate(parts)


def buzz(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make a solitary bee: a wing-beat fundamental around 130-265 Hz, which glides."""
    return bursts(duration_s, rng.uniform(130, 265), rng=rng)


def fly(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make a fly or mosquito: as a bee, but with a fundamental of 430-750 Hz."""
    return bursts(duration_s, rng.uniform(430, 750), rng=rng)


def motor(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make a distant propeller or pump: pitch and timbre of a bee, but steady."""
    n = samples(duration_s)
    drift = rng.uniform(-0.01, 0.01) * np.linspace(-1, 1, n)
    y = harmonics(rng.uniform(120, 280) * np.exp(drift), timbre(12, rng=rng))
    return y * ramps(n, attack_s=0.3 * duration_s, release_s=0.3 * duration_s)


def engine(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make passing traffic: many harmonics of 30-100 Hz, slow, with rolling noise."""
    n = samples(duration_s)
    speed = np.exp(0.08 * wander(n, knots_hz=0.3, rng=rng))
    y = harmonics(rng.uniform(30, 100) * speed, timbre(24, rng=rng))
    rolling = noise(n, lambda f: 1 / (1 + (f / 250) ** 2), rng=rng)
    return (y + 0.5 * rolling) * ramps(n, attack_s=duration_s / 3, release_s=duration_s / 3)


def syllables(
    n_samples: int, *, rate_hz: float, duty: float, rng: np.random.Generator
) -> np.ndarray:
    """Envelope of rounded pulses of about ``rate_hz`` that are on for the share ``duty``."""
    tempo = rate_hz * np.exp(0.25 * wander(n_samples, knots_hz=1.0, rng=rng))
    phase = np.cumsum(tempo) / RATE_HZ % 1.0
    return np.where(phase < duty, np.sin(np.pi * phase / duty) ** 2, 0.0)


def voice(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make a voice: glottal pulses of 90-250 Hz, two moving formants, syllables."""
    n = samples(duration_s)
    f0_hz = rng.uniform(100, 220) * np.exp(0.1 * wander(n, knots_hz=4, rng=rng))
    first = 500 * np.exp(0.3 * wander(n, knots_hz=4, rng=rng))
    second = 1300 * np.exp(0.2 * wander(n, knots_hz=4, rng=rng))
    gains = []
    for order in range(1, 15):
        f = order * f0_hz
        peak = 1 / (1 + ((f - first) / 90) ** 2) + 0.5 / (1 + ((f - second) / 130) ** 2)
        gains.append((peak + 0.02) / np.sqrt(order))
    rhythm = syllables(n, rate_hz=rng.uniform(3, 6), duty=rng.uniform(0.45, 0.65), rng=rng)
    return harmonics(f0_hz, gains) * rhythm


def croaks(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make frogs or a gate: pitch and timbre of a bee, but in short pulses."""
    n = samples(duration_s)
    pitch = rng.uniform(120, 280) * np.exp(0.05 * wander(n, knots_hz=4, rng=rng))
    rhythm = syllables(n, rate_hz=rng.uniform(2, 5), duty=rng.uniform(0.25, 0.45), rng=rng)
    return harmonics(pitch, timbre(12, rng=rng)) * rhythm


def dove(duration_s: float, *, rng: np.random.Generator) -> np.ndarray:
    """Make cooing: short notes of 400-600 Hz with a weak second harmonic."""
    n = samples(duration_s)
    f0_hz = rng.uniform(400, 600) * np.exp(0.06 * wander(n, knots_hz=3, rng=rng))
    rhythm = syllables(n, rate_hz=rng.uniform(0.8, 2), duty=rng.uniform(0.3, 0.7), rng=rng)
    return harmonics(f0_hz, [1.0, 0.15]) * rhythm


def hum(n_samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """Make mains hum: steady tones at 50, 100, 150, ... 400 Hz."""
    return harmonics(np.full(n_samples, 50.0), timbre(8, rng=rng))


def wind(n_samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """Make gusty low-frequency noise."""
    corner_hz = rng.uniform(60, 250)
    y = noise(n_samples, lambda f: 1 / (1 + (f / corner_hz) ** 2), rng=rng)
    return y * np.exp(0.8 * wander(n_samples, knots_hz=rng.uniform(0.2, 0.8), rng=rng))


def rain(n_samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """Make drops on the box: short decaying knocks at random times."""
    drops = rng.poisson(rng.uniform(1, 12) / RATE_HZ, n_samples) * rng.exponential(1, n_samples)
    t = np.arange(200) / RATE_HZ
    knock = np.exp(-t / 0.008) * np.sin(TWO_PI * rng.uniform(150, 900) * t)
    return oaconvolve(drops, knock)[:n_samples]


def chirps(n_samples: int, *, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    """Make song birds above 2 kHz, at any sample rate: swept notes in short series."""
    y, length = np.zeros(n_samples, dtype=np.float32), samples(0.15, rate_hz=rate_hz)
    t = np.arange(length) / length
    for start in rng.integers(0, n_samples - length, rng.poisson(n_samples / rate_hz / 2)):
        f_hz = rng.uniform(2400, 5000) * (1 + rng.uniform(-0.15, 0.15) * np.sin(TWO_PI * t))
        note = np.sin(TWO_PI * np.cumsum(f_hz) / rate_hz) * np.sin(np.pi * t) ** 2
        y[start : start + length] += rng.uniform(0.1, 1.0) * note
    return y


DECOYS = {f.__name__: f for f in (fly, motor, engine, voice, croaks, dove)}
