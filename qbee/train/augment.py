"""Random changes of dB mel images for small data; every draw comes from the ``rng`` given."""

from __future__ import annotations

import numpy as np

from qbee.records import Record


class Augmentation(Record):
    """How training images are varied.

    ``shift_frames``: largest circular shift in time. ``gain_db``: largest change of level
    (without effect when windows are standardised one by one). ``mask_bands``, ``mask_frames``:
    widest SpecAugment stripe, set to the image's mean. ``mix_share``: share of the images that
    get a background window added, at ``mix_snr_db`` = (lowest, highest) ratio of the image's
    mean power to the background's.
    """

    shift_frames: int = 32
    gain_db: float = 6.0
    mask_bands: int = 12
    mask_frames: int = 12
    mix_share: float = 0.3
    mix_snr_db: tuple[float, float] = (0.0, 15.0)


def _mix(images: np.ndarray, background: np.ndarray, snr_db: np.ndarray) -> np.ndarray:
    """Power sum of dB images [n, bands, frames] and backgrounds scaled to ``snr_db`` [n] below."""
    own = 10 ** (images / 10)
    other = 10 ** (background / 10)
    ratio = own.mean((1, 2)) / other.mean((1, 2)) * 10 ** (-snr_db / 10)
    return 10 * np.log10(own + ratio[:, None, None] * other)


def _mask(image: np.ndarray, settings: Augmentation, rng: np.random.Generator) -> None:
    """Cover one stripe of bands and one of frames, in place."""
    level = image.mean()
    for axis, widest in ((0, settings.mask_bands), (1, settings.mask_frames)):
        width = int(rng.integers(0, widest + 1))
        start = int(rng.integers(0, image.shape[axis] - width + 1))
        stripe = [slice(None), slice(None)]
        stripe[axis] = slice(start, start + width)
        image[tuple(stripe)] = level


def augment(
    images: np.ndarray,
    backgrounds: np.ndarray,
    settings: Augmentation,
    *,
    rng: np.random.Generator,
) -> np.ndarray:
    """Varied copies of dB images [n, bands, frames].

    Parameters
    ----------
    images : np.ndarray [shape=(n, bands, frames)], dB
    backgrounds : np.ndarray [shape=(n, bands, frames)], dB
        one background window per image, mixed into ``mix_share`` of them. Buzzes and
        backgrounds are treated alike, so that being mixed tells nothing about the class.

    Returns
    -------
    np.ndarray [same shape], float32
    """
    images = np.array(images, np.float32)
    mixed = np.flatnonzero(rng.random(len(images)) < settings.mix_share)
    if len(mixed):
        snr_db = rng.uniform(*settings.mix_snr_db, len(mixed)).astype(np.float32)
        images[mixed] = _mix(images[mixed], backgrounds[mixed], snr_db)
    for i, image in enumerate(images):
        shift = int(rng.integers(-settings.shift_frames, settings.shift_frames + 1))
        images[i] = np.roll(image, shift, axis=1)
        _mask(images[i], settings, rng)
    gain = rng.uniform(-settings.gain_db, settings.gain_db, len(images)).astype(np.float32)
    return images + gain[:, None, None]
