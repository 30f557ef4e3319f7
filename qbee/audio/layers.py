"""Sounds laid over a background at stated SNRs, and the labels of the windows they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from qbee.audio.sources import samples
from qbee.records import FrontEnd, Label

BAND_HZ = (FrontEnd().fmin_hz, FrontEnd().fmax_hz)
WINDOW_S, HOP_S = FrontEnd().window_s, FrontEnd().window_hop_s
# A buzz must be heard this long in a window of class buzz ...
AUDIBLE_S = 1.0
# ... and is heard where it is at most this far below its loudest 5 %.
AUDIBLE_DB = 12.0
# One visit of a bee in so many seconds gives one buzz window to three others.
SECONDS_PER_VISIT = 32.0
# First sample, sound, SNR in dB.
Event = tuple[int, np.ndarray, float]


def in_band(y: np.ndarray, *, rate_hz: float) -> np.ndarray:
    """``y`` with everything outside 50-1450 Hz removed."""
    n_fft = next_fast_len(len(y), real=True)
    f = np.fft.rfftfreq(n_fft, 1 / rate_hz)
    inside = (f >= BAND_HZ[0]) & (f <= BAND_HZ[1])
    return irfft(rfft(y, n_fft) * inside, n_fft)[: len(y)]


def audible(banded: np.ndarray, *, rate_hz: float) -> np.ndarray:
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


def layer_of(events: Iterable[Event], background: np.ndarray, *, rate_hz: float) -> Layer:
    """Add up sounds at stated SNRs.

    The SNR is the power of a sound over that of the background, both within 50-1450 Hz and over
    the time in which the sound is audible.

    Parameters
    ----------
    events : first sample, np.ndarray [shape=(n,)] and SNR in dB of each sound
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


def visits(
    n_samples: int,
    make_sound: Callable[[float], np.ndarray],
    *,
    rate_hz: float,
    rng: np.random.Generator,
) -> Iterator[tuple[int, np.ndarray]]:
    """One sound at a random place in each stretch of about ``SECONDS_PER_VISIT``."""
    count = max(1, round(n_samples / rate_hz / SECONDS_PER_VISIT))
    stretch = n_samples // count
    longest_s = min(12.0, 0.4 * stretch / rate_hz)
    for index in range(count):
        sound = make_sound(rng.uniform(min(1.5, longest_s), longest_s))[:stretch]
        yield index * stretch + int(rng.integers(0, stretch - len(sound) + 1)), sound


def label_rows(layer: Layer, *, rate_hz: float) -> list[tuple[float, float, Label]]:
    """Segments (start in s, end in s, label) of consecutive equal windows of the 4 s / 2 s grid."""
    window, hop = samples(WINDOW_S, rate_hz=rate_hz), samples(HOP_S, rate_hz=rate_hz)
    labels: list[Label] = []
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
