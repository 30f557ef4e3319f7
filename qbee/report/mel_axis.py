"""Where frequencies lie in a mel image, and the colours of its decibels."""

from __future__ import annotations

import librosa
import numpy as np
from matplotlib.axes import Axes

from qbee.records import FrontEnd

COLOURS = "magma"
OCTAVES_HZ = 200 * 2.0 ** np.arange(8)


def ticks_hz(front_end: FrontEnd) -> np.ndarray:
    """Ends of the mel range and the octaves well inside it."""
    low, high = front_end.fmin_hz, front_end.fmax_hz
    inside = OCTAVES_HZ[(low * 1.5 < OCTAVES_HZ) & (high / 1.5 > OCTAVES_HZ)]
    return np.array([low, *inside, high])


def band_of(frequency_hz: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Fractional number of the mel band with this centre, held inside the image."""
    edges_hz = librosa.mel_frequencies(
        front_end.n_mels + 2, fmin=front_end.fmin_hz, fmax=front_end.fmax_hz
    )
    band = np.interp(frequency_hz, edges_hz, np.arange(-1, front_end.n_mels + 1))
    return np.clip(band, -0.5, front_end.n_mels - 0.5)


def name_bands(ax: Axes, front_end: FrontEnd) -> None:
    """Write frequencies to the vertical axis of a mel image, whose unit is a band."""
    at_hz = ticks_hz(front_end)
    ax.set_yticks(band_of(at_hz, front_end), [f"{f:.0f}" for f in at_hz])
    ax.set_ylabel("frequency in Hz")


def limits_db(images_db: np.ndarray) -> tuple[float, float]:
    """Decibels of the darkest and the brightest colour; a few outliers lie beyond them."""
    low, high = np.percentile(images_db, [1, 99.5])
    return float(low), float(high)
