"""Frequencies at the axis of a mel image."""

from __future__ import annotations

import librosa
import numpy as np
from matplotlib.axes import Axes

from qbee.records import FrontEnd

OCTAVES_HZ = 200 * 2.0 ** np.arange(8)


def name_frequencies(ax: Axes, front_end: FrontEnd) -> None:
    """Write frequencies to a vertical axis whose unit is the number of a mel band."""
    ticks_hz = _mel_ticks_hz(front_end)
    ax.set_yticks(_band_of(ticks_hz, front_end), [f"{f:.0f}" for f in ticks_hz])
    ax.set_ylabel("frequency in Hz")


def _mel_ticks_hz(front_end: FrontEnd) -> np.ndarray:
    """Ends of the mel range and the octaves well inside it."""
    low, high = front_end.fmin_hz, front_end.fmax_hz
    inside = OCTAVES_HZ[(low * 1.5 < OCTAVES_HZ) & (high / 1.5 > OCTAVES_HZ)]
    return np.array([low, *inside, high])


def _band_of(frequency_hz: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Fractional number of the mel band with this centre, held inside the image."""
    edges_hz = librosa.mel_frequencies(
        front_end.n_mels + 2, fmin=front_end.fmin_hz, fmax=front_end.fmax_hz
    )
    band = np.interp(frequency_hz, edges_hz, np.arange(-1, front_end.n_mels + 1))
    return np.clip(band, -0.5, front_end.n_mels - 0.5)
