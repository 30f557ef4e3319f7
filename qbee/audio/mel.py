"""Mel images in dB: one streaming STFT over a recording, and windows cut from it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import librosa
import numpy as np
import scipy.fft
import scipy.sparse

from qbee.audio import load
from qbee.errors import AudioError, ParameterError
from qbee.records import FrontEnd

# Frames transformed at once; the buffers of 512 frames of 512 samples fit a level-2 cache.
BATCH_FRAMES = 512
# Divisor of a window's deviation from its mean is at least this: a silent window, whose
# standard deviation is rounding noise or zero, must not be blown up into a loud image.
MIN_STD_DB = 0.1


@functools.cache
def filterbank(front_end: FrontEnd) -> np.ndarray:
    """Triangular mel filters, Slaney's scale and area normalization.

    Returns
    -------
    np.ndarray [shape=(n_mels, n_fft // 2 + 1)], float32, read-only as it is shared

    Raises
    ------
    ParameterError
        if a band is so narrow that it contains no FFT bin.
    """
    with warnings.catch_warnings():
        # librosa warns of empty bands, which are an error here.
        warnings.filterwarnings("ignore", message="Empty filters", category=UserWarning)
        bank = librosa.filters.mel(
            sr=front_end.sample_rate_hz,
            n_fft=front_end.n_fft,
            n_mels=front_end.n_mels,
            fmin=front_end.fmin_hz,
            fmax=front_end.fmax_hz,
        )
    empty = np.flatnonzero(~bank.any(axis=1))
    if empty.size:
        raise ParameterError(
            f"n_fft={front_end.n_fft} is too short for n_mels={front_end.n_mels}: "
            f"mel band {empty[0]} contains no FFT bin"
        )
    bank.setflags(write=False)
    return bank


def stream(
    path: Path,
    front_end: FrontEnd,
    *,
    skip_samples: int = 0,
    listener: load.Listener | None = None,
) -> Iterator[np.ndarray]:
    """Mel frames in dB of one STFT over a recording, in order and in constant memory.

    Frame t is centred on sample ``t * hop_samples`` at ``sample_rate_hz``, the signal is
    padded with zeros by ``n_fft // 2``, the Hann window is periodic: for an even ``n_fft``
    there are ``1 + samples // hop_samples`` frames. Transformed in float32: bands down to
    80 dB below a frame's loudest are exact to 1e-3 dB, far fainter ones to about 1 dB.

    Parameters
    ----------
    skip_samples, listener : as of `qbee.audio.load.stream`; frames are counted from where the
        skipped samples end

    Yields
    ------
    np.ndarray [shape=(n_mels, n)], float32, 10 log10(max(power, power_floor))

    Raises
    ------
    ParameterError
        as `filterbank`.
    AudioError
        as `qbee.audio.load.stream`.
    """
    filterbank(front_end)
    samples = load.stream(
        path,
        sample_rate_hz=front_end.sample_rate_hz,
        skip_samples=skip_samples,
        listener=listener,
    )
    batches = _batches(_padded(samples, front_end), front_end)
    return (_decibels(batch, front_end) for batch in batches)


def windows(
    path: Path,
    front_end: FrontEnd,
    *,
    skip_samples: int = 0,
    listener: load.Listener | None = None,
) -> Iterator[np.ndarray]:
    """All windows of a recording, ``window_hop_frames`` apart, in constant memory.

    They equal what `images` cuts out at the same places. Parameters and errors are those of
    `stream`.

    Yields
    ------
    np.ndarray [shape=(n, n_mels, n_frames)], float32, dB; the next n windows, may be views
    """
    length, hop = front_end.n_frames, front_end.window_hop_frames
    frames = np.empty((front_end.n_mels, 0), np.float32)
    to_skip = 0
    for block in stream(path, front_end, skip_samples=skip_samples, listener=listener):
        frames = np.concatenate([frames, block], axis=1)[:, to_skip:]
        count = max(0, 1 + (frames.shape[1] - length) // hop)
        if count:
            cut = np.lib.stride_tricks.sliding_window_view(frames, length, axis=1)
            yield cut[:, : count * hop : hop].swapaxes(0, 1)
        # Where windows lie apart, the next one may begin behind what there is.
        to_skip = max(0, count * hop - frames.shape[1])
        frames = frames[:, count * hop :]


def images(
    path: Path,
    front_end: FrontEnd,
    starts_s: Sequence[float],
    *,
    out: np.ndarray | None = None,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Windows of a recording cut from one STFT over it; only they are kept in memory.

    Frames at the edges of a window see the sound beside it, as in a detector that listens
    all the time. The recording is read to its end, so damage anywhere is reported.

    Parameters
    ----------
    starts_s : seconds >= 0 in any order, rounded to the nearest frame; may overlap
    out : array [shape=(n, n_mels, n_frames)], float32, to write into, such as a memory map:
        then none are kept in memory. After an error its rows hold anything
    rows : window i is written to ``out[rows[i]]``, i unless given

    Returns
    -------
    np.ndarray [shape=(len(starts_s), n_mels, n_frames)], float32, dB; or ``out`` if given

    Raises
    ------
    ParameterError
        as `filterbank`, if a start is negative or not finite, or if ``out`` and ``rows`` do
        not fit the front end and the starts.
    AudioError
        as `qbee.audio.load.stream`, or if a window ends beyond the recording.
    """
    firsts = _first_frames(starts_s, front_end)
    order = np.argsort(firsts, kind="stable")
    rows = range(len(firsts)) if rows is None else rows
    if out is None:
        out = np.empty((len(firsts), front_end.n_mels, front_end.n_frames), np.float32)
    _require_room(out, rows, len(firsts), front_end)
    position = 0
    for block in stream(path, front_end):
        begin = np.searchsorted(firsts, position - front_end.n_frames, "right", order)
        end = np.searchsorted(firsts, position + block.shape[1], "left", order)
        for window in order[begin:end]:
            _copy_overlap(block, out[rows[window]], offset=firsts[window] - position)
        position += block.shape[1]
    outside = np.flatnonzero(firsts + front_end.n_frames > position)
    if outside.size:
        raise AudioError(
            f"{path}: window of {front_end.window_s:g} s at second {starts_s[outside[0]]:g} "
            f"ends beyond the recording of {load.info(path).duration_s:.3f} s"
        )
    return out


def image(samples: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Mel image of one window on its own, in librosa calls: the specification of `stream`.

    Frames that reach over the window's edges see zeros there; all others equal `images`.

    Parameters
    ----------
    samples : np.ndarray [shape=(n_frames * hop_samples,)], finite

    Returns
    -------
    np.ndarray [shape=(n_mels, n_frames)], float32, dB

    Raises
    ------
    ParameterError
        as `filterbank`, or if the samples are not one window of finite values.
    """
    samples = np.asarray(samples, np.float32)
    expected = (front_end.n_frames * front_end.hop_samples,)
    if samples.shape != expected or not np.isfinite(samples).all():
        raise ParameterError(f"samples.shape={samples.shape} must be {expected}, all finite")
    spectrum = librosa.stft(
        samples, n_fft=front_end.n_fft, hop_length=front_end.hop_samples, pad_mode="constant"
    )
    power = filterbank(front_end) @ np.abs(spectrum[:, : front_end.n_frames]) ** 2
    return 10 * np.log10(np.maximum(power, np.float32(front_end.power_floor)))


def standardize(images: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Images in units of standard deviations, as ``front_end.standardize`` says.

    'window': minus the window's mean, over its population standard deviation but at least
    ``MIN_STD_DB``. 'fold': minus ``mean_db``, over ``std_db``. Works window by window, so
    a memory-mapped input stays on disk.

    Parameters
    ----------
    images : np.ndarray [shape=(..., n_mels, n_frames)], dB

    Returns
    -------
    np.ndarray [same shape], float32, new

    Raises
    ------
    ParameterError
        if the shape is not the front end's, or 'fold' lacks ``mean_db`` and ``std_db``.
    """
    expected = (front_end.n_mels, front_end.n_frames)
    if images.shape[-2:] != expected:
        raise ParameterError(f"images.shape={images.shape} must end in {expected}")
    if front_end.standardize == "fold" and front_end.mean_db is None:
        raise ParameterError("mean_db=None and std_db=None must be given to standardize by fold")
    standard = np.empty(images.shape, np.float32)
    for index in np.ndindex(images.shape[:-2]):
        window = np.asarray(images[index], np.float32)
        mean, divisor = _moments(window, front_end)
        np.subtract(window, np.float32(mean), out=standard[index])
        standard[index] /= np.float32(divisor)
    return standard


def _moments(window: np.ndarray, front_end: FrontEnd) -> tuple[float, float]:
    mean_db, std_db = front_end.mean_db, front_end.std_db
    if front_end.standardize == "fold" and mean_db is not None and std_db is not None:
        return mean_db, std_db
    mean = window.mean(dtype=np.float64)
    # The same as numpy's std, which would find the mean once more.
    squares = np.subtract(window, mean, dtype=np.float64)
    squares *= squares
    return mean, max(np.sqrt(squares.mean()), MIN_STD_DB)


@functools.cache
def _projection(front_end: FrontEnd) -> tuple[np.ndarray, slice, scipy.sparse.csr_array]:
    """Hann window, the FFT bins that lie under a filter, and the filters on these bins."""
    bank = filterbank(front_end)
    used = np.flatnonzero(bank.any(axis=0))
    bins = slice(int(used[0]), int(used[-1]) + 1)
    hann = librosa.filters.get_window("hann", front_end.n_fft).astype(np.float32)
    # A triangle covers few bins; sparse is faster than BLAS here and stays on one thread.
    return hann, bins, scipy.sparse.csr_array(bank[:, bins])


def _padded(samples: Iterator[np.ndarray], front_end: FrontEnd) -> Iterator[np.ndarray]:
    half = front_end.n_fft // 2
    yield np.zeros(half, np.float32)
    yield from samples
    # The last frame must leave a whole hop behind it, like all others (see _batches).
    yield np.zeros(half + max(0, front_end.hop_samples - front_end.n_fft), np.float32)


def _batches(blocks: Iterator[np.ndarray], front_end: FrontEnd) -> Iterator[np.ndarray]:
    """Overlapping frames (views) of a signal that comes in blocks: (<= BATCH_FRAMES, n_fft)."""
    hop = front_end.hop_samples
    span = max(front_end.n_fft, hop)
    rest = np.empty(0, np.float32)
    for block in blocks:
        signal = np.concatenate([rest, block])
        count = max(0, 1 + (len(signal) - span) // hop)
        if count:
            frames = np.lib.stride_tricks.sliding_window_view(signal, front_end.n_fft)[::hop]
            for begin in range(0, count, BATCH_FRAMES):
                yield frames[begin : min(begin + BATCH_FRAMES, count)]
        rest = signal[count * hop :]


def _decibels(frames: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    hann, bins, filters = _projection(front_end)
    spectrum = scipy.fft.rfft(frames * hann, axis=1, overwrite_x=True)[:, bins]
    power = np.square(spectrum.real)
    power += np.square(spectrum.imag)
    mel = filters @ power.T
    np.maximum(mel, np.float32(front_end.power_floor), out=mel)
    np.log10(mel, out=mel)
    mel *= 10
    return mel


def _first_frames(starts_s: Sequence[float], front_end: FrontEnd) -> np.ndarray:
    starts = np.asarray(starts_s, np.float64)
    wrong = starts[~(np.isfinite(starts) & (starts >= 0))]
    if wrong.size:
        raise ParameterError(f"starts_s={wrong[0]} must be finite and at least 0")
    return np.rint(starts * front_end.sample_rate_hz / front_end.hop_samples).astype(np.int64)


def _require_room(
    out: np.ndarray, rows: Sequence[int], n_windows: int, front_end: FrontEnd
) -> None:
    expected = (front_end.n_mels, front_end.n_frames)
    if out.shape[1:] != expected or out.dtype != np.float32:
        raise ParameterError(f"out={out.dtype} {out.shape} must be float32 (n, {expected})")
    if len(rows) != n_windows or any(not 0 <= row < len(out) for row in rows):
        raise ParameterError(
            f"rows must be {n_windows}, one per start, from 0 to {len(out) - 1}; got {len(rows)}"
        )


def _copy_overlap(block: np.ndarray, window: np.ndarray, *, offset: int) -> None:
    """Fill the columns of a window that starts ``offset`` columns after the block does."""
    begin, end = max(offset, 0), min(offset + window.shape[1], block.shape[1])
    window[:, begin - offset : end - offset] = block[:, begin:end]
