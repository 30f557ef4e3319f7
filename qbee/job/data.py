"""The data of a job: windows, their images and their parts, made once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from qbee.data import folds, labels, scaling, windows
from qbee.errors import DataError, ModelFileError
from qbee.files import write_text
from qbee.job.settings import FILE, JobSettings
from qbee.job.watcher import Watcher
from qbee.records import Fold, Window, read_as
from qbee.train.fit import Examples

_TABLE, _FOLD = TypeAdapter(windows.WindowTable), TypeAdapter(Fold)


@dataclass(frozen=True)
class Prepared:
    """Windows that could be read, their split, and their images with the fitted front end."""

    table: windows.WindowTable
    fold: Fold
    examples: Examples


def split(found: Sequence[Window], settings: JobSettings) -> Fold:
    """Training, validation and test windows of a job.

    Raises
    ------
    DataError
        if the windows cannot be split as the settings ask.
    """
    front_end, seed, place = settings.front_end, settings.seed, settings.test_location
    if place is None:
        return folds.cross_validation(found, front_end, n_folds=settings.folds, seed=seed)[0]
    by_name = {f.name: f for f in folds.by_location(found, front_end, seed=seed)}
    if place not in by_name:
        raise DataError(f"test_location={place!r} must be one of {', '.join(by_name)}")
    return by_name[place]


def prepare(folder: Path, settings: JobSettings, watcher: Watcher) -> Prepared:
    """Data of the job in ``folder``, read from its recordings or from what it kept.

    Raises
    ------
    QbeeError
        if the table or a recording cannot be used, or a file that was kept is damaged.
    """
    work = folder / "work"
    kept = work / "windows.json", work / "fold.json", work / "windows.npy"
    if not all(path.exists() for path in (folder / FILE, *kept)):
        _make(folder, settings, watcher)
    table, fold = read_as(kept[0], _TABLE), read_as(kept[1], _FOLD)
    images = _images(kept[2], len(table.windows))
    front_end = scaling.fit(images, fold.train, settings.front_end)
    is_buzz = np.array([w.is_buzz for w in table.windows])
    return Prepared(table, fold, Examples(images, is_buzz, front_end))


def _images(path: Path, n_windows: int) -> np.ndarray:
    """Memory-mapped mel images of a job."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ModelFileError(f"{path}: damaged; delete it to make it again") from error
    if images.ndim != 3 or len(images) != n_windows:
        raise ModelFileError(f"{path}: does not hold {n_windows} images; delete it")
    return images


def _make(folder: Path, settings: JobSettings, watcher: Watcher) -> None:
    """Read the recordings; the settings of the job are stored once its data can be used."""
    work = folder / "work"
    tables = [Path(table) for table in settings.labels]
    segments = labels.read_all(tables, unannotated=settings.unannotated)
    listed = windows.from_segments(segments, settings.front_end, on_error=settings.on_error)
    made = windows.images(
        listed.windows,
        settings.front_end,
        path=work / "windows.npy",
        on_error=settings.on_error,
        on_progress=lambda done, total: watcher.progress(done, total, "windows"),
    )
    table = windows.WindowTable(
        windows=tuple(listed.windows[i] for i in made.kept),
        uncertain=listed.uncertain,
        too_short=listed.too_short,
        skipped=(*listed.skipped, *made.skipped),
    )
    fold = split(table.windows, settings)
    settings.save(folder / FILE)
    write_text(work / "fold.json", _FOLD.dump_json(fold).decode())
    write_text(work / "windows.json", _TABLE.dump_json(table).decode())
