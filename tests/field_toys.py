"""Recordings of a field season, and a detector that hears how loud a window is."""

import os
import signal
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile

from qbee.detect.crew import Ears
from qbee.detect.parts import Identity, Part
from qbee.detect.recordings import FieldRecording, Placed
from qbee.records import FrontEnd

RATE = 8000
FRONT_END = FrontEnd(n_mels=32, n_frames=32, window_hop_frames=16)
# dB at which the loudness detector is undecided: between the tone and the noise of `sound`.
EDGE_DB = -40.0


def sound(seconds, tones, *, seed=0, rate=RATE):
    """Faint noise with a tone of 400 Hz in each stretch (start, end) of seconds."""
    t = np.arange(round(seconds * rate)) / rate
    samples = 1e-3 * np.random.default_rng(seed).standard_normal(len(t))
    for start, end in tones:
        inside = (t >= start) & (t < end)
        samples[inside] += 0.3 * np.sin(2 * np.pi * 400 * t[inside])
    return samples


def write(path, samples, *, rate=RATE, **form):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), samples, rate, **form)
    return path


def name_of(start: datetime) -> str:
    return f"{start:%Y%m%d_%H%M%S}.wav"


def loudness(images):
    """Logits that say buzz where a window has a loud band."""
    margin = images.max(axis=1).mean(axis=1) - EDGE_DB
    return np.stack([np.zeros_like(margin), margin / 10], axis=1)


@dataclass(frozen=True)
class LoudnessEars:
    """Opens the loudness detector; it may take its time."""

    slow_s: float = 0.0

    def __call__(self):
        return Ears(FRONT_END, self._logits)

    def _logits(self, images):
        time.sleep(self.slow_s)
        return loudness(images)


@dataclass(frozen=True)
class DeadlyEars:
    """Opens a detector that dies of a window louder than anything else."""

    def __call__(self):
        return Ears(FRONT_END, self._logits)

    def _logits(self, images):
        if images.max() > 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return loudness(images)


@dataclass(frozen=True)
class BrokenEars:
    """Cannot be opened."""

    def __call__(self):
        from qbee.errors import ModelFileError

        raise ModelFileError("model.tflite: is damaged")


def recording(name="a.wav", *, location="here", start=None, duration_s=60.0, rate=RATE):
    return FieldRecording(
        uri=Path(f"/field/{location}/{name}").as_uri(),
        location=location,
        started_at=start and start.isoformat(),
        zone=getattr(start and start.tzinfo, "key", None),
        size_bytes=1,
        modified_ns=1,
        sample_rate_hz=rate,
        duration_s=duration_s,
    )


def part_of(placed: Placed, margins, *, first_s=0.0, problems=()):
    identity = Identity.of(placed.recording, placed.skip_samples)
    return Part(identity, first_s, np.asarray(margins, np.float32), tuple(problems))


def season(folder, *, nights=2, files=3, seconds=20.0, start=datetime(2024, 5, 1, 22)):
    """Nights of files that continue each other, with a tone in each; returns their paths."""
    paths = []
    for night in range(nights):
        for number in range(files):
            begun = start + timedelta(days=night, seconds=seconds * number)
            samples = sound(seconds, [(5 + number, 9 + number)], seed=10 * night + number)
            paths.append(write(folder / "orchard" / name_of(begun), samples))
    return paths
