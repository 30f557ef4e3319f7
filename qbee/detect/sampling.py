"""A few windows of many recordings, drawn at random: enough to know a recorder by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qbee.audio import faults, load, mel
from qbee.detect.listening import UNUSABLE, low_rate
from qbee.detect.recordings import plain
from qbee.errors import AudioError
from qbee.records import FrontEnd, OnError

# Recordings are read to their ends, so that more of them would take their time.
MOST_RECORDINGS = 32


@dataclass(frozen=True, eq=False)
class Sample:
    """Windows of recordings, no two of which overlap.

    Attributes
    ----------
    images : np.ndarray [shape=(n, n_mels, n_frames)], float32, dB
        one recording after the other, in the order of ``recordings``
    recordings : those the images are of, in random order
    skipped : a message for each recording that could not be used
    """

    images: np.ndarray
    recordings: tuple[str, ...]
    skipped: tuple[str, ...]


def sample(
    paths: Sequence[Path],
    front_end: FrontEnd,
    *,
    windows: int,
    seed: int,
    on_error: OnError = "stop",
    on_progress: Callable[[int, int], None] | None = None,
) -> Sample:
    """At most so many windows, of at most ``MOST_RECORDINGS`` recordings, spread over each.

    Memory grows with the windows, not with the recordings, each of which is read to its end.

    Parameters
    ----------
    windows : int >= 1, shared equally by the recordings as far as they are long enough
    seed : of the choice of recordings and of where in them the windows lie
    on_error : 'skip' leaves out a recording that cannot be used and keeps the message; another
        one is looked for if its header is what is wrong
    on_progress : called with the number of recordings done and of all chosen ones

    Raises
    ------
    AudioError
        naming a recording that is damaged, shorter than a window or sampled too slowly, if
        ``on_error='stop'``.
    """
    rng, skipped = np.random.default_rng(seed), _Skipped(on_error)
    rooms: dict[Path, int] = {}
    for index in rng.permutation(len(paths)):
        if len(rooms) == min(MOST_RECORDINGS, windows):
            break
        with skipped:
            rooms[paths[index]] = _room(paths[index], front_end)
    found, used = [np.empty((0, front_end.n_mels, front_end.n_frames), np.float32)], []
    counts = shares([*rooms.values()], windows)
    for done, (path, room) in enumerate(rooms.items()):
        starts_s = front_end.window_s * _slots(room, counts[done], rng)
        with skipped:
            found.append(mel.images(path, front_end, starts_s.tolist()))
            used.append(plain(str(path)))
        if on_progress:
            on_progress(done + 1, len(rooms))
    return Sample(np.concatenate(found), tuple(used), tuple(skipped.messages))


def shares(rooms: Sequence[int], total: int) -> list[int]:
    """How many of ``total`` things go into each room: equally many, as far as there is room."""
    found, left = [0] * len(rooms), total
    for rank, index in enumerate(np.argsort(rooms, kind="stable")):
        found[index] = min(rooms[index], left // (len(rooms) - rank))
        left -= found[index]
    return found


class _Skipped:
    """Context that goes on after a recording that cannot be used, if that is wanted."""

    def __init__(self, on_error: OnError):
        self.on_error = on_error
        self.messages: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, AudioError):
            return False
        if self.on_error == "stop":
            raise AudioError(f"{error} (--on-error skip goes on)") from error
        self.messages.append(plain(str(error)))
        return True


def _room(path: Path, front_end: FrontEnd) -> int:
    """Number of windows side by side in a recording."""
    for fault in faults.of_header(path):
        if fault.kind in UNUSABLE:
            raise AudioError(f"{path}: {fault.text}")
    found = load.info(path)
    if found.sample_rate_hz < 2 * front_end.fmax_hz:
        raise AudioError(f"{path}: {low_rate(found.sample_rate_hz, front_end).text}")
    if found.duration_s < front_end.window_s:
        window = f"a window of {front_end.window_s:g} s"
        raise AudioError(f"{path}: {found.duration_s:.3f} s are shorter than {window}")
    return int(found.duration_s / front_end.window_s)


def _slots(room: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of ``room`` places, as far from each other as can be, from a random one on."""
    return np.floor((np.arange(count) + rng.random()) * room / count)
