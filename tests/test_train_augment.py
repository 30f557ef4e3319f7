"""Augmentation: every change alone, on noise."""

import numpy as np

from qbee.train.augment import Augmentation, augment

OFF = {"shift_frames": 0, "gain_db": 0, "mask_bands": 0, "mask_frames": 0, "mix_share": 0}


def varied(seed=0, **settings):
    rng = np.random.default_rng(1)
    images, backgrounds = rng.normal(-70, 8, (2, 20, 16, 24)).astype(np.float32)
    before = images.copy(), backgrounds.copy()
    changes = augment(
        images, backgrounds, Augmentation(**settings), rng=np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(images, before[0])
    np.testing.assert_array_equal(backgrounds, before[1])
    assert (changes.shape, changes.dtype) == (images.shape, np.float32)
    return images, changes


def test_augmentation_follows_its_rng():
    np.testing.assert_array_equal(varied(seed=4)[1], varied(seed=4)[1])
    assert not np.array_equal(varied(seed=4)[1], varied(seed=5)[1])
    np.testing.assert_array_equal(*varied(**OFF))


def test_mixing_adds_the_power_of_the_background_at_the_ratio():
    images, changes = varied(**OFF | {"mix_share": 1, "mix_snr_db": (3, 3)})
    assert np.all(changes > images)
    gain = np.mean(10 ** (changes / 10.0), (1, 2)) / np.mean(10 ** (images / 10.0), (1, 2))
    # float32 dB values of 70 have steps of 8e-6 dB, which is 2e-6 of a power.
    np.testing.assert_allclose(gain, 1 + 10**-0.3, rtol=1e-5)


def test_a_share_of_the_images_is_mixed():
    images, changes = varied(**OFF | {"mix_share": 0.5})
    assert 4 < np.sum(np.any(images != changes, (1, 2))) < 16


def test_a_shift_is_circular_in_time():
    images, changes = varied(**OFF | {"shift_frames": 3})
    shifts = [
        [s for s in range(-3, 4) if np.array_equal(np.roll(image, s, 1), change)]
        for image, change in zip(images, changes, strict=True)
    ]
    assert {s for (s,) in shifts} == set(range(-3, 4))


def test_a_gain_is_the_same_for_the_whole_image():
    images, changes = varied(**OFF | {"gain_db": 6})
    gain = (changes - images).reshape(20, -1)
    # Sums of float32 near 70 are off by up to 8e-6.
    assert np.all(np.ptp(gain, axis=1) < 2e-5)
    assert -6 <= gain.min() < -3 < 3 < gain.max() <= 6


def test_masks_cover_one_stripe_of_bands_and_one_of_frames_with_the_mean():
    images, changes = varied(**OFF | {"mask_bands": 4, "mask_frames": 2})
    masked = images != changes
    assert np.all(masked.all(2).sum(1) <= 4)
    assert np.all(masked.all(1).sum(1) <= 2)
    assert masked.all(2).sum(1).max() == 4
    stripes = masked.all(2)[:, :, None] | masked.all(1)[:, None, :]
    np.testing.assert_array_equal(masked, stripes)
    for image, change, mask in zip(images, changes, masked, strict=True):
        np.testing.assert_array_equal(change[mask], image.mean())
