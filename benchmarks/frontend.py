"""Speed and memory of the front end against librosa called window by window.

Run with ``python -m benchmarks.frontend``. Ours is `qbee.audio.mel.images`: reading,
resampling and one STFT over the recording. Theirs reads and resamples the recording once,
as a user of librosa would, and calls ``melspectrogram`` and ``power_to_db`` for each window.
Speed is seconds of recording per second of CPU time, on one thread.

Memory is that of `qbee.data.windows.images` writing every window to a file, as `qbee run` does,
in a process of its own: the peak of its anonymous memory (RssAnon in /proc, so Linux only),
looked at every 10 ms; a shorter peak may be missed. Pages of the file are left out: the system
drops them when it needs the room. The last line is JSON.
"""

import os

# Before numpy is imported: BLAS and OpenMP read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import soundfile

from benchmarks import outcome
from qbee.audio import mel
from qbee.data import windows
from qbee.records import FrontEnd, Window

FRONT_END = FrontEnd()
RATE_HZ = 16000
TIMED_S = 1800
MEMORY_S = {"60 min": 3600, "6 h": 6 * 3600}
REPEATS = 3
LEAST_RATIO = 4.0
LEAST_SPEED = 3500.0
TOLERANCE_DB = 1e-3
# Peaks of two processes differ by a few MB of heap layout, and the list of windows grows by
# some; the images of 6 h are 675 MB.
MEMORY_SLACK_MB = 16
SAMPLING_S = 0.01


def write_recording(path: Path, seconds: int) -> Path:
    """Write a hum of 230 Hz with harmonics in noise, 16 kHz, 16 bits, a minute repeated."""
    t = np.arange(60 * RATE_HZ) / RATE_HZ
    hum = sum(0.1 / k * np.sin(2 * np.pi * 230 * k * t) for k in range(1, 6))
    minute = hum + 0.02 * np.random.default_rng(seed=0).standard_normal(len(t))
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        for _ in range(seconds // 60):
            file.write(minute)
    return path


def ours(path: Path, starts_s: np.ndarray) -> np.ndarray:
    """Windows as qbee cuts them: (windows, n_mels, n_frames) in dB."""
    return mel.images(path, FRONT_END, starts_s)


def theirs(path: Path, starts_s: np.ndarray) -> np.ndarray:
    """Windows as librosa gives them: one resampling, one melspectrogram per window."""
    rate, frames = FRONT_END.sample_rate_hz, FRONT_END.n_frames
    samples, file_rate = soundfile.read(path, dtype="float32")
    y = librosa.resample(samples, orig_sr=file_rate, target_sr=rate, res_type="soxr_hq")
    windows = np.empty((len(starts_s), FRONT_END.n_mels, frames), np.float32)
    for index, first in enumerate(np.rint(starts_s * rate).astype(int)):
        power = librosa.feature.melspectrogram(
            y=y[first : first + frames * FRONT_END.hop_samples],
            sr=rate,
            n_fft=FRONT_END.n_fft,
            hop_length=FRONT_END.hop_samples,
            n_mels=FRONT_END.n_mels,
            fmin=FRONT_END.fmin_hz,
            fmax=FRONT_END.fmax_hz,
        )
        decibels = librosa.power_to_db(power, amin=FRONT_END.power_floor, top_db=None)
        windows[index] = decibels[:, :frames]
    return windows


def difference_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference of the frames that lie wholly inside their window."""
    half, hop = FRONT_END.n_fft // 2, FRONT_END.hop_samples
    first = -(-half // hop)
    last = (FRONT_END.n_frames * hop - half) // hop
    inner = slice(first, last + 1)
    return float(np.abs(ours[..., inner] - theirs[..., inner]).max())


def speed(side: Callable, path: Path, starts_s: np.ndarray) -> float:
    """Seconds of recording per CPU second, the median of some runs."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.process_time()
        side(path, starts_s)
        seconds.append(time.process_time() - begin)
    return TIMED_S / float(np.median(seconds))


def window_starts(seconds: int) -> np.ndarray:
    """Starts in seconds of all windows of a recording, one window hop apart."""
    last_s = seconds - FRONT_END.window_s
    return np.arange(0, last_s + FRONT_END.window_hop_s / 2, FRONT_END.window_hop_s)


def write_images(path: Path, seconds: int) -> None:
    """Write the images of all windows of a recording to a file beside it."""
    wanted = [Window(path, float(start), False, "x") for start in window_starts(seconds)]
    windows.images(wanted, FRONT_END, path=path.with_suffix(".npy"))


def anonymous_mb(process: subprocess.Popen) -> float:
    """Anonymous resident memory of a process in MB; 0 once it has ended."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 2**10 if found else 0.0


def peak_mb(folder: Path, seconds: int) -> float:
    """Peak anonymous memory in MB of a process of its own that writes a recording's images."""
    path = write_recording(folder / "memory.wav", seconds)
    command = [sys.executable, "-m", "benchmarks.frontend", str(path), str(seconds)]
    peak = 0.0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_mb(process))
            time.sleep(SAMPLING_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    path.unlink()
    path.with_suffix(".npy").unlink()
    return peak


def measure(folder: Path) -> tuple[dict[str, float], float, float, float]:
    """Peaks in MB by length, difference in dB, and the two speeds."""
    peaks = {name: peak_mb(folder, seconds) for name, seconds in MEMORY_S.items()}
    path = write_recording(folder / "timed.wav", TIMED_S)
    starts_s = window_starts(TIMED_S)
    # Comparing the features also warms up both sides.
    difference = difference_db(ours(path, starts_s), theirs(path, starts_s))
    return peaks, difference, speed(ours, path, starts_s), speed(theirs, path, starts_s)


def misses(peaks: dict[str, float], difference: float, fast: float, slow: float) -> dict[str, bool]:
    """Say for each bar, in words, what missing it means, and whether it is missed."""
    grown = max(peaks.values()) - min(peaks.values())
    return {
        f"features differ by {difference:.2g} dB, more than {TOLERANCE_DB} dB": (
            difference > TOLERANCE_DB
        ),
        f"ratio {fast / slow:.2f} is below {LEAST_RATIO}": fast / slow < LEAST_RATIO,
        f"{fast:.0f} s per CPU second is below {LEAST_SPEED:.0f}": fast < LEAST_SPEED,
        f"memory grows by {grown:.0f} MB with the recording": grown > MEMORY_SLACK_MB,
    }


def main() -> None:
    """Measure, print a table and the JSON line; exit with 1 if a bar is missed."""
    with tempfile.TemporaryDirectory() as folder:
        peaks, difference, fast, slow = measure(Path(folder))
    print(f"mel images of 4 s every 2 s from {TIMED_S // 60} min at {RATE_HZ} Hz, one thread")
    print(f"  {'qbee.audio.mel.images':<42}{fast:>8.0f} s of audio per CPU second")
    print(
        f"  {'librosa, melspectrogram for each window':<42}{slow:>8.0f} s of audio per CPU second"
    )
    print(f"  {'ratio (bar: 4)':<42}{fast / slow:>8.2f}")
    print(f"  {'largest difference inside windows':<42}{difference:>8.1e} dB")
    for name, peak in peaks.items():
        print(f"  {f'anonymous memory, images of {name} to file':<42}{peak:>8.0f} MB")
    outcome.finish(
        "frontend",
        ours=fast,
        theirs=slow,
        unit="s of audio per CPU second",
        missed=misses(peaks, difference, fast, slow),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write_images(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
