"""Short stretches of recordings as FLAC files, to be listened to."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from qbee.audio import load
from qbee.detect.events import Event, Span
from qbee.errors import AudioError
from qbee.records import FrontEnd

# Sound on both sides of an event, for the ear.
AROUND_S = 1.0
LONGEST_S = 30.0


@dataclass(frozen=True, eq=False)
class Clip:
    """A stretch of a recording, mono, and where it begins there."""

    audio: bytes
    start_s: float
    duration_s: float


def top(events: Sequence[Event], count: int) -> list[Event]:
    """The surest events, the surest first; of equal ones any, but always the same."""
    # Logits of few bits make many equal, which must not all be of the first recording.
    shuffled = [events[i] for i in np.random.default_rng(0).permutation(len(events))]

    def order(event: Event) -> tuple[float, float]:
        return -event.peak_probability, -event.mean_probability

    return sorted(shuffled, key=order)[:count]


def stretch(event: Event) -> Span:
    """What of an event is cut out: all in the recording of its peak, or what lies around that."""
    peak = event.peak
    span = next(span for span in event.spans if span.listened is peak.listened)
    middle_s = (peak.start_s + peak.end_s) / 2
    start_s = max(span.start_s - AROUND_S, middle_s - LONGEST_S / 2)
    end_s = min(span.end_s + AROUND_S, middle_s + LONGEST_S / 2)
    return Span(span.listened, max(0.0, start_s), end_s)


def around(span: Span, front_end: FrontEnd) -> Span:
    """A window with as much sound on both sides as its first and last frames see.

    A whole number of frames lies before it, if that is inside the recording: the window in the
    clip then is the same image as in the recording.
    """
    frame_s = front_end.hop_samples / front_end.sample_rate_hz
    frames = math.ceil(front_end.n_fft / 2 / front_end.hop_samples)
    before = min(frames, int(round(span.start_s / frame_s, 6)))
    return Span(span.listened, span.start_s - before * frame_s, span.end_s + (frames + 1) * frame_s)


def cut(span: Span) -> Clip:
    """A stretch of a recording as a FLAC file.

    Raises
    ------
    AudioError
        if the recording cannot be read any more, or ends before the stretch.
    """
    recording = span.listened.placed.recording
    samples, rate = load.excerpt(recording.path, start_s=span.start_s, end_s=span.end_s)
    if not len(samples):
        raise AudioError(f"{recording.name}: has no sound at second {span.start_s:g} any more")
    try:
        return Clip(_flac(samples, rate), span.start_s, len(samples) / rate)
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{recording.name}: FLAC cannot hold {rate} Hz") from error


def _flac(samples: np.ndarray, rate: int) -> bytes:
    """16 bits; floats beyond full scale are clipped."""
    content = io.BytesIO()
    soundfile.write(content, np.clip(samples, -1, 1), rate, "PCM_16", format="FLAC")
    return content.getvalue()
