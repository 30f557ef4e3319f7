"""Layers: the SNR is that of the band over the audible time."""

import numpy as np
import pytest

from qbee.audio import layers


def test_snr_is_that_of_the_band_over_the_audible_time():
    rng = np.random.default_rng(0)
    background = rng.standard_normal(40000)
    sound = np.sin(2 * np.pi * 200 * np.arange(8000) / 4000) * (np.arange(8000) < 4000)
    layer = layers.layer_of([(10000, sound, 6.0)], background, rate_hz=4000)
    on = slice(10000, 14000)
    noise_power = np.mean(layers.in_band(background, rate_hz=4000)[on] ** 2)
    measured_db = 10 * np.log10(np.mean(layer.y[on] ** 2) / noise_power)
    # The band filter rings by a few samples into the silent half.
    assert measured_db == pytest.approx(6.0, abs=0.05)
    assert np.count_nonzero(layer.present) == 8000
    assert np.count_nonzero(layer.heard) == pytest.approx(4000, abs=200)
