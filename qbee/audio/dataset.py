"""A folder of made recordings: its sound files and its label table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from qbee.audio.layers import WINDOW_S
from qbee.errors import ParameterError
from qbee.files import make_folder, replacing, write_text

FILE_RATE_HZ = 16000
COLUMNS = ("file", "start_s", "end_s", "label", "location", "recorded_at")
TABLE = "labels.csv"


def check_sizes(seed: int, duration_s: float, **counts: int) -> None:
    """Raise ParameterError unless one window fits and the integers are in their ranges."""
    for name, value, least in (("seed", seed, 0), *((*item, 1) for item in counts.items())):
        if not isinstance(value, int | np.integer) or value < least:
            raise ParameterError(f"{name}={value!r} must be a whole number, at least {least}")
    if not WINDOW_S <= duration_s < np.inf:
        raise ParameterError(f"duration_s={duration_s!r} must be at least {WINDOW_S} s")


def new_folder(path: Path) -> Path:
    """Create a folder for a data set, or take one without a label table, and return it.

    Raises
    ------
    ParameterError
        if it has a ``labels.csv``, which may be someone's work, or cannot be written to.
    """
    table = Path(path) / TABLE
    if table.exists():
        raise ParameterError(f"{table}: exists and is not overwritten; name another folder")
    return make_folder(path)


def at_peak(y: np.ndarray, peak_dbfs: float) -> np.ndarray:
    """``y`` scaled so that its largest sample is ``peak_dbfs`` (below 0 dB)."""
    return y * (10 ** (peak_dbfs / 20) / np.max(np.abs(y)))


def write_wav(path: Path, y: np.ndarray) -> None:
    """Write samples within ±1 as a 16 kHz 16-bit mono file, whole or not at all."""
    with replacing(path) as partial:
        soundfile.write(partial, np.round(y * 32767).astype(np.int16), FILE_RATE_HZ)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> Path:
    """Write a label table as CSV; return its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return path
