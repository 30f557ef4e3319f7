"""What is wrong with the sound of a recording that can be read: measured while it is decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from qbee.audio import flac_header, wav_header
from qbee.audio.flac_header import FlacHeader
from qbee.audio.wav_header import WavHeader
from qbee.errors import AudioError

FaultKind = Literal[
    "wrong_length", "unfinished", "wrong_header", "silence", "dropout", "clipping", "dc_offset"
]
# Quieter than half a step of 16 bits: nothing but the converter's own noise.
SILENT_RMS = 2.0**-16
# Zeros for so long are no sound: even a quiet place moves the last bit of a converter.
DROPOUT_S = 0.1
# Places that are looked at within that time; sounds are zero at one of them, but never at all.
LOOKS = 8
# A smaller share of samples at full scale are single loud sounds.
CLIPPED_SHARE = 1e-3
FULL_SCALE = 1 - 2.0**-14
DC_SHARE = 0.02


@dataclass(frozen=True)
class Fault:
    """Something wrong with a recording that can be used all the same, and where it begins."""

    kind: FaultKind
    at_s: float
    text: str


def _header(path: Path) -> WavHeader | FlacHeader | None:
    try:
        with Path(path).open("rb") as file:
            if (found := wav_header.read(file)) is not None:
                return found
            file.seek(0)
            return flac_header.read(file)
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}") from error


def of_header(path: Path) -> list[Fault]:
    """What the header of a WAV or FLAC file says that cannot be true; other kinds have no faults.

    Raises
    ------
    AudioError
        if the file cannot be read.
    """
    header = _header(path)
    if header is None:
        return []
    if isinstance(header, WavHeader) and header.is_unfinished:
        text = "its header says that there is no sound, but some follows: it was never completed"
        return [Fault("unfinished", 0.0, text)]
    if header.contradiction:
        return [
            Fault("wrong_header", 0.0, f"its header contradicts itself: {header.contradiction}")
        ]
    if header.hidden_s:
        length_s = _length_s(header)
        text = f"{header.hidden_s:.3f} s of data follow the {length_s:.3f} s its header promises"
        return [Fault("wrong_length", length_s, text)]
    return []


def _length_s(header: WavHeader | FlacHeader) -> float:
    """Seconds of sound by the header."""
    if isinstance(header, FlacHeader):
        return header.samples / header.sample_rate_hz
    return header.data_bytes / header.byte_rate


class FaultMeter:
    """Measures silence, drop-outs, clipping and DC offset of a recording, block by block.

    Parameters
    ----------
    sample_rate_hz : int, of the blocks
    """

    def __init__(self, sample_rate_hz: int):
        self.rate, self._shortest = sample_rate_hz, max(1, round(DROPOUT_S * sample_rate_hz))
        self._samples = self._values = self._clipped = 0
        self._sum = self._squares = 0.0
        self._open_zeros = 0
        self._dropouts: list[tuple[int, int]] = []

    def add(self, block: np.ndarray) -> None:
        """Take in the next samples [n, channels], full scale is 1."""
        flat = block.reshape(-1)
        self._sum += float(flat.sum(dtype=np.float64))
        # A dot product is several times faster than a standard deviation.
        self._squares += float(np.dot(flat, flat))
        if flat.max(initial=0) >= FULL_SCALE or flat.min(initial=0) <= -FULL_SCALE:
            self._clipped += int(np.sum(np.abs(flat) >= FULL_SCALE))
        if len(block):
            self._follow_zeros(block)
        self._values += flat.size
        self._samples += len(block)

    def _follow_zeros(self, block: np.ndarray) -> None:
        """Note the runs of zeros in all channels that end in this block."""
        if not self._open_zeros and block[-1].any() and not self._may_drop_out(block):
            return
        sounding = np.flatnonzero(block.any(axis=1))
        borders = np.concatenate([[-self._open_zeros - 1], sounding, [len(block)]])
        lengths = np.diff(borders) - 1
        for run in np.flatnonzero(lengths[:-1] >= self._shortest):
            self._dropouts.append((self._samples + int(borders[run]) + 1, int(lengths[run])))
        self._open_zeros = int(lengths[-1])

    def _may_drop_out(self, block: np.ndarray) -> bool:
        """Whether samples at a regular distance leave room for a run that is long enough."""
        apart = max(1, self._shortest // LOOKS)
        sounding = np.flatnonzero(block[::apart].any(axis=1))
        zeros = np.diff(sounding, prepend=-1, append=-(-len(block) // apart)) - 1
        return bool(zeros.max() >= self._shortest // apart)

    def found(self) -> list[Fault]:
        """Faults of what was taken in so far; none if that is nothing."""
        if not self._values:
            return []
        mean = self._sum / self._values
        rms = np.sqrt(max(0.0, self._squares / self._values - mean**2))
        faults = []
        if rms < SILENT_RMS:
            faults.append(Fault("silence", 0.0, "there is no sound in it, only silence"))
        else:
            faults += self._found_dropouts()
        share = self._clipped / self._values
        if share >= CLIPPED_SHARE:
            faults.append(Fault("clipping", 0.0, f"{100 * share:.1f} % of it is at full scale"))
        if abs(mean) >= DC_SHARE:
            text = f"its mean is {100 * mean:.1f} % of full scale, not 0"
            faults.append(Fault("dc_offset", 0.0, text))
        return faults

    def _found_dropouts(self) -> list[Fault]:
        runs = list(self._dropouts)
        if self._open_zeros >= self._shortest:
            runs.append((self._samples - self._open_zeros, self._open_zeros))
        if not runs:
            return []
        total_s = sum(length for _, length in runs) / self.rate
        text = f"{len(runs)} stretches of zeros, {total_s:.3f} s in all: the sound drops out"
        return [Fault("dropout", runs[0][0] / self.rate, text)]
