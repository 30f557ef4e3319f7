"""The scale of a fold is that of its training images and of no others."""

import numpy as np
import pytest

from qbee.data import scaling
from qbee.errors import DataError, ParameterError
from qbee.records import FrontEnd

FRONT_END = FrontEnd(n_mels=4, n_frames=5, standardize="fold")


@pytest.fixture
def images():
    """More images than one chunk holds."""
    shape = (3 * scaling.ROWS_PER_CHUNK, 4, 5)
    return np.random.default_rng(1).normal(-60, 12, shape).astype(np.float32)


def test_mean_and_deviation_are_those_of_the_training_images(images):
    indices = list(range(700, 100, -1))
    fitted = scaling.fit(images, indices, FRONT_END)
    assert fitted.mean_db == pytest.approx(images[101:701].astype(float).mean(), rel=1e-9)
    assert fitted.std_db == pytest.approx(images[101:701].astype(float).std(), rel=1e-6)


def test_other_images_do_not_matter(images):
    changed = images.copy()
    changed[500:] = 0
    assert scaling.fit(images, range(500), FRONT_END) == scaling.fit(changed, range(500), FRONT_END)


def test_only_the_scale_is_changed(images):
    fitted = scaling.fit(images, range(9), FRONT_END)
    assert fitted.model_copy(update={"mean_db": None, "std_db": None}) == FRONT_END


def test_a_front_end_per_window_is_left_as_it_is(images):
    front_end = FrontEnd(n_mels=4, n_frames=5)
    assert scaling.fit(images, range(9), front_end) == front_end


def test_a_memory_map_gives_the_same_scale(images, tmp_path):
    np.save(tmp_path / "mel.npy", images)
    mapped = np.load(tmp_path / "mel.npy", mmap_mode="r")
    assert scaling.fit(mapped, range(300), FRONT_END) == scaling.fit(images, range(300), FRONT_END)


def test_no_training_windows_are_an_error(images):
    with pytest.raises(DataError, match="no training windows"):
        scaling.fit(images, [], FRONT_END)


@pytest.mark.parametrize("value", [-100.0, np.nan, np.inf])
def test_constant_or_not_finite_images_are_an_error(images, value):
    images[:] = value
    with pytest.raises(DataError, match="must be finite and not constant"):
        scaling.fit(images, range(9), FRONT_END)


@pytest.mark.parametrize("indices", [[-1, 3], [3, 768]])
def test_an_index_outside_is_an_error(images, indices):
    with pytest.raises(ParameterError, match=r"must lie in \[0, 768\)"):
        scaling.fit(images, indices, FRONT_END)


@pytest.mark.parametrize("shape", [(3, 5, 4), (4, 5)])
def test_images_of_another_front_end_are_an_error(shape):
    with pytest.raises(ParameterError, match=r"must be \(n, 4, 5\)"):
        scaling.fit(np.zeros(shape, np.float32), [0], FRONT_END)
