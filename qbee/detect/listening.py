"""One recording heard by a detector: windows in a stream, in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qbee.audio import faults, load, mel
from qbee.audio.faults import Fault, FaultMeter
from qbee.detect.parts import Identity, Part, Problem
from qbee.detect.recordings import FieldRecording
from qbee.errors import AudioError
from qbee.records import FrontEnd
from qbee.train import metrics

# Logits [n, 2] of dB mel images [n, n_mels, n_frames].
Logits = Callable[[np.ndarray], np.ndarray]
# A header that is wrong in these ways says nothing about where the sound is, or how fast.
UNUSABLE = ("unfinished", "wrong_header")


def listen(
    recording: FieldRecording,
    *,
    skip_samples: int,
    front_end: FrontEnd,
    logits: Logits,
    on_progress: Callable[[float], None],
) -> Part:
    """All windows of a recording, or those before its first damaged place.

    Parameters
    ----------
    on_progress : called with the seconds that were heard since it was called last
    """
    identity = Identity.of(recording, skip_samples)
    path = recording.path
    try:
        problems = [_of_header(fault) for fault in faults.of_header(path)]
        if any(problem.effect == "left_out" for problem in problems):
            return Part.nothing(identity, tuple(problems))
        found = load.info(path, allow_cut=True)
    except AudioError as error:
        return Part.nothing(identity, (_unreadable(path, error, "unreadable", "left_out", 0.0),))
    if found.sample_rate_hz < 2 * front_end.fmax_hz:
        return Part.nothing(identity, (*problems, low_rate(found.sample_rate_hz, front_end)))
    heard = _Hearing(recording, skip_samples, front_end, found.sample_rate_hz)
    margins, damage = heard.margins(logits, on_progress)
    problems += damage
    state = _state(path)
    if state != (identity.size_bytes, identity.modified_ns):
        text = "it was changed while it was read: a recorder may still be writing it"
        text = "it was gone before it was read to its end" if state is None else text
        return Part.nothing(identity, (_problem("changed", "left_out", text),))
    if not len(margins) and all(problem.effect == "used" for problem in damage):
        problems.append(_too_short(found.duration_s, front_end, continues=skip_samples > 0))
    return Part(identity, skip_samples / found.sample_rate_hz, margins, tuple(problems))


class _Hearing:
    """One pass over a recording."""

    def __init__(
        self, recording: FieldRecording, skip_samples: int, front_end: FrontEnd, rate: int
    ):
        self.path, self.skip_samples, self.front_end = recording.path, skip_samples, front_end
        self.rate, self.meter, self.samples = rate, FaultMeter(rate), 0

    def _listener(self, on_progress: Callable[[float], None]) -> load.Listener:
        def listener(block: np.ndarray) -> None:
            self.meter.add(block)
            self.samples += len(block)
            on_progress(len(block) / self.rate)

        return listener

    def margins(
        self, logits: Logits, on_progress: Callable[[float], None]
    ) -> tuple[np.ndarray, list[Problem]]:
        """Logits of buzz of all windows up to the end or to damage, and what is wrong."""
        found: list[np.ndarray] = [np.empty(0, np.float32)]
        problems = []
        try:
            for images in mel.windows(
                self.path,
                self.front_end,
                skip_samples=self.skip_samples,
                listener=self._listener(on_progress),
            ):
                found.append(metrics.margins(logits(images)).astype(np.float32))
        except AudioError as error:
            has_windows = sum(map(len, found)) > 0
            effect = "used_partly" if has_windows else "left_out"
            at_s = self.samples / self.rate
            problems.append(_unreadable(self.path, error, "cut_short", effect, at_s))
        problems += [_of_sound(fault) for fault in self.meter.found()]
        return np.concatenate(found), problems


def _too_short(duration_s: float, front_end: FrontEnd, *, continues: bool) -> Problem:
    """No window is inside; one that continues another may have had its only one over the cut."""
    text = f"{duration_s:.3f} s hold no window of {front_end.window_s:g} s"
    if continues and duration_s >= front_end.window_s:
        return _problem("too_short", "used", f"{text} that does not lie over the cut before it")
    return _problem("too_short", "left_out", text)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _problem(kind, effect, text: str, at_s: float = 0.0) -> Problem:
    return Problem(kind=kind, effect=effect, at_s=at_s, text=text)


def _unreadable(path: Path, error: AudioError, kind, effect, at_s: float) -> Problem:
    """Problem with the text of an error; the table names the file in a column of its own."""
    return _problem(kind, effect, str(error).removeprefix(f"{path}: "), at_s)


def _of_header(fault: Fault) -> Problem:
    effect = "left_out" if fault.kind in UNUSABLE else "used_partly"
    return _problem(fault.kind, effect, fault.text, fault.at_s)


def _of_sound(fault: Fault) -> Problem:
    return _problem(fault.kind, "used", fault.text, fault.at_s)


def low_rate(rate: int, front_end: FrontEnd) -> Problem:
    """Problem of a recording that has been sampled too slowly for a front end."""
    text = f"{rate} Hz hold no sound up to {front_end.fmax_hz:g} Hz, which the detector listens to"
    return _problem("rate_too_low", "left_out", text)
