"""Labelled recordings of real buzzes mixed into real backgrounds.

The recordings of one mixture share buzz clips and backgrounds, so no split of it, not even by
location, has independent parts, and scores on its test part are too high. Score a detector on
a second mixture made of other clips and other backgrounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qbee.audio import dataset, load
from qbee.audio.dataset import COLUMNS, FILE_RATE_HZ, at_peak, check_sizes, write_table, write_wav
from qbee.audio.layers import AUDIBLE_S, BAND_HZ, Layer, in_band, label_rows, layer_of, visits
from qbee.audio.sources import samples
from qbee.errors import AudioError, ParameterError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64")


def mix(
    buzz_folder: Path,
    background_folder: Path,
    out_folder: Path,
    *,
    seed: int,
    snr_db: tuple[float, float] = (-5.0, 20.0),
    duration_s: float = 60.0,
    recordings: int = 10,
) -> Path:
    """Write real buzzes mixed into real backgrounds, and their ``labels.csv``.

    Each recording has one background and one SNR, drawn from the range ``snr_db``; the table
    has it in the column ``snr_db`` of the segments with a buzz. Labels are those of
    `qbee.audio.synth.soundscapes`; the time of recording stays empty. The location is the
    background's sub-folder, or its file stem. Long files give random parts, short ones are
    looped. Recordings share clips: score on another mixture (see the module).

    Raises
    ------
    ParameterError
        if a folder has no sound files, ``out_folder`` has a ``labels.csv`` or cannot be
        written to, or a number is out of range.
    AudioError
        if a clip cannot be read or is silent within 50-1450 Hz; names the file.
    """
    check_sizes(seed, duration_s, recordings=recordings)
    if not -np.inf < snr_db[0] <= snr_db[1] < np.inf:
        raise ParameterError(f"snr_db={snr_db!r} must be (lowest, highest)")
    buzzes, backgrounds = sound_files(buzz_folder), sound_files(background_folder)
    folder, rows = dataset.new_folder(out_folder), []
    order = np.random.default_rng(seed).permutation(len(backgrounds))
    for index in range(recordings):
        rng = np.random.default_rng([seed, index])
        path = backgrounds[order[index % len(order)]]
        snr = rng.uniform(*snr_db)
        y, bees = mixture(buzzes, path, snr, duration_s, rng=rng)
        name = f"mix_{index + 1:03d}.wav"
        write_wav(folder / name, y)
        nested = path.parent != Path(background_folder)
        location = path.relative_to(background_folder).parts[0] if nested else path.stem
        for row in label_rows(bees, rate_hz=FILE_RATE_HZ):
            rows.append((name, *row, location, "", "" if row[2] == "no_buzz" else f"{snr:.2f}"))
    return write_table(folder / dataset.TABLE, (*COLUMNS, "snr_db"), rows)


def mixture(
    buzzes: Sequence[Path],
    background_path: Path,
    snr_db: float,
    duration_s: float,
    *,
    rng: np.random.Generator,
) -> tuple[np.ndarray, Layer]:
    """One recording and the layer of its bees, both at ``FILE_RATE_HZ``."""

    def bee(length_s: float) -> np.ndarray:
        path = buzzes[int(rng.integers(len(buzzes)))]
        sound = random_part(path, samples(length_s, rate_hz=FILE_RATE_HZ), rng=rng)
        edge = np.sin(np.linspace(0, np.pi / 2, len(sound) // 20 + 1)) ** 2
        sound = looped(sound, max(len(sound), samples(1.5 * AUDIBLE_S, rate_hz=FILE_RATE_HZ)))
        sound[: len(edge)] *= edge
        sound[-len(edge) :] *= edge[::-1]
        return sound

    n = samples(duration_s, rate_hz=FILE_RATE_HZ)
    background = looped(random_part(background_path, n, rng=rng), n)
    flights = visits(n, bee, rate_hz=FILE_RATE_HZ, rng=rng)
    events = [(start, sound, snr_db) for start, sound in flights]
    bees = layer_of(events, background, rate_hz=FILE_RATE_HZ)
    return at_peak(background + bees.y, rng.uniform(-20, -1)), bees


def sound_files(folder: Path) -> list[Path]:
    """Sorted paths of the sound files in a folder and its sub-folders."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ParameterError(f"{folder}: no sound files ({', '.join(SUFFIXES)}) in this folder")
    return paths


def random_part(path: Path, n_samples: int, *, rng: np.random.Generator) -> np.ndarray:
    """``n_samples`` at 16 kHz from anywhere in a file, or all of a shorter one.

    Blocks of digital silence, with which data sets pad clips, are cut out.
    """
    length = samples(load.info(path).duration_s, rate_hz=FILE_RATE_HZ)
    start = rng.integers(0, max(1, length - n_samples + 1))
    blocks, position = [], 0
    for block in load.stream(path, sample_rate_hz=FILE_RATE_HZ):
        position += len(block)
        if position > start:
            blocks.append(block[max(0, start - position + len(block)) :])
        if position >= start + n_samples:
            break
    y = np.concatenate(blocks)[:n_samples].astype(float)
    pieces = np.array_split(y, max(1, len(y) // 160))
    y = np.concatenate([piece for piece in pieces if piece.any()] or [np.zeros(1)])
    if np.mean(in_band(y, rate_hz=FILE_RATE_HZ) ** 2) <= 1e-6 * np.mean(y**2):
        raise AudioError(f"{path}: silent within {BAND_HZ[0]:g}-{BAND_HZ[1]:g} Hz")
    return y


def looped(y: np.ndarray, n_samples: int) -> np.ndarray:
    """Cut ``n_samples`` from ``y`` repeated with crossfades of equal power of 0.1 s."""
    if len(y) >= n_samples:
        return y[:n_samples]
    fade = max(1, min(samples(0.1, rate_hz=FILE_RATE_HZ), len(y) // 2))
    ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / fade)
    joint = y[-fade:] * ramp[::-1] + y[:fade] * ramp
    period = np.concatenate([joint, y[fade:-fade]])
    return np.concatenate([y[:-fade], np.resize(period, n_samples)])[:n_samples]
