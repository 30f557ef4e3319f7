"""A clip as its detector sees and judges it: mel image and probability over time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qbee.records import FrontEnd
from qbee.report import mel_axis
from qbee.report.drawing import BLUE, GREY, drawing

INCHES_A_SECOND, LEAST_IN, MOST_IN = 0.45, 4.5, 14.0


def clip(
    image_db: np.ndarray,
    front_end: FrontEnd,
    path: Path,
    *,
    title: str,
    start_s: float,
    window_starts_s: np.ndarray,
    probability: np.ndarray,
    threshold: float,
) -> None:
    """Draw a clip.

    Parameters
    ----------
    image_db : np.ndarray [shape=(n_mels, frames)], dB
    start_s : of the clip in its recording
    window_starts_s, probability : np.ndarray [shape=(n,)]
        windows in or around the clip, in seconds of the recording
    """
    duration_s = image_db.shape[1] * front_end.hop_samples / front_end.sample_rate_hz
    width = float(np.clip(INCHES_A_SECOND * duration_s + 1.5, LEAST_IN, MOST_IN))
    with drawing(path, width, 4.2) as figure:
        figure.suptitle(title)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        low, high = mel_axis.limits_db(image_db)
        extent = (start_s, start_s + duration_s, -0.5, front_end.n_mels - 0.5)
        style = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
        image = upper.imshow(
            image_db, extent=extent, vmin=low, vmax=high, cmap=mel_axis.COLOURS, **style
        )
        upper.grid(False)
        mel_axis.name_bands(upper, front_end)
        figure.colorbar(image, ax=upper, label="dB", pad=0.01)
        middles = window_starts_s + front_end.window_s / 2
        lower.plot(middles, probability, "o-", color=BLUE, ms=4)
        lower.axhline(threshold, color=GREY, ls="--", lw=1)
        lower.set(
            ylim=(-0.05, 1.05),
            xlim=extent[:2],
            ylabel="P(buzz)",
            xlabel="seconds of the recording, at the middle of a window",
        )
