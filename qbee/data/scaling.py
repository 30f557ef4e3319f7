"""Mean and standard deviation of the training windows, kept with the front end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qbee.errors import DataError, ParameterError
from qbee.records import FrontEnd

ROWS_PER_CHUNK = 256


def fit(images: np.ndarray, indices: Sequence[int], front_end: FrontEnd) -> FrontEnd:
    """Front end with ``mean_db`` and ``std_db`` of the chosen images; unchanged if per window.

    Both are taken over all pixels of the images at ``indices`` (the training windows), chunk
    by chunk, so that a memory map larger than the memory can be given.

    Parameters
    ----------
    images : np.ndarray [shape=(n, n_mels, n_frames)], dB
    indices : int in [0, n)

    Raises
    ------
    DataError
        if there are no indices, or the images are constant or not finite.
    ParameterError
        if an index or the shape of the images does not fit.
    """
    if front_end.standardize == "window":
        return front_end
    rows = _checked_rows(images, indices, front_end)
    chunks = [rows[i : i + ROWS_PER_CHUNK] for i in range(0, len(rows), ROWS_PER_CHUNK)]
    n_pixels = len(rows) * front_end.n_mels * front_end.n_frames
    mean_db = sum(images[part].sum(dtype=np.float64) for part in chunks) / n_pixels
    with np.errstate(invalid="ignore"):
        std_db = np.sqrt(sum(np.square(images[part] - mean_db).sum() for part in chunks) / n_pixels)
    if not (np.isfinite(std_db) and std_db > 0):
        raise DataError(
            f"the {len(rows)} training images have mean {mean_db} dB and standard deviation "
            f"{std_db} dB; they must be finite and not constant"
        )
    changes = {"mean_db": float(mean_db), "std_db": float(std_db)}
    return FrontEnd.model_validate(front_end.model_dump() | changes)


def _checked_rows(images, indices, front_end) -> np.ndarray:
    """Sorted indices: a memory map is read fastest in the order of the file."""
    expected = (front_end.n_mels, front_end.n_frames)
    if images.ndim != 3 or images.shape[1:] != expected:
        raise ParameterError(
            f"images of shape {images.shape} must be (n, {expected[0]}, {expected[1]})"
        )
    rows = np.sort(np.asarray(indices, dtype=np.int64))
    if not len(rows):
        raise DataError("there are no training windows to take mean_db and std_db from")
    if rows[0] < 0 or rows[-1] >= len(images):
        raise ParameterError(f"indices {rows[0]} to {rows[-1]} must lie in [0, {len(images)})")
    return rows
