"""Sound files: what they are, and their samples as a mono stream at a wanted rate."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from qbee.audio.wav_header import OPEN_LENGTH_BYTES
from qbee.errors import AudioError, ParameterError
from qbee.records import Recording

# libsndfile's stand-in where a FLAC header leaves the length open (written by a pipe).
UNKNOWN_FRAMES = 2**63 - 1
# An MP3 without a length tag has its length estimated; the last frame may be cut.
MP3_SLACK_FRAMES = 2 * 1152
# libsndfile's SFE_BAD_FILE: "file does not exist" although it does, if no decoder wants it.
BAD_FILE = 7
# In these formats a place is found exactly, without decoding what lies before it.
SEEKABLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "FLAC")
MOST_BLOCK_VALUES = 1 << 26
# Hears decoded samples [n, channels], float32, before they are averaged and resampled.
Listener = Callable[[np.ndarray], None]
CUT_CHUNK = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)


class _OneWayFile(soundfile.SoundFile):
    """A sound file read from front to back.

    soundfile seeks to where it already is after each read, which makes libsndfile's MP3
    decoder start afresh in the middle of a frame (an audible error at every block) and
    fails for a FLAC of unknown length; a file that is not seekable is left alone.
    """

    def seekable(self) -> bool:
        return False


def info(path: Path, *, allow_cut: bool = False) -> Recording:
    """Rate, channels and duration of a sound file.

    With ``allow_cut``, that of the sound there is in a WAV or AIFF shorter than its header says,
    which is an error otherwise. An MP3 without a length tag has its duration estimated by the
    decoder; a FLAC whose header leaves the length open is decoded once to count its samples.

    Raises
    ------
    AudioError
        if the file is missing, a folder, empty, not sound, without samples, or a WAV or
        AIFF shorter than its header says.
    """
    path = Path(path)
    with _opened(path) as file:
        if not allow_cut:
            _require_whole_chunk(file, path)
        rate, channels, frames = file.samplerate, file.channels, file.frames
        if frames == UNKNOWN_FRAMES:
            frames = sum(len(block) for block in _mono_blocks(file, path, rate))
    return Recording(path=path, sample_rate_hz=rate, channels=channels, duration_s=frames / rate)


def excerpt(path: Path, *, start_s: float, end_s: float) -> tuple[np.ndarray, int]:
    """Mono samples of a stretch of a recording at its own rate, as far as it is inside.

    Returns
    -------
    np.ndarray [shape=(n,)], float32, and the rate in Hz

    Raises
    ------
    AudioError
        as `stream`.
    """
    path = Path(path)
    with _opened(path) as file:
        rate = file.samplerate
        first, last = (max(0, round(second * rate)) for second in (start_s, end_s))
        if file.format in SEEKABLE and file.frames != UNKNOWN_FRAMES:
            if first >= min(last, file.frames):
                return np.empty(0, np.float32), rate
            file.seek(first)
            return next(_mono_blocks(file, path, last - first)), rate
        found, at = [np.empty(0, np.float32)], 0
        for block in _mono_blocks(file, path, 30 * rate):
            found.append(block[max(0, first - at) : max(0, last - at)])
            at += len(block)
            if at >= last:
                break
        return np.concatenate(found), rate


def comment(path: Path) -> str:
    """Comment in the header of a sound file, empty if there is none.

    Raises
    ------
    AudioError
        as `info`, except for a file that is cut short.
    """
    with _opened(Path(path)) as file:
        return file.comment


def stream(
    path: Path,
    *,
    sample_rate_hz: int,
    block_s: float = 30.0,
    skip_samples: int = 0,
    listener: Listener | None = None,
) -> Iterator[np.ndarray]:
    """Mono samples of a recording at ``sample_rate_hz``, block by block in constant memory.

    Channels are averaged; another rate is resampled by one soxr HQ stream over the whole
    recording, so block borders leave no trace.

    Parameters
    ----------
    path : Path of a WAV, FLAC, OGG, MP3 or other file libsndfile reads
    sample_rate_hz : int > 0
    block_s : float > 0, seconds read at a time
    skip_samples : int >= 0, samples of the file that are left out at its beginning
    listener : called with all samples of every block as they are in the file [n, channels]

    Yields
    ------
    np.ndarray [shape=(n,)], float32, full scale is 1; the n add up to the duration times
    ``sample_rate_hz`` within a sample

    Raises
    ------
    ParameterError
        if ``sample_rate_hz`` or ``block_s`` is not positive.
    AudioError
        as `info`; and at the damaged place for a sample that is not finite or a file
        whose sound ends before its header says. What lies before was yielded, except for up
        to ``block_s`` before a place that a compressed file cannot be decoded at.
    """
    if not sample_rate_hz > 0:
        raise ParameterError(f"sample_rate_hz={sample_rate_hz!r} must be positive")
    if not 0 < block_s < np.inf:
        raise ParameterError(f"block_s={block_s!r} must be positive and finite")
    return _resampled(Path(path), sample_rate_hz, block_s, skip_samples, listener)


def _resampled(
    path: Path,
    sample_rate_hz: int,
    block_s: float,
    skip_samples: int,
    listener: Listener | None,
) -> Iterator[np.ndarray]:
    with _opened(path) as file:
        # A damaged header may claim any rate, and memory is asked for before anything is read.
        most = MOST_BLOCK_VALUES // file.channels
        block_frames = max(1, min(round(block_s * file.samplerate), most))
        blocks = _without_first(_mono_blocks(file, path, block_frames, listener), skip_samples)
        if file.samplerate == sample_rate_hz:
            yield from blocks
            return
        resampler = soxr.ResampleStream(
            file.samplerate, sample_rate_hz, 1, dtype="float32", quality="HQ"
        )
        for block in blocks:
            yield resampler.resample_chunk(block)
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)


def _without_first(blocks: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The same signal without its first ``count`` samples."""
    for block in blocks:
        if count < len(block):
            yield block[count:]
        count = max(0, count - len(block))


