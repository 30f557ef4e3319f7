"""Labelled segments as windows of a front end, and the mel images of windows."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.lib.format import open_memmap

from qbee.audio import load, mel
from qbee.errors import AudioError, DataError, LabelError, ParameterError
from qbee.files import make_folder, replacing
from qbee.records import FrontEnd, OnError, Segment, Window

# Tables round their times, often to whole seconds; a segment may overhang the end of its
# recording by this share of a window.
OVERHANG = 0.1
ROWS_PER_COPY = 256


@dataclass(frozen=True)
class WindowTable:
    """Windows with a certain label, in the order of the segments, and what was left out.

    ``uncertain`` windows and ``too_short`` segments are counted; ``skipped`` has one message
    per recording that could not be read.
    """

    windows: tuple[Window, ...]
    uncertain: int
    too_short: int
    skipped: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MelImages:
    """Mel images in dB re full scale squared; ``images[i]`` belongs to ``windows[kept[i]]``.

    ``skipped`` has one message per recording that could not be decoded.
    """

    images: np.ndarray
    kept: tuple[int, ...]
    skipped: tuple[str, ...]


def from_segments(
    segments: Sequence[Segment], front_end: FrontEnd, *, on_error: OnError = "stop"
) -> WindowTable:
    """Windows that carry the label of a segment.

    A segment yields windows at its start, one window hop later, and so on, as long as they lie
    inside it; starts and ends are rounded to STFT frames, so inside means within half a frame.
    A segment may end a tenth of a window after its recording; its last window is then moved
    inside. A shorter buzz segment yields one window centred on it, moved inside the recording. A
    shorter no_buzz or uncertain segment is counted in ``too_short`` (the rest of the window is
    unknown), and so is every segment of a recording shorter than a window.
    A window that two segments ask for with the same label appears once.

    Parameters
    ----------
    on_error : what to do with a recording that cannot be read: 'skip' leaves it out and keeps
        the message

    Raises
    ------
    LabelError
        if a segment ends after its recording or two segments contradict each other.
    AudioError
        naming the table and its row, if a recording cannot be used and ``on_error='stop'``.
    DataError
        if no window with a certain label remains.
    """
    _check_choice(on_error)
    info = lru_cache(maxsize=None)(load.info)
    owners: dict[tuple[Path, int], Segment] = {}
    skipped: dict[Path, str] = {}
    too_short = 0
    for segment in segments:
        try:
            frames = _frames(segment, info(segment.path).duration_s, front_end)
        except AudioError as error:
            message = f"{segment.table}: row {segment.row}: {error}"
            if on_error == "stop":
                raise AudioError(message) from error
            skipped.setdefault(segment.path, message)
            continue
        too_short += not frames
        for frame in frames:
            owner = owners.setdefault((segment.path, frame), segment)
            _check_agreement(
                owner, segment, frame * front_end.hop_samples / front_end.sample_rate_hz
            )
    return _table(owners, front_end, too_short, tuple(skipped.values()))


def images(
    windows: Sequence[Window],
    front_end: FrontEnd,
    *,
    path: Path | None = None,
    on_error: OnError = "stop",
    on_progress: Callable[[int, int], None] | None = None,
) -> MelImages:
    """Mel images of windows, not standardized, in the order of ``windows``.

    Parameters
    ----------
    path : .npy file that holds the images, written whole or not at all and returned as a
        read-only memory map; memory does not grow with a recording's length. Without it
        the images are kept in memory
    on_error : 'skip' leaves out the windows of recordings that cannot be decoded
    on_progress : called with the number of windows done and of all windows, per recording

    Returns
    -------
    MelImages, images float32 [shape=(kept windows, n_mels, n_frames)]

    Raises
    ------
    AudioError
        if a recording cannot be decoded and ``on_error='stop'``.
    DataError
        if there are no windows or none is left.
    ParameterError
        if ``path`` cannot be written.
    """
    _check_choice(on_error)
    if not windows:
        raise DataError("there are no windows to make mel images of")
    shape = (len(windows), front_end.n_mels, front_end.n_frames)
    if path is None:
        filled = np.empty(shape, np.float32)
        kept, skipped = _fill(filled, windows, front_end, on_error, on_progress)
        return MelImages(filled if len(kept) == len(windows) else filled[[*kept]], kept, skipped)
    path = Path(path)
    _check_room(path, np.float32().itemsize * math.prod(shape))
    with replacing(path) as partial:
        filled = open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        kept, skipped = _fill(filled, windows, front_end, on_error, on_progress)
        # an open map would keep some systems from renaming the file
        del filled
        if len(kept) < len(windows):
            with replacing(partial) as smaller:
                _copy_rows(partial, kept, smaller)
    return MelImages(open_memmap(path, mode="r"), kept, skipped)


def _check_choice(on_error: str) -> None:
    if on_error not in get_args(OnError):
        raise ParameterError(f"on_error={on_error!r} must be one of {', '.join(get_args(OnError))}")


def _frames(segment: Segment, duration_s: float, front_end: FrontEnd) -> list[int]:
    """Start frames of the windows of a segment, all inside the recording."""
    # first, as the starts of a segment of any length would fill the memory
    if segment.end_s > duration_s + OVERHANG * front_end.window_s:
        raise LabelError(
            f"{segment.table}: row {segment.row}: the segment ends at {segment.end_s} s, but "
            f"{segment.path} lasts {duration_s:.3f} s"
        )
    frame_s = front_end.hop_samples / front_end.sample_rate_hz
    start, end, length = (
        round(time_s / frame_s) for time_s in (segment.start_s, segment.end_s, duration_s)
    )
    is_short = end - start < front_end.n_frames
    if is_short and segment.label != "buzz":
        starts = []
    elif is_short:
        middle_s = (segment.start_s + segment.end_s) / 2
        starts = [max(0, round((middle_s - front_end.window_s / 2) / frame_s))]
    else:
        starts = [*range(start, end - front_end.n_frames + 1, front_end.window_hop_frames)]
    last = length - front_end.n_frames
    if last < 0:
        return []
    return [min(first, last) for first in starts]


def _check_agreement(owner: Segment, segment: Segment, start_s: float) -> None:
    if owner.label != segment.label:
        raise LabelError(
            f"{segment.table}: row {segment.row}: the window at {start_s} s of {segment.path} is "
            f"{segment.label} here and {owner.label} in {owner.table}: row {owner.row}"
        )


def _table(owners, front_end, too_short, skipped) -> WindowTable:
    frame_s = front_end.hop_samples / front_end.sample_rate_hz
    windows = tuple(
        Window(path, frame * frame_s, owner.label == "buzz", owner.location)
        for (path, frame), owner in owners.items()
        if owner.label != "uncertain"
    )
    uncertain = len(owners) - len(windows)
    if not windows:
        raise DataError(
            f"no window has a certain label; left out: {uncertain} uncertain windows, {too_short} "
            f"segments shorter than a window, {len(skipped)} recordings that cannot be used"
            + "".join(f" ({message})" for message in skipped[:1])
        )
    return WindowTable(windows, uncertain, too_short, skipped)


def _fill(filled, windows, front_end, on_error, on_progress):
    """Write the image of ``windows[i]`` to ``filled[i]``; the indices written, the messages."""
    recordings: dict[Path, list[int]] = {}
    for index, window in enumerate(windows):
        recordings.setdefault(window.path, []).append(index)
    kept, skipped, done = [], [], 0
    for path, indices in recordings.items():
        try:
            starts_s = [windows[i].start_s for i in indices]
            mel.images(path, front_end, starts_s, out=filled, rows=indices)
            kept.extend(indices)
        except AudioError as error:
            if on_error == "stop":
                raise
            skipped.append(str(error))
        done += len(indices)
        if on_progress:
            on_progress(done, len(windows))
    if not kept:
        raise DataError(f"no recording of {len(recordings)} can be decoded, as {skipped[0]}")
    return tuple(sorted(kept)), tuple(skipped)


def _check_room(path: Path, size_bytes: int) -> None:
    """Check it here: a memory map that outgrows its disk kills the process."""
    free_bytes = shutil.disk_usage(make_folder(path.parent)).free
    if free_bytes < size_bytes:
        raise ParameterError(
            f"{path}: cannot write mel images: {size_bytes} bytes needed, {free_bytes} free"
        )


def _copy_rows(source: Path, rows: Sequence[int], target: Path) -> None:
    whole = open_memmap(source, mode="r")
    chosen = open_memmap(target, mode="w+", dtype=whole.dtype, shape=(len(rows), *whole.shape[1:]))
    for start in range(0, len(rows), ROWS_PER_COPY):
        chosen[start : start + ROWS_PER_COPY] = whole[[*rows[start : start + ROWS_PER_COPY]]]