def _mono_blocks(
    file: _OneWayFile, path: Path, block_frames: int, listener: Listener | None = None
) -> Iterator[np.ndarray]:
    """Mean of the channels, checked to be finite and as long as the header says."""
    weights = np.full(file.channels, 1 / file.channels, np.float32)
    decoded = 0
    while len(block := _read(file, path, block_frames)):
        # A product with the weights is many times faster than a mean over two channels.
        mono = block[:, 0] if file.channels == 1 else block @ weights
        whole = _finite_length(mono)
        if listener is not None:
            listener(block[:whole])
        yield mono[:whole]
        if whole < len(mono):
            second = (decoded + whole) / file.samplerate
            raise AudioError(f"{path}: sample at second {second:.3f} is {mono[whole]}, not finite")
        decoded += whole
    _require_whole_chunk(file, path)
    slack = MP3_SLACK_FRAMES if file.format == "MP3" else 0
    if file.frames != UNKNOWN_FRAMES and decoded + slack < file.frames:
        raise _cut_short(path, decoded, file.frames, file.samplerate)


def _read(file: _OneWayFile, path: Path, block_frames: int) -> np.ndarray:
    try:
        return file.read(block_frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = _reason(error)
        raise _cut_short(path, file.tell(), file.frames, file.samplerate, reason) from error


def _reason(error: soundfile.LibsndfileError) -> str:
    return error.error_string.removeprefix("Error : ").rstrip(".")


def _finite_length(mono: np.ndarray) -> int:
    """Number of samples before the first that is not finite."""
    finite = np.isfinite(mono)
    return len(mono) if finite.all() else int(np.argmin(finite))


def _cut_short(
    path: Path, decoded: int, header: int, sample_rate_hz: int, reason: str = "truncated"
) -> AudioError:
    promised = "unknown" if header == UNKNOWN_FRAMES else f"{header / sample_rate_hz:.3f} s"
    return AudioError(
        f"{path}: sound ends at second {decoded / sample_rate_hz:.3f}, "
        f"length by its header: {promised} ({reason})"
    )


@contextmanager
def _opened(path: Path) -> Iterator[_OneWayFile]:
    """Sound file with at least one sample, or an AudioError that says what it is instead."""
    _require_content(path)
    try:
        # As bytes, since a name need not be text in the system's encoding.
        file = _OneWayFile(os.fsencode(path))
    except soundfile.LibsndfileError as error:
        known = "" if error.code == BAD_FILE else f": {_reason(error)}"
        raise AudioError(f"{path}: not a sound file that can be read{known}") from error
    with file:
        if file.frames == 0:
            raise AudioError(f"{path}: contains no samples")
        yield file


def _require_content(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, not a sound file")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty (0 bytes)")
        with path.open("rb"):
            pass
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}") from error
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples without a header are not supported")


def _require_whole_chunk(file: _OneWayFile, path: Path) -> None:
    """Refuse a WAV or AIFF cut short, which libsndfile only notes in its log and reads."""
    cut = CUT_CHUNK.search(file.extra_info)
    if cut is None or int(cut[1]) >= OPEN_LENGTH_BYTES:
        return
    header = file.frames * int(cut[1]) // int(cut[2])
    if header > file.frames:
        raise _cut_short(path, file.frames, header, file.samplerate)
